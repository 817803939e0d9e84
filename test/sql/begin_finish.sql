-- An attempt in one transaction: what begin and finish return and store, field by field.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(34);

SELECT results_eq(
	$$SELECT outcome, replayed, attempt, status, headers, response, body, checkpoint, state, finished_at, retry_after
	  FROM idempotent_begin('acct_1', 'k1')$$,
	$$VALUES ('started', false, 1, NULL::int, NULL::jsonb, NULL::jsonb, NULL::bytea, NULL::text, NULL::jsonb,
			  NULL::timestamptz, NULL::int)$$,
	'a new key is started: attempt 1, and no response');
SELECT ok(pg_temp.locked('acct_1', 'k1'), 'the attempt holds the lock of the key''s identity in the private class');
SELECT is(pg_temp.locks(), 1::bigint, 'and no other');
SELECT is_empty('TABLE idempotency_keys', 'begin writes no key');
SELECT is_empty('TABLE idempotency_claims', 'begin without lease writes no claim');

SELECT is(
	idempotent_finish('acct_1', 'k1', response => '{"id": "ch_1", "amount": 100}', status => 201,
					  headers => '{"Location": "/v1/charges/ch_1"}', body => '\x00ff'),
	'{"id": "ch_1", "amount": 100}'::jsonb,
	'finish returns the response');
SELECT ok(pg_temp.locked('acct_1', 'k1'), 'the lock is kept to the end of the transaction');

SELECT results_eq(
	$$SELECT id, scope, key, fingerprint, attempt, status, headers, response, body FROM idempotency_keys$$,
	$$VALUES (pg_temp.id_of('acct_1', 'k1'), 'acct_1', 'k1', NULL::bytea, 1, 201,
			  '{"Location": "/v1/charges/ch_1"}'::jsonb, '{"id": "ch_1", "amount": 100}'::jsonb, '\x00ff'::bytea)$$,
	'one row is stored, under the first 128 bits of SHA-256 over scope length, scope and key');
SELECT results_eq(
	$$SELECT first_seen_at >= now(), finished_at >= first_seen_at, finished_at <= clock_timestamp(),
			 pg_temp.about(expires_at - finished_at, '24 hours')
	  FROM idempotency_keys$$,
	$$VALUES (true, true, true, true)$$,
	'times are the database''s clock, and the key expires a retention after its finish');

SELECT results_eq(
	$$SELECT outcome, replayed, attempt, status, headers, response, body, checkpoint, state, retry_after
	  FROM idempotent_begin('acct_1', 'k1')$$,
	$$VALUES ('replayed', true, 1, 201, '{"Location": "/v1/charges/ch_1"}'::jsonb,
			  '{"id": "ch_1", "amount": 100}'::jsonb, '\x00ff'::bytea, NULL::text, NULL::jsonb, NULL::int)$$,
	'a finished key is replayed with all that finish was given');
SELECT results_eq(
	$$SELECT first_seen_at, finished_at, expires_at FROM idempotent_begin('acct_1', 'k1')$$,
	$$SELECT first_seen_at, finished_at, expires_at FROM idempotency_keys$$,
	'and with the times that are stored');
SELECT results_eq(
	$$SELECT * FROM idempotent_try_begin('acct_1', 'k1')$$,
	$$SELECT * FROM idempotent_begin('acct_1', 'k1')$$,
	'try_begin replays as begin does');
SELECT results_eq(
	$$SELECT * FROM idempotent_lookup('acct_1', 'k1')$$,
	$$SELECT * FROM idempotent_begin('acct_1', 'k1')$$,
	'and lookup tells the same');
SELECT is((SELECT count(*) FROM idempotency_keys), 1::bigint, 'a replay writes nothing');
SELECT results_eq(
	$$SELECT first_seen_at = began AND expires_at = ends FROM idempotency_keys,
	  (SELECT first_seen_at, expires_at FROM idempotent_begin('acct_1', 'k1')) b(began, ends)$$,
	$$VALUES (true)$$,
	'a replay does not prolong the retention');

