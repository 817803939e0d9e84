-- Tables on whose shape the promise cannot rest: 0A000 from every function, looked at once a session.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(18);
-- How each function ends in a session that has not looked yet.
CREATE FUNCTION pg_temp.ends() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	command text;
	ended text[];
BEGIN
	FOREACH command IN ARRAY ARRAY['begin(''s'', ''k'')', 'try_begin(''s'', ''k'')', 'finish(''s'', ''k'')', 'release(''s'', ''k'')',
		'lookup(''s'', ''k'')', 'checkpoint(''s'', ''k'', 1)', 'park(''s'', ''k'', 1, ''e'')', 'resume(''1 min'')', 'retry(''s'', ''k'', ''1 min'')',
		'resolve(''s'', ''k'', ''why'')', 'forget(''s'', ''k'')', 'forget_scope(''s'')', 'prune()', 'begin_many(''s'', ''{k}'')',
		'finish_many(''s'', ''{k}'')', 'reconcile(''[]'', ''p'', ''infinity'')'] LOOP
		PERFORM set_config('idempotency_sql.shapes', '', false);
		BEGIN
			EXECUTE 'SELECT * FROM idempotent_' || command;
			ended := ended || '00000'::text;
		EXCEPTION WHEN OTHERS THEN
			ended := ended || SQLSTATE;
		END;
	END LOOP;
	RETURN (SELECT string_agg(DISTINCT e, ' ') FROM unnest(ended) e);
END $$;
CREATE FUNCTION pg_temp.begins() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('idempotency_sql.shapes', '', false);
	PERFORM idempotent_release('s', 'other', attempt, reset => true) FROM idempotent_begin('s', 'other', lease => '1 hour');
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT isnt(pg_temp.ends(), '0A000', 'the tables as they are made') FROM (SELECT set_config('idempotency_sql.shapes', '', false)) s;

\set change 'ALTER TABLE idempotency_keys SET UNLOGGED'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'unlogged keys'); ROLLBACK;
\set change 'ALTER TABLE idempotency_claims SET UNLOGGED'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'unlogged claims'); ROLLBACK;
\set change 'CREATE TABLE child () INHERITS (idempotency_keys)'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'a table that inherits'); ROLLBACK;
\set change 'CREATE TABLE child () INHERITS (idempotency_claims)'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'a table that inherits claims'); ROLLBACK;
\set change 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'no primary key'); ROLLBACK;
\set change 'ALTER TABLE idempotency_claims DROP CONSTRAINT idempotency_claims_pkey'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'no primary key of claims'); ROLLBACK;
\set change 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (id, scope)'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'a primary key on more than id'); ROLLBACK;
\set change 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (id) DEFERRABLE'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'a deferrable primary key'); ROLLBACK;
\set change 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD UNIQUE (id)'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'a unique constraint alone'); ROLLBACK;
\set change 'ALTER TABLE idempotency_keys RENAME TO k; CREATE TABLE idempotency_keys (LIKE k INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY HASH (id)'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'a partitioned table'); ROLLBACK;
\set change 'ALTER TABLE idempotency_keys RENAME TO k; CREATE VIEW idempotency_keys AS SELECT * FROM k'
BEGIN; :change; SELECT is(pg_temp.ends(), '0A000', 'a view'); ROLLBACK;

-- What has more than the script made is used.
\set change 'ALTER TABLE idempotency_keys ADD COLUMN note text, ALTER COLUMN scope SET STATISTICS 0'
BEGIN; :change; SELECT is(pg_temp.begins(), '00000', 'a column more'); ROLLBACK;
\set change 'ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (id) INCLUDE (attempt)'
BEGIN; :change; SELECT is(pg_temp.begins(), '00000', 'a primary key that includes'); ROLLBACK;
BEGIN; CREATE TABLE child () INHERITS (idempotency_keys); DROP TABLE child;
SELECT is(pg_temp.begins(), '00000', 'a table that inherited once'); ROLLBACK;

-- Once a session.
SELECT is(pg_temp.begins(), '00000', 'looked at');
SELECT is(current_setting('idempotency_sql.shapes'), 'public', 'and said so');
BEGIN;
ALTER TABLE idempotency_keys SET UNLOGGED;
SELECT is(outcome, 'started', 'what is changed later is seen by the next session') FROM idempotent_begin('s', 'later');
ROLLBACK;
SELECT * FROM finish();
