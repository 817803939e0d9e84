-- A trigger or a rule that keeps a row from being written, or writes another, fails the call: nothing is reported as done that is not stored.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
CREATE OR REPLACE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
SELECT is(outcome, 'started', 'a claim') FROM unnest('{live,park,release,point,reset,forget,finish}'::text[]) k, idempotent_begin('s', k, lease => '1 hour');
SELECT is(outcome, 'started', 'and one that has ended') FROM unnest('{ended,settle,retry}'::text[]) k, idempotent_begin('s', k, lease => '1 microsecond');
SELECT is(idempotent_resolve('s', 'done', 'r', '"told"'), 'recorded', 'a key');
CREATE TEMP TABLE calls (event text, tablename text, call text);
INSERT INTO calls VALUES
	('INSERT', 'idempotency_keys', $$SELECT idempotent_begin('s', 'new'); SELECT idempotent_finish('s', 'new')$$),
	('INSERT', 'idempotency_keys', $$SELECT idempotent_finish('s', 'finish', attempt => 1)$$),
	('INSERT', 'idempotency_keys', $$SELECT idempotent_call('s', 'new', 'SELECT 1')$$),
	('INSERT', 'idempotency_keys', $$SELECT idempotent_begin_many('s', '{new}')$$),
	('INSERT', 'idempotency_keys', $$SELECT idempotent_begin_many('s', ARRAY(SELECT i::text FROM generate_series(1, 300) i))$$),
	('INSERT', 'idempotency_keys', $$SELECT idempotent_resolve('s', 'settle', 'r')$$),
	('INSERT', 'idempotency_claims', $$SELECT idempotent_begin('s', 'new', lease => '1 hour')$$),
	('INSERT', 'idempotency_corrections', $$SELECT idempotent_resolve('s', 'settle', 'r')$$),
	('INSERT', 'idempotency_corrections', $$SELECT idempotent_resolve('s', 'done', 'r', correct => true)$$),
	('UPDATE', 'idempotency_keys', $$SELECT idempotent_resolve('s', 'done', 'r', correct => true)$$),
	('UPDATE', 'idempotency_claims', $$SELECT idempotent_begin('s', 'ended', lease => '1 hour')$$),
	('UPDATE', 'idempotency_claims', $$SELECT idempotent_resume('1 hour')$$),
	('UPDATE', 'idempotency_claims', $$SELECT idempotent_retry('s', 'retry', '1 hour')$$),
	('UPDATE', 'idempotency_claims', $$SELECT idempotent_checkpoint('s', 'point', 1, 'c')$$),
	('UPDATE', 'idempotency_claims', $$SELECT idempotent_release('s', 'release', 1, 'e')$$),
	('UPDATE', 'idempotency_claims', $$SELECT idempotent_release('s', 'reset', 1, reset => true)$$),
	('UPDATE', 'idempotency_claims', $$SELECT idempotent_park('s', 'park', 1, 'e')$$),
	('UPDATE', 'idempotency_claims', $$SELECT idempotent_forget('s', 'forget')$$),
	('DELETE', 'idempotency_keys', $$SELECT idempotent_forget('s', 'done')$$),
	('DELETE', 'idempotency_claims', $$SELECT idempotent_finish('s', 'finish', attempt => 1)$$),
	('DELETE', 'idempotency_claims', $$SELECT idempotent_begin('s', 'ended'); SELECT idempotent_finish('s', 'ended')$$),
	('DELETE', 'idempotency_claims', $$SELECT idempotent_resolve('s', 'settle', 'r')$$);
CREATE TEMP TABLE before AS SELECT 'key' AS what, md5(k::text) FROM idempotency_keys k UNION ALL SELECT 'claim', md5(c::text) FROM idempotency_claims c;
-- What the call says under this definition, all of it undone.
CREATE FUNCTION pg_temp.under(ddl text, call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	EXECUTE ddl;
	said := pg_temp.sqlstate_of(call);
	RAISE SQLSTATE 'UNDO1' USING MESSAGE = CASE WHEN said = '00000' THEN 'done' ELSE 'failed' END;
EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
	RETURN SQLERRM;
END $$;
SELECT is(pg_temp.under('SELECT 1', call), 'done', 'without it: ' || call) FROM calls;
SELECT is(pg_temp.under(format('CREATE TRIGGER suppress BEFORE %s ON %s FOR EACH ROW EXECUTE FUNCTION suppress()', event, tablename), call), 'failed',
	format('a trigger on %s of %s: %s', event, tablename, call)) FROM calls;
SELECT is(pg_temp.under(format('CREATE RULE suppress AS ON %s TO %s DO INSTEAD NOTHING', event, tablename), call), 'failed',
	format('a rule on %s of %s: %s', event, tablename, call)) FROM calls;
SELECT results_eq($$SELECT 'key' AS what, md5(k::text) FROM idempotency_keys k UNION ALL SELECT 'claim', md5(c::text) FROM idempotency_claims c$$, 'TABLE before', 'and nothing has changed');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock is left');
-- No finish(): pgTAP's own count is rolled back with the rest.
