-- Tables that have more than the install script gave them (triggers, row security, columns, constraints, indexes) are used all the same.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
DROP ROLE IF EXISTS regress_idempotency_app;
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
	PERFORM clock_timestamp();
	said := said || ' ' || idempotent_prune();
	a := idempotent_begin(scope, 'l', '{"a": 1}', lease => '1 hour');
	PERFORM idempotent_checkpoint(scope, 'l', 1, 'c', '1', '1 hour');
	PERFORM idempotent_release(scope, 'l', 1, 'error', '0');
	said := said || ' ' || (SELECT attempt || checkpoint || state FROM idempotent_resume('1 hour', 10, scope));
	PERFORM idempotent_park(scope, 'l', 2, 'unknown');
	said := said || ' ' || (SELECT error FROM idempotent_retry(scope, 'l', '1 hour'));
	PERFORM idempotent_release(scope, 'l', 3, 'error', '0');
	a := idempotent_begin(scope, 'l');
	said := said || ' ' || a.outcome || a.attempt || a.state;
	PERFORM idempotent_finish(scope, 'l');
	said := said || ' ' || idempotent_resolve(scope, 'l', 'a reason', '"r"', correct => true);
	PERFORM idempotent_begin_many(scope, '{m1,m2}');
	said := said || ' ' || idempotent_finish_many(scope, '{m1,m2}');
	RETURN said || ' ' || (SELECT outcome FROM idempotent_lookup(scope, 'l')) || ' ' || idempotent_forget(scope, 'l');
