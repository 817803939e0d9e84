-- Two-phase commit: a prepared transaction holds its key and decides it when it ends.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT current_setting('max_prepared_transactions')::int = 0 AS off \gset
\if :off
SELECT plan(1);
SELECT pass('nothing to test: max_prepared_transactions is 0');
SELECT * FROM finish();
\quit
\endif
SELECT plan(9);
-- The transactions to be prepared may not touch temporary tables, and so not pgTAP's.
BEGIN;
SELECT outcome FROM idempotent_begin('2pc', 'k', '1');
SELECT idempotent_finish('2pc', 'k', '"answer"');
PREPARE TRANSACTION 'idempotency_prepare';
SELECT is(pg_temp.locks(), 0::bigint, 'prepared: the session holds the lock no more');
SELECT is((SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 30163 AND pid IS NULL
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())), 1::bigint,
	'the prepared transaction does');
SELECT is(outcome, 'in_progress', 'for everyone else it is in progress') FROM idempotent_try_begin('2pc', 'k');
SELECT is(outcome, 'in_progress', 'lookup says so too') FROM idempotent_lookup('2pc', 'k');
COMMIT PREPARED 'idempotency_prepare';
SELECT is(response, '"answer"'::jsonb, 'COMMIT PREPARED: it replays') FROM idempotent_begin('2pc', 'k', '1');

BEGIN;
SELECT outcome FROM idempotent_begin('2pc', 'r');
SELECT idempotent_finish('2pc', 'r', '"answer"');
PREPARE TRANSACTION 'idempotency_prepare';
ROLLBACK PREPARED 'idempotency_prepare';
SELECT is_empty($$SELECT FROM idempotent_lookup('2pc', 'r')$$, 'ROLLBACK PREPARED: nothing is left');

BEGIN;
SELECT outcome FROM idempotent_begin('2pc', 'l', lease => '1 hour');
PREPARE TRANSACTION 'idempotency_prepare';
COMMIT PREPARED 'idempotency_prepare';
SELECT is(outcome || attempt, 'in_progress1', 'a lease can be prepared unfinished') FROM idempotent_lookup('2pc', 'l');
BEGIN;
SELECT idempotent_finish('2pc', 'l', '"leased"', attempt => 1);
PREPARE TRANSACTION 'idempotency_prepare';
SELECT is(outcome, 'in_progress', 'and so can its finish: not yet') FROM idempotent_try_begin('2pc', 'l');
COMMIT PREPARED 'idempotency_prepare';
SELECT is(response, '"leased"'::jsonb, 'now') FROM idempotent_begin('2pc', 'l');

SELECT * FROM finish();
