-- Giving up: park, the last attempt, and the ways out: retry, resolve, forget (I5, I7).
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
-- Every statement is a transaction of its own, as the phases of such work are.
SELECT no_plan();

-- Park a live lease.
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour');
SELECT is(idempotent_checkpoint('s', 'k', 1, 'sent', '{"to": "bank"}') > now(), true, 'with a checkpoint');
SELECT throws_ok($$SELECT idempotent_park('s', 'k', 2, 'e')$$, 'IK410', NULL, 'another number cannot park it');
SELECT throws_ok($$SELECT idempotent_park('s', 'none', 1, 'e')$$, 'IK410', NULL, 'nor can what is not there be parked');
SELECT is(idempotent_park('s', 'k', 1, 'the bank timed out'), true, 'park by the current number');
SELECT results_eq($$SELECT attempt, checkpoint, last_error, lease_until <= now(), retry_at, parked_at IS NOT NULL FROM idempotency_claims$$,
	$$VALUES (1, 'sent', 'the bank timed out', true, NULL::timestamptz, true)$$, 'ends the attempt and keeps where it was');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'k', 1, 'c')$$, 'IK410', NULL, 'afterwards its checkpoint is refused');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', attempt => 1)$$, 'IK410', NULL, 'and its finish');
SELECT throws_ok($$SELECT idempotent_release('s', 'k', 1)$$, 'IK410', NULL, 'and its release');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 1}')$$, 'IK423', NULL, 'begin raises IK423');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour')$$, 'IK423', NULL, 'under lease too');
SELECT throws_ok($$SELECT idempotent_call('s', 'k', 'SELECT 1', request => '{"a": 1}')$$, 'IK423', NULL, 'and call');
SELECT throws_ok($$SELECT idempotent_begin_many('s', '{k}')$$, 'IK423', NULL, 'and a batch');
SELECT results_eq($$SELECT outcome, attempt, error, retry_after FROM idempotent_try_begin('s', 'k', '{"a": 1}')$$,
	$$VALUES ('parked', 1, 'the bank timed out', NULL::int)$$, 'try_begin says parked, and why');
SELECT is(outcome, 'mismatch', 'but mismatch first') FROM idempotent_try_begin('s', 'k', '{"a": 2}');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 2}')$$, 'IK422', NULL, 'begin too');
SELECT results_eq($$SELECT outcome, attempt, checkpoint, state, error, expires_at > now() + interval '23 hours' FROM idempotent_lookup('s', 'k')$$,
	$$VALUES ('parked', 1, 'sent', '{"to": "bank"}'::jsonb, 'the bank timed out', true)$$, 'lookup tells all of it');
SELECT is_empty($$SELECT FROM idempotent_resume('1 hour', 10)$$, 'resume passes it over');
SELECT results_eq($$SELECT key, attempts, last_error, parked FROM idempotency_stalled$$, $$VALUES ('k', 1, 'the bank timed out', true)$$,
	'the view for whoever is on call shows it as parked');
SELECT is(idempotent_park('s', 'k', 1, 'still unknown'), true, 'parked again by its number');
SELECT is((SELECT last_error FROM idempotency_claims), 'still unknown', 'the reason is the last one');

-- Out by retry.
BEGIN;
SELECT results_eq($$SELECT scope, key, attempt, request, checkpoint, state, error, lease_until > now() + interval '59 min' FROM idempotent_retry('s', 'k', '1 hour')$$,
	$$VALUES ('s', 'k', 2, '{"a": 1}'::jsonb, 'sent', '{"to": "bank"}'::jsonb, 'still unknown', true)$$,
	'retry hands this one claim out, under the next number');
