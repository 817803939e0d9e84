-- Work under lease in its course: claim, checkpoint, finish, what each says and stores, and who is refused meanwhile.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
-- Every statement is a transaction of its own, as the phases of such work are.
SELECT plan(58);

-- Claim.
SELECT results_eq(
	$$SELECT outcome, replayed, attempt, status, headers, response, body, checkpoint, state, finished_at, retry_after,
			 first_seen_at >= now(), expires_at - first_seen_at
	  FROM idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour', retention => '2 days')$$,
	$$VALUES ('started', false, 1, NULL::int, NULL::jsonb, NULL::jsonb, NULL::bytea, NULL::text, NULL::jsonb,
			  NULL::timestamptz, NULL::int, true, interval '2 days')$$,
	'a new key is started: attempt 1');
SELECT results_eq(
	$$SELECT id, scope, key, get_byte(fingerprint, 0), request, attempt, checkpoint, state, last_error, retention,
			 first_seen_at = claimed_at, lease_until - claimed_at, retry_at
	  FROM idempotency_claims$$,
	$$VALUES (pg_temp.id_of('s', 'k'), 's', 'k', 1, '{"a": 1}'::jsonb, 1, NULL::text, NULL::jsonb, NULL::text, interval '2 days',
			  true, interval '1 hour', NULL::timestamptz)$$,
	'the claim is stored with its request');
SELECT is_empty('TABLE idempotency_keys', 'and no key');
SELECT is(pg_temp.locks(), 0::bigint, 'once committed it holds no lock');

-- Live.
SELECT results_eq(
	$$SELECT outcome, replayed, attempt, checkpoint, response, finished_at, retry_after BETWEEN ceil(extract(epoch FROM (SELECT lease_until FROM idempotency_claims) - clock_timestamp())) AND 3600,
			 first_seen_at = (SELECT first_seen_at FROM idempotency_claims)
	  FROM idempotent_try_begin('s', 'k', '{"a": 1}', lease => '1 hour')$$,
	$$VALUES ('in_progress', false, 1, NULL::text, NULL::jsonb, NULL::timestamptz, true, true)$$,
	'try_begin on a live claim: in_progress, and when to come again');
SELECT is(outcome, 'in_progress', 'without a lease too') FROM idempotent_try_begin('s', 'k', '{"a": 1}');
SELECT is(outcome, 'in_progress', 'and without a request') FROM idempotent_try_begin('s', 'k');
SELECT is(outcome, 'in_progress', 'lookup says the same') FROM idempotent_lookup('s', 'k');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour')$$, 'IK409', NULL, 'begin raises it');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 1}')$$, 'IK409', NULL, 'without a lease too');
SELECT is(outcome, 'mismatch', 'another request is told before that') FROM idempotent_try_begin('s', 'k', '{"a": 2}', lease => '1 hour');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k', '{"a": 2}', lease => '1 hour')$$, 'IK422', NULL, 'by begin too');
SELECT is(idempotent_release('s', 'k'), false, 'release without a number is not meant for a lease');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k')$$, 'IK500', NULL, 'finish without a number neither');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', attempt => 2)$$, 'IK410', NULL, 'a number that is not there yet is refused');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'k', 2, 'c')$$, 'IK410', NULL, 'for a checkpoint');
SELECT throws_ok($$SELECT idempotent_release('s', 'k', 2)$$, 'IK410', NULL, 'and a release');
SELECT results_eq('SELECT attempt, lease_until - claimed_at, checkpoint, retry_at FROM idempotency_claims',
	$$VALUES (1, interval '1 hour', NULL::text, NULL::timestamptz)$$, 'none of this changes the claim');
SELECT is(pg_temp.locks(), 0::bigint, 'nor leaves a lock');

