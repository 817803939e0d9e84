-- A batch of message ids: what is new is returned, locked and, once finished, remembered.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
CREATE FUNCTION pg_temp.begin_many(keys text[], retention interval DEFAULT NULL) RETURNS text[] LANGUAGE sql AS $$
	SELECT coalesce(array_agg(k), '{}') FROM idempotent_begin_many('many', keys, retention) k
$$;

BEGIN;
SELECT is(pg_temp.begin_many('{c,a,b,a,c}'), '{c,a,b}', 'each new key once, in the order given');
SELECT is(pg_temp.locks(), 3::bigint, 'a small batch is locked key by key');
SELECT throws_ok($$SELECT idempotent_begin_many('many', '{a}')$$, 'IK500', NULL, 'a second begin is misuse');
SELECT throws_ok($$SELECT idempotent_begin('many', 'a')$$, 'IK500', NULL, 'a single one too');
SELECT is(idempotent_finish_many('many', '{a,b,c,a}'), 3::bigint, 'finished');
SELECT is(pg_temp.begin_many('{a,d}'), '{d}', 'in the same transaction only the new one is left');
SELECT is(idempotent_finish_many('many', '{d}'), 1::bigint, 'finished');
COMMIT;
SELECT is(outcome || coalesce(response::text, ''), 'replayed', 'a single begin replays') FROM idempotent_begin('many', 'a');
SELECT is((SELECT array_agg(key ORDER BY key) FROM idempotency_keys), '{a,b,c,d}', 'the rows are there');

-- The guard, savepoints, release, and a response after all.
\set ON_ERROR_STOP off
SELECT pg_temp.begin_many('{e,f}') \g /dev/null
SELECT is(text :'SQLSTATE', 'IK500', 'autocommit without finish fails');
BEGIN;
SELECT is(pg_temp.begin_many('{e,f}'), '{e,f}', 'and leaves the keys free');
SELECT is(idempotent_finish_many('many', '{e}'), 1::bigint, 'one of two is finished');
COMMIT;
SELECT is(text :'SQLSTATE', 'IK500', 'a part left unfinished fails the transaction');
\set ON_ERROR_STOP on
BEGIN;
SELECT is(pg_temp.begin_many('{e,f,g}'), '{e,f,g}', 'begin');
SAVEPOINT s;
SELECT is(idempotent_finish_many('many', '{e,f,g}'), 3::bigint, 'finish');
ROLLBACK TO s;
SELECT throws_ok($$SELECT idempotent_begin_many('many', '{e}')$$, 'IK500', NULL, 'undone: the attempt is open again');
SELECT is(idempotent_release('many', 'e'), true, 'released');
SELECT is(idempotent_finish('many', 'f', '"response"', status => 201), '"response"', 'finished alone, with a response');
SELECT is(idempotent_finish_many('many', '{g}'), 1::bigint, 'and in a batch');
COMMIT;
SELECT is_empty($$SELECT FROM idempotent_lookup('many', 'e')$$, 'the released one is free');
SELECT is(status || response::text, '201"response"', 'the response is stored') FROM idempotent_begin('many', 'f');
BEGIN;
SELECT is(pg_temp.begin_many('{e}'), '{e}', 'begin');
SELECT is(idempotent_release('many', 'e'), true, 'released');
SELECT ok(pg_temp.locked('many', 'e'), 'for others its row is not gone yet, nor is its lock');
COMMIT;
BEGIN;
SAVEPOINT s;
SELECT is(pg_temp.begin_many('{e}'), '{e}', 'begin');
ROLLBACK TO s;
SELECT is(pg_temp.locks(), 0::bigint, 'undone: the key is free');
SELECT is(pg_temp.begin_many('{e}'), '{e}', 'begun again');
SELECT is(idempotent_finish_many('many', '{e}'), 1::bigint, 'finished');
COMMIT;

