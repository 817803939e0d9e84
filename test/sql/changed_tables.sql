-- Tables that are more than plain, with triggers, constraints, other columns or partitions, are used all the same.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(41);
CREATE ROLE regress_idempotency_app;
CREATE FUNCTION pg_temp.whole_course(scope text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text := '';
	a idempotent_attempt;
BEGIN
	a := idempotent_begin(scope, 'k', '{"a": 1}');
	said := said || a.outcome || coalesce(idempotent_finish(scope, 'k', '"k"', status => 201, headers => '[1]', body => '\x00') #>> '{}', '');
	a := idempotent_begin(scope, 'k', '{"a": 1.0}');
	said := said || ' ' || a.outcome || a.status || a.headers || a.response || a.body::text;
	a := idempotent_try_begin(scope, 'k', '{"a": 2}');
	said := said || ' ' || a.outcome;
	a := idempotent_begin(scope, 'expired', retention => '1 microsecond');
	PERFORM idempotent_finish(scope, 'expired', '1');
	a := idempotent_begin(scope, 'expired', retention => '1 microsecond');
	said := said || ' ' || a.outcome || idempotent_finish(scope, 'expired', '2');
	said := said || ' ' || idempotent_prune();
	a := idempotent_begin(scope, 'l', '{"a": 1}', lease => '1 hour');
	PERFORM idempotent_checkpoint(scope, 'l', 1, 'c', '1', '1 hour');
	PERFORM idempotent_release(scope, 'l', 1, 'error', '0');
	said := said || ' ' || (SELECT attempt || checkpoint || state FROM idempotent_resume('1 hour', 10, scope));
	PERFORM idempotent_release(scope, 'l', 2, 'error', '0');
	a := idempotent_begin(scope, 'l');
	said := said || ' ' || a.outcome || a.attempt || a.state;
	PERFORM idempotent_finish(scope, 'l');
	RETURN said || ' ' || (SELECT outcome FROM idempotent_lookup(scope, 'l')) || ' ' || idempotent_forget(scope, 'l');
END $$;
\set course 'startedk replayed201[1]"k"\\x00 mismatch started2 1 2c1 recovered31 replayed true'
-- A row that came another way, while an attempt is under way, and what its finish says.
CREATE FUNCTION pg_temp.smuggled() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_begin('s', 'smuggled');
	INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
		VALUES (pg_temp.id_of('s', 'smuggled'), 's', 'smuggled', 1, now(), now(), 'infinity');
	PERFORM idempotent_finish('s', 'smuggled');
	RETURN 'finished';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT is(pg_temp.whole_course('plain'), :'course', 'plain tables');
SELECT is(pg_temp.smuggled(), '40001', 'and a conflict');

BEGIN;
ALTER TABLE idempotency_keys ADD COLUMN note text DEFAULT 'n', ADD COLUMN added timestamptz DEFAULT now();
ALTER TABLE idempotency_claims ADD COLUMN note text DEFAULT 'n';
SELECT is(pg_temp.whole_course('s'), :'course', 'columns more');
SELECT is(pg_temp.smuggled(), '40001', 'columns more: a conflict');
SELECT is_empty($$SELECT FROM idempotency_keys WHERE scope = 's' AND (note IS DISTINCT FROM 'n' OR added IS NULL)$$, 'with their defaults');
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys ADD COLUMN note text;
ALTER TABLE idempotency_keys DROP COLUMN note;
SELECT is(pg_temp.whole_course('s'), :'course', 'a column dropped');
SELECT is(pg_temp.smuggled(), '40001', 'a column dropped: a conflict');
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys ADD COLUMN tenant text GENERATED ALWAYS AS (split_part(scope, ' ', 1)) STORED;
SELECT is(pg_temp.whole_course('s'), :'course', 'a generated column');
SELECT is(pg_temp.smuggled(), '40001', 'a generated column: a conflict');
SELECT is(tenant, 's', 'with its value') FROM idempotency_keys WHERE scope = 's';
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys ALTER COLUMN scope TYPE varchar(2000), ALTER COLUMN attempt TYPE bigint USING attempt;
ALTER TABLE idempotency_keys ALTER COLUMN attempt TYPE integer;
SELECT is(pg_temp.whole_course('s'), :'course', 'columns of other types');
SELECT is(pg_temp.smuggled(), '40001', 'columns of other types: a conflict');
ROLLBACK;
BEGIN;
CREATE INDEX ON idempotency_keys (upper(scope));
CREATE UNIQUE INDEX ON idempotency_keys (scope, key);
CREATE INDEX ON idempotency_keys (status) WHERE status >= 500;
SELECT is(pg_temp.whole_course('s'), :'course', 'an index more');
SELECT is(pg_temp.smuggled(), '40001', 'an index more: a conflict');
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys SET UNLOGGED;
SELECT is(pg_temp.whole_course('s'), :'course', 'unlogged');
SELECT is(pg_temp.smuggled(), '40001', 'unlogged: a conflict');
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys ALTER COLUMN body SET STORAGE PLAIN, ALTER COLUMN response SET STORAGE EXTERNAL;
SELECT is(pg_temp.whole_course('s'), :'course', 'no TOAST, other storage');
SELECT is(pg_temp.smuggled(), '40001', 'no TOAST, other storage: a conflict');
ROLLBACK;
BEGIN;
CREATE TABLE referring (id uuid REFERENCES idempotency_keys ON DELETE CASCADE);
SELECT is(pg_temp.whole_course('s'), :'course', 'a foreign key to it');
SELECT is(pg_temp.smuggled(), '40001', 'a foreign key to it: a conflict');
ROLLBACK;
BEGIN;
CREATE TABLE child () INHERITS (idempotency_keys);
CREATE TABLE child_claims () INHERITS (idempotency_claims);
SELECT is(pg_temp.whole_course('s'), :'course', 'a child');
SELECT is(pg_temp.smuggled(), '40001', 'a child: a conflict');
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE idempotency_claims ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SELECT is(pg_temp.whole_course('s'), :'course', 'row security');
SELECT is(pg_temp.smuggled(), '40001', 'row security: a conflict');
ROLLBACK;
BEGIN;
CREATE TABLE parent (LIKE idempotency_keys) PARTITION BY LIST (scope);
ALTER TABLE parent ATTACH PARTITION idempotency_keys DEFAULT;
SELECT is(pg_temp.whole_course('s'), :'course', 'itself a partition');
SELECT is(pg_temp.smuggled(), '40001', 'itself a partition: a conflict');
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys ADD CHECK (scope <> 'forbidden');
SELECT is(pg_temp.whole_course('s'), :'course', 'a check that holds');
SELECT is(pg_temp.smuggled(), '40001', 'a check that holds: a conflict');
SELECT throws_ok($$SELECT idempotent_begin('forbidden', 'k'); SELECT idempotent_finish('forbidden', 'k')$$, '23514', NULL, 'and one that does not');
SELECT is(pg_temp.locked('forbidden', 'k'), false, 'leaves nothing');
ROLLBACK;
BEGIN;
CREATE TABLE audit (who name, key text);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.audit VALUES (current_user, coalesce(NEW.key, OLD.key)); RETURN NULL; END $$;
CREATE TRIGGER audit AFTER INSERT OR DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION audit();
SELECT is(pg_temp.whole_course('s'), :'course', 'a trigger');
SELECT is(pg_temp.smuggled(), '40001', 'a trigger: a conflict');
SELECT is((SELECT count(*) FROM audit), 7::bigint, 'fires for each row inserted, replaced, pruned and forgotten');
TRUNCATE audit;
GRANT USAGE ON SCHEMA public TO regress_idempotency_app;
GRANT EXECUTE ON FUNCTION idempotent_begin, idempotent_finish TO regress_idempotency_app;
SET LOCAL ROLE regress_idempotency_app;
SELECT lives_ok($$SELECT idempotent_begin('s', 'app'); SELECT idempotent_finish('s', 'app')$$, 'for an application too');
RESET ROLE;
SELECT results_eq('TABLE audit', $$SELECT tableowner, 'app'::text FROM pg_tables WHERE tablename = 'idempotency_keys'$$, 'as the tables'' owner');
ROLLBACK;
BEGIN;
ALTER EXTENSION idempotency DROP TABLE idempotency_keys;
ALTER TABLE idempotency_keys RENAME TO plain_keys;
CREATE TABLE idempotency_keys (LIKE plain_keys, PRIMARY KEY (id)) PARTITION BY HASH (id);
CREATE TABLE keys_0 PARTITION OF idempotency_keys FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE keys_1 PARTITION OF idempotency_keys FOR VALUES WITH (MODULUS 2, REMAINDER 1);
SELECT is(pg_temp.whole_course('s'), :'course', 'partitions');
SELECT is((SELECT count(*) FROM plain_keys WHERE scope = 's'), 0::bigint, 'and nothing went elsewhere');
ROLLBACK;

-- What is published needs an identity to be deleted by, as for any DELETE.
SET client_min_messages = error;	-- wal_level may be too low for publications
BEGIN;
INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
	VALUES (pg_temp.id_of('s', 'published'), 's', 'published', 1, now(), now(), '-infinity');
CREATE PUBLICATION regress_idempotency FOR TABLE idempotency_keys;
SAVEPOINT with_identity;
SELECT is(idempotent_prune(), 1::bigint, 'published, with its primary key as identity');
ROLLBACK TO with_identity;
ALTER TABLE idempotency_keys REPLICA IDENTITY NOTHING;
SELECT throws_ok('SELECT idempotent_prune()', '55000', NULL, 'published, without an identity');
ROLLBACK;
RESET client_min_messages;

SELECT is(pg_temp.whole_course('plain again'), :'course', 'plain tables again');
SELECT is_empty($$SELECT FROM idempotency_keys WHERE scope = 's'$$, 'all else was rolled back');
DROP ROLE regress_idempotency_app;
-- No finish(): pgTAP's own count is rolled back with the rest.
