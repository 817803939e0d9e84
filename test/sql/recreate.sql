-- DROP and CREATE EXTENSION in one session: no plan, no attempt and no result of the old one is taken for one of the new.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(34);
-- What every function says in turn, in the schema that search_path names.
CREATE FUNCTION pg_temp.whole_course(key text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text := '';
	r record;
BEGIN
	EXECUTE format('SELECT outcome FROM idempotent_begin(''s'', %L)', key) INTO r;
	said := said || r.outcome;
	EXECUTE format('SELECT idempotent_finish(''s'', %L, ''1'')', key);
	EXECUTE format('SELECT outcome FROM idempotent_begin(''s'', %L)', key) INTO r;
	said := said || ' ' || r.outcome;
	EXECUTE format('SELECT outcome FROM idempotent_begin(''s'', %L, lease => ''1 hour'')', key || ' leased') INTO r;
	EXECUTE format('SELECT idempotent_checkpoint(''s'', %L, 1, ''c'')', key || ' leased');
	EXECUTE format('SELECT idempotent_release(''s'', %L, 1, retry_after => ''0'')', key || ' leased');
	EXECUTE 'SELECT attempt FROM idempotent_resume(''1 hour'')' INTO r;
	said := said || ' ' || r.attempt;
	EXECUTE format('SELECT idempotent_finish(''s'', %L, attempt => 2)', key || ' leased');
	EXECUTE format('SELECT idempotent_forget(''s'', %L)', key || ' leased');
	EXECUTE 'SELECT idempotent_prune() AS n' INTO r;
	RETURN said || ' ' || r.n;
END $$;
\set course 'started replayed 2 0'

BEGIN;
SELECT is(pg_temp.whole_course('k'), :'course', 'an extension in use');
SELECT ok(pg_temp.locked('s', 'k'), 'with a key');
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA public;
SELECT is_empty('TABLE idempotency_keys', 'dropped and created anew it is empty');
SELECT is_empty($$SELECT FROM idempotent_lookup('s', 'k')$$, 'the old key is gone');
SELECT is(pg_temp.whole_course('k'), :'course', 'and begins anew, in the same transaction');
SELECT is_empty($$SELECT FROM idempotent_resume('1 hour')$$, 'nothing is left over');

-- In other schemas, one with a name that has to be quoted.
DROP EXTENSION idempotency;
CREATE SCHEMA "Idempotency; Test";
CREATE EXTENSION idempotency SCHEMA "Idempotency; Test";
SET LOCAL search_path = "Idempotency; Test", public;
SELECT is(pg_temp.whole_course('k'), :'course', 'in a schema whose name has to be quoted');
SELECT results_eq($$SELECT key FROM "Idempotency; Test".idempotency_keys$$, $$VALUES ('k')$$, 'it is used there');
SELECT is(count(*), 0::bigint, 'the view is there as well') FROM "Idempotency; Test".idempotency_stalled;
SET LOCAL search_path = public;
SELECT is(outcome, 'replayed', 'it needs no search_path') FROM "Idempotency; Test".idempotent_begin('s', 'k');
SELECT throws_ok($$ALTER EXTENSION idempotency SET SCHEMA public$$, '0A000', NULL, 'it cannot be moved');

-- Its schema renamed, with plans in place.
ALTER SCHEMA "Idempotency; Test" RENAME TO idempotency_test;
SELECT is(outcome, 'replayed', 'a renamed schema is followed') FROM idempotency_test.idempotent_begin('s', 'k');
SET LOCAL search_path = idempotency_test, public;
SELECT is(pg_temp.whole_course('k2'), :'course', 'by every function');
SET LOCAL search_path = public;

-- Dropped with an attempt under way.
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA public;
SAVEPOINT a;
SELECT is(outcome, 'started', 'an attempt under way') FROM idempotent_begin('s', 'open');
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA public;
SELECT ok(pg_temp.locked('s', 'open'), 'is this transaction''s, whatever becomes of the tables');
SELECT is(idempotent_finish('s', 'open', '"new"'), '"new"', 'and is finished in the new ones');
SELECT results_eq('SELECT key FROM idempotency_keys', $$VALUES ('open')$$, 'which have it');
ROLLBACK TO a;
SELECT is(pg_temp.whole_course('k'), :'course', 'a DROP that is rolled back leaves what was there');
SAVEPOINT b;
SELECT is(outcome, 'started', 'another attempt') FROM idempotent_begin('s', 'open');
DROP EXTENSION idempotency;
SELECT throws_ok($$SELECT idempotent_finish('s', 'open')$$, '42883', NULL, 'without the extension there is no finish');
ROLLBACK TO b;
SELECT is(pg_temp.locked('s', 'open'), false, 'the attempt is rolled back');
SELECT is(outcome, 'started', 'and begun again') FROM idempotent_begin('s', 'open');
SELECT is(idempotent_finish('s', 'open'), NULL, 'and finished');

-- The tables changed under the plans.
ALTER TABLE idempotency_keys ADD COLUMN note text DEFAULT 'n';
SELECT is(pg_temp.whole_course('altered'), :'course', 'a column more is no matter');
ALTER TABLE idempotency_keys DROP COLUMN note;
SELECT is(pg_temp.whole_course('altered again'), :'course', 'nor a column less');
DROP INDEX idempotency_keys_expires_at_idx;
CREATE INDEX idempotency_keys_expires_at_idx ON idempotency_keys (expires_at);
SELECT is(pg_temp.whole_course('btree'), :'course', 'nor a B-tree for the BRIN index');

-- A trigger of the owner's works, and its error is its own.
CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE unique_violation; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON idempotency_keys FOR EACH ROW WHEN (NEW.key = 'refused') EXECUTE FUNCTION pg_temp.refuse();
SELECT throws_ok($$SELECT pg_temp.whole_course('refused')$$, '23505', NULL, 'a trigger''s own unique violation is passed on');
SELECT is(pg_temp.whole_course('accepted'), :'course', 'another key is not');

-- A row that came another way is a conflict, never a unique violation to be interpreted.
SELECT is(outcome, 'started', 'an attempt') FROM idempotent_begin('s', 'smuggled');
INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
	VALUES (pg_temp.id_of('s', 'smuggled'), 's', 'smuggled', 1, now(), now(), 'infinity');
SELECT throws_ok($$SELECT idempotent_finish('s', 'smuggled')$$, '40001', NULL, 'whose row is there already fails with 40001');
SELECT is(idempotent_release('s', 'smuggled'), true, 'and can be released');
SELECT is(outcome, 'replayed', 'the row counts') FROM idempotent_begin('s', 'smuggled');
-- No finish(): pgTAP's own count is rolled back with the rest.
ROLLBACK;

-- Committed, in one session, with the plans of the old one.
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency SCHEMA public;
BEGIN;
SELECT is(pg_temp.whole_course('k'), :'course', 'a committed DROP and CREATE');
COMMIT;
SELECT is(outcome, 'replayed', 'is in use as any other') FROM idempotent_begin('s', 'k');
TRUNCATE idempotency_keys;
