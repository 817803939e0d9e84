-- An answer expires a retention after its finish, or after the request's own time where that is later, on every path (I11).
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
CREATE FUNCTION pg_temp.kept(k text) RETURNS interval LANGUAGE sql AS $$ SELECT expires_at - finished_at FROM idempotency_keys WHERE key = k $$;

-- Work that takes longer than its retention: begun two days ago, as the rows have it.
SELECT is(outcome, 'started', 'a claim') FROM unnest('{lease,resumed,taken,here,retried,settled,by finish}'::text[]) k, idempotent_begin('s', k, lease => '1 hour', retention => '1 hour');
UPDATE idempotency_claims SET first_seen_at = now() - interval '2 days', claimed_at = now() - interval '2 days';
SELECT is(idempotent_finish('s', 'lease', '1', attempt => 1), '1', 'finished under lease');
SELECT is(count(pg_temp.end_lease(k)), 5::bigint, 'leases end') FROM unnest('{resumed,taken,here,retried,settled}'::text[]) k;
SELECT is(outcome, 'recovered', 'taken over') FROM idempotent_begin('s', 'taken', lease => '1 hour');
SELECT is(idempotent_finish('s', 'taken', '1', attempt => 2), '1', 'finished by the second attempt');
BEGIN;
SELECT is(outcome, 'recovered', 'taken over') FROM idempotent_begin('s', 'here');
SELECT is(idempotent_finish('s', 'here', '1'), '1', 'finished in the transaction that took it over');
COMMIT;
SELECT is((SELECT attempt FROM idempotent_retry('s', 'retried', '1 hour')), 2, 'retried');
SELECT is(idempotent_finish('s', 'retried', '1', attempt => 2), '1', 'finished');
SELECT is(idempotent_resolve('s', 'settled', 'r', '1'), 'settled', 'settled');
SELECT is((SELECT count(idempotent_finish(scope, key, '1', attempt => attempt)) FROM idempotent_resume('1 hour', 10)), 1::bigint, 'resumed and finished');
SELECT is(idempotent_finish('s', 'by finish', '1', attempt => 1, retention => '30 min'), '1', 'finished with a retention of its own');
SELECT is(key || ' ' || pg_temp.about(expires_at - finished_at, '1 hour') || coalesce(shortened::text, ''), key || ' true', 'is kept for its retention') FROM idempotency_keys WHERE key <> 'by finish' ORDER BY key COLLATE "C";
SELECT is(outcome, 'replayed', 'and replayed: ' || k) FROM unnest('{lease,resumed,taken,here,retried,settled,by finish}'::text[]) k, idempotent_try_begin('s', k);
SELECT ok(pg_temp.about(pg_temp.kept('by finish'), '30 min') AND shortened, 'or for the one of finish') FROM idempotency_keys WHERE key = 'by finish';

-- The shortest there is.
SELECT is(idempotent_finish('s', 'short', '1'), '1', 'finished at once') FROM idempotent_begin('s', 'short', retention => '1 microsecond');
SELECT is(idempotent_resolve('s', 'recorded', 'r', retention => '1 microsecond'), 'recorded', 'recorded');
SELECT is_empty('SELECT FROM idempotency_keys WHERE expires_at <= finished_at', 'no row expires before it is finished');

