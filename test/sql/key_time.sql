-- A request older than its retention is expired, by first_sent or by the time inside a UUIDv7 or ULID key.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT no_plan();
CREATE FUNCTION pg_temp.millis(t timestamptz) RETURNS bigint LANGUAGE sql AS $$ SELECT floor(extract(epoch FROM t) * 1000)::bigint $$;
CREATE FUNCTION pg_temp.uuid7(t timestamptz) RETURNS text LANGUAGE sql AS $$
	SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-7abc-8def-0123456789ab' FROM lpad(to_hex(pg_temp.millis(t)), 12, '0') h
$$;
CREATE FUNCTION pg_temp.ulid(t timestamptz) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + (pg_temp.millis(t) >> (5 * i) & 31)::int, 1), '' ORDER BY i DESC)
		|| 'ABCDEFGHJKMNPQRS'
	FROM generate_series(0, 9) i
$$;
-- The texts of the two standards, to check the above.
SELECT is(left(pg_temp.uuid7('2022-02-22 14:22:22-05'), 13), '017f22e2-79b0', 'a UUIDv7 as in RFC 9562');
SELECT is(left(pg_temp.ulid('2016-07-30 23:54:10.259+00'), 10), '01ARZ3NDEK', 'a ULID as in its specification');

-- first_sent.
SELECT is(outcome, want, 'first sent ' || ago || ' ago')
FROM (VALUES ('0', 'started'), ('23 hours', 'started'), ('24 hours 1 s', 'expired'), ('30 years', 'expired'), ('-50 s', 'started')) v(ago, want),
	idempotent_try_begin('sent', ago, first_sent => clock_timestamp() - ago::interval);
SELECT is(outcome, want, format('first sent %s ago, retention %s', ago, retention))
FROM (VALUES ('2 days', '3 days', 'started'), ('2 days', '1 day', 'expired'), ('2 s', '1 s', 'expired')) v(ago, retention, want),
	idempotent_try_begin('sent', ago || retention, first_sent => clock_timestamp() - ago::interval, retention => retention::interval);
SELECT results_eq(
	$$SELECT replayed, attempt, status, headers, response, body, checkpoint, state, first_seen_at, finished_at, expires_at, retry_after
	  FROM idempotent_try_begin('sent', 'old', first_sent => now() - interval '25 hours')$$,
	$$VALUES (false, NULL::int, NULL::int, NULL::jsonb, NULL::jsonb, NULL::bytea, NULL::text, NULL::jsonb, NULL::timestamptz,
			  NULL::timestamptz, NULL::timestamptz, NULL::int)$$,
	'expired says nothing else');
SELECT is(pg_temp.locked('sent', 'old'), false, 'and holds no lock');
SELECT throws_ok($$SELECT idempotent_begin('sent', 'old', first_sent => now() - interval '25 hours')$$, 'IK412', NULL, 'begin raises it');
SELECT throws_ok($$SELECT idempotent_begin('sent', 'old', first_sent => now() - interval '25 hours', lease => '1 min')$$, 'IK412', NULL,
	'under lease too');
SELECT throws_ok($$SELECT idempotent_finish('sent', 'old')$$, 'IK500', NULL, 'there is nothing to finish');
SELECT throws_ok($$SELECT idempotent_begin('sent', 'future', first_sent => clock_timestamp() + interval '70 s')$$, 'IK400', NULL,
	'more than a minute ahead is from the future');
SELECT throws_ok($$SELECT idempotent_try_begin('sent', 'future', first_sent => clock_timestamp() + interval '1 year')$$, 'IK400', NULL,
	'for try_begin too');

-- What is found is found, however old the request.
SELECT is(outcome, 'started', 'a key') FROM idempotent_begin('sent', 'k', '1', retention => '1 year');
SELECT is(idempotent_finish('sent', 'k', '"answer"'), '"answer"', 'is finished');
SELECT is(response, '"answer"', 'and replayed to an old request') FROM idempotent_begin('sent', 'k', '1', first_sent => now() - interval '2 years');
SELECT is(outcome, 'mismatch', 'or found to be another') FROM idempotent_try_begin('sent', 'k', '2', first_sent => now() - interval '2 years');
UPDATE idempotency_keys SET expires_at = now() WHERE key = 'k';
SELECT is(outcome, 'expired', 'once the key has expired, so has the old request')
FROM idempotent_try_begin('sent', 'k', '1', first_sent => now() - interval '2 years');
SELECT is(idempotent_prune(), 1::bigint, 'the key is pruned');
SELECT is(outcome, 'expired', 'which changes nothing') FROM idempotent_try_begin('sent', 'k', '1', first_sent => now() - interval '2 years');
SELECT is(outcome, 'started', 'a new request starts') FROM idempotent_try_begin('sent', 'k', '1', first_sent => now());

