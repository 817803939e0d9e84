-- idempotent_forget drops a key or claim, whatever its state, and says whether there was one.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(25);
SELECT is(idempotent_forget('s', 'k'), false, 'there is nothing');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock is left');

BEGIN;
SELECT is(outcome, 'started', 'a key') FROM idempotent_begin('s', 'k', '1');
SELECT is(idempotent_finish('s', 'k', '"first"'), '"first"', 'is finished');
COMMIT;
SELECT is(idempotent_forget('s', 'other'), false, 'another is not there');
SELECT is(idempotent_forget('s', 'k'), true, 'it is forgotten');
SELECT is(idempotent_forget('s', 'k'), false, 'once');
BEGIN;
SELECT is(outcome || attempt, 'started1', 'and begins anew, with another request') FROM idempotent_begin('s', 'k', '2');
SELECT is(idempotent_finish('s', 'k', '"second"'), '"second"', 'and is finished');
COMMIT;

UPDATE idempotency_keys SET expires_at = now() - interval '1 hour';
SELECT is(idempotent_forget('s', 'k'), true, 'an expired key can be erased before it is pruned');
SELECT is_empty('TABLE idempotency_keys', 'it is gone');

SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('s', 'l', lease => '1 hour');
BEGIN;
SELECT is(idempotent_forget('s', 'l'), true, 'is forgotten');
ROLLBACK;
SELECT is(outcome, 'in_progress', 'not if that is rolled back') FROM idempotent_lookup('s', 'l');
SELECT is(idempotent_forget('s', 'l'), true, 'now it is');
SELECT results_eq('SELECT scope, key, request, attempt, reset_at IS NOT NULL FROM idempotency_claims',
	$$VALUES (NULL::text, NULL::text, NULL::jsonb, 1, true)$$, 'of the claim only its number is left');
SELECT is(idempotent_forget('s', 'l'), false, 'once');
SELECT throws_ok($$SELECT idempotent_finish('s', 'l', attempt => 1)$$, 'IK410', NULL, 'its attempt cannot finish');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'l', 1, 'c')$$, 'IK410', NULL, 'nor make a checkpoint');
SELECT throws_ok($$SELECT idempotent_release('s', 'l', 1)$$, 'IK410', NULL, 'nor release');

-- Both a claim and an expired key.
INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
	VALUES (pg_temp.id_of('s', 'both'), 's', 'both', 1, now(), now(), now());
SELECT is(outcome, 'started', 'a claim on an expired key') FROM idempotent_begin('s', 'both', lease => '1 hour');
SELECT is(idempotent_forget('s', 'both'), true, 'both are forgotten');
SELECT is_empty('TABLE idempotency_keys', 'the key is gone');
SELECT is((SELECT count(*) FROM idempotency_claims WHERE reset_at IS NULL OR scope IS NOT NULL OR key IS NOT NULL), 0::bigint, 'and only numbers are left');
SELECT is(outcome || attempt, 'started3', 'from which the next attempt goes on') FROM idempotent_begin('s', 'both', lease => '1 hour');
-- No finish(): pgTAP's own count is rolled back with the rest.
