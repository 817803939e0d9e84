-- Takeover: an ended claim goes to the next attempt at its last checkpoint, and the overtaken one writes nothing more.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
-- Every statement is a transaction of its own, as the phases of such work are.
SELECT plan(70);
CREATE FUNCTION pg_temp.claim(key text) RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', attempt, checkpoint, state, CASE WHEN lease_until > clock_timestamp() THEN 'live' ELSE 'ended' END)
	FROM idempotency_claims c WHERE c.key = claim.key
$$;

SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour', retention => '2 days');
SELECT is(idempotent_checkpoint('s', 'k', 1, 'charged', '{"charge": "ch_1"}') > now(), true, 'with a checkpoint');
SELECT is(pg_temp.end_lease('k'), 'ended', 'whose lease ends');

-- Seen before it is taken.
SELECT results_eq(
	$$SELECT outcome, replayed, attempt, checkpoint, state, expires_at - first_seen_at > interval '2 days', finished_at, retry_after FROM idempotent_lookup('s', 'k')$$,
	$$VALUES ('recovered', false, 2, 'charged', '{"charge": "ch_1"}'::jsonb, true, NULL::timestamptz, NULL::int)$$,
	'lookup says what begin would: recovered');
SELECT is(pg_temp.claim('k'), '1 charged {"charge": "ch_1"} ended', 'and changes nothing');
SELECT is(outcome, 'mismatch', 'another request cannot take it over') FROM idempotent_try_begin('s', 'k', '{"a": 2}', lease => '1 hour');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 2}', lease => '1 hour')$$, 'IK422', NULL, 'begin raises that');

-- Taken over by begin, and by try_begin.
CREATE TEMP TABLE before AS SELECT first_seen_at FROM idempotency_claims;
SELECT results_eq(
	$$SELECT outcome, replayed, attempt, checkpoint, state, response, finished_at, retry_after,
			 first_seen_at = (TABLE before), expires_at - first_seen_at > interval '2 days'
	  FROM idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour')$$,
	$$VALUES ('recovered', false, 2, 'charged', '{"charge": "ch_1"}'::jsonb, NULL::jsonb, NULL::timestamptz, NULL::int, true,
			  true)$$,
	'begin on an ended claim: recovered, the next number, the last checkpoint and its state');
SELECT is(pg_temp.claim('k'), '2 charged {"charge": "ch_1"} live', 'the claim is the new attempt''s');
SELECT results_eq(
	$$SELECT first_seen_at = (TABLE before), claimed_at > first_seen_at, lease_until - claimed_at, retention, request FROM idempotency_claims$$,
	$$VALUES (true, true, interval '1 hour', interval '2 days', '{"a": 1}'::jsonb)$$,
	'first_seen_at, retention and request are still the first attempt''s');

-- Fenced off.
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'k', 1, 'late')$$, 'IK410', NULL, 'the overtaken attempt''s checkpoint is refused');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', '"late"', attempt => 1)$$, 'IK410', NULL, 'its finish too');
SELECT throws_ok($$SELECT idempotent_release('s', 'k', 1)$$, 'IK410', NULL, 'and its release');
SELECT is(pg_temp.claim('k'), '2 charged {"charge": "ch_1"} live', 'the claim does not change');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock is left');
SELECT is(pg_temp.end_lease('k'), 'ended', 'the second lease ends');
SELECT is(outcome || attempt, 'recovered3', 'try_begin takes over as well')
FROM idempotent_try_begin('s', 'k', '{"a": 1}', lease => '1 microsecond');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', '"late"', attempt => 1)$$, 'IK410', NULL, 'the first attempt stays refused');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', '"late"', attempt => 2)$$, 'IK410', NULL, 'the second is');
BEGIN;
SELECT is(outcome || attempt, 'recovered4', 'a takeover') FROM idempotent_begin('s', 'k', lease => '1 hour');
ROLLBACK;
SELECT is(pg_temp.claim('k'), '3 charged {"charge": "ch_1"} ended', 'that is rolled back leaves the claim as it was');
SELECT is(idempotent_checkpoint('s', 'k', 3, 'mailed', '{"mail": 1}', lease => '1 microsecond') IS NOT NULL, true,
	'its attempt goes on');
SELECT is(outcome || attempt || checkpoint, 'recovered4mailed', 'the next one gets the newest checkpoint')
FROM idempotent_begin('s', 'k', lease => '1 hour');
SELECT is(idempotent_finish('s', 'k', '"done"', attempt => 4), '"done"', 'and finishes');
SELECT results_eq(
	$$SELECT attempt, response, first_seen_at = (TABLE before), pg_temp.about(expires_at - finished_at, '2 days'), get_byte(fingerprint, 0) FROM idempotency_keys$$,
	$$VALUES (4, '"done"'::jsonb, true, true, 1)$$,
	'the key has the last attempt''s number and the first one''s time');
SELECT is(pg_temp.claim('k'), NULL, 'the claim is gone');