END $$;
\set course 'startedk replayed201[1]"k"\\x00 mismatch started2 1 2c1 unknown recovered41 corrected 2 replayed true'
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
CREATE INDEX ON idempotency_keys (upper(scope));
CREATE UNIQUE INDEX ON idempotency_keys (key, scope, attempt, status) WHERE false;
CREATE INDEX ON idempotency_keys (status) WHERE status >= 500;
SELECT is(pg_temp.whole_course('s'), :'course', 'an index more');
SELECT is(pg_temp.smuggled(), '40001', 'an index more: a conflict');
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
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE idempotency_claims ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SELECT is(pg_temp.whole_course('s'), :'course', 'row security');
SELECT is(pg_temp.smuggled(), '40001', 'row security: a conflict');
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
CREATE ROLE regress_idempotency_keeper NOLOGIN;
GRANT CREATE ON SCHEMA public TO regress_idempotency_keeper;
ALTER TABLE idempotency_keys OWNER TO regress_idempotency_keeper;
ALTER TABLE idempotency_claims OWNER TO regress_idempotency_keeper;
ALTER TABLE idempotency_corrections OWNER TO regress_idempotency_keeper;
ALTER FUNCTION idempotent_derive OWNER TO regress_idempotency_keeper;
ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY;
ALTER TABLE idempotency_claims ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SELECT is(pg_temp.whole_course('s'), :'course', 'row security that is forced on an owner without rights to bypass it');
ROLLBACK;
BEGIN;
DELETE FROM idempotency_keys;
ALTER TABLE idempotency_claims RENAME COLUMN lease TO lease_old;
ALTER TABLE idempotency_claims ADD COLUMN lease interval NOT NULL;
ALTER TABLE idempotency_claims ALTER COLUMN lease_old DROP NOT NULL;
ALTER TABLE idempotency_keys RENAME COLUMN attempt TO attempt_old;
ALTER TABLE idempotency_keys ADD COLUMN attempt integer NOT NULL;
ALTER TABLE idempotency_keys DROP COLUMN attempt_old;
SELECT is(pg_temp.whole_course('s'), :'course', 'columns in another order: they are found by name');
ROLLBACK;
BEGIN;
DELETE FROM idempotency_keys;
ALTER TABLE idempotency_keys ALTER COLUMN fingerprint SET NOT NULL;
SELECT throws_ok($$SELECT idempotent_begin('s', 'k'); SELECT idempotent_finish('s', 'k')$$, '23502', NULL, 'a column of ours that has become NOT NULL is checked');
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
SELECT is((SELECT count(*) FROM audit), 9::bigint, 'fires for each row inserted, replaced, pruned and forgotten');
TRUNCATE audit;
GRANT USAGE ON SCHEMA public TO regress_idempotency_app;
GRANT EXECUTE ON FUNCTION idempotent_begin, idempotent_finish TO regress_idempotency_app;
SET LOCAL ROLE regress_idempotency_app;
SELECT lives_ok($$SELECT idempotent_begin('s', 'app'); SELECT idempotent_finish('s', 'app')$$, 'for an application too');
RESET ROLE;
SELECT results_eq('TABLE audit', $$SELECT tableowner, 'app'::text FROM pg_tables WHERE tablename = 'idempotency_keys'$$, 'as the tables'' owner');
ROLLBACK;
-- Shapes on which the promise does not rest are refused by every function that touches the tables, before anything is done.
CREATE FUNCTION pg_temp.refused(scope text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	call text;
	bad text := '';
BEGIN
	FOREACH call IN ARRAY ARRAY[
		'idempotent_begin(%L, ''new'')', 'idempotent_begin(%L, ''new'', lease => ''1 min'')', 'idempotent_try_begin(%L, ''new'')',
		'idempotent_finish(%L, ''new'')', 'idempotent_finish(%L, ''new'', attempt => 1)', 'idempotent_release(%L, ''new'')',
		'idempotent_release(%L, ''new'', 1)', 'idempotent_checkpoint(%L, ''new'', 1, ''c'')', 'idempotent_park(%L, ''new'', 1, ''e'')',
		'idempotent_resume(''1 min'', 1, %L)', 'idempotent_retry(%L, ''new'', ''1 min'')', 'idempotent_resolve(%L, ''new'', ''r'')',
		'idempotent_reconcile(''[]'', ''step'', now(), NULL, %L)', 'idempotent_call(%L, ''new'', ''SELECT 1'')',
		'idempotent_begin_many(%L, ''{new}'')', 'idempotent_begin_many(%L, ARRAY(SELECT i::text FROM generate_series(1, 300) i))',
		'idempotent_finish_many(%L, ''{new}'')', 'idempotent_lookup(%L, ''new'')', 'idempotent_forget(%L, ''new'')',
		'idempotent_forget_scope(%L)', 'idempotent_prune(length(%L))'] LOOP
		BEGIN
			EXECUTE 'SELECT ' || format(call, scope);
			bad := bad || ' ' || call;
		EXCEPTION WHEN feature_not_supported THEN
			NULL;
		WHEN OTHERS THEN
			bad := bad || ' ' || SQLSTATE || ' ' || call;
		END;
	END LOOP;
	RETURN bad || pg_temp.locks();
END $$;
TRUNCATE idempotency_keys, idempotency_claims;
CREATE TEMP TABLE shapes (n int, what text, ddl text);
INSERT INTO shapes VALUES
	(1, 'unlogged keys', 'ALTER TABLE idempotency_keys SET UNLOGGED'),
	(2, 'unlogged claims', 'ALTER TABLE idempotency_claims SET UNLOGGED'),
	(3, 'no primary key', 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey'),
	(4, 'no primary key of claims', 'ALTER TABLE idempotency_claims DROP CONSTRAINT idempotency_claims_pkey'),
	(5, 'a unique index instead', 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey; CREATE UNIQUE INDEX ON idempotency_keys (id)'),
	(6, 'a primary key of two columns', 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey; ALTER TABLE idempotency_keys ADD PRIMARY KEY (id, expires_at)'),
	(7, 'a primary key of another column', 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey; ALTER TABLE idempotency_keys ADD PRIMARY KEY (scope)'),
	(8, 'a deferrable primary key', 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey; ALTER TABLE idempotency_keys ADD PRIMARY KEY (id) DEFERRABLE'),
	(9, 'an invalid primary key', 'UPDATE pg_index SET indisvalid = false WHERE indexrelid = ''idempotency_keys_pkey''::regclass'),
	(10, 'a column missing', 'ALTER TABLE idempotency_keys DROP COLUMN shortened'),
	(11, 'a column renamed', 'ALTER TABLE idempotency_claims RENAME COLUMN max_attempts TO limit_of_attempts'),
	(12, 'a column of another type', 'ALTER TABLE idempotency_keys ALTER COLUMN attempt TYPE bigint'),
	(13, 'a column that is generated', 'ALTER TABLE idempotency_keys DROP COLUMN failed; ALTER TABLE idempotency_keys ADD COLUMN failed boolean GENERATED ALWAYS AS (true) STORED'),
	(14, 'a child', 'CREATE TABLE child () INHERITS (idempotency_keys)'),
	(15, 'a child of claims', 'CREATE TABLE child () INHERITS (idempotency_claims)'),
	(16, 'itself a partition', 'CREATE TABLE parent (LIKE idempotency_keys) PARTITION BY LIST (scope); ALTER TABLE parent ATTACH PARTITION idempotency_keys DEFAULT'),
	(17, 'partitioned by id', 'ALTER TABLE idempotency_keys RENAME TO plain_keys; CREATE TABLE idempotency_keys (LIKE plain_keys, PRIMARY KEY (id)) PARTITION BY HASH (id); CREATE TABLE keys_0 PARTITION OF idempotency_keys FOR VALUES WITH (MODULUS 1, REMAINDER 0)'),
	(18, 'partitioned by time', 'ALTER TABLE idempotency_keys RENAME TO plain_keys; CREATE TABLE idempotency_keys (LIKE plain_keys, PRIMARY KEY (id, expires_at)) PARTITION BY RANGE (expires_at); CREATE TABLE keys_0 PARTITION OF idempotency_keys DEFAULT'),
	(19, 'a view', 'ALTER TABLE idempotency_keys RENAME TO plain_keys; CREATE VIEW idempotency_keys AS SELECT * FROM plain_keys');
CREATE FUNCTION pg_temp.in_shape(ddl text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	EXECUTE ddl;
	said := pg_temp.refused('shape');
	RAISE SQLSTATE 'UNDO1' USING MESSAGE = said;
EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
	RETURN SQLERRM;
END $$;
SELECT is(pg_temp.in_shape(ddl), '0', 'refused, without a lock left: ' || what) FROM shapes ORDER BY n;
SELECT is(pg_temp.whole_course('after'), :'course', 'and back in shape all goes on');
CREATE TABLE once_a_child () INHERITS (idempotency_keys);
DROP TABLE once_a_child;
SELECT is(pg_temp.whole_course('childless'), :'course', 'a table that once had a child is plain again');

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
