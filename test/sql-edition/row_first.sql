-- What the row-first protocol of the SQL edition rests on.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(21);

-- The guard stands behind the application's own deferred triggers, which may still finish.
CREATE TABLE orders (id int PRIMARY KEY);
CREATE FUNCTION finish_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_finish('s', 'order ' || NEW.id, to_jsonb(NEW));
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER finish_order AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION finish_order();
BEGIN;
SELECT is(outcome, 'started', 'begin before the deferred trigger''s row') FROM idempotent_begin('s', 'order 1');
INSERT INTO orders VALUES (1);
COMMIT;
SELECT is(response, '{"id": 1}'::jsonb, 'a deferred trigger may finish') FROM idempotent_begin('s', 'order 1');
\set ON_ERROR_STOP off
SELECT idempotent_begin('s', 'open') \g /dev/null
SELECT is(text :'SQLSTATE', 'IK500', 'commit without finish');
BEGIN;
SET CONSTRAINTS ALL IMMEDIATE;
SELECT idempotent_begin('s', 'immediate') \g /dev/null
SELECT is(text :'SQLSTATE', 'IK500', 'begin under SET CONSTRAINTS ALL IMMEDIATE');
ROLLBACK;
BEGIN;
SELECT idempotent_begin('s', 'immediate') \g /dev/null
SET CONSTRAINTS ALL IMMEDIATE;
SELECT is(text :'SQLSTATE', 'IK500', 'and SET CONSTRAINTS ALL IMMEDIATE amid an attempt');
ROLLBACK;
BEGIN;
SELECT idempotent_begin('s', 'over') \g /dev/null
SAVEPOINT s;
SELECT idempotent_finish('s', 'over') \g /dev/null
ROLLBACK TO s;
COMMIT;
SELECT is(text :'SQLSTATE', 'IK500', 'ROLLBACK TO over a finish leaves the attempt unfinished');
\set ON_ERROR_STOP on
SELECT is_empty($$SELECT FROM idempotency_keys WHERE key <> 'order 1'$$, 'none of these is stored');

-- An unfinished row that is not this transaction's is nobody's: finish does not take it, begin does not count it.
ALTER TABLE idempotency_keys DISABLE TRIGGER idempotency_guard;
INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, expires_at, retention, xid)
	SELECT pg_temp.id_of('s', k), 's', k, 7, now(), now() + interval '1 day', '1 day', x::xid8 FROM (VALUES ('forged', '1'), ('forged null', NULL)) v (k, x);
ALTER TABLE idempotency_keys ENABLE TRIGGER idempotency_guard;
SELECT throws_ok($$SELECT idempotent_finish('s', 'forged')$$, 'IK500', NULL, 'a forged row is not finished');
SELECT is_empty($$SELECT FROM idempotent_lookup('s', 'forged')$$, 'nor shown');
SELECT is(idempotent_prune(), 0::bigint, 'nor pruned');
BEGIN;
SELECT is(outcome || ' ' || attempt, 'started 1', 'begin takes its place') FROM idempotent_begin('s', 'forged');
SELECT is((SELECT array_agg(m) FROM idempotent_begin_many('s', '{forged null}') m), '{forged null}', 'a batch too');
SELECT is(idempotent_finish_many('s', '{forged,forged null}'), 2::bigint, 'finished');
COMMIT;

-- The keys of a batch expire as begin_many says, others as finish does.
BEGIN;
SELECT idempotent_begin_many('s', '{of a batch,finished alone}', '1 day') \g /dev/null
SELECT outcome FROM idempotent_begin('s', 'single', retention => '1 day') \g /dev/null
UPDATE idempotency_keys SET expires_at = expires_at - interval '23 hours' WHERE key IN ('of a batch', 'finished alone', 'single');
SELECT idempotent_finish_many('s', '{of a batch,single}'), idempotent_finish('s', 'finished alone') \g /dev/null
SELECT results_eq($$SELECT key, expires_at > now() + interval '2 hours' FROM idempotency_keys
		WHERE key IN ('of a batch', 'finished alone', 'single') ORDER BY key$$,
	$$VALUES ('finished alone', true), ('of a batch', false), ('single', true)$$, 'the expiry of a batch stays as it was begun with');
ROLLBACK;
BEGIN;
SELECT outcome FROM idempotent_begin('s', 'over soon', retention => '1 microsecond') \g /dev/null
SELECT is(idempotent_finish_many('s', '{over soon}'), 1::bigint, 'only a batch must be finished before it expires');
ROLLBACK;

-- A suppressing trigger is no conflict.
CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER suppress BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION suppress();
SELECT throws_ok($$SELECT idempotent_begin('s', 'suppressed')$$, '09000', NULL, 'a trigger that suppresses the key''s row');
SELECT throws_ok($$SELECT idempotent_begin_many('s', '{suppressed}')$$, '09000', NULL, 'of a batch');
SELECT throws_ok($$SELECT idempotent_begin('s', 'suppressed', lease => '1 min')$$, '09000', NULL, 'or of a lease');
DROP TRIGGER suppress ON idempotency_keys;

-- A temporary table of the caller's does not stand in for the edition's.
CREATE TEMP TABLE idempotency_keys (LIKE public.idempotency_keys);
CREATE TEMP TABLE pg_trigger (LIKE pg_catalog.pg_trigger);
SELECT is(outcome, 'replayed', 'pg_temp is last') FROM idempotent_begin('s', 'order 1');
SELECT is((SELECT count(*) FROM pg_temp.idempotency_keys), 0::bigint, 'and is not written to');
DROP TABLE pg_temp.idempotency_keys;

-- The script, once more.
\set script `cat "$PG_ABS_SRCDIR/script"`
SELECT is(version, '1.0', 'a row tells what is there') FROM idempotency_settings;
DO $$ BEGIN PERFORM set_config('idempotency_sql.schema', 'public', false); END $$;
SELECT lives_ok(:'script', 'a second run of the script');
SELECT is((SELECT count(*) FROM idempotency_keys), 3::bigint, 'changes nothing');
SELECT * FROM finish();
