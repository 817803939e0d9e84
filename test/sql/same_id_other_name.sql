-- Two names under one id, as a collision would make them: nobody gets the other's answer, claim or place in a batch (I10).
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
-- The rows are forged: under the id of ('s', key) stands another scope, or another key.
SELECT is(idempotent_resolve('s', k, 'r', '"secret"'), 'recorded', 'a key') FROM unnest('{key,scope,expired}'::text[]) k;
SELECT is(outcome, 'started', 'a claim') FROM unnest('{live,ended,parked,released}'::text[]) k, idempotent_begin('s', k, '{"secret": 1}', lease => '1 hour');
SELECT is(outcome, 'started', 'and more') FROM unnest('{reset,forgotten}'::text[]) k, idempotent_begin('s', k, lease => '1 hour');
SELECT is(idempotent_park('s', 'parked', 1, 'secret'), true, 'parked');
SELECT is(idempotent_release('s', 'released', 1, 'secret', '1 hour'), true, 'released');
SELECT is(idempotent_release('s', 'reset', 1, reset => true), true, 'reset');
SELECT is(idempotent_forget('s', 'forgotten'), true, 'forgotten');
SELECT is(pg_temp.end_lease('ended'), 'ended', 'ended');
UPDATE idempotency_keys SET scope = CASE key WHEN 'scope' THEN 'other' ELSE scope END, key = CASE key WHEN 'scope' THEN key ELSE 'other ' || key END;
UPDATE idempotency_claims SET key = 'other ' || key;
CREATE TEMP TABLE before AS SELECT 'key' AS what, md5(k::text) FROM idempotency_keys k UNION ALL SELECT 'claim', md5(c::text) FROM idempotency_claims c;

CREATE TEMP TABLE names (key text);
INSERT INTO names SELECT unnest('{key,scope,live,ended,parked,released}'::text[]);
SELECT is(outcome || coalesce(response::text, '') || coalesce(state::text, '') || coalesce(error, '') || coalesce(attempt::text, '') || coalesce(first_seen_at::text, ''), 'mismatch',
	'try_begin tells a mismatch, and nothing of the other: ' || key) FROM names, idempotent_try_begin('s', key);
SELECT is(outcome || coalesce(response::text, '') || coalesce(state::text, '') || coalesce(error, '') || coalesce(attempt::text, ''), 'mismatch',
	'lookup too: ' || key) FROM names, idempotent_lookup('s', key);
SELECT is(outcome, 'mismatch', 'with the request of the other: ' || key) FROM names, idempotent_try_begin('s', key, '{"secret": 1}', lease => '1 hour');
SELECT throws_ok(format(command, key), 'IK422', NULL, format(command, key)) FROM names, (VALUES
	('SELECT idempotent_begin(''s'', %L)'),
	('SELECT idempotent_begin(''s'', %L, lease => ''1 hour'')'),
	('SELECT idempotent_call(''s'', %L, ''SELECT 1'')'),
	('SELECT idempotent_begin_many(''s'', ARRAY[''new'', %L])'),
	('SELECT idempotent_begin_many(''s'', ARRAY[%L] || ARRAY(SELECT i::text FROM generate_series(1, 300) i))'),
	('SELECT idempotent_resolve(''s'', %L, ''r'', correct => true)'),
	('SELECT idempotent_forget(''s'', %L)')) c(command) ORDER BY key COLLATE "C", command COLLATE "C";
SELECT throws_ok(format(command, key), 'IK422', NULL, format(command, key)) FROM unnest('{live,ended,parked,released}'::text[]) key, (VALUES
	('SELECT idempotent_checkpoint(''s'', %L, 1, ''c'')'),
	('SELECT idempotent_finish(''s'', %L, attempt => 1)'),
	('SELECT idempotent_release(''s'', %L, 1)'),
	('SELECT idempotent_park(''s'', %L, 1, ''e'')'),
	('SELECT idempotent_retry(''s'', %L, ''1 hour'')')) c(command) ORDER BY key COLLATE "C", command COLLATE "C";
SELECT results_eq($$SELECT 'key' AS what, md5(k::text) FROM idempotency_keys k UNION ALL SELECT 'claim', md5(c::text) FROM idempotency_claims c$$, 'TABLE before', 'no row has changed');
SELECT is(pg_temp.locks(), 0::bigint, 'and no lock is left');

-- As long as its row is there, an expired key of another name is not replaced; afterwards the id is free.
UPDATE idempotency_keys SET expires_at = now();
SELECT throws_ok($$SELECT idempotent_begin('s', 'expired')$$, 'IK422', NULL, 'an expired key of another name');
SELECT is(idempotent_prune(), 3::bigint, 'is pruned');
BEGIN;
SELECT is(outcome, 'started', 'and then is nobody''s') FROM idempotent_begin('s', 'expired');
SELECT is(idempotent_finish('s', 'expired', '"mine"'), '"mine"', 'finished');
COMMIT;
SELECT is(outcome || response, 'replayed"mine"', 'by its own') FROM idempotent_begin('s', 'expired');
-- A number that is left without a name fences whoever had it.
SELECT is(outcome || attempt, 'started2', 'the counter of what was forgotten counts on') FROM idempotent_begin('s', 'forgotten', lease => '1 hour');

-- Between begin and finish.
BEGIN;
SELECT is(outcome, 'started', 'begun') FROM idempotent_begin('s', 'between');
INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
	VALUES (pg_temp.id_of('s', 'between'), 'other', 'between', 1, now(), now(), 'infinity');
SELECT isnt(pg_temp.sqlstate_of($$SELECT idempotent_finish('s', 'between', '1')$$), '00000', 'finish does not overwrite what has come under its id');
ROLLBACK;
-- No finish(): pgTAP's own count is rolled back with the rest.
