-- idempotency_stats counts what happened; idempotency_in_flight shows who is at it.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
-- Before 17 there are counters only where the server loads the library at its start.  Else all is null, and nothing fails.
SELECT current_setting('server_version_num')::int >= 170000
	OR 'idempotency' = ANY (string_to_array(replace(current_setting('shared_preload_libraries'), ' ', ''), ',')) AS counted \gset
CREATE FUNCTION pg_temp.counters(VARIADIC names text[]) RETURNS bigint[] LANGUAGE sql AS $$
	SELECT array_remove(array_agg((to_jsonb(s) ->> name)::bigint ORDER BY n), NULL)
	FROM idempotency_stats s, unnest(names) WITH ORDINALITY u(name, n)
$$;
CREATE FUNCTION pg_temp.are(counted boolean, VARIADIC numbers bigint[]) RETURNS bigint[] LANGUAGE sql AS $$
	SELECT CASE WHEN counted THEN numbers ELSE '{}' END
$$;
SELECT is(idempotent_stats_reset(), :'counted', 'reset');
SELECT is((SELECT to_jsonb(s) - 'stats_reset' FROM idempotency_stats s), jsonb_object_agg(c, CASE WHEN :'counted' THEN 0 END),
	'every counter begins at zero')
	FROM unnest('{started,replayed,waited,in_progress,mismatches,expired,finished,released,executed,failed,recovered,overtaken,pruned,guard_failures,parked,resolved,corrected}'::text[]) c;
SELECT is(stats_reset BETWEEN now() - interval '1 minute' AND clock_timestamp(), CASE WHEN :'counted' THEN true END,
	'and says since when') FROM idempotency_stats;

BEGIN;
SELECT outcome FROM idempotent_begin('s', 'k', request => '1') \g /dev/null
SELECT idempotent_finish('s', 'k') \g /dev/null
COMMIT;
SELECT outcome FROM idempotent_begin('s', 'k') \g /dev/null
SELECT outcome FROM idempotent_try_begin('s', 'k', request => '2') \g /dev/null
SELECT outcome FROM idempotent_try_begin('s', 'old', first_sent => now() - interval '2 days') \g /dev/null
BEGIN;
SELECT outcome FROM idempotent_begin('s', 'r') \g /dev/null
SELECT idempotent_release('s', 'r') \g /dev/null
COMMIT;
SELECT is(pg_temp.counters('started', 'finished', 'replayed', 'mismatches', 'expired', 'released'),
	pg_temp.are(:'counted', 2, 1, 1, 1, 1, 1), 'started, finished, replayed, mismatches, expired, released');
SELECT outcome FROM idempotent_begin('s', 'l', lease => '1 microsecond') \g /dev/null
SELECT outcome FROM idempotent_begin('s', 'l', lease => '1 hour') \g /dev/null
SELECT outcome FROM idempotent_try_begin('s', 'l', lease => '1 hour') \g /dev/null
\set ON_ERROR_STOP off
SELECT idempotent_finish('s', 'l', attempt => 1) \g /dev/null
SELECT outcome FROM idempotent_begin('s', 'guard') \g /dev/null
\set ON_ERROR_STOP on
SELECT is(pg_temp.counters('recovered', 'in_progress', 'overtaken', 'guard_failures'),
	pg_temp.are(:'counted', 1, 1, 1, 1), 'recovered, in_progress, overtaken, guard_failures');
SELECT outcome FROM idempotent_call('s', 'c', 'SELECT 1') \g /dev/null
SELECT outcome FROM idempotent_call('s', 'f', 'SELECT 1/0', remember_errors => true) \g /dev/null
SELECT is(pg_temp.counters('executed', 'failed'), pg_temp.are(:'counted', 1, 1), 'executed, failed');
UPDATE idempotency_keys SET expires_at = now() WHERE scope = 's' AND key IN ('c', 'f');
SELECT idempotent_prune() \g /dev/null
SELECT is(pg_temp.counters('pruned'), pg_temp.are(:'counted', 2), 'pruned');
SELECT idempotent_stats_reset() \g /dev/null
SELECT is(pg_temp.counters('started'), pg_temp.are(:'counted', 0), 'and back to zero');

-- In flight.
SELECT is_empty('SELECT FROM idempotency_in_flight', 'nobody is at it');
BEGIN;
SELECT outcome FROM idempotent_begin('s', 'flight') \g /dev/null
SELECT is((pid, waiting, id_suffix, id), (pg_backend_pid(), false, right(replace(pg_temp.id_of('s', 'flight')::text, '-', ''), 16), NULL::uuid),
	'an attempt of one transaction, by the end of its id') FROM idempotency_in_flight;
SELECT ok(since <= clock_timestamp() AND query LIKE '%idempotency_in_flight%' AND state = 'active', 'since when, and at what')
	FROM idempotency_in_flight;
ROLLBACK;
BEGIN;
SELECT idempotent_checkpoint('s', 'l', 2, 'here') \g /dev/null
SELECT is((id, scope, key), (pg_temp.id_of('s', 'l'), 's'::text, 'l'::text), 'a key under lease, by name') FROM idempotency_in_flight;
COMMIT;
BEGIN;
SELECT pg_advisory_xact_lock(1) \g /dev/null
SELECT is_empty('SELECT FROM idempotency_in_flight', 'other advisory locks are not ours');
COMMIT;

-- Who may look.
DROP ROLE IF EXISTS idempotency_test_watcher;
CREATE ROLE idempotency_test_watcher;
SET ROLE idempotency_test_watcher;
\set ON_ERROR_STOP off
SELECT started FROM idempotency_stats \g /dev/null
\set seen :SQLSTATE
RESET ROLE;
SELECT is(text :'seen', '42501', 'not everybody');
\set ON_ERROR_STOP on
GRANT pg_monitor TO idempotency_test_watcher;
SET ROLE idempotency_test_watcher;
SELECT is(started IS NOT NULL, :'counted', 'pg_monitor reads the statistics') FROM public.idempotency_stats;
SELECT count(*) FROM public.idempotency_in_flight, public.idempotency_stalled \g /dev/null
\set ON_ERROR_STOP off
SELECT public.idempotent_stats_reset() \g /dev/null
\set seen :SQLSTATE
RESET ROLE;
SELECT is(text :'seen', '42501', 'but resets nothing');
\set ON_ERROR_STOP on
DROP ROLE idempotency_test_watcher;

SELECT * FROM finish();