-- A claim is found as well.
INSERT INTO idempotency_claims (id, scope, key, attempt, max_attempts, retention, lease, first_seen_at, claimed_at, lease_until) SELECT
	pg_temp.id_of('sent', key), 'sent', key, 1, 10, '1 day', '1 min', now() - interval '2 days', now() - interval '2 days', lease_until
	FROM (VALUES ('live', now() + interval '1 hour'), ('ended', now())) v(key, lease_until);
SELECT is(outcome, 'in_progress', 'a live claim') FROM idempotent_try_begin('sent', 'live', first_sent => now() - interval '2 days');
SELECT is(outcome, 'recovered', 'an ended claim') FROM idempotent_try_begin('sent', 'ended', first_sent => now() - interval '2 days');

-- The time inside the key: off by default.
SELECT is(outcome, 'started', 'off: an old UUIDv7') FROM idempotent_try_begin('off', pg_temp.uuid7(now() - interval '2 days'));
SELECT is(outcome, 'started', 'off: an old ULID') FROM idempotent_try_begin('off', pg_temp.ulid(now() - interval '2 days'));
SELECT is(outcome, 'started', 'off: a future UUIDv7') FROM idempotent_try_begin('off', pg_temp.uuid7(now() + interval '2 days'));

SET LOCAL idempotency.key_time = on;
SELECT is(outcome, want, format('a %s made %s ago', kind, ago))
FROM (VALUES ('0', 'started'), ('23 hours', 'started'), ('24 hours 1 s', 'expired'), ('9 years', 'expired'), ('50 years', 'started'), ('-50 s', 'started')) v(ago, want),
	(VALUES ('UUIDv7'), ('ULID')) k(kind),
	idempotent_try_begin('kinds', CASE kind WHEN 'ULID' THEN pg_temp.ulid(now() - ago::interval) ELSE pg_temp.uuid7(now() - ago::interval) END)
ORDER BY kind COLLATE "C", ago COLLATE "C";
SELECT is(outcome, 'expired', 'in either case: ' || key)
FROM (VALUES ('017F22E2-79B0-7CC3-98C4-DC0C0C07398F'), ('017f22e2-79b0-7cc3-98c4-dc0c0c07398f'), ('01arz3ndektsv4rrffq69g5fav'),
	('01B3ZZZZZZZZZZZZZZZZZZZZZZ')) v(key),
	idempotent_try_begin('case', key);
SELECT is(outcome, 'started', 'a key''s own time refuses nobody for being ahead: ' || what)
FROM (VALUES ('a UUIDv7', pg_temp.uuid7(clock_timestamp() + interval '70 s')), ('a ULID', pg_temp.ulid(clock_timestamp() + interval '70 s')),
	('the last UUIDv7', 'ffffffff-ffff-7fff-bfff-ffffffffffff'), ('the last ULID', '7ZZZZZZZZZZZZZZZZZZZZZZZZZ'), ('an order number', '20261126010500123456789012'),
	('another', '00000000000000000000000042'), ('the first UUIDv7', '00000000-0000-7000-8000-000000000000')) v(what, key),
	idempotent_try_begin('future', key);
SELECT is(outcome, 'started', 'nor from begin') FROM idempotent_begin('future', pg_temp.uuid7(clock_timestamp() + interval '1 day'));
SELECT throws_ok($$SELECT idempotent_begin('kinds', pg_temp.uuid7(now() - interval '2 days'))$$, 'IK412', NULL, 'begin raises an old one');
SELECT is(outcome, 'started', 'retention counts') FROM idempotent_begin('kinds', pg_temp.uuid7(now() - interval '2 days'), retention => '3 days');

