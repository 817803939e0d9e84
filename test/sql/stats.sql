-- idempotency_stats counts what happened; idempotency_in_flight shows who is at it.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
CREATE FUNCTION pg_temp.stat(what text) RETURNS bigint LANGUAGE sql AS $$
	SELECT (row_to_json(s) ->> what)::bigint FROM idempotency_stats s
$$;
SELECT is(idempotent_stats_reset(), true, 'reset');
SELECT is((SELECT row_to_json(s)::jsonb - 'stats_reset' FROM idempotency_stats s), jsonb_object_agg(c, 0), 'every counter begins at zero')
	FROM unnest('{started,replayed,waited,in_progress,mismatches,expired,finished,released,executed,failed,recovered,overtaken,pruned,guard_failures,parked,resolved,corrected}'::text[]) c;
SELECT ok(stats_reset BETWEEN now() - interval '1 minute' AND clock_timestamp(), 'and says since when') FROM idempotency_stats;

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
SELECT is((started, finished, replayed, mismatches, expired, released), (2::bigint, 1::bigint, 1::bigint, 1::bigint, 1::bigint, 1::bigint),
	'started, finished, replayed, mismatches, expired, released') FROM idempotency_stats;
SELECT outcome FROM idempotent_begin('s', 'l', lease => '1 microsecond') \g /dev/null
SELECT outcome FROM idempotent_begin('s', 'l', lease => '1 hour') \g /dev/null
SELECT outcome FROM idempotent_try_begin('s', 'l', lease => '1 hour') \g /dev/null
\set ON_ERROR_STOP off
SELECT idempotent_finish('s', 'l', attempt => 1) \g /dev/null
SELECT outcome FROM idempotent_begin('s', 'guard') \g /dev/null
\set ON_ERROR_STOP on
SELECT is((recovered, in_progress, overtaken, guard_failures), (1::bigint, 1::bigint, 1::bigint, 1::bigint),
	'recovered, in_progress, overtaken, guard_failures') FROM idempotency_stats;
SELECT outcome FROM idempotent_call('s', 'c', 'SELECT 1') \g /dev/null
SELECT outcome FROM idempotent_call('s', 'f', 'SELECT 1/0', remember_errors => true) \g /dev/null
SELECT is((executed, failed), (1::bigint, 1::bigint), 'executed, failed') FROM idempotency_stats;
UPDATE idempotency_keys SET expires_at = now() WHERE scope = 's' AND key IN ('c', 'f');
SELECT idempotent_prune() \g /dev/null
SELECT is(pg_temp.stat('pruned'), 2::bigint, 'pruned');
SELECT idempotent_stats_reset() \g /dev/null
SELECT is(pg_temp.stat('started'), 0::bigint, 'and back to zero');

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
SELECT ok(started IS NOT NULL, 'pg_monitor reads the statistics') FROM public.idempotency_stats;
SELECT count(*) FROM public.idempotency_in_flight, public.idempotency_stalled \g /dev/null
\set ON_ERROR_STOP off
SELECT public.idempotent_stats_reset() \g /dev/null
\set seen :SQLSTATE
RESET ROLE;
SELECT is(text :'seen', '42501', 'but resets nothing');
\set ON_ERROR_STOP on
DROP ROLE idempotency_test_watcher;

SELECT * FROM finish();
