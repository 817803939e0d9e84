-- The same key twice in one transaction, and several keys: misuse or replay, never two executions.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(27);

SELECT throws_ok($$SELECT idempotent_finish('s', 'none')$$, 'IK500', NULL, 'finish without begin is misuse');
SELECT throws_ok($$SELECT idempotent_finish('s', 'none', attempt => 1)$$, 'IK410', NULL,
	'with the number of a lease that is not there it is overtaken');
SELECT is(idempotent_release('s', 'none'), false, 'there is nothing to release');
SELECT is(pg_temp.locks(), 0::bigint, 'none of this leaves a lock');

SELECT is(outcome, 'started', 'the first begin') FROM idempotent_begin('s', 'k');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k')$$, 'IK500', NULL, 'begin on an unfinished attempt is misuse');
SELECT throws_ok($$SELECT idempotent_try_begin('s', 'k')$$, 'IK500', NULL, 'for try_begin too');
SELECT throws_ok($$SELECT idempotent_try_begin('s', 'k', lease => '1 min')$$, 'IK500', NULL, 'and under lease');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'k', 1, 'c')$$, 'IK500', NULL, 'it has no lease to checkpoint');
SELECT ok(pg_temp.locked('s', 'k'), 'the first attempt is still there');
SELECT is(outcome, 'in_progress', 'and seen by lookup') FROM idempotent_lookup('s', 'k');
SELECT lives_ok($$SELECT idempotent_finish('s', 'k', '1')$$, 'and can be finished');
SELECT is(outcome, 'replayed', 'begin on a finished attempt replays') FROM idempotent_begin('s', 'k');
SELECT is(outcome, 'replayed', 'for try_begin too') FROM idempotent_try_begin('s', 'k');
SELECT is(outcome, 'replayed', 'and where a lease is asked for') FROM idempotent_begin('s', 'k', lease => '1 min');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', '2')$$, 'IK500', NULL, 'finish twice is misuse');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', '2', attempt => 1)$$, 'IK410', NULL, 'or overtaken, by number');
SELECT is(idempotent_release('s', 'k'), false, 'a finished attempt cannot be released');
SELECT is(response, '1'::jsonb, 'the first response stands') FROM idempotent_begin('s', 'k');

-- Released and begun again.
SELECT is(outcome, 'started', 'begin') FROM idempotent_begin('s', 'r');
SELECT is(idempotent_release('s', 'r'), true, 'release');
SELECT is(pg_temp.locked('s', 'r'), true, 'keeps the lock to the end of the transaction, which may still write');
SELECT is(outcome || attempt, 'started1', 'and begin starts again') FROM idempotent_begin('s', 'r');
SELECT lives_ok($$SELECT idempotent_finish('s', 'r')$$, 'to be finished');

-- (f()).* evaluates f once for each column: the second one is the misuse that it looks like.
SELECT throws_ok($$SELECT (idempotent_begin('s', 'star')).*$$, 'IK500', NULL, 'SELECT (idempotent_begin()).* is misuse');
SELECT throws_ok($$SELECT (idempotent_try_begin('s', 'star')).*$$, 'IK500', NULL, 'and so is SELECT (idempotent_try_begin()).*');

-- More than the list's first allocation holds.
CREATE FUNCTION pg_temp.many(n int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text := '';
BEGIN
	FOR i IN 1 .. n LOOP
		PERFORM FROM idempotent_begin('many', i::text);
	END LOOP;
	FOR i IN REVERSE n .. 1 LOOP
		PERFORM idempotent_finish('many', i::text, to_jsonb(i));
	END LOOP;
	RETURN (SELECT string_agg(DISTINCT b.outcome, ',') FROM generate_series(1, n) i, idempotent_begin('many', i::text) b
			WHERE b.response = to_jsonb(i));
END $$;
SELECT is(pg_temp.many(100), 'replayed', 'a hundred keys in one transaction, each with its own response');

SELECT * FROM finish();
ROLLBACK;
