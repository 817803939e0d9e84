-- Read-only transactions: whatever writes refuses at once, whatever reads works.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
BEGIN;
SELECT is(outcome, 'started', 'a key') FROM idempotent_begin('s', 'k');
SELECT is(idempotent_finish('s', 'k', '"answer"'), '"answer"', 'finished');
COMMIT;
BEGIN READ ONLY;
SELECT throws_ok('SELECT ' || call, '25006', NULL, call) FROM (VALUES
	($$idempotent_begin('s', 'k')$$),
	($$idempotent_begin('s', 'new')$$),
	($$idempotent_begin(NULL, NULL)$$),
	($$idempotent_try_begin('s', 'k')$$),
	($$idempotent_finish('s', 'k')$$),
	($$idempotent_release('s', 'k')$$),
	($$idempotent_checkpoint('s', 'k', 1, 'c')$$),
	($$idempotent_resume('1 min')$$),
	($$idempotent_call('s', 'k', 'SELECT 1')$$),
	($$idempotent_begin_many('s', '{k}')$$),
	($$idempotent_finish_many('s', '{k}')$$),
	($$idempotent_forget('s', 'k')$$),
	($$idempotent_forget_scope('s')$$),
	($$idempotent_park('s', 'k', 1, 'e')$$),
	($$idempotent_retry('s', 'k', '1 min')$$),
	($$idempotent_resolve('s', 'k', 'r')$$),
	($$idempotent_resolve('s', 'k', 'r', correct => true)$$),
	($$idempotent_prune()$$)
) c(call);
SELECT is(response, '"answer"'::jsonb, 'lookup works') FROM idempotent_lookup('s', 'k');
SELECT is_empty($$SELECT FROM idempotent_lookup('s', 'new')$$, 'and finds nothing where there is nothing');
SELECT is(verdict || ' ' || key, 'missing_there k', 'reconcile works: it changes nothing') FROM idempotent_reconcile('[]', 'charge', '-infinity');
SELECT matches(idempotent_derive('s', 'k', 'charge'), '^[0-9a-f]{64}$', 'derive works');
SELECT is(idempotent_backoff(2), interval '2 min', 'backoff works');
SELECT is_empty('TABLE idempotency_stalled', 'and so does the view');
COMMIT;
-- Read-only after begin, as SET TRANSACTION READ ONLY can make it at any time.
BEGIN;
SELECT outcome FROM idempotent_begin('s', 'turned') \g /dev/null
SET TRANSACTION READ ONLY;
SELECT throws_ok($$SELECT idempotent_finish('s', 'turned')$$, '25006', NULL, 'finish in a transaction that was made read-only');
ROLLBACK;
-- No finish(): pgTAP's own count is rolled back with the rest.
