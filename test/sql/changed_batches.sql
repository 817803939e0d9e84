-- Batches, small and large, in tables that have more than the install script gave them (I1): thousands of rows.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
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
SELECT is(pg_temp.batch_course('plain'), :'batches', 'batches on plain tables');

\set changes :dir '/changes.sql'
\i :changes
TRUNCATE idempotency_keys, idempotency_claims, idempotency_corrections;
SELECT is(pg_temp.in_shape(ddl, $$SELECT pg_temp.batch_course('s')$$), :'batches', 'batches: ' || what) FROM changes ORDER BY n;
DROP TABLE fired;
DROP FUNCTION fire;
DROP FUNCTION of_scope;
-- No finish(): pgTAP's own count is rolled back with the rest.
