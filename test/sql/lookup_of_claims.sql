-- idempotent_lookup of a claim says what begin would meet now, where the work stopped and why, in every state of the claim.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
-- Every statement is a transaction of its own, as the phases of such work are.
CREATE FUNCTION pg_temp.seen(key text) RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', outcome, attempt, checkpoint, state, error,
		CASE WHEN retry_after > 3500 AND retry_after <= 3600 THEN 'within the hour' WHEN retry_after IS NOT NULL THEN 'in ' || retry_after END,
		CASE WHEN replayed THEN 'replayed' END, response)
	FROM idempotent_lookup('s', key)
$$;
-- And what begin says, undone.
CREATE FUNCTION pg_temp.begin_says(key text, lease interval DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	a idempotent_attempt;
BEGIN
	a := idempotent_begin('s', key, lease => lease);
	RAISE SQLSTATE 'UNDO1' USING MESSAGE = concat_ws(' ', a.outcome, a.attempt, a.checkpoint, a.state, a.error);
EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
	RETURN SQLERRM;
WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
CREATE FUNCTION pg_temp.agree(key text, want text) RETURNS SETOF text LANGUAGE sql AS $$
	VALUES (is(pg_temp.begin_says(key), want, 'begin: ' || want)), (is(pg_temp.begin_says(key, '1 hour'), want, 'begin under lease: ' || want))
$$;

SELECT is(pg_temp.seen('k'), NULL, 'nothing');
SELECT pg_temp.agree('k', 'started 1');
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('s', 'k', lease => '1 hour', retention => '2 days');
SELECT is(pg_temp.seen('k'), 'in_progress 1 within the hour', 'a live claim, and when its lease ends');
SELECT results_eq($$SELECT first_seen_at, finished_at, expires_at >= first_seen_at + interval '2 days' FROM idempotent_lookup('s', 'k')$$,
	$$SELECT first_seen_at, NULL::timestamptz, true FROM idempotency_claims$$, 'its times');
SELECT pg_temp.agree('k', 'IK409');
SELECT is(idempotent_checkpoint('s', 'k', 1, 'sent', '{"id": 1}') > now(), true, 'a checkpoint');
SELECT is(pg_temp.seen('k'), 'in_progress 1 sent {"id": 1} within the hour', 'is told while it lives');
SELECT is(pg_temp.end_lease('k'), 'ended', 'its lease ends');
SELECT is(pg_temp.seen('k'), 'recovered 2 sent {"id": 1}', 'then begin would recover it');
SELECT pg_temp.agree('k', 'recovered 2 sent {"id": 1}');
SELECT is(idempotent_release('s', 'k', 1, 'closed', '1 hour'), true, 'released');
SELECT is(pg_temp.seen('k'), 'in_progress 1 sent {"id": 1} closed within the hour', 'it is not due, and why');
SELECT pg_temp.agree('k', 'IK409');
UPDATE idempotency_claims SET retry_at = now();
SELECT is(pg_temp.seen('k'), 'recovered 2 sent {"id": 1} closed', 'due');
SELECT pg_temp.agree('k', 'recovered 2 sent {"id": 1} closed');
SELECT is((SELECT attempt FROM idempotent_resume('1 hour')), 2, 'resumed');
SELECT is(pg_temp.seen('k'), 'in_progress 2 sent {"id": 1} closed within the hour', 'live again, with the error of the attempt before');
SELECT is(idempotent_park('s', 'k', 2, 'nobody knows'), true, 'parked');
SELECT is(pg_temp.seen('k'), 'parked 2 sent {"id": 1} nobody knows', 'parked');
SELECT pg_temp.agree('k', 'IK423');
SELECT is((SELECT attempt FROM idempotent_retry('s', 'k', '1 hour')), 3, 'handed out again');
SELECT is(pg_temp.seen('k'), 'in_progress 3 sent {"id": 1} nobody knows within the hour', 'live');
SELECT is(idempotent_release('s', 'k', 3, 'not sent', reset => true), true, 'reset');
SELECT is(pg_temp.seen('k'), NULL, 'a counter is nothing');
SELECT pg_temp.agree('k', 'started 4');
SELECT throws_ok($$SELECT idempotent_retry('s', 'k', '1 hour')$$, 'IK410', NULL, 'there is nothing to hand out');
SELECT is(outcome || attempt, 'started4', 'begun anew') FROM idempotent_begin('s', 'k', lease => '1 hour');
SELECT is(pg_temp.seen('k'), 'in_progress 4 within the hour', 'without what was before');
SELECT is(idempotent_forget('s', 'k'), true, 'forgotten');
SELECT is(pg_temp.seen('k'), NULL, 'nothing');
SELECT pg_temp.agree('k', 'started 5');
SELECT throws_ok($$SELECT idempotent_retry('s', 'k', '1 hour')$$, 'IK410', NULL, 'nor of what was forgotten');
SELECT is_empty('TABLE idempotency_stalled', 'the view shows neither');

-- Parked by its number.
SET idempotency.max_attempts = 1;
SELECT is(outcome, 'started', 'the only attempt') FROM idempotent_begin('s', 'one', lease => '1 hour');
SELECT is(pg_temp.seen('one'), 'in_progress 1 within the hour', 'lives');
SELECT is(pg_temp.end_lease('one'), 'ended', 'and ends');
SELECT is(pg_temp.seen('one'), 'parked 1', 'which parks the claim');
SELECT pg_temp.agree('one', 'IK423');
SELECT is(idempotent_checkpoint('s', 'one', 1) > now(), true, 'its attempt goes on');
SELECT is(pg_temp.seen('one'), 'in_progress 1 within the hour', 'and it is live');
SELECT is(idempotent_release('s', 'one', 1, 'failed', '0'), true, 'it gives up');
SELECT is(pg_temp.seen('one'), 'parked 1 failed', 'and is parked');
SELECT is(idempotent_resolve('s', 'one', 'a reason', '"told"', attempt => 1), 'settled', 'settled, as any parked claim');
SELECT is(pg_temp.seen('one'), 'replayed 2 replayed "told"', 'and finished');
RESET idempotency.max_attempts;

-- A setting that changes does not unpark, nor park.
SET idempotency.max_attempts = 5;
SELECT is(outcome, 'started', 'five attempts') FROM idempotent_begin('s', 'five', lease => '1 microsecond');
SET idempotency.max_attempts = 1;
SELECT is(pg_temp.seen('five'), 'recovered 2', 'are five, whatever the setting is later');
SELECT is((SELECT attempt FROM idempotent_resume('1 microsecond', 1, 's')), 2, 'for resume too');
RESET idempotency.max_attempts;

-- The counter of a claim that was forgotten goes as any other.
UPDATE idempotency_claims SET reset_at = now() - interval '31 days', retention = '1 day' WHERE key IS NULL;
SELECT is((SELECT count(*) FROM idempotency_claims WHERE key IS NULL), 1::bigint, 'a counter without a name');
SELECT is(idempotent_prune(), 0::bigint, 'prune counts keys alone');
SELECT is_empty($$SELECT FROM idempotency_claims WHERE key IS NULL$$, 'and takes it away');
SELECT pg_temp.agree('k', 'started 1');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock is left');
-- No finish(): pgTAP's own count is rolled back with the rest.
