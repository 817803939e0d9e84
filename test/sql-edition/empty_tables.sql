-- Plans that are made while the tables are empty find a key by its id all the same: such a plan stays until the table is analyzed
-- again, and in SERIALIZABLE whoever reads a whole table fails with each that writes to it.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(32);

-- How often a command reads a whole table of ours.
CREATE FUNCTION pg_temp.scanned() RETURNS bigint LANGUAGE sql AS $$
	SELECT sum(seq_scan)::bigint FROM pg_stat_xact_user_tables WHERE relname IN ('idempotency_keys', 'idempotency_claims')
$$;
CREATE FUNCTION pg_temp.scans(command text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	before bigint := pg_temp.scanned();
BEGIN
	EXECUTE command;
	RETURN pg_temp.scanned() - before;
END $$;
CREATE FUNCTION pg_temp.by_id(command text, description text) RETURNS text LANGUAGE sql AS $$
	SELECT is(pg_temp.scans(command), 0::bigint, description)
$$;

VACUUM (ANALYZE) idempotency_keys, idempotency_claims;
BEGIN;
SELECT cmp_ok(pg_temp.scans('SELECT FROM idempotency_keys WHERE id = gen_random_uuid()'), '=', 1::bigint, 'a query of one''s own reads all of an empty table');
-- What they share with a function that may read a whole table is planned as for themselves, whoever comes first.
DO $$
BEGIN
	FOR n IN 1..7 LOOP
		PERFORM idempotent_begin('many', 'key ' || n);
		PERFORM idempotent_finish('many', 'key ' || n);
	END LOOP;
END $$;
SELECT is(idempotent_forget_scope('many', 6), 6::bigint, 'forget_scope, by which the first plans are made');
SELECT pg_temp.by_id(format('SELECT idempotent_forget(''many'', %L)', (SELECT key FROM idempotency_keys WHERE scope = 'many')), 'forget after it');
SELECT pg_temp.by_id('SELECT idempotent_begin(''s'', ''one'', request => ''1'')', 'begin');
SELECT pg_temp.by_id('SELECT idempotent_finish(''s'', ''one'', ''1'')', 'finish');
SELECT pg_temp.by_id('SET CONSTRAINTS ALL IMMEDIATE', 'the guard');
SET CONSTRAINTS ALL DEFERRED;
SELECT pg_temp.by_id('SELECT idempotent_begin(''s'', ''one'', request => ''1'')', 'replay');
SELECT pg_temp.by_id('SELECT idempotent_try_begin(''s'', ''one'', request => ''1'')', 'try_begin that replays');
SELECT pg_temp.by_id('SELECT idempotent_try_begin(''s'', ''two'')', 'try_begin');
SELECT pg_temp.by_id('SELECT idempotent_release(''s'', ''two'')', 'release');
SELECT pg_temp.by_id('SELECT idempotent_lookup(''s'', ''one'')', 'lookup');
SELECT pg_temp.by_id('SELECT idempotent_begin_many(''s'', ARRAY[''one'', ''three'', ''four''])', 'begin_many');
SELECT pg_temp.by_id('SELECT idempotent_finish_many(''s'', ARRAY[''three'', ''four''])', 'finish_many');
SELECT pg_temp.by_id('SELECT idempotent_begin(''s'', ''lease'', lease => ''1 hour'')', 'begin under lease');
SELECT pg_temp.by_id('SELECT idempotent_checkpoint(''s'', ''lease'', 1, ''here'')', 'checkpoint');
SELECT pg_temp.by_id('SELECT idempotent_lookup(''s'', ''lease'')', 'lookup of a claim');
SELECT pg_temp.by_id('SELECT idempotent_release(''s'', ''lease'', 1, retry_after => ''1 hour'')', 'release of a claim');
SELECT pg_temp.by_id('SELECT idempotent_retry(''s'', ''lease'', ''1 hour'')', 'retry');
SELECT pg_temp.by_id('SELECT idempotent_finish(''s'', ''lease'', ''1'', attempt => 2)', 'finish of a claim');
SELECT pg_temp.by_id('SELECT idempotent_begin(''s'', ''parked'', lease => ''1 hour'')', 'begin of another');
SELECT pg_temp.by_id('SELECT idempotent_park(''s'', ''parked'', 1, ''time-out'')', 'park');
SELECT pg_temp.by_id('SELECT idempotent_resolve(''s'', ''parked'', ''it was paid'', ''1'')', 'resolve, settled');
SELECT pg_temp.by_id('SELECT idempotent_resolve(''s'', ''one'', ''it was not'', ''2'', correct => true)', 'resolve, corrected');
SELECT pg_temp.by_id('SELECT idempotent_resolve(''s'', ''absent'', ''paid by hand'', ''1'')', 'resolve, recorded');
SELECT pg_temp.by_id('SELECT idempotent_forget(''s'', ''one'')', 'forget');
SELECT pg_temp.by_id('SELECT idempotent_begin(''s'', ''one'', request => ''1'')', 'begin of what was forgotten');
SELECT pg_temp.by_id('SELECT idempotent_finish(''s'', ''one'', ''1'')', 'finish of it');
SELECT pg_temp.by_id('SET CONSTRAINTS ALL IMMEDIATE', 'the guard of all of them');
SELECT is(outcome, 'started', 'a claim for resume') FROM idempotent_begin('s', 'due', lease => '1 microsecond');
COMMIT;
BEGIN;
SELECT is(pg_temp.scans('SELECT idempotent_resume(''1 hour'')'), 1::bigint, 'resume reads the claims, and keys by id');
SELECT is(attempt, 2, 'has got it') FROM idempotency_claims WHERE scope = 's' AND key = 'due';
SELECT is(pg_temp.scans('SELECT idempotent_prune()'), 1::bigint, 'prune reads the claims, and keys by their end');
COMMIT;
SELECT * FROM finish();
