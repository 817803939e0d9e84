-- Claims and corrections in tables that have more than the install script gave them; and further shapes that are refused (I1).
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
SELECT is(pg_temp.lease_course('plain'), :'course', 'leases on plain tables');

\set changes :dir '/changes.sql'
\i :changes
TRUNCATE idempotency_keys, idempotency_claims, idempotency_corrections;
SELECT is(pg_temp.in_shape(ddl, $$SELECT pg_temp.lease_course('s')$$), :'course', 'leases: ' || what) FROM changes ORDER BY n;
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