-- What finish says of the retention.
SELECT is(idempotent_finish('s', 'equal', retention => '1 hour'), NULL, 'the same') FROM idempotent_begin('s', 'equal', retention => '1 hour');
SELECT is(shortened, NULL, 'is not shorter') FROM idempotency_keys WHERE key = 'equal';
SELECT is(idempotent_finish('s', 'default', retention => '1 hour'), NULL, 'shorter than the default') FROM idempotent_begin('s', 'default');
SELECT is(shortened, true, 'is') FROM idempotency_keys WHERE key = 'default';
SELECT is(idempotent_finish('s', 'months', retention => '1 mon'), NULL, 'months') FROM idempotent_begin('s', 'months');
SELECT ok(pg_temp.kept('months') >= '28 days' AND pg_temp.kept('months') < '31 days 6 hours', 'are months') FROM idempotency_keys WHERE key = 'months';
BEGIN;
SELECT is((SELECT count(*) FROM idempotent_begin_many('s', '{m1,m2}', '1 hour')), 2::bigint, 'a batch');
SELECT is(idempotent_finish('s', 'm1', retention => '1 day'), NULL, 'one of which is finished alone, with a longer retention');
SELECT is(idempotent_finish_many('s', '{m2}'), 1::bigint, 'the other in the batch');
COMMIT;
SELECT ok(pg_temp.kept('m1') >= '1 day', 'counts for the one') FROM idempotency_keys WHERE key = 'm1';
SELECT ok(pg_temp.kept('m2') < '61 min', 'and not for the other') FROM idempotency_keys WHERE key = 'm2';
BEGIN;
SELECT is((SELECT count(*) FROM idempotent_begin_many('s', '{when}')), 1::bigint, 'a batch');
SELECT is(idempotent_finish_many('s', '{when}'), 1::bigint, 'finished');
SELECT ok(first_seen_at > now() AND first_seen_at <= clock_timestamp(), 'first_seen_at is when its row was written') FROM idempotency_keys WHERE key = 'when';
COMMIT;

-- The request's own time: only a later one counts, and at most one retention ahead.
SELECT is(idempotent_finish('s', 'sent ' || ago, '1'), '1', 'sent ' || ago || ' ago') FROM (VALUES ('50 min'), ('-50 s')) v(ago),
	LATERAL idempotent_begin('s', 'sent ' || ago, retention => '1 hour', first_sent => clock_timestamp() - ago::interval) b WHERE b.outcome = 'started';
SELECT ok(pg_temp.about(pg_temp.kept('sent 50 min'), '1 hour'), 'an earlier time takes nothing away');
SELECT ok(pg_temp.kept('sent -50 s') > '1 hour 45 s' AND pg_temp.kept('sent -50 s') < '1 hour 2 min', 'a later one adds to it');
SELECT is(idempotent_finish('s', 'sent ahead', '1'), '1', 'sent further ahead than the retention is long')
FROM idempotent_begin('s', 'sent ahead', retention => '10 s', first_sent => clock_timestamp() + interval '50 s');
SELECT ok(pg_temp.kept('sent ahead') BETWEEN '19 s' AND '20.1 s', 'adds one retention at most');
SET idempotency.key_time = on;
CREATE FUNCTION pg_temp.uuid7(t timestamptz) RETURNS text LANGUAGE sql AS $$
	SELECT left(h, 8) || '-' || substr(h, 9, 4) || '-7abc-8def-0123456789ab' FROM lpad(to_hex(floor(extract(epoch FROM t) * 1000)::bigint), 12, '0') h
$$;
CREATE TEMP TABLE own AS SELECT ahead, pg_temp.uuid7(clock_timestamp() + ahead) AS key FROM unnest('{30 min, 2 hours, 10 years}'::interval[]) ahead;
SELECT is(idempotent_finish('s', key, '1'), '1', 'a key whose own time is ahead by ' || ahead) FROM own, LATERAL idempotent_begin('s', own.key, retention => '1 hour') b WHERE b.outcome = 'started';
SELECT ok(pg_temp.kept(key) > '88 min' AND pg_temp.kept(key) < '91 min', 'half an hour is added') FROM own WHERE ahead = '30 min';
SELECT ok(pg_temp.about(pg_temp.kept(key), '1 hour'), 'more than one retention is no time at all: ' || ahead) FROM own WHERE ahead > '1 hour';
SELECT is(outcome, 'replayed', 'and replayed') FROM own, LATERAL idempotent_try_begin('s', own.key) b;
RESET idempotency.key_time;
-- No finish(): pgTAP's own count is rolled back with the rest.
