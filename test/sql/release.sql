-- Release of a lease: the error and the time of the next try are kept, and until then nobody gets the claim.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
-- Every statement is a transaction of its own, as the phases of such work are.
SELECT no_plan();
-- A claim at its n-th attempt, live.
CREATE FUNCTION pg_temp.claim_at(key text, n int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_forget('s', key);
	SET LOCAL idempotency.max_attempts = 0;
	PERFORM idempotent_begin('s', key, '{"a": 1}', lease => '1 hour');
	UPDATE idempotency_claims c SET attempt = n WHERE c.key = claim_at.key;
	RETURN 'attempt ' || n;
END $$;
-- When the next try of a released claim is due, from its release.
CREATE FUNCTION pg_temp.retry_in(key text) RETURNS interval LANGUAGE sql AS $$
	SELECT retry_at - lease_until FROM idempotency_claims c WHERE c.key = retry_in.key
$$;

SELECT is(pg_temp.claim_at('k', 1), 'attempt 1', 'a claim');
SELECT is(idempotent_checkpoint('s', 'k', 1, 'charged', '1') > now(), true, 'with a checkpoint');
SELECT is(idempotent_release('s', 'k', 1, error => 'the bank is closed', retry_after => '90 minutes'), true, 'is released');
SELECT results_eq(
	$$SELECT attempt, checkpoint, state, last_error, retry_at - lease_until, lease_until <= clock_timestamp(), request FROM idempotency_claims$$,
	$$VALUES (1, 'charged', '1'::jsonb, 'the bank is closed', interval '90 minutes', true, '{"a": 1}'::jsonb)$$,
	'the error and the time of the next try are kept, and the lease is over');
SELECT is_empty('TABLE idempotency_keys', 'no key is stored');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock is left');
SELECT throws_ok($$SELECT idempotent_release('s', 'k', 1)$$, 'IK410', NULL, 'a second release is refused');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'k', 1, 'c')$$, 'IK410', NULL, 'and so is a checkpoint of the released attempt');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', attempt => 1)$$, 'IK410', NULL, 'and its finish');
SELECT is_empty($$SELECT FROM idempotent_resume('1 hour')$$, 'resume does not hand it out before its time');
SELECT results_eq($$SELECT outcome, attempt, checkpoint, state, error, retry_after BETWEEN ceil(extract(epoch FROM (SELECT retry_at FROM idempotency_claims) - clock_timestamp())) AND 5400 FROM idempotent_lookup('s', 'k')$$,
	$$VALUES ('in_progress', 1, 'charged', '1'::jsonb, 'the bank is closed', true)$$, 'lookup: it is not due yet, and why');
SELECT results_eq($$SELECT outcome, attempt, retry_after BETWEEN ceil(extract(epoch FROM (SELECT retry_at FROM idempotency_claims) - clock_timestamp())) AND 5400 FROM idempotent_try_begin('s', 'k', '{"a": 1}')$$,
	$$VALUES ('in_progress', 1, true)$$, 'a client that calls again by itself is held back as well');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 1}')$$, 'IK409', NULL, 'begin raises it');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour')$$, 'IK409', NULL, 'under lease too');
SELECT throws_ok($$SELECT idempotent_call('s', 'k', 'SELECT 1', request => '{"a": 1}')$$, 'IK409', NULL, 'and call');
SELECT throws_ok($$SELECT idempotent_begin_many('s', '{k}')$$, 'IK409', NULL, 'and a batch');
UPDATE idempotency_claims SET retry_at = now();
SELECT results_eq($$SELECT outcome, attempt, checkpoint, state, error FROM idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour')$$,
	$$VALUES ('recovered', 2, 'charged', '1'::jsonb, 'the bank is closed')$$, 'once it is due, the next attempt goes on, and is told why the last one gave up');
SELECT results_eq('SELECT attempt, retry_at, last_error FROM idempotency_claims',
	$$VALUES (2, NULL::timestamptz, 'the bank is closed')$$, 'the last error is kept for who looks, the time is not');
SELECT is(idempotent_release('s', 'k', 2), true, 'released without an error');
SELECT is((SELECT last_error FROM idempotency_claims), NULL, 'which then is none');