SELECT throws_ok($$SELECT idempotent_retry('s', 'k', '1 hour')$$, 'IK500', NULL, 'once in a transaction');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k')$$, 'IK500', NULL, 'which has begun it');
COMMIT;
SELECT throws_ok($$SELECT idempotent_retry('s', 'k', '1 hour')$$, 'IK409', NULL, 'while its lease is live it is not handed out');
SELECT throws_ok($$SELECT idempotent_resolve('s', 'k', 'statement')$$, 'IK409', NULL, 'nor settled');
SELECT is(idempotent_release('s', 'k', 2, 'again', '1 hour'), true, 'released');
SELECT is((SELECT attempt FROM idempotent_retry('s', 'k', '1 hour')), 3, 'and handed out before it is due');
SELECT is(idempotent_finish('s', 'k', '"paid"', attempt => 3), '"paid"', 'finished');
SELECT throws_ok($$SELECT idempotent_retry('s', 'k', '1 hour')$$, 'IK410', NULL, 'what is finished cannot be handed out');
SELECT throws_ok($$SELECT idempotent_retry('s', 'never', '1 hour')$$, 'IK410', NULL, 'nor what never was');

-- An attempt without a lease has nothing to park.
BEGIN;
SELECT is(outcome, 'started', 'an attempt of one transaction') FROM idempotent_begin('s', 'here');
SELECT throws_ok($$SELECT idempotent_park('s', 'here', 1, 'e')$$, 'IK500', NULL, 'is no claim');
ROLLBACK;

-- Parked in the transaction that began it.
BEGIN;
SELECT is(outcome, 'started', 'begun') FROM idempotent_begin('s', 'same', lease => '1 hour');
SELECT is(idempotent_park('s', 'same', 1, 'e'), true, 'parked');
SELECT is(outcome, 'parked', 'is parked') FROM idempotent_try_begin('s', 'same');
ROLLBACK;

-- The last attempt: by number, however it ends.
SET idempotency.max_attempts = 2;
SELECT is(outcome, 'started', 'with two attempts') FROM idempotent_begin('m', 'k', lease => '1 hour');
SET idempotency.max_attempts = 99;
SELECT is(max_attempts, 2, 'the number is taken when the claim is made') FROM idempotency_claims WHERE scope = 'm';
SELECT is(idempotent_release('m', 'k', 1, 'no', '0'), true, 'the first is released');
SELECT is((SELECT attempt FROM idempotent_resume('1 hour', 1, 'm')), 2, 'the second begun');
SELECT is(outcome, 'in_progress', 'while it is live') FROM idempotent_try_begin('m', 'k');
SELECT is(pg_temp.end_lease('k'), 'ended', 'its lease ends');
SELECT is(outcome, 'parked', 'then it is parked') FROM idempotent_try_begin('m', 'k');
SELECT is_empty($$SELECT FROM idempotent_resume('1 hour', 10, 'm')$$, 'for resume too');
SELECT results_eq($$SELECT parked FROM idempotency_stalled WHERE scope = 'm'$$, $$VALUES (true)$$, 'and in the view');
BEGIN;
SELECT is(idempotent_checkpoint('m', 'k', 2, 'late') > now(), true, 'the last attempt may still make a checkpoint');
SELECT is(idempotent_finish('m', 'k', '"late"', attempt => 2), '"late"', 'or finish, as after any lease that has ended');
ROLLBACK;
SELECT is(idempotent_release('m', 'k', 2, 'no', '0'), true, 'or be released');
SELECT is(outcome || error, 'parkedno', 'which parks it') FROM idempotent_try_begin('m', 'k');
SELECT throws_ok($$SELECT idempotent_finish('m', 'k', attempt => 2)$$, 'IK410', NULL, 'and ends it');
SELECT is((SELECT attempt FROM idempotent_retry('m', 'k', '1 hour')), 3, 'an administrator may give it one more');
SELECT is(pg_temp.end_lease('k'), 'ended', 'whose lease ends');
SELECT is(outcome, 'parked', 'and it is parked again') FROM idempotent_try_begin('m', 'k');

