-- An expired key counts as absent wherever it is read, and is replaced when it is used again.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(40);

-- A key that expired while nobody looked, as another transaction finds it.
CREATE FUNCTION pg_temp.expire(key text) RETURNS void LANGUAGE sql AS $$
	UPDATE idempotency_keys k SET first_seen_at = now() - interval '25 hours', finished_at = now() - interval '25 hours',
		expires_at = now() - interval '1 hour'
	WHERE k.key = expire.key
$$;
CREATE FUNCTION pg_temp.run(key text, request jsonb, response jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	a idempotent_attempt := idempotent_begin('s', key, request);
BEGIN
	IF NOT a.replayed THEN
		RETURN a.outcome || a.attempt || idempotent_finish('s', key, response);
	END IF;
	RETURN a.outcome || a.attempt || a.response;
END $$;

SELECT is(pg_temp.run('k', '{"a": 1}', '1'), 'started11', 'a key is finished');
SELECT is(pg_temp.run('k', '{"a": 1}', '2'), 'replayed11', 'and replayed');
SELECT lives_ok($$SELECT pg_temp.expire('k')$$, 'it expires');
SELECT is_empty($$SELECT FROM idempotent_lookup('s', 'k')$$, 'lookup does not find it');
SELECT is((SELECT count(*) FROM idempotency_keys), 1::bigint, 'though it is there');
BEGIN;
SELECT results_eq(
	$$SELECT outcome, replayed, attempt, status, headers, response, body, finished_at, first_seen_at >= now(), expires_at > now()
	  FROM idempotent_try_begin('s', 'k', '{"a": 2}')$$,
	$$VALUES ('started', false, 1, NULL::int, NULL::jsonb, NULL::jsonb, NULL::bytea, NULL::timestamptz, true, true)$$,
	'begin starts anew: attempt 1, nothing of the old response, and another request is no mismatch');
SELECT is(response, '1'::jsonb, 'begin leaves the old row alone') FROM idempotency_keys;
SELECT is(outcome, 'in_progress', 'meanwhile the key is in progress') FROM idempotent_lookup('s', 'k');
SELECT is(idempotent_finish('s', 'k', '2'), '2'::jsonb, 'finish');
SELECT results_eq('SELECT response, attempt, expires_at > now() FROM idempotency_keys', $$VALUES ('2'::jsonb, 1, true)$$, 'replaces it');
SELECT is(outcome, 'replayed', 'and is replayed in the same transaction') FROM idempotent_begin('s', 'k', '{"a": 2}');
COMMIT;
SELECT is(pg_temp.run('k', '{"a": 2}', '3'), 'replayed12', 'and in the next');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 1}')$$, 'IK422', NULL, 'the new request counts');

-- A new attempt on an expired key that does not end well.
SELECT lives_ok($$SELECT pg_temp.expire('k')$$, 'it expires again');
BEGIN;
SELECT is(pg_temp.run('k', '{"a": 3}', '3'), 'started13', 'begun and finished');
ROLLBACK;
SELECT is(response, '2'::jsonb, 'ROLLBACK: the old row is as it was') FROM idempotency_keys;
BEGIN;
SELECT is(outcome, 'started', 'begun') FROM idempotent_begin('s', 'k', '{"a": 3}');
SAVEPOINT a;
SELECT is(idempotent_finish('s', 'k', '3'), '3'::jsonb, 'finished');
ROLLBACK TO a;
SELECT is(response, '2'::jsonb, 'ROLLBACK TO: the old row is as it was') FROM idempotency_keys;
SELECT is(idempotent_finish('s', 'k', '4'), '4'::jsonb, 'finished again');
COMMIT;
SELECT results_eq('SELECT response FROM idempotency_keys', $$VALUES ('4'::jsonb)$$, 'the last finish replaces it');
SELECT lives_ok($$SELECT pg_temp.expire('k')$$, 'it expires again');
BEGIN;
SELECT is(outcome, 'started', 'begun') FROM idempotent_begin('s', 'k', '{"a": 3}');
SELECT is(idempotent_release('s', 'k'), true, 'released');
COMMIT;
SELECT is(response, '4'::jsonb, 'release leaves the old row alone') FROM idempotency_keys;

-- Pruned between begin and finish.
BEGIN;
SELECT is(outcome, 'started', 'begun on an expired key') FROM idempotent_begin('s', 'k', '{"a": 3}');
SELECT is(idempotent_prune(), 1::bigint, 'which is pruned under way');
SELECT is(idempotent_finish('s', 'k', '5'), '5'::jsonb, 'finish does not mind');
COMMIT;
SELECT results_eq('SELECT response FROM idempotency_keys', $$VALUES ('5'::jsonb)$$, 'one row');

-- Expired before the work is done.
BEGIN;
SELECT is(outcome, 'started', 'a retention shorter than the work') FROM idempotent_begin('s', 'short', retention => '1 microsecond');
SELECT is(idempotent_finish('s', 'short', '1'), '1'::jsonb, 'is finished all the same');
SELECT is(outcome, 'started', 'and counts as absent at once') FROM idempotent_begin('s', 'short', retention => '1 microsecond');
SELECT is(idempotent_finish('s', 'short', '2'), '2'::jsonb, 'so that it can be used again in the same transaction');
COMMIT;
SELECT is(response, '2'::jsonb, 'one row is kept') FROM idempotency_keys WHERE key = 'short';

-- Under lease, on an expired key: its numbers go on, for whoever slept through the expiry may still hold one.
SELECT lives_ok($$SELECT pg_temp.expire('k')$$, 'it expires once more');
SELECT is(outcome || attempt, 'started2', 'begun under lease') FROM idempotent_begin('s', 'k', '{"a": 6}', lease => '1 hour');
SELECT is(outcome, 'in_progress', 'the claim is what is met') FROM idempotent_try_begin('s', 'k', '{"a": 6}');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', '1', attempt => 1)$$, 'IK410', NULL, 'an attempt of its last life is refused');
SELECT is(idempotent_finish('s', 'k', '6', attempt => 2), '6'::jsonb, 'finished');
SELECT results_eq($$SELECT response, attempt FROM idempotency_keys WHERE key = 'k'$$, $$VALUES ('6'::jsonb, 2)$$, 'it replaces the expired one');

-- No finish(): pgTAP's own count is rolled back with the rest.