-- By default 1, 2, 4, 8 ... minutes by attempt number, an hour at most.
SELECT is(pg_temp.claim_at('b', n), 'attempt ' || n, 'attempt ' || n) FROM (VALUES (1)) v(n);
SELECT is(idempotent_release('s', 'b', 1), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '1 min', 'by default in a minute');
SELECT is(pg_temp.claim_at('b', 2), 'attempt 2', 'attempt 2');
SELECT is(idempotent_release('s', 'b', 2), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '2 min', 'due in 2 minutes');
SELECT is(pg_temp.claim_at('b', 3), 'attempt 3', 'attempt 3');
SELECT is(idempotent_release('s', 'b', 3), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '4 min', 'due in 4 minutes');
SELECT is(pg_temp.claim_at('b', 4), 'attempt 4', 'attempt 4');
SELECT is(idempotent_release('s', 'b', 4), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '8 min', 'due in 8 minutes');
SELECT is(pg_temp.claim_at('b', 5), 'attempt 5', 'attempt 5');
SELECT is(idempotent_release('s', 'b', 5), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '16 min', 'due in 16 minutes');
SELECT is(pg_temp.claim_at('b', 6), 'attempt 6', 'attempt 6');
SELECT is(idempotent_release('s', 'b', 6), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '32 min', 'due in 32 minutes');
SELECT is(pg_temp.claim_at('b', 7), 'attempt 7', 'attempt 7');
SELECT is(idempotent_release('s', 'b', 7), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '60 min', 'due in 60 minutes');
SELECT is(pg_temp.claim_at('b', 8), 'attempt 8', 'attempt 8');
SELECT is(idempotent_release('s', 'b', 8), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '60 min', 'due in 60 minutes');
SELECT is(pg_temp.claim_at('b', 100), 'attempt 100', 'attempt 100');
SELECT is(idempotent_release('s', 'b', 100), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '60 min', 'due in 60 minutes');
SELECT is(pg_temp.claim_at('b', 2147483647), 'attempt 2147483647', 'attempt 2147483647');
SELECT is(idempotent_release('s', 'b', 2147483647), true, 'released');
SELECT is(pg_temp.retry_in('b'), interval '60 min', 'due in 60 minutes');

-- What retry_after says.
SELECT is(pg_temp.claim_at('r', 7), 'attempt 7', 'another');
SELECT is(idempotent_release('s', 'r', 7, retry_after => '3 days'), true, 'released for longer than the cap');
SELECT is(pg_temp.retry_in('r'), interval '3 days', 'is due when retry_after says');
SELECT is(pg_temp.claim_at('r', 1), 'attempt 1', 'another');
SELECT is(idempotent_release('s', 'r', 1, retry_after => '0'), true, 'released for no time at all');
SELECT results_eq($$SELECT key, attempt FROM idempotent_resume('1 hour')$$, $$VALUES ('r', 2)$$, 'is due at once');

-- Rolled back.
BEGIN;
SELECT is(idempotent_release('s', 'r', 2, 'error'), true, 'a release');
ROLLBACK;
SELECT results_eq($$SELECT retry_at, last_error, lease_until > now() FROM idempotency_claims WHERE key = 'r'$$,
	$$VALUES (NULL::timestamptz, NULL::text, true)$$, 'that is rolled back leaves the claim as it was');

-- A lease that has ended but was not overtaken can still be released.
SELECT is(pg_temp.end_lease('r'), 'ended', 'the lease ends');
SELECT is(idempotent_release('s', 'r', 2, 'late'), true, 'a late release');
SELECT is((SELECT last_error FROM idempotency_claims WHERE key = 'r'), 'late', 'is kept');

-- Released in the transaction that began.
BEGIN;
SELECT is(outcome, 'started', 'begin') FROM idempotent_begin('s', 'same', lease => '1 hour');
SELECT is(idempotent_release('s', 'same', 1, 'no'), true, 'and release in one transaction');
SELECT throws_ok($$SELECT idempotent_begin('s', 'same')$$, 'IK409', NULL, 'the next try is not due');
UPDATE idempotency_claims SET retry_at = now() WHERE key = 'same';
SELECT is(outcome || attempt, 'recovered2', 'begin again') FROM idempotent_begin('s', 'same');
SELECT is(idempotent_finish('s', 'same', '1'), '1'::jsonb, 'without a lease');
COMMIT;
SELECT is(response, '1'::jsonb, 'finished') FROM idempotent_begin('s', 'same');