CREATE FUNCTION pg_temp.parts_of_409(OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_begin('s', 'k');
EXCEPTION WHEN SQLSTATE 'IK409' THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END $$;
SET DateStyle = 'ISO';
SELECT alike(detail, '%' || to_char(claimed_at, 'YYYY-MM-DD HH24:MI:SS') || '%' || to_char(lease_until, 'YYYY-MM-DD HH24:MI:SS') || '%',
	'IK409 tells since when and until when')
FROM idempotency_claims, pg_temp.parts_of_409();
SELECT matches(hint, '3[56]\d\d', 'and when to retry') FROM pg_temp.parts_of_409();

-- Checkpoint.
CREATE TEMP TABLE said (lease_until timestamptz);
INSERT INTO said SELECT idempotent_checkpoint('s', 'k', 1, 'charged', '{"charge": "ch_1"}');
SELECT results_eq(
	$$SELECT attempt, checkpoint, state, request, first_seen_at = claimed_at, lease_until - claimed_at > interval '1 hour',
			 lease_until - now() <= interval '1 hour'
	  FROM idempotency_claims$$,
	$$VALUES (1, 'charged', '{"charge": "ch_1"}'::jsonb, '{"a": 1}'::jsonb, true, true, true)$$,
	'a checkpoint is stored with its state, and renews the lease by its own length');
SELECT results_eq('SELECT lease_until FROM idempotency_claims', 'TABLE said', 'it returns when the lease now ends');
SELECT is(idempotent_checkpoint('s', 'k', 1, 'mailed', lease => '2 hours') > now() + interval '119 min', true,
	'or renews it by the length that is given');
SELECT results_eq('SELECT checkpoint, state FROM idempotency_claims', $$VALUES ('mailed', NULL::jsonb)$$,
	'it has the state that it was given, not that of the one before');
SELECT is(idempotent_checkpoint('s', 'k', 1, 'printed') > now() + interval '119 min', true, 'a given length stays');
BEGIN;
SELECT is(idempotent_checkpoint('s', 'k', 1, 'undone', '1') > now(), true, 'a checkpoint');
ROLLBACK;
SELECT results_eq('SELECT checkpoint, state FROM idempotency_claims', $$VALUES ('printed', NULL::jsonb)$$,
	'belongs to its phase''s transaction');

-- A lease that has ended is its attempt's own until someone takes it over.
SELECT is(pg_temp.end_lease('k'), 'ended', 'the lease ends');
SELECT is(idempotent_checkpoint('s', 'k', 1, 'late') > now() + interval '119 min', true, 'a late checkpoint renews it');
SELECT is(outcome, 'in_progress', 'so that it is live again') FROM idempotent_try_begin('s', 'k');
SELECT is(pg_temp.end_lease('k'), 'ended', 'it ends again');

-- Finish.
BEGIN;
SELECT is(idempotent_finish('s', 'k', '"undone"', attempt => 1), '"undone"', 'finish');
SELECT is(outcome, 'replayed', 'is seen by its own transaction') FROM idempotent_begin('s', 'k');
ROLLBACK;
SELECT results_eq('SELECT checkpoint FROM idempotency_claims', $$VALUES ('late')$$, 'and rolled back with it');
SELECT is(idempotent_finish('s', 'k', '"done"', status => 201, headers => '{"h": 1}', body => '\x00', attempt => 1), '"done"',
	'finish by the number');
SELECT is_empty('TABLE idempotency_claims', 'removes the claim');
SELECT results_eq(
	$$SELECT id, scope, key, get_byte(fingerprint, 0), attempt, status, headers, response, body, finished_at > first_seen_at,
			 pg_temp.about(expires_at - finished_at, '2 days')
	  FROM idempotency_keys$$,
	$$VALUES (pg_temp.id_of('s', 'k'), 's', 'k', 1, 1, 201, '{"h": 1}'::jsonb, '"done"'::jsonb, '\x00'::bytea, true, true)$$,
	'and stores the key, which expires a retention after its finish');
SELECT results_eq($$SELECT outcome, response FROM idempotent_begin('s', 'k', '{"a": 1}', lease => '1 hour')$$,
	$$VALUES ('replayed', '"done"'::jsonb)$$, 'begin replays it');
SELECT is(outcome, 'mismatch', 'or says that the request is another') FROM idempotent_try_begin('s', 'k', '{"a": 2}', lease => '1 hour');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', '"again"', attempt => 1)$$, 'IK410', NULL, 'finish twice is refused');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'k', 1, 'c')$$, 'IK410', NULL, 'and so is a checkpoint of a finished attempt');
SELECT throws_ok($$SELECT idempotent_release('s', 'k', 1)$$, 'IK410', NULL, 'and its release');

-- All in one transaction.
BEGIN;
SELECT is(outcome, 'started', 'begin') FROM idempotent_begin('s', 'one', lease => '1 hour');
SELECT throws_ok($$SELECT idempotent_begin('s', 'one')$$, 'IK500', NULL, 'a second begin in the claiming transaction is misuse');
SELECT throws_ok($$SELECT idempotent_finish('s', 'one')$$, 'IK500', NULL, 'so is finish without the number');
SELECT is(idempotent_checkpoint('s', 'one', 1, 'c') > now(), true, 'checkpoint');
SELECT is(idempotent_finish('s', 'one', '"one"', attempt => 1), '"one"', 'and finish');
SELECT is(response, '"one"', 'replay') FROM idempotent_begin('s', 'one');
COMMIT;
SELECT is(response, '"one"', 'all in one transaction, and after it') FROM idempotent_begin('s', 'one');

-- Savepoints.
BEGIN;
SAVEPOINT a;
SELECT is(outcome, 'started', 'begun after a savepoint') FROM idempotent_begin('s', 'sub', lease => '1 hour');
ROLLBACK TO a;
SELECT is(pg_temp.locked('s', 'sub'), false, 'ROLLBACK TO frees the key');
SELECT is(outcome, 'started', 'and it begins anew') FROM idempotent_begin('s', 'sub', lease => '1 hour');
SAVEPOINT b;
SELECT is(idempotent_finish('s', 'sub', attempt => 1), NULL, 'finished after a savepoint');
ROLLBACK TO b;
SELECT throws_ok($$SELECT idempotent_begin('s', 'sub')$$, 'IK500', NULL, 'ROLLBACK TO: open again');
SELECT is(idempotent_release('s', 'sub', 1, retry_after => '0'), true, 'released');
SELECT is(outcome || attempt, 'recovered2', 'and begun again in the same transaction') FROM idempotent_begin('s', 'sub', lease => '1 hour');
COMMIT;
SELECT results_eq('SELECT key, attempt FROM idempotency_claims', $$VALUES ('sub', 2)$$, 'the claim as it was left');
-- No finish(): pgTAP's own count is rolled back with the rest.
