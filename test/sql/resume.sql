-- idempotent_resume hands out what is stalled or due, longest due first, so many, each once.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
-- Every statement is a transaction of its own, as the phases of such work are.
SELECT plan(38);
-- A claim at its third attempt that fell due so long ago: its lease has ended, or its release set the time.
CREATE FUNCTION pg_temp.put(scope text, key text, due interval, released boolean DEFAULT false) RETURNS text LANGUAGE sql AS $$
	INSERT INTO idempotency_claims (id, scope, key, request, attempt, checkpoint, state, last_error, max_attempts, retention, lease,
			first_seen_at, claimed_at, lease_until, retry_at)
		SELECT pg_temp.id_of(scope, key), scope, key, to_jsonb('request ' || key), 3, 'checkpoint ' || key, to_jsonb('state ' || key),
			CASE WHEN released THEN 'error ' || key END, 10, '1 day', '1 min', now() - interval '2 hours', now() - interval '2 hours',
			CASE WHEN released THEN now() - interval '1 hour' ELSE now() - due END,
			CASE WHEN released THEN now() - due END
		RETURNING 'put'
$$;
-- What resume hands out, in its order.
CREATE FUNCTION pg_temp.resumed(lease interval, max_keys int DEFAULT 1, scope text DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(key || ' #' || attempt, ', ' ORDER BY ordinality)
	FROM idempotent_resume(lease, max_keys, scope) WITH ORDINALITY
$$;

SELECT is(pg_temp.resumed('1 min', 10), NULL, 'there is nothing to resume');
SELECT is_empty('TABLE idempotency_stalled', 'nothing is stalled');
SELECT is(pg_temp.put('a', 'stalled 1', '1 min'), 'put', 'a claim whose lease ended a minute ago');
SELECT is(pg_temp.put('b', 'stalled 30', '30 min'), 'put', 'thirty minutes ago');
SELECT is(pg_temp.put('a', 'due 20', '20 min', true), 'put', 'a released one that has been due for 20 minutes');
SELECT is(pg_temp.put('b', 'due 10', '10 min', true), 'put', 'for 10 minutes');
SELECT is(pg_temp.put('a', 'not due', '-10 min', true), 'put', 'one that is not due yet');
SELECT is(pg_temp.put('a', 'live', '-1 hour'), 'put', 'a live one');
SELECT is(pg_temp.put('c', 'free', '1 hour'), 'put', 'and one more');
SELECT is(idempotent_forget('c', 'free'), true, 'that is forgotten');

-- The view for whoever is on call.
SELECT results_eq(
	$$SELECT scope, key, attempts, checkpoint, last_error, age BETWEEN '119 min' AND '130 min', due_at <= now(), stalled_for > '0'
	  FROM idempotency_stalled ORDER BY due_at$$,
	$$VALUES ('b', 'stalled 30', 3, 'checkpoint stalled 30', NULL, true, true, true),
			 ('a', 'due 20', 3, 'checkpoint due 20', 'error due 20', true, true, true),
			 ('b', 'due 10', 3, 'checkpoint due 10', 'error due 10', true, true, true),
			 ('a', 'stalled 1', 3, 'checkpoint stalled 1', NULL, true, true, true),
			 ('a', 'not due', 3, 'checkpoint not due', 'error not due', true, false, true)$$,
	'idempotency_stalled shows the claims whose lease has ended, why, and when each is due');

-- Order, number, scope.
BEGIN;
SELECT is(pg_temp.resumed('1 min'), 'stalled 30 #4', 'one by default: the longest due, under the next number');
SELECT is(pg_temp.resumed('1 min'), 'due 20 #4', 'then the next');
SELECT is(pg_temp.resumed('1 min', 10), 'due 10 #4, stalled 1 #4', 'then all that is due');
SELECT is(pg_temp.resumed('1 min', 10), NULL, 'each once');
SELECT is(pg_temp.locks(), 4::bigint, 'one lock for each');
SELECT results_eq('SELECT key FROM idempotency_stalled', $$VALUES ('not due')$$, 'the view no longer shows what is at work again');
ROLLBACK;
BEGIN;
SELECT is(pg_temp.resumed('1 min', 10), 'stalled 30 #4, due 20 #4, due 10 #4, stalled 1 #4', 'what was rolled back is handed out again');
ROLLBACK;
BEGIN;
SELECT is(pg_temp.resumed('1 min', 10, 'a'), 'due 20 #4, stalled 1 #4', 'of one scope');
SELECT is(pg_temp.resumed('1 min', 10, 'none'), NULL, 'of one that is not there');
SELECT is(pg_temp.resumed('1 min', 1, 'b'), 'stalled 30 #4', 'bounded');
ROLLBACK;
BEGIN;
SELECT is(pg_temp.resumed('1 min', 2147483647), 'stalled 30 #4, due 20 #4, due 10 #4, stalled 1 #4', 'max_keys may be as large as an integer is');
ROLLBACK;
BEGIN;
SELECT is(pg_temp.resumed('1 microsecond', 10), 'stalled 30 #4, due 20 #4, due 10 #4, stalled 1 #4',
	'with a lease that is over at once, each is handed out once');
ROLLBACK;

-- What is handed out.
SELECT results_eq(
	$$SELECT scope, key, attempt, request, checkpoint, state, first_seen_at < now() - interval '119 min',
			 lease_until BETWEEN now() + interval '5 min' AND clock_timestamp() + interval '5 min'
	  FROM idempotent_resume('5 min')$$,
	$$VALUES ('b', 'stalled 30', 4, '"request stalled 30"'::jsonb, 'checkpoint stalled 30', '"state stalled 30"'::jsonb, true, true)$$,
	'a claim comes with all it takes to go on');
SELECT results_eq(
	$$SELECT attempt, lease_until - claimed_at, retry_at, checkpoint, request FROM idempotency_claims WHERE key = 'stalled 30'$$,
	$$VALUES (4, interval '5 min', NULL::timestamptz, 'checkpoint stalled 30', '"request stalled 30"'::jsonb)$$,
	'it is the new attempt''s');
SELECT is(outcome, 'in_progress', 'it is live') FROM idempotent_try_begin('b', 'stalled 30');
SELECT throws_ok($$SELECT idempotent_finish('b', 'stalled 30', attempt => 3)$$, 'IK410', NULL, 'the overtaken attempt cannot finish');
SELECT is(idempotent_finish('b', 'stalled 30', '"done"', attempt => 4), '"done"', 'the new one can');

-- In the transaction of the work.
BEGIN;
SELECT is(pg_temp.resumed('1 min'), 'due 20 #4', 'resume');
SELECT throws_ok($$SELECT idempotent_begin('a', 'due 20')$$, 'IK500', NULL, 'begin on what this transaction resumed is misuse');
SELECT is(idempotent_finish('a', 'due 20', '"done"', attempt => 4), '"done"', 'finish');
COMMIT;
SELECT is(response, '"done"', 'resumed and finished in one transaction') FROM idempotent_begin('a', 'due 20');

-- Nothing but what begin gave.
SELECT is(idempotent_forget('b', 'due 10') AND idempotent_forget('a', 'stalled 1'), true, 'the others are forgotten');
SELECT is(outcome, 'started', 'a claim without a request') FROM idempotent_begin('s', 'bare', lease => '1 microsecond');
SELECT results_eq(
	$$SELECT scope, key, attempt, request, checkpoint, state FROM idempotent_resume('1 hour', 10)$$,
	$$VALUES ('s', 'bare', 2, NULL::jsonb, NULL::text, NULL::jsonb)$$,
	'has none to hand out');

-- More than is looked at in one go.
SELECT is(count(pg_temp.put('many', lpad(i::text, 3, '0'), i * interval '1 s')), 250::bigint, 'many claims') FROM generate_series(1, 250) i;
SELECT results_eq(
	$$SELECT count(*), count(DISTINCT key), min(key), max(key) FROM idempotent_resume('1 hour', 240)$$,
	$$VALUES (240::bigint, 240::bigint, '011', '250')$$,
	'more than a batch, the longest due');
SELECT results_eq($$SELECT count(*) FROM idempotent_resume('1 hour', 240)$$, $$VALUES (10::bigint)$$, 'and the rest');
-- No finish(): pgTAP's own count is rolled back with the rest.