-- In one transaction, error and retry_after have nowhere to go.
BEGIN;
SELECT is(outcome, 'started', 'an attempt without a lease') FROM idempotent_begin('s', 'here');
SELECT is(idempotent_release('s', 'here', error => 'x', retry_after => '1 day'), true, 'is released with an error');
COMMIT;
SELECT is_empty($$SELECT FROM idempotent_lookup('s', 'here')$$, 'and leaves nothing');

-- Reset: nothing was done, and only the number stays.
SELECT is(outcome || attempt, 'started1', 'a claim') FROM idempotent_begin('s', 'reset', '{"a": 1}', lease => '1 hour');
SELECT is(idempotent_checkpoint('s', 'reset', 1, 'c', '1') > now(), true, 'with a checkpoint');
SELECT is(idempotent_release('s', 'reset', 1, 'refused before anything was sent', reset => true), true, 'is reset');
SELECT results_eq($$SELECT attempt, fingerprint, request, checkpoint, state, last_error, retry_at, reset_at IS NOT NULL FROM idempotency_claims WHERE key = 'reset'$$,
	$$VALUES (1, NULL::bytea, NULL::jsonb, NULL::text, NULL::jsonb, NULL::text, NULL::timestamptz, true)$$, 'which leaves a counter');
SELECT is_empty($$SELECT FROM idempotent_lookup('s', 'reset')$$, 'lookup passes it over');
SELECT is_empty($$SELECT FROM idempotent_resume('1 hour', 100) WHERE key = 'reset'$$, 'and so does resume');
SELECT is_empty($$SELECT FROM idempotency_stalled WHERE key = 'reset'$$, 'and the view');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'reset', 1, 'c')$$, 'IK410', NULL, 'its worker is fenced');
SELECT throws_ok($$SELECT idempotent_finish('s', 'reset', attempt => 1)$$, 'IK410', NULL, 'in finish too');
BEGIN;
SELECT is(outcome || attempt, 'started2', 'the next begin starts under the next number, whatever its request') FROM idempotent_begin('s', 'reset', '{"a": 2}');
ROLLBACK;
SELECT is(outcome || attempt, 'started2', 'and under lease') FROM idempotent_begin('s', 'reset', '{"a": 2}', lease => '1 hour');
SELECT results_eq($$SELECT attempt, max_attempts, request, reset_at FROM idempotency_claims WHERE key = 'reset'$$,
	$$VALUES (2, 11, '{"a": 2}'::jsonb, NULL::timestamptz)$$, 'the claim is new, and its attempts are counted from there');
SELECT is(idempotent_release('s', 'reset', 2, reset => true), true, 'reset once more');
BEGIN;
SELECT is(outcome || attempt, 'started3', 'begun in one transaction') FROM idempotent_begin('s', 'reset');
SELECT is(idempotent_finish('s', 'reset', '"done"'), '"done"', 'and finished');
COMMIT;
SELECT is_empty($$SELECT FROM idempotency_claims WHERE key = 'reset'$$, 'takes the counter away');
SELECT results_eq($$SELECT attempt, response FROM idempotency_keys WHERE key = 'reset'$$, $$VALUES (3, '"done"'::jsonb)$$, 'the number stays');

-- An attempt without a lease on a claim: what leaves a trace uses its number up.
SELECT is(pg_temp.claim_at('trace', 4), 'attempt 4', 'a claim');
SELECT is(pg_temp.end_lease('trace'), 'ended', 'whose lease ends');
BEGIN;
SELECT is(outcome || attempt, 'recovered5', 'recovered without a lease') FROM idempotent_begin('s', 'trace', '{"a": 1}');
SELECT is(idempotent_release('s', 'trace', error => 'no', retry_after => '0'), true, 'released with a trace');
COMMIT;
SELECT results_eq($$SELECT attempt, last_error FROM idempotency_claims WHERE key = 'trace'$$, $$VALUES (5, 'no')$$, 'has used its number');
-- No finish(): pgTAP's own count is rolled back with the rest.
