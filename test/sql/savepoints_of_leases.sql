-- ROLLBACK TO undoes park, release, reset, retry, resolve and forget as it undoes any write, and what the transaction knows of its attempts with it.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
CREATE FUNCTION pg_temp.claim(key text) RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', attempt, checkpoint, last_error, CASE WHEN lease_until > clock_timestamp() THEN 'live' ELSE 'ended' END,
		CASE WHEN retry_at IS NOT NULL THEN 'released' END, CASE WHEN parked_at IS NOT NULL THEN 'parked' END, CASE WHEN reset_at IS NOT NULL THEN 'counter' END)
	FROM idempotency_claims c WHERE c.key = claim.key
$$;

-- What ends the attempt that this transaction has begun.
BEGIN;
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('s', 'k', lease => '1 hour');
SAVEPOINT a;
SELECT is(idempotent_park('s', 'k', 1, 'unknown'), true, 'parked');
SELECT is(outcome, 'parked', 'it is') FROM idempotent_try_begin('s', 'k');
ROLLBACK TO a;
SELECT is(pg_temp.claim('k'), '1 live', 'ROLLBACK TO: live again');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k')$$, 'IK500', NULL, 'and this transaction''s own');
SELECT is(idempotent_release('s', 'k', 1, 'closed', '1 hour'), true, 'released');
SELECT is(outcome, 'in_progress', 'it is not due') FROM idempotent_try_begin('s', 'k');
ROLLBACK TO a;
SELECT throws_ok($$SELECT idempotent_begin('s', 'k')$$, 'IK500', NULL, 'open again');
SELECT is(idempotent_release('s', 'k', 1, reset => true), true, 'reset');
SAVEPOINT b;
SELECT is(outcome || attempt, 'started2', 'begun anew') FROM idempotent_begin('s', 'k', lease => '1 hour');
ROLLBACK TO b;
SELECT is(pg_temp.claim('k'), '1 ended counter', 'undone: a counter');
SELECT is(outcome || attempt, 'started2', 'and begun under the same number again, which nobody has seen') FROM idempotent_begin('s', 'k');
SELECT is(idempotent_release('s', 'k'), true, 'released without a trace');
ROLLBACK TO a;
SELECT is(pg_temp.claim('k'), '1 live', 'undone to the first savepoint');
SELECT is(idempotent_checkpoint('s', 'k', 1, 'here') > now(), true, 'the attempt goes on');
COMMIT;
SELECT is(pg_temp.claim('k'), '1 here live', 'and is what has been committed');
SELECT is(pg_temp.locks(), 0::bigint, 'without a lock');

-- What takes a claim, or settles it.
SELECT is(idempotent_park('s', 'k', 1, 'unknown'), true, 'parked');
BEGIN;
SAVEPOINT a;
SELECT is(attempt, 2, 'retried') FROM idempotent_retry('s', 'k', '1 hour');
ROLLBACK TO a;
SELECT is(pg_temp.locked('s', 'k'), false, 'undone: no lock is left');
SELECT is(pg_temp.claim('k'), '1 here unknown ended parked', 'it is parked as before');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k', attempt => 2)$$, 'IK410', NULL, 'and the number that was not given is nobody''s');
SELECT is(idempotent_resolve('s', 'k', 'a reason', '"told"', attempt => 1), 'settled', 'settled');
SELECT is(outcome, 'replayed', 'it is finished') FROM idempotent_begin('s', 'k');
ROLLBACK TO a;
SELECT is((SELECT count(*) FROM idempotency_keys) + (SELECT count(*) FROM idempotency_corrections), 0::bigint, 'undone: neither answer nor correction is left');
SELECT is(outcome, 'parked', 'and it is parked') FROM idempotent_try_begin('s', 'k');
SELECT is(idempotent_forget('s', 'k'), true, 'forgotten');
SELECT is(outcome || attempt, 'started2', 'a new begin') FROM idempotent_begin('s', 'k', lease => '1 hour');
ROLLBACK TO a;
SELECT is(outcome, 'parked', 'undone: parked') FROM idempotent_try_begin('s', 'k');
SELECT is(idempotent_forget_scope('s'), 1::bigint, 'the scope forgotten');
ROLLBACK TO a;
SELECT is(attempt, 2, 'and after all that retried') FROM idempotent_retry('s', 'k', '1 hour');
SELECT is(idempotent_finish('s', 'k', '"done"', attempt => 2), '"done"', 'and finished');
COMMIT;
SELECT results_eq('SELECT key, attempt, response FROM idempotency_keys', $$VALUES ('k', 2, '"done"'::jsonb)$$, 'once');
SELECT is_empty('TABLE idempotency_claims', 'without a claim');
SELECT is_empty('TABLE idempotency_corrections', 'or a correction');

-- Without a lease on a claim: a trace that is undone gives its number back.
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('s', 'here', lease => '1 microsecond');
BEGIN;
SELECT is(outcome || attempt, 'recovered2', 'recovered in a transaction') FROM idempotent_begin('s', 'here');
SAVEPOINT a;
SELECT is(idempotent_release('s', 'here', 2, 'no', '1 hour'), true, 'released with a trace');
SELECT is(pg_temp.claim('here'), '2 no ended released', 'which uses the number up');
ROLLBACK TO a;
SELECT is(pg_temp.claim('here'), '1 ended', 'undone');
SELECT throws_ok($$SELECT idempotent_begin('s', 'here')$$, 'IK500', NULL, 'the attempt is open again');
SELECT is(idempotent_release('s', 'here', 2, reset => true), true, 'reset');
SELECT is(pg_temp.claim('here'), '2 ended counter', 'the counter has the number that was used');
COMMIT;
SELECT is(outcome || attempt, 'started3', 'and the next is another') FROM idempotent_begin('s', 'here', lease => '1 hour');

-- In exception blocks, as procedures have them.
CREATE FUNCTION pg_temp.failing(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RAISE SQLSTATE 'UNDO1';
EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
	RETURN 'undone';
END $$;
BEGIN;
SELECT is(count(pg_temp.failing(command)), 1000::bigint, 'a thousand that are undone') FROM generate_series(1, 200), (VALUES
	($$SELECT idempotent_park('s', 'here', 3, 'e')$$), ($$SELECT idempotent_release('s', 'here', 3, 'e')$$), ($$SELECT idempotent_checkpoint('s', 'here', 3, 'c')$$),
	($$SELECT idempotent_forget('s', 'here')$$), ($$SELECT idempotent_finish('s', 'here', attempt => 3)$$)) v(command);
SELECT is(pg_temp.claim('here'), '3 live', 'leave the claim as it was');
SELECT is(pg_temp.locks(), 0::bigint, 'and no lock');
SELECT is(idempotent_finish('s', 'here', '1', attempt => 3), '1', 'which is finished by its number');
COMMIT;
-- No finish(): pgTAP's own count is rolled back with the rest.
