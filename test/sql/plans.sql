-- Plans that become invalid, and those that a session would have made otherwise.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();

-- However the session wants its plans, and whatever has them made anew, no table is read from one end to the other:
-- under SERIALIZABLE that would be a conflict with every other key.
SELECT current_setting('jit') AS jit \gset
SELECT count(*) FROM generate_series(1, 5) i, idempotent_begin('s', 'l' || i, lease => '1 hour') \g /dev/null
ANALYZE idempotency_keys, idempotency_claims;
CREATE FUNCTION pg_temp.seq_scans() RETURNS bigint LANGUAGE sql AS $$
	SELECT sum(pg_stat_get_xact_numscans(c.oid))::bigint FROM pg_class c
	WHERE c.oid IN ('idempotency_keys'::regclass, 'idempotency_claims'::regclass)
$$;
-- For every way to the tables through SQL.
CREATE FUNCTION pg_temp.course(key text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	scans bigint := pg_temp.seq_scans();
	said text;
BEGIN
	said := (SELECT outcome FROM idempotent_begin('s', key, lease => '1 hour'));
	PERFORM idempotent_checkpoint('s', key, 1, 'c');
	PERFORM idempotent_release('s', key, 1, 'error', '0');
	said := said || (SELECT outcome FROM idempotent_begin('s', key));
	PERFORM idempotent_finish('s', key);
	said := said || (SELECT count(*) FROM idempotent_begin_many('s', ARRAY[key, key || 'new']));
	PERFORM idempotent_finish_many('s', ARRAY[key || 'new']);
	RETURN said || idempotent_forget('s', key) || ', scans: ' || pg_temp.seq_scans() - scans;
END $$;
SELECT is(pg_temp.course('first'), 'startedrecovered1true, scans: 0', 'the plans are made');
SELECT is(pg_temp.course('again'), 'startedrecovered1true, scans: 0', 'and used');
CREATE TEMP TABLE changes_the_path (i int);
DROP TABLE changes_the_path;
SELECT is(pg_temp.course('temp'), 'startedrecovered1true, scans: 0', 'and made anew, where the search path resolves otherwise since');
SET plan_cache_mode = force_custom_plan;
SELECT is(pg_temp.course('custom'), 'startedrecovered1true, scans: 0', 'or where plans are to be made for each execution');
RESET plan_cache_mode;
SELECT is(current_setting('enable_seqscan') || current_setting('jit') || current_setting('plan_cache_mode'), 'on' || :'jit' || 'auto',
	'and the session''s settings are as they were');

-- A trigger that comes back while the plan that runs it has become invalid.
CREATE FUNCTION pg_temp.come_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.scope = 'outer' THEN
		EXECUTE format('ANALYZE %s', TG_RELID::regclass);
		PERFORM public.idempotent_begin('inner', NEW.key);
		PERFORM public.idempotent_finish('inner', NEW.key);
		-- whatever is free now is used
		FOR i IN 1..60 LOOP
			EXECUTE format('PREPARE %I AS SELECT %L::text', 'p' || i || NEW.key, repeat('x', 300 + 10 * i));
		END LOOP;
		IF NEW.key = 'error' THEN
			RAISE EXCEPTION 'no';
		END IF;
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER come_back BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION pg_temp.come_back();
CREATE FUNCTION pg_temp.run(key text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_begin('outer', key);
	RETURN idempotent_finish('outer', key, to_jsonb(key));
END $$;
SELECT is(pg_temp.run(key), to_jsonb(key), 'a trigger uses the functions too: ' || key) FROM unnest('{a,b,c}'::text[]) key;
SELECT throws_ok($$SELECT pg_temp.run('error')$$, 'P0001', NULL, 'and fails');
SELECT is(pg_temp.run(key), to_jsonb(key), 'and again: ' || key) FROM unnest('{d,e}'::text[]) key;
SELECT is((SELECT array_agg(key ORDER BY key) FROM idempotency_keys WHERE scope = 'inner'), '{a,b,c,d,e}', 'each has its key');
SELECT is((SELECT array_agg(key ORDER BY key) FROM idempotency_keys WHERE scope = 'outer'), '{a,b,c,d,e}', 'and those outside theirs');
DROP TRIGGER come_back ON idempotency_keys;
SELECT * FROM finish();