-- Keys of other shapes have no time in them.
SELECT is(outcome, 'started', 'no time in: ' || what)
FROM (VALUES
	('a UUIDv4', '017f22e2-79b0-4cc3-98c4-dc0c0c07398f'),
	('a UUIDv1', '017f22e2-79b0-1cc3-98c4-dc0c0c07398f'),
	('another variant', '017f22e2-79b0-7cc3-c8c4-dc0c0c07398f'),
	('no hyphens', '017f22e279b07cc398c4dc0c0c07398f'),
	('hyphens elsewhere', '017f22e27-9b0-7cc3-98c4-dc0c0c07398f'),
	('braces', '{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}'),
	('one too many', '017f22e2-79b0-7cc3-98c4-dc0c0c07398f0'),
	('no hexadecimal', '017f22e2-79b0-7cc3-98c4-dc0c0c07398g'),
	('a ULID over its range', '81ARZ3NDEKTSV4RRFFQ69G5FAV'),
	('a ULID with an L', '01ARZ3NDEKTSV4RRFFQ69G5FAL'),
	('a short ULID', '01ARZ3NDEKTSV4RRFFQ69G5FA'),
	('26 other letters', repeat('u', 26)),
	('26 emoji', repeat(chr(128512), 26)),
	('36 letters', repeat('a', 36)),
	('a prefix', 'key_01ARZ3NDEKTSV4RRFFQ69G5FAV')) v(what, key), idempotent_try_begin('shapes', key);

-- A batch.
SELECT is((SELECT count(*) FROM idempotent_begin_many('many', ARRAY[pg_temp.uuid7(now()), pg_temp.ulid(now()), 'no time'])), 3::bigint,
	'a batch of young keys');
SELECT is(idempotent_finish_many('many', ARRAY[pg_temp.uuid7(now()), pg_temp.ulid(now()), 'no time']), 3::bigint, 'is finished');
SELECT throws_ok(format('SELECT idempotent_begin_many(%L, %L)', 'many', ARRAY['other', key]), 'IK412', NULL, 'an old key in a batch is refused')
	FROM (VALUES (pg_temp.uuid7(now() - interval '2 days')), (pg_temp.ulid(now() - interval '2 days'))) old(key);
SELECT is((SELECT count(*) FROM idempotent_begin_many('future', ARRAY[key])), 1::bigint, 'one from the future is not')
	FROM (VALUES (pg_temp.uuid7(now() + interval '2 days')), (pg_temp.ulid(now() + interval '2 days'))) new(key);
SELECT is((SELECT count(*) FROM idempotent_begin_many('many', ARRAY[pg_temp.uuid7(now() - interval '2 days')], '3 days')), 1::bigint,
	'not with a longer retention');
SELECT is(idempotent_finish_many('many', ARRAY[pg_temp.uuid7(now() - interval '2 days')]), 1::bigint, 'which is finished');
SET LOCAL idempotency.retention = '1h';
SELECT is((SELECT count(*) FROM idempotent_begin_many('many', ARRAY[pg_temp.uuid7(now() - interval '2 days')])), 0::bigint,
	'and known from then on, however short the retention');
RESET idempotency.retention;
SET LOCAL idempotency.key_time = off;
SELECT is((SELECT count(*) FROM idempotent_begin_many('many', ARRAY[pg_temp.ulid(now() - interval '2 days')])), 1::bigint, 'nor where the setting is off');
SELECT is(idempotent_finish_many('many', ARRAY[pg_temp.ulid(now() - interval '2 days')]), 1::bigint, 'which is finished');
SET LOCAL idempotency.key_time = on;

-- first_sent beats the key.
SELECT is(outcome, 'started', 'first_sent beats an old key')
FROM idempotent_try_begin('beats', pg_temp.uuid7(now() - interval '2 days'), first_sent => now());
SELECT is(outcome, 'expired', 'and a young one') FROM idempotent_try_begin('beats', pg_temp.uuid7(now()), first_sent => now() - interval '2 days');

-- Lookup.
SELECT is(outcome, 'expired', 'lookup says expired') FROM idempotent_lookup('lookup', pg_temp.ulid(now() - interval '2 days'));
SELECT is_empty($$SELECT FROM idempotent_lookup('lookup', pg_temp.ulid(now()))$$, 'or nothing');
SELECT * FROM finish();
ROLLBACK;