-- Nothing but the key.
SELECT is(outcome, 'started', 'a second key in the same transaction') FROM idempotent_try_begin('acct_1', 'k2');
SELECT is(idempotent_finish('acct_1', 'k2'), NULL, 'finish without a response returns NULL');
SELECT results_eq(
	$$SELECT outcome, replayed, attempt, status, headers, response, body, checkpoint, state, retry_after
	  FROM idempotent_begin('acct_1', 'k2')$$,
	$$VALUES ('replayed', true, 1, NULL::int, NULL::jsonb, NULL::jsonb, NULL::bytea, NULL::text, NULL::jsonb, NULL::int)$$,
	'NULL everything is replayed as NULL everything');

-- Statuses are the application's own.
CREATE TEMP TABLE statuses AS SELECT unnest(ARRAY[0, 200, 402, -1, 2147483647, -2147483648]) AS status;
SELECT is(count(*), 6::bigint, 'statuses that are no HTTP statuses are begun')
FROM statuses, idempotent_begin('status', status::text) b WHERE b.outcome = 'started';
SELECT is(count(idempotent_finish('status', status::text, status => status)), 0::bigint, 'finished') FROM statuses;
SELECT is(count(*), 6::bigint, 'and replayed as they are: 0 is not NULL')
FROM statuses s, idempotent_begin('status', s.status::text) b WHERE b.status = s.status;

-- Retention.
SELECT is(expires_at - first_seen_at, interval '7 days', 'retention of the call beats the setting')
FROM idempotent_begin('retention', 'week', retention => '7 days');
SELECT lives_ok($$SELECT idempotent_finish('retention', 'week')$$, 'and is what');
SELECT ok(pg_temp.about(expires_at - finished_at, '7 days'), 'finish stores')
FROM idempotency_keys WHERE scope = 'retention';
SET LOCAL idempotency.retention = '90min';
SELECT is(expires_at - first_seen_at, interval '90 minutes', 'idempotency.retention counts when begin is called')
FROM idempotent_begin('retention', 'setting');
SET LOCAL idempotency.retention = '1d';
SELECT lives_ok($$SELECT idempotent_finish('retention', 'setting')$$, 'not when finish is');
SELECT ok(pg_temp.about(expires_at - finished_at, '90 minutes'), 'and a later setting changes nothing')
FROM idempotent_begin('retention', 'setting');
SET LOCAL timezone = 'Europe/Berlin';
SELECT is(extract(epoch FROM expires_at - first_seen_at), 365 * 86400::numeric, 'a day is 24 hours, whatever the time zone')
FROM idempotent_begin('retention', 'days', retention => '365 days');
SELECT is(extract(epoch FROM expires_at - first_seen_at), 30 * 86400::numeric, 'and a month 30 days')
FROM idempotent_begin('retention', 'month', retention => '1 month');

-- Attempt numbers.
SELECT is(attempt, 1, 'a number without a lease') FROM idempotent_begin('acct_1', 'numbered');
SELECT throws_ok($$SELECT idempotent_finish('acct_1', 'numbered', attempt => 2)$$, 'IK410', NULL,
	'a finish that names another attempt is refused');
SELECT throws_ok($$SELECT idempotent_release('acct_1', 'numbered', attempt => 2)$$, 'IK410', NULL,
	'and so is a release');
SELECT is(idempotent_finish('acct_1', 'numbered', '1', attempt => 1), '1'::jsonb, 'one that names this attempt finishes it');

-- A procedure can end in it.
CREATE FUNCTION pg_temp.charge(key text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	a idempotent_attempt;
BEGIN
	a := idempotent_begin('charge', key);
	IF a.replayed THEN
		RETURN a.response;
	END IF;
	RETURN idempotent_finish('charge', key, jsonb_build_object('txid', random()));
END $$;
SELECT is(pg_temp.charge('a'), pg_temp.charge('a'), 'a function RETURNs idempotent_finish(...), and its replay the same');

SELECT * FROM finish();
ROLLBACK;
