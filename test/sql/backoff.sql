-- idempotent_backoff: base doubled for each attempt before, never over cap, and jitter within its share.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(24);
SELECT is(idempotent_backoff(n), d, format('attempt %s: %s', n, d)) FROM (VALUES
	(1, interval '1 min'), (2, interval '2 min'), (3, interval '4 min'), (4, interval '8 min'), (5, interval '16 min'),
	(6, interval '32 min'), (7, interval '1 hour'), (8, interval '1 hour'), (64, interval '1 hour'), (2147483647, interval '1 hour')
) v(n, d);
SELECT is(idempotent_backoff(1, '5 s'), interval '5 s', 'another base');
SELECT is(idempotent_backoff(4, '5 s'), interval '40 s', 'is doubled too');
SELECT is(idempotent_backoff(10, '1 s', '100 days'), interval '512 s', 'another cap');
SELECT is(idempotent_backoff(1, '2 hours'), interval '1 hour', 'a base over the cap is the cap');
SELECT is(idempotent_backoff(1, '1 microsecond'), interval '1 microsecond', 'a microsecond');
SELECT is(idempotent_backoff(64, '1 microsecond', '106751991 days'), interval '106751991 days', 'no overflow: 2^63 microseconds');
SELECT is(extract(epoch FROM idempotent_backoff(62, '1 microsecond', '106751991 days')), 2305843009213.693952, 'as long as it fits');
SELECT is(idempotent_backoff(2147483647, '106751991 days', '106751991 days'), interval '106751991 days', 'the longest of all');
SELECT is(idempotent_backoff(attempt => 3, base => '1 day', cap => '1 month', jitter => 0), interval '4 days', 'parameters have names');
SELECT is(extract(epoch FROM idempotent_backoff(9, '1 day', '1 month')), 30 * 86400::numeric, 'a month is 30 days');
SELECT ok(bool_and(b > interval '30 min' AND b <= interval '1 hour') AND count(DISTINCT b) > 900, 'jitter 0.5 takes away up to a half')
FROM (SELECT idempotent_backoff(7, jitter => 0.5) b FROM generate_series(1, 1000)) x;
SELECT ok(bool_and(b >= interval '0' AND b <= interval '1 hour') AND min(b) < interval '3 min' AND max(b) > interval '57 min',
	'jitter 1 anything up to the whole')
FROM (SELECT idempotent_backoff(7, jitter => 1) b FROM generate_series(1, 1000)) x;
SELECT ok(bool_and(b = interval '1 hour'), 'jitter 0 nothing')
FROM (SELECT idempotent_backoff(7, jitter => 0) b FROM generate_series(1, 100)) x;
SELECT ok(bool_and(b BETWEEN interval '53376000 days' AND interval '106751991 days'), 'jitter does not overflow')
FROM (SELECT idempotent_backoff(7, '106751991 days', '106751991 days', 0.5) b FROM generate_series(1, 100)) x;
SELECT * FROM finish();
ROLLBACK;