-- Without a lease: inside the transaction that takes it over.
SELECT is(outcome, 'started', 'another claim') FROM idempotent_begin('s', 'here', '{"a": 1}', lease => '1 hour', retention => '2 days');
SELECT throws_ok($$SELECT idempotent_begin('s', 'here', '{"a": 1}')$$, 'IK409', NULL, 'live: not to be taken over');
SELECT is(idempotent_checkpoint('s', 'here', 1, 'charged', '1', lease => '1 microsecond') IS NOT NULL, true, 'a checkpoint, and it ends');
BEGIN;
SELECT throws_ok($$SELECT idempotent_begin('s', 'here', '{"a": 2}')$$, 'IK422', NULL, 'another request is a mismatch');
SELECT is(outcome || attempt || checkpoint || state, 'recovered2charged1', 'begin without a lease: recovered')
FROM idempotent_begin('s', 'here', '{"a": 1}');
SELECT is(pg_temp.claim('here'), '1 charged 1 ended', 'it writes nothing');
SELECT ok(pg_temp.locked('s', 'here'), 'but holds the key');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'here', 2, 'c')$$, 'IK500', NULL, 'it has no lease to checkpoint');
SELECT throws_ok($$SELECT idempotent_finish('s', 'here', attempt => 1)$$, 'IK410', NULL, 'the other''s number is not its own');
SELECT is(idempotent_finish('s', 'here', '"here"'), '"here"', 'finish without a number');
SELECT is(pg_temp.claim('here'), NULL, 'removes the claim');
SELECT is(response, '"here"', 'replay') FROM idempotent_begin('s', 'here', '{"a": 1}');
ROLLBACK;
SELECT is(pg_temp.claim('here'), '1 charged 1 ended', 'ROLLBACK leaves the claim as it was');
BEGIN;
SELECT is(outcome, 'recovered', 'begun again') FROM idempotent_try_begin('s', 'here');
SELECT is(idempotent_release('s', 'here'), true, 'released');
COMMIT;
SELECT is(pg_temp.claim('here'), '1 charged 1 ended', 'release leaves it as it was, too');
BEGIN;
SELECT is(outcome, 'recovered', 'begun again') FROM idempotent_begin('s', 'here');
SELECT is(idempotent_release('s', 'here', 2, 'the bank is closed', '0'), true, 'released with a reason');
SELECT ok(pg_temp.locked('s', 'here'), 'which is written under the lock');
SELECT results_eq($$SELECT last_error, retry_at IS NOT NULL FROM idempotency_claims WHERE key = 'here'$$, $$VALUES ('the bank is closed', true)$$, 'and is kept');
ROLLBACK;
SELECT is(idempotent_checkpoint('s', 'here', 1, 'charged twice', lease => '1 microsecond') IS NOT NULL, true,
	'so that the first attempt is not overtaken');
BEGIN;
SELECT is(outcome || attempt, 'recovered2', 'begun without a lease or a request') FROM idempotent_begin('s', 'here');
SELECT is(idempotent_finish('s', 'here', '"here"', attempt => 2), '"here"', 'finish with the number that begin gave');
COMMIT;
SELECT results_eq(
	$$SELECT attempt, response, pg_temp.about(expires_at - finished_at, '2 days') FROM idempotency_keys WHERE key = 'here'$$,
	$$VALUES (2, '"here"'::jsonb, true)$$,
	'the key is stored with the claim''s retention');
SELECT is(outcome, 'mismatch', 'and the claim''s fingerprint') FROM idempotent_try_begin('s', 'here', '{"a": 2}');
SELECT throws_ok($$SELECT idempotent_finish('s', 'here', '"late"', attempt => 1)$$, 'IK410', NULL, 'the overtaken attempt is refused');

-- A claim without a fingerprint is anyone's.
SELECT is(outcome, 'started', 'a claim without a request') FROM idempotent_begin('s', 'bare', lease => '1 microsecond');
BEGIN;
SELECT is(outcome, 'recovered', 'is taken over with one') FROM idempotent_begin('s', 'bare', '{"a": 1}');
SELECT is(idempotent_finish('s', 'bare'), NULL, 'and finished');
COMMIT;
SELECT is(outcome, 'mismatch', 'which counts from then on') FROM idempotent_try_begin('s', 'bare', '{"a": 2}');

-- A claim whose first begin is longer ago than the retention.
SELECT is(outcome, 'started', 'a short retention') FROM idempotent_begin('s', 'old', retention => '1 microsecond', lease => '1 microsecond');
SELECT is(outcome, 'recovered', 'does not end a claim') FROM idempotent_begin('s', 'old', lease => '1 hour');
SELECT is(idempotent_prune(), 0::bigint, 'prune leaves it alone');
SELECT is(idempotent_finish('s', 'old', attempt => 2), NULL, 'it can be finished');
SELECT is_empty($$SELECT FROM idempotent_lookup('s', 'old')$$, 'and is expired by then');

-- A key that starts over while its last life is still to be seen does not give the same numbers out again.
SELECT is(attempt, 1, 'a first life') FROM idempotent_begin('again', 'k', lease => '1 hour', retention => '1 microsecond');
SELECT lives_ok($$SELECT idempotent_finish('again', 'k', attempt => 1)$$, 'finished, and expired at once');
SELECT is(outcome || attempt, 'started2', 'the second life begins with the next number') FROM idempotent_begin('again', 'k', lease => '1 hour');
SELECT throws_ok($$SELECT idempotent_finish('again', 'k', attempt => 1)$$, 'IK410', NULL, 'so that a worker of the first is refused');
SELECT lives_ok($$SELECT idempotent_finish('again', 'k', attempt => 2)$$, 'and that of the second is not');
-- A takeover tells what is asked for where the first attempt did not.
SELECT is(outcome, 'started', 'without a request') FROM idempotent_begin('adopt', 'k', lease => '1 microsecond');
SELECT is(outcome, 'recovered', 'taken over with one') FROM idempotent_begin('adopt', 'k', request => '{"a": 1}', lease => '1 hour');
SELECT throws_ok($$SELECT idempotent_begin('adopt', 'k', request => '{"a": 2}')$$, 'IK422', NULL, 'which another one is compared with');
SELECT is((SELECT request FROM idempotency_claims WHERE scope = 'adopt'), '{"a": 1}', 'and is kept for whoever resumes');
-- No finish(): pgTAP's own count is rolled back with the rest.