SET idempotency.max_attempts = 1;
SELECT is(outcome, 'started', 'with one attempt') FROM idempotent_begin('m', 'one', lease => '1 microsecond');
SELECT throws_ok($$SELECT idempotent_begin('m', 'one')$$, 'IK423', NULL, 'there is no second');
SET idempotency.max_attempts = 0;
SELECT is(outcome, 'started', 'with 0') FROM idempotent_begin('m', 'ever', lease => '1 hour');
UPDATE idempotency_claims SET attempt = 1000000, lease_until = now() WHERE key = 'ever';
SELECT is(outcome || attempt, 'recovered1000001', 'there is no end') FROM idempotent_begin('m', 'ever', lease => '1 hour');
RESET idempotency.max_attempts;
SELECT is(outcome, 'started', 'by default') FROM idempotent_begin('m', 'ten', lease => '1 hour');
SELECT is(max_attempts, 10, 'ten') FROM idempotency_claims WHERE key = 'ten';

-- Counters go when no worker can depend on them any more.
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('c', 'young', lease => '1 hour', retention => '1 hour');
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('c', 'old', lease => '1 hour', retention => '1 hour');
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('c', 'kept', lease => '1 hour', retention => '60 days');
SELECT is(outcome, 'started', 'a claim that is none') FROM idempotent_begin('c', 'work', lease => '1 hour', retention => '1 hour');
SELECT is(count(*) FILTER (WHERE idempotent_release('c', key, 1, reset => true)), 3::bigint, 'three are reset') FROM unnest('{young,old,kept}'::text[]) key;
UPDATE idempotency_claims SET reset_at = now() - CASE key WHEN 'young' THEN interval '29 days' ELSE interval '31 days' END WHERE scope = 'c' AND reset_at IS NOT NULL;
UPDATE idempotency_claims SET first_seen_at = now() - interval '1 year' WHERE key = 'work';
SELECT is(idempotent_prune(), 0::bigint, 'prune counts keys');
SELECT results_eq($$SELECT key FROM idempotency_claims WHERE scope = 'c' ORDER BY key$$, $$VALUES ('kept'), ('work'), ('young')$$,
	'and removes the counters that are older than 30 days and than their retention');
BEGIN;
SELECT is(outcome, 'started', 'a counter in use') FROM idempotent_begin('c', 'young');
UPDATE idempotency_claims SET reset_at = now() - interval '31 days' WHERE key = 'young';
SELECT is(idempotent_prune(), 0::bigint, 'its own transaction prunes');
SELECT is(idempotent_finish('c', 'young', '1'), '1', 'and finishes');
COMMIT;

-- Forget of a scope.
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('gdpr', 'claim', lease => '1 hour');
BEGIN;
SELECT is(count(*), 5::bigint, 'and keys') FROM generate_series(1, 5) i, idempotent_begin('gdpr', i::text);
SELECT is(count(idempotent_finish('gdpr', i::text, to_jsonb(i))), 5::bigint, 'finished') FROM generate_series(1, 5) i;
COMMIT;
SELECT is(idempotent_resolve('gdpr', '1', 'a reason', '"other"', correct => true), 'corrected', 'one is corrected');
SELECT is(idempotent_forget_scope('gdpr', 2), 2::bigint, 'as many as told');
SELECT is(idempotent_forget_scope('gdpr'), 4::bigint, 'all others');
SELECT is(idempotent_forget_scope('gdpr'), 0::bigint, 'none is left');
SELECT is((SELECT count(*) FROM idempotency_keys WHERE scope = 'gdpr') + (SELECT count(*) FROM idempotency_claims WHERE scope = 'gdpr' OR key = 'claim')
	+ (SELECT count(*) FROM idempotency_corrections WHERE scope = 'gdpr'), 0::bigint, 'in no table');
SELECT throws_ok($$SELECT idempotent_finish('gdpr', 'claim', attempt => 1)$$, 'IK410', NULL, 'the worker of the claim is fenced');
SELECT is(outcome || attempt, 'started2', 'and its number is not given out again') FROM idempotent_begin('gdpr', 'claim', lease => '1 hour');
-- No finish(): pgTAP's own count is rolled back with the rest.
