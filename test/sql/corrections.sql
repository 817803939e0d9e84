-- idempotent_resolve: settles, corrects, records; fences late workers, and leaves what was there before as a correction (I12).
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
CREATE FUNCTION pg_temp.parked(key text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_begin('s', key, '{"amount": 1}', lease => '1 hour', retention => '2 days');
	PERFORM idempotent_checkpoint('s', key, 1, 'sent', '"state"');
	PERFORM idempotent_park('s', key, 1, 'nobody knows');
	RETURN 'parked';
END $$;

-- Settled.
SELECT is(pg_temp.parked('k'), 'parked', 'a parked claim');
SELECT throws_ok($$SELECT idempotent_resolve('s', 'k', 'r', attempt => 2)$$, 'IK410', NULL, 'by another number than is stored it is not settled');
SELECT is(idempotent_resolve('s', 'k', 'line 17 of the statement', '{"paid": true}', 200, '{"H": 1}', '\x00ff', attempt => 1), 'settled', 'by the one that is, it is');
SELECT is_empty('TABLE idempotency_claims', 'the claim is gone');
SELECT results_eq($$SELECT outcome, attempt, status, headers, response, body, first_seen_at < finished_at FROM idempotent_begin('s', 'k', '{"amount": 1}')$$,
	$$VALUES ('replayed', 2, 200, '{"H": 1}'::jsonb, '{"paid": true}'::jsonb, '\x00ff'::bytea, true)$$, 'the client gets the answer, under the next number');
SELECT is(outcome, 'mismatch', 'the request is still compared') FROM idempotent_try_begin('s', 'k', '{"amount": 2}');
SELECT ok(pg_temp.about(expires_at - finished_at, '2 days'), 'it is kept for the claim''s retention') FROM idempotency_keys;
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', '"late"', attempt => 1)$$, 'IK410', NULL, 'the late worker is fenced');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'k', 1, 'late')$$, 'IK410', NULL, 'in its checkpoint too');
SELECT results_eq($$SELECT id, scope, key, what, attempt, checkpoint, state, error, status, response, finished_at, reason, corrected_by = session_user, corrected_at >= now() - interval '1 min'
	FROM idempotency_corrections$$,
	$$VALUES (pg_temp.id_of('s', 'k'), 's', 'k', 'settled', 1, 'sent', '"state"'::jsonb, 'nobody knows', NULL::int, NULL::jsonb, NULL::timestamptz,
		'line 17 of the statement', true, true)$$, 'the correction tells what was there, why and who');

-- Corrected.
SELECT throws_ok($$SELECT idempotent_resolve('s', 'k', 'r', '"x"', attempt => 2)$$, 'IK409', NULL, 'a finished key is not overwritten by mistake');
SELECT throws_ok($$SELECT idempotent_resolve('s', 'k', 'r', '"x"', attempt => 1, correct => true)$$, 'IK410', NULL, 'nor one that is not what was seen');
UPDATE idempotency_keys SET failed = true;
SELECT is(idempotent_resolve('s', 'k', 'chargeback', body_text => '{"path":"C:\\dir"}', status => 402, attempt => 2, correct => true), 'corrected', 'with correct it is');
SELECT results_eq($$SELECT attempt, fingerprint IS NOT NULL, status, headers, response, body, failed, shortened FROM idempotency_keys$$,
	$$VALUES (2, true, 402, NULL::jsonb, NULL::jsonb, convert_to('{"path":"C:\\dir"}', 'UTF8'), NULL::boolean, NULL::boolean)$$, 'number and fingerprint stay, the answer is replaced, failed is null');
SELECT results_eq($$SELECT what, attempt, status, headers, response, body, failed, finished_at IS NOT NULL, reason FROM idempotency_corrections ORDER BY correction DESC LIMIT 1$$,
	$$VALUES ('corrected', 2, 200, '{"H": 1}'::jsonb, '{"paid": true}'::jsonb, '\x00ff'::bytea, true, true, 'chargeback')$$, 'the former answer is kept');
CREATE TEMP TABLE kept AS SELECT expires_at FROM idempotency_keys;
SELECT is(idempotent_resolve('s', 'k', 'r', '1', retention => '1 min', correct => true), 'corrected', 'a shorter retention');
SELECT is(expires_at, (TABLE kept), 'does not take away from its life') FROM idempotency_keys;
SELECT is(idempotent_resolve('s', 'k', 'r', '1', retention => '30 days', correct => true), 'corrected', 'a longer one');
SELECT ok(pg_temp.about(expires_at - finished_at, '30 days'), 'adds to it') FROM idempotency_keys;
BEGIN;
SELECT is(idempotent_resolve('s', 'k', 'r', '2', correct => true), 'corrected', 'a correction');
ROLLBACK;
SELECT is(response, '1', 'is rolled back with its transaction') FROM idempotent_begin('s', 'k');
SELECT is((SELECT count(*) FROM idempotency_corrections), 4::bigint, 'and so is its record');

-- Recorded.
SELECT throws_ok($$SELECT idempotent_resolve('s', 'new', 'r', attempt => 1)$$, 'IK410', NULL, 'nothing is stored: not what was seen');
SELECT is(idempotent_resolve('s', 'new', 'pruned here, paid there', '"paid"', 200), 'recorded', 'the answer of an absent key');
SELECT results_eq($$SELECT outcome, attempt, response FROM idempotent_begin('s', 'new', '{"any": 1}')$$, $$VALUES ('replayed', 1, '"paid"'::jsonb)$$, 'is replayed to a late retry');
UPDATE idempotency_keys SET expires_at = now() WHERE key = 'new';
SELECT is(idempotent_resolve('s', 'new', 'r', '"again"', attempt => 1), 'recorded', 'of an expired one too, by its number');
SELECT results_eq($$SELECT attempt, response FROM idempotency_keys WHERE key = 'new'$$, $$VALUES (2, '"again"'::jsonb)$$, 'under the next number');
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('s', 'counter', lease => '1 hour');
SELECT is(idempotent_release('s', 'counter', 1, reset => true), true, 'reset');
SELECT is(idempotent_resolve('s', 'counter', 'r', '"c"', attempt => 1), 'recorded', 'of a counter');
SELECT results_eq($$SELECT attempt, response FROM idempotency_keys WHERE key = 'counter'$$, $$VALUES (2, '"c"'::jsonb)$$, 'after its number');
SELECT is_empty('TABLE idempotency_claims', 'which is gone');

-- What is open is not settled.
SELECT is(outcome, 'started', 'a lease') FROM idempotent_begin('s', 'live', lease => '1 hour');
SELECT throws_ok($$SELECT idempotent_resolve('s', 'live', 'r')$$, 'IK409', NULL, 'that is live');
SELECT throws_ok($$SELECT idempotent_resolve('s', 'live', 'r', attempt => 1, correct => true)$$, 'IK409', NULL, 'whatever is passed');
BEGIN;
SELECT is(outcome, 'started', 'an attempt') FROM idempotent_begin('s', 'own');
SELECT throws_ok($$SELECT idempotent_resolve('s', 'own', 'r')$$, 'IK500', NULL, 'of this very transaction is finished by finish');
ROLLBACK;
SET idempotency.max_response_size = 10;
SELECT throws_ok($$SELECT idempotent_resolve('s', 'big', 'r', to_jsonb(repeat('x', 100)))$$, 'IK413', NULL, 'the size of an answer is limited here too');
RESET idempotency.max_response_size;

-- Corrections go with the key, and after a setting's time.
SELECT is(idempotent_forget('s', 'k'), true, 'forget');
SELECT is_empty($$SELECT FROM idempotency_corrections WHERE key = 'k'$$, 'removes the corrections of the key');
SELECT is(idempotent_prune(), 0::bigint, 'prune');
SELECT is((SELECT count(*) FROM idempotency_corrections), 3::bigint, 'keeps corrections by default');
UPDATE idempotency_corrections SET corrected_at = now() - interval '2 days' WHERE key = 'new';
SET idempotency.corrections_retention = '1d';
SELECT is(idempotent_prune(), 0::bigint, 'prune');
SELECT results_eq($$SELECT key FROM idempotency_corrections$$, $$VALUES ('counter')$$, 'removes those older than the setting says');
-- No finish(): pgTAP's own count is rolled back with the rest.
