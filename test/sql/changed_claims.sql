-- Claims, batches and corrections in tables that have more than the install script gave them; and further shapes that are refused (I1).
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
-- Work under lease, from its claim to its correction.
CREATE FUNCTION pg_temp.lease_course(scope text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text := '';
	a idempotent_attempt;
	c idempotent_claim;
BEGIN
	a := idempotent_begin(scope, 'l', '{"a": 1}', lease => '1 hour', retention => '2 days');
	said := said || a.outcome || a.attempt;
	PERFORM idempotent_checkpoint(scope, 'l', 1, 'one', '"state"');
	PERFORM idempotent_release(scope, 'l', 1, 'why', '0');
	a := idempotent_try_begin(scope, 'l', '{"a": 2}');
	said := said || ' ' || a.outcome;
	c := idempotent_resume('1 hour', 1, scope);
	said := said || ' ' || c.attempt || c.request || c.checkpoint || c.state || c.error;
	PERFORM idempotent_park(scope, 'l', 2, 'unknown');
	a := idempotent_lookup(scope, 'l');
	said := said || ' ' || a.outcome || a.error || a.checkpoint || a.state;
	c := idempotent_retry(scope, 'l', '1 hour');
	said := said || ' ' || c.attempt;
	PERFORM idempotent_release(scope, 'l', 3, reset => true);
	a := idempotent_begin(scope, 'l', lease => '1 hour');
	said := said || ' ' || a.outcome || a.attempt || coalesce(a.checkpoint, '');
	PERFORM idempotent_park(scope, 'l', 4, 'unknown');
	said := said || ' ' || idempotent_resolve(scope, 'l', 'a reason', '"told"', attempt => 4) || idempotent_resolve(scope, 'l', 'another', '"corrected"', correct => true);
	a := idempotent_begin(scope, 'l');
	said := said || ' ' || a.outcome || a.attempt || a.response;
	SELECT string_agg(r.verdict, ',') INTO a.outcome FROM idempotent_reconcile('[]', 'step', '-infinity', NULL, scope) r;
	said := said || ' ' || a.outcome;
	PERFORM idempotent_begin(scope, 'f', lease => '1 hour');
	PERFORM idempotent_release(scope, 'f', 1);
	RETURN said || ' ' || idempotent_forget(scope, 'f') || idempotent_forget_scope(scope);
END $$;
\set course 'started1 mismatch 2{"a": 1}one"state"why parkedunknownone"state" 3 started4 settledcorrected replayed5"corrected" missing_there true1'
-- Batches, small and large, of new and of expired ids.
CREATE FUNCTION pg_temp.batch_course(scope text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text := '';
	ids text[];
	n int;
BEGIN
	FOREACH n IN ARRAY '{20,300}'::int[] LOOP
		ids := ARRAY(SELECT n || 'm' || i FROM generate_series(1, n) i);
		said := said || (SELECT count(*) FROM idempotent_begin_many(scope, ids)) || ' ' || idempotent_finish_many(scope, ids) || ' '
			|| (SELECT count(*) FROM idempotent_begin_many(scope, ids)) || ' ';
		EXECUTE format('UPDATE idempotency_keys SET expires_at = now() WHERE scope = %L', scope);
		said := said || (SELECT count(*) FROM idempotent_begin_many(scope, ids)) || ' ' || idempotent_finish_many(scope, ids) || ' ';
	END LOOP;
	RETURN said || (SELECT count(*) FROM idempotency_keys k WHERE k.scope = batch_course.scope);
END $$;
\set batches '20 20 0 20 20 300 300 0 300 300 320'
SELECT is(pg_temp.lease_course('plain'), :'course', 'leases on plain tables');
SELECT is(pg_temp.batch_course('plain'), :'batches', 'batches on plain tables');

-- Views of ours that stand in the way of such a change.
\set no_views 'ALTER EXTENSION idempotency DROP VIEW idempotency_stalled; ALTER EXTENSION idempotency DROP VIEW idempotency_in_flight; DROP VIEW idempotency_stalled, idempotency_in_flight;'
CREATE TABLE fired (what text);
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.fired VALUES (TG_TABLE_NAME || ' ' || TG_OP); RETURN coalesce(NEW, OLD); END $$;
CREATE FUNCTION of_scope(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT split_part($1, ' ', 1) $$;
CREATE TEMP TABLE changes (n int GENERATED ALWAYS AS IDENTITY, what text, ddl text);
INSERT INTO changes (what, ddl) VALUES
	('triggers before each row', (SELECT string_agg(format('CREATE TRIGGER fire BEFORE INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION fire()', t), ';') FROM unnest('{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[]) t)),
	('triggers after each row', (SELECT string_agg(format('CREATE TRIGGER fire AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION fire()', t), ';') FROM unnest('{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[]) t)),
	('triggers for each statement', (SELECT string_agg(format('CREATE TRIGGER fire AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH STATEMENT EXECUTE FUNCTION fire()', t), ';') FROM unnest('{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[]) t)),
	('a deferred constraint trigger', 'CREATE CONSTRAINT TRIGGER fire AFTER INSERT ON idempotency_keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fire()'),
	('row security', (SELECT string_agg(format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t), ';') FROM unnest('{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[]) t)),
	('columns more', 'ALTER TABLE idempotency_claims ADD COLUMN note text NOT NULL DEFAULT ''n'', ADD COLUMN at timestamptz DEFAULT clock_timestamp(); ALTER TABLE idempotency_keys ADD COLUMN note text NOT NULL DEFAULT ''n''; ALTER TABLE idempotency_corrections ADD COLUMN note text NOT NULL DEFAULT ''n'''),
	('checks', 'ALTER TABLE idempotency_claims ADD CHECK (attempt > 0), ADD CHECK (scope IS NULL OR length(scope) < 100); ALTER TABLE idempotency_keys ADD CHECK (expires_at > finished_at OR attempt > 0)'),
	('generated columns', 'ALTER TABLE idempotency_claims ADD COLUMN tenant text GENERATED ALWAYS AS (of_scope(scope)) STORED; ALTER TABLE idempotency_keys ADD COLUMN tenant text GENERATED ALWAYS AS (of_scope(scope)) STORED'),
	('indexes on expressions, and partial ones', 'CREATE INDEX ON idempotency_claims (of_scope(scope)) WHERE parked_at IS NOT NULL; CREATE INDEX ON idempotency_claims (lease_until) WHERE reset_at IS NULL; CREATE INDEX ON idempotency_keys (of_scope(scope)) WHERE status >= 500'),
	('a unique index on the name', 'CREATE UNIQUE INDEX ON idempotency_keys (scope, key); CREATE UNIQUE INDEX ON idempotency_claims (scope, key)'),
	('an exclusion constraint', 'ALTER TABLE idempotency_keys ADD EXCLUDE USING btree (id WITH =)'),
	('columns in another order', :'no_views' || 'ALTER TABLE idempotency_claims RENAME COLUMN attempt TO was; ALTER TABLE idempotency_claims ADD COLUMN attempt integer NOT NULL DEFAULT 0; ALTER TABLE idempotency_claims DROP COLUMN was;'
		|| 'ALTER TABLE idempotency_keys RENAME COLUMN expires_at TO was; ALTER TABLE idempotency_keys ADD COLUMN expires_at timestamptz NOT NULL; ALTER TABLE idempotency_keys DROP COLUMN was'),
	('everything at once', 'CREATE TRIGGER fire BEFORE INSERT OR UPDATE OR DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION fire(); CREATE TRIGGER fire BEFORE INSERT OR UPDATE OR DELETE ON idempotency_claims FOR EACH ROW EXECUTE FUNCTION fire();'
		'ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY, ADD COLUMN note text DEFAULT ''n'', ADD COLUMN tenant text GENERATED ALWAYS AS (of_scope(scope)) STORED;'
		'ALTER TABLE idempotency_claims ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY, ADD COLUMN note text DEFAULT ''n''; CREATE INDEX ON idempotency_keys (of_scope(scope)) WHERE status IS NULL');
-- A command's answer in tables so changed, and then back to what they were.
CREATE FUNCTION pg_temp.in_shape(ddl text, command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	EXECUTE ddl;
	EXECUTE command INTO said;
	RAISE SQLSTATE 'UNDO1' USING MESSAGE = said;
EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
	RETURN SQLERRM;
WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
TRUNCATE idempotency_keys, idempotency_claims, idempotency_corrections;
SELECT is(pg_temp.in_shape(ddl, $$SELECT pg_temp.lease_course('s')$$), :'course', 'leases: ' || what) FROM changes ORDER BY n;
SELECT is(pg_temp.in_shape(ddl, $$SELECT pg_temp.batch_course('s')$$), :'batches', 'batches: ' || what) FROM changes ORDER BY n;
CREATE FUNCTION pg_temp.fired() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_temp.lease_course('s');
	RETURN (SELECT string_agg(DISTINCT what, ', ') FROM fired);
END $$;
SELECT is(pg_temp.in_shape(ddl, 'SELECT pg_temp.fired()'),
	'idempotency_claims DELETE, idempotency_claims INSERT, idempotency_claims UPDATE, idempotency_corrections DELETE, idempotency_corrections INSERT, '
	'idempotency_keys DELETE, idempotency_keys INSERT, idempotency_keys UPDATE', 'every kind of write fires them')
FROM changes WHERE n = 2;

-- A trigger that keeps what has expired: finish says so at once, and not that the transaction should be tried again for ever.
BEGIN;
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
SELECT is(outcome, 'started', 'a key') FROM idempotent_begin('keep', 'k');
SELECT is(idempotent_finish('keep', 'k', '1'), '1', 'is finished');
UPDATE idempotency_keys SET expires_at = now();
CREATE TRIGGER keep BEFORE DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION keep();
SELECT is(outcome, 'started', 'it has expired, and begins anew') FROM idempotent_begin('keep', 'k');
SELECT isnt(pg_temp.sqlstate_of($$SELECT idempotent_finish('keep', 'k', '2')$$), '40001', 'finish does not ask for a retry that cannot help');
ROLLBACK;

-- Refused, from every function that touches the tables, before anything is done.
CREATE FUNCTION pg_temp.not_refused() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	call text;
	bad text := '';
BEGIN
	FOREACH call IN ARRAY ARRAY[
		'idempotent_begin(''s'', ''new'')', 'idempotent_begin(''s'', ''new'', lease => ''1 min'')', 'idempotent_try_begin(''s'', ''new'')',
		'idempotent_begin(''s'', ''leased'')', 'idempotent_try_begin(''s'', ''leased'')',
		'idempotent_finish(''s'', ''leased'', attempt => 1)', 'idempotent_release(''s'', ''leased'', 1)', 'idempotent_release(''s'', ''leased'', 1, reset => true)',
		'idempotent_checkpoint(''s'', ''leased'', 1, ''c'')', 'idempotent_checkpoint(''s'', ''leased'', 1)', 'idempotent_park(''s'', ''leased'', 1, ''e'')',
		'idempotent_resume(''1 min'')', 'idempotent_retry(''s'', ''ended'', ''1 min'')', 'idempotent_resolve(''s'', ''ended'', ''r'')',
		'idempotent_reconcile(''[]'', ''step'', ''-infinity'')', 'idempotent_call(''s'', ''new'', ''SELECT 1'')',
		'idempotent_begin_many(''s'', ''{new}'')', 'idempotent_begin_many(''s'', ARRAY(SELECT i::text FROM generate_series(1, 300) i))',
		'idempotent_finish_many(''s'', ''{new}'')', 'idempotent_lookup(''s'', ''leased'')',
		'idempotent_forget(''s'', ''finished'')', 'idempotent_forget(''s'', ''leased'')', 'idempotent_forget_scope(''s'')', 'idempotent_prune()'] LOOP
		BEGIN
			EXECUTE 'SELECT ' || call;
			bad := bad || ' ' || call;
		EXCEPTION WHEN feature_not_supported THEN
			NULL;
		WHEN OTHERS THEN
			bad := bad || ' ' || SQLSTATE || ' ' || call;
		END;
	END LOOP;
	RETURN ltrim(bad || ' ' || pg_temp.locks() || ' locks');
END $$;
SELECT is(outcome, 'started', 'a live claim') FROM idempotent_begin('s', 'leased', lease => '1 hour');
SELECT is(outcome, 'started', 'one that has ended') FROM idempotent_begin('s', 'ended', lease => '1 microsecond');
SELECT is(idempotent_resolve('s', 'finished', 'r', '1'), 'recorded', 'and a finished key');
CREATE FOREIGN DATA WRAPPER regress_nowhere;
CREATE SERVER regress_nowhere FOREIGN DATA WRAPPER regress_nowhere;
CREATE TEMP TABLE shapes (n int GENERATED ALWAYS AS IDENTITY, what text, ddl text);
INSERT INTO shapes (what, ddl) VALUES
	('a foreign table', 'ALTER TABLE idempotency_keys RENAME TO was; CREATE FOREIGN TABLE idempotency_keys (id uuid NOT NULL, scope text NOT NULL, key text NOT NULL, fingerprint bytea, attempt int NOT NULL, status int, headers jsonb, response jsonb, body bytea, '
		'first_seen_at timestamptz NOT NULL, finished_at timestamptz NOT NULL, expires_at timestamptz NOT NULL, failed boolean, shortened boolean) SERVER regress_nowhere'),
	('a foreign child', 'CREATE FOREIGN TABLE child () INHERITS (idempotency_keys) SERVER regress_nowhere'),
	('deferrable, claims', 'ALTER TABLE idempotency_claims DROP CONSTRAINT idempotency_claims_pkey; ALTER TABLE idempotency_claims ADD PRIMARY KEY (id) DEFERRABLE INITIALLY IMMEDIATE'),
	('deferred, keys', 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey; ALTER TABLE idempotency_keys ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED'),
	('invalid, claims', 'UPDATE pg_index SET indisvalid = false WHERE indexrelid = ''idempotency_claims_pkey''::regclass'),
	('with a second column, claims', 'ALTER TABLE idempotency_claims DROP CONSTRAINT idempotency_claims_pkey; ALTER TABLE idempotency_claims ADD PRIMARY KEY (id, lease_until)'),
	('with a second column, keys', 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey; ALTER TABLE idempotency_keys ADD PRIMARY KEY (id, expires_at)'),
	('a unique index without constraint, claims', 'ALTER TABLE idempotency_claims DROP CONSTRAINT idempotency_claims_pkey; CREATE UNIQUE INDEX ON idempotency_claims (id)'),
	('a partitioned table, claims', 'ALTER TABLE idempotency_claims RENAME TO was; CREATE TABLE idempotency_claims (LIKE was, PRIMARY KEY (id)) PARTITION BY HASH (id); CREATE TABLE part PARTITION OF idempotency_claims FOR VALUES WITH (MODULUS 1, REMAINDER 0)'),
	('a type of the same kind, claims', :'no_views' || 'ALTER TABLE idempotency_claims ALTER COLUMN checkpoint TYPE varchar'),
	('a domain, keys', 'CREATE DOMAIN answer AS jsonb; ALTER TABLE idempotency_keys ALTER COLUMN response TYPE answer'),
	('a timestamp without time zone, keys', 'ALTER TABLE idempotency_keys ALTER COLUMN finished_at TYPE timestamp'),
	('json, claims', 'ALTER TABLE idempotency_claims ALTER COLUMN state TYPE json')
	;
INSERT INTO shapes (what, ddl)
	SELECT 'without ' || table_name || '.' || column_name, :'no_views' || format('ALTER TABLE %I DROP COLUMN %I', table_name, column_name)
	FROM information_schema.columns WHERE table_schema = 'public' AND table_name IN ('idempotency_keys', 'idempotency_claims') ORDER BY table_name, ordinal_position;
SELECT is(pg_temp.in_shape(ddl, 'SELECT pg_temp.not_refused()'), '0 locks', 'refused: ' || what) FROM shapes ORDER BY n;
SELECT results_eq($$SELECT key, attempt FROM idempotency_claims ORDER BY key$$, $$VALUES ('ended', 1), ('leased', 1)$$, 'the claims are as they were');
SELECT is(pg_temp.lease_course('after'), :'course', 'and back in shape all goes on');

-- A stored answer needs no claims, but keys.
SELECT is(pg_temp.in_shape('ALTER TABLE idempotency_keys SET UNLOGGED', format('SELECT pg_temp.sqlstate_of(%L)', command)), '0A000', command)
FROM (VALUES ($$SELECT idempotent_begin('s', 'finished')$$), ($$SELECT idempotent_try_begin('s', 'finished')$$), ($$SELECT idempotent_lookup('s', 'finished')$$),
	($$SELECT idempotent_resolve('s', 'finished', 'r', correct => true)$$)) v(command);

-- What cannot be recorded as a correction is not done.
SELECT is(pg_temp.in_shape('ALTER TABLE idempotency_corrections DROP COLUMN reason',
	$$SELECT (pg_temp.sqlstate_of('SELECT idempotent_resolve(''s'', ''ended'', ''r'')') <> '00000') || ' ' || (SELECT count(*) FROM idempotency_claims WHERE key = 'ended')$$), 'true 1',
	'resolve without a column of corrections');
DROP SERVER regress_nowhere;
DROP FOREIGN DATA WRAPPER regress_nowhere;
DROP TABLE fired;
DROP FUNCTION fire;
DROP FUNCTION of_scope;
-- No finish(): pgTAP's own count is rolled back with the rest.
