-- A programmer who meets an error learns from its HINT what this caller did: hints of different mistakes differ, and each error has one.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
CREATE FUNCTION pg_temp.parts(command text, OUT state text, OUT message text, OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END $$;
SELECT is(idempotent_resolve('s', 'done', 'r', '"secret"'), 'recorded', 'a finished key');
SELECT is(outcome, 'started', 'a claim') FROM unnest('{live,ended,parked,released}'::text[]) k, idempotent_begin('s', k, '{"secret": 1}', lease => '1 hour');
SELECT is(idempotent_park('s', 'parked', 1, 'unknown'), true, 'parked');
SELECT is(idempotent_release('s', 'released', 1, 'closed', '1 hour'), true, 'released');
SELECT is(pg_temp.end_lease('ended'), 'ended', 'ended');

BEGIN;
SELECT is(outcome, 'replayed', 'a replay') FROM idempotent_begin('s', 'done');
SELECT is(outcome, 'started', 'an attempt') FROM idempotent_begin('s', 'mine');
SELECT is(outcome, 'in_progress', 'a try') FROM idempotent_try_begin('s', 'live');
CREATE TEMP TABLE met AS SELECT n, command, want, p.* FROM (VALUES
	(1, $$SELECT idempotent_finish('s', 'never')$$, 'IK500'),
	(2, $$SELECT idempotent_finish('s', 'done')$$, 'IK500'),
	(3, $$SELECT idempotent_finish('s', 'live')$$, 'IK500'),
	(4, $$SELECT idempotent_begin('s', 'mine')$$, 'IK500'),
	(5, $$SELECT idempotent_checkpoint('s', 'mine', 1, 'c')$$, 'IK500'),
	(6, $$SELECT idempotent_park('s', 'mine', 1, 'e')$$, 'IK500'),
	(7, $$SELECT idempotent_resolve('s', 'mine', 'r')$$, 'IK500'),
	(10, $$SELECT idempotent_begin('s', 'live', '{"secret": 1}')$$, 'IK409'),
	(11, $$SELECT idempotent_begin('s', 'released', '{"secret": 1}')$$, 'IK409'),
	(12, $$SELECT idempotent_resolve('s', 'done', 'r')$$, 'IK409'),
	(13, $$SELECT idempotent_resolve('s', 'live', 'r')$$, 'IK409'),
	(20, $$SELECT idempotent_begin('s', 'parked', '{"secret": 1}')$$, 'IK423'),
	(21, $$SELECT idempotent_begin('s', 'live', '{"other": 2}')$$, 'IK422'),
	(22, $$SELECT idempotent_begin('s', 'old', first_sent => now() - interval '2 days')$$, 'IK412'),
	(30, $$SELECT idempotent_finish('s', 'never', attempt => 1)$$, 'IK410'),
	(31, $$SELECT idempotent_finish('s', 'live', attempt => 7)$$, 'IK410'),
	(40, $$SELECT idempotent_begin('s', 'sent', first_sent => clock_timestamp() + interval '1 hour')$$, 'IK400'),
	(41, $$SELECT idempotent_begin('s', 'k', lease => '31 days')$$, 'IK400')) v(n, command, want), pg_temp.parts(command) p;
SELECT is(state, want, command) FROM met ORDER BY n;
SELECT isnt(hint, '', 'has a hint: ' || command) FROM met WHERE want IN ('IK500', 'IK409', 'IK423', 'IK422', 'IK412') ORDER BY n;
SELECT is_empty($$SELECT a.command, b.command FROM met a JOIN met b ON a.n < b.n AND a.hint = b.hint WHERE a.n <= 3 AND b.n <= 3$$,
	'finish without begin, of what was replayed, and of a lease without its number: each its own');
SELECT is_empty($$SELECT a.command, b.command FROM met a JOIN met b ON a.n < b.n AND a.hint = b.hint WHERE a.n < 10 AND b.n BETWEEN 10 AND 99$$, 'misuse is told otherwise than what can happen to anybody');
SELECT isnt((SELECT hint FROM met WHERE n = 12), (SELECT hint FROM met WHERE n = 13), 'a finished key and a live lease are two reasons not to resolve');
SELECT isnt((SELECT hint FROM met WHERE n = 10), (SELECT hint FROM met WHERE n = 20), 'in progress and parked are two things');
SELECT ok(detail <> '', 'since when, and until when: ' || command) FROM met WHERE n IN (10, 11) ORDER BY n;
SELECT is_empty($$SELECT command FROM met WHERE concat(message, detail, hint) ~ 'secret|other": 2|\\x'$$, 'none shows a payload or a fingerprint');
SELECT is(idempotent_release('s', 'mine'), true, 'released');
COMMIT;

-- A batch that is refused names the id for which it is.
SELECT ok(concat(message, detail, hint) LIKE '%' || key || '%', state || ' of a batch names the id') FROM unnest('{live,parked,released}'::text[]) key,
	pg_temp.parts(format('SELECT idempotent_begin_many(''s'', ARRAY[''one'', %L, ''two''])', key));
BEGIN;
SET LOCAL idempotency.key_time = on;
SELECT ok(state = 'IK412' AND concat(message, detail, hint) LIKE '%017f22e2-79b0-7cc3-98c4-dc0c0c07398f%', 'an old one too')
FROM pg_temp.parts($$SELECT idempotent_begin_many('s', '{one,017f22e2-79b0-7cc3-98c4-dc0c0c07398f,two}')$$);
ROLLBACK;
-- No finish(): pgTAP's own count is rolled back with the rest.