-- Expired keys, and claims.
BEGIN;
SELECT is(pg_temp.begin_many('{x,y}'), '{x,y}', 'two keys');
SELECT is(idempotent_finish_many('many', '{x,y}'), 2::bigint, 'are finished');
COMMIT;
UPDATE idempotency_keys SET expires_at = now() WHERE key IN ('x', 'y');
BEGIN;
SELECT is(pg_temp.begin_many('{soon}', '1 microsecond'), '{soon}', 'a retention that is shorter than its transaction');
SELECT throws_ok($$SELECT idempotent_finish_many('many', '{soon}')$$, 'IK500', NULL, 'cannot be finished');
ROLLBACK;
BEGIN;
SELECT is(pg_temp.begin_many('{a,x,y,z}'), '{x,y,z}', 'expired keys count as absent');
SELECT is(pg_temp.locks(), 3::bigint, 'and the one that is replayed keeps no lock');
SELECT is(idempotent_finish_many('many', '{x,y,z}'), 3::bigint, 'finished');
COMMIT;
SELECT is(pg_temp.begin_many('{x,y,z}'), '{}', 'and are honoured again');
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('many', 'leased', lease => '1 min');
SELECT throws_ok($$SELECT idempotent_begin_many('many', '{leased,new}')$$, 'IK409', NULL, 'a key under lease is refused');
SELECT is(idempotent_release('many', 'leased', 1, reset => true), true, 'reset');
SELECT throws_ok($$SELECT idempotent_begin_many('many', '{leased}')$$, 'IK409', NULL, 'and so is a counter');
SELECT is(outcome || attempt, 'started2', 'a claim') FROM idempotent_begin('many', 'leased', lease => '1 min');
SELECT is(idempotent_park('many', 'leased', 2, 'unknown'), true, 'parked');
SELECT throws_ok($$SELECT idempotent_begin_many('many', '{leased}')$$, 'IK423', NULL, 'is refused as such');
SELECT is(idempotent_forget('many', 'leased'), true, 'and forgotten');

-- What has been begun is not finished yet.
BEGIN;
SELECT is(pg_temp.begin_many('{mine}'), '{mine}', 'begun');
SELECT is(outcome, 'in_progress', 'is in progress') FROM idempotent_lookup('many', 'mine');
SELECT throws_ok($$SELECT idempotent_forget('many', 'mine')$$, 'IK500', NULL, 'and cannot be forgotten');
SELECT is(idempotent_finish_many('many', '{mine}'), 1::bigint, 'finished');
SELECT is(outcome, 'replayed', 'it is') FROM idempotent_lookup('many', 'mine');
SELECT is(idempotent_forget('many', 'mine'), true, 'and can be forgotten');
COMMIT;
SELECT is_empty($$SELECT FROM idempotent_lookup('many', 'mine')$$, 'it is gone');

-- A single attempt among those finished.
BEGIN;
SELECT is(outcome, 'started', 'begun alone') FROM idempotent_begin('many', 'alone');
SELECT is(idempotent_finish_many('many', '{alone}'), 1::bigint, 'finished in a batch');
COMMIT;
SELECT is(outcome, 'replayed', 'is finished') FROM idempotent_begin('many', 'alone');

-- Bad input, and nothing at all.
SELECT is(pg_temp.begin_many('{}'), '{}', 'an empty batch');
SELECT is(idempotent_finish_many('many', '{}'), 0::bigint, 'nothing to finish');
SELECT throws_ok($$SELECT idempotent_begin_many('many', NULL)$$, 'IK400', NULL, 'NULL keys');
SELECT throws_ok($$SELECT idempotent_begin_many('many', '{a,NULL}')$$, 'IK400', NULL, 'a NULL key');
SELECT throws_ok($$SELECT idempotent_begin_many('many', ARRAY['a', ''])$$, 'IK400', NULL, 'an empty key');
SELECT throws_ok($$SELECT idempotent_begin_many('many', ARRAY[repeat('x', 256)])$$, 'IK400', NULL, 'a key that is too long');
SELECT throws_ok($$SELECT idempotent_begin_many('', '{a}')$$, 'IK400', NULL, 'an empty scope');
SELECT throws_ok($$SELECT idempotent_begin_many('many', '{a}', '-1 s')$$, 'IK400', NULL, 'a negative retention');
SELECT throws_ok($$SELECT idempotent_finish_many('many', NULL)$$, 'IK400', NULL, 'NULL keys to finish');
SELECT throws_ok($$SELECT idempotent_finish_many('many', '{never}')$$, 'IK500', NULL, 'finish without begin is misuse');

-- Ten thousand.
BEGIN;
SELECT is((SELECT count(*) FROM idempotent_begin_many('big', ARRAY(SELECT 'm' || i FROM generate_series(1, 10000) i))),
	10000::bigint, 'a batch of ten thousand');
SELECT is(pg_temp.locks(), 0::bigint, 'holds no locks of keys');
SELECT is(idempotent_finish_many('big', ARRAY(SELECT 'm' || i FROM generate_series(1, 10000) i)), 10000::bigint, 'finished');
COMMIT;
SELECT is((SELECT array_agg(k) FROM idempotent_begin_many('big', ARRAY(SELECT 'm' || i FROM generate_series(1, 10000) i)) k), NULL,
	'and all seen when it comes again');
SELECT is(outcome, 'replayed', 'by a single begin too') FROM idempotent_begin('big', 'm10000');

SELECT * FROM finish();
