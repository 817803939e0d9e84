-- In READ COMMITTED, REPEATABLE READ and SERIALIZABLE alike a key is begun, finished, replayed, expired, taken over and pruned.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(48);

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT count(*) FROM idempotency_keys \g /dev/null
SELECT is(outcome, 'started', 'READ COMMITTED: begin') FROM idempotent_begin('READ COMMITTED', 'k', '{"a": 1}');
SELECT throws_ok($$SELECT idempotent_begin('READ COMMITTED', 'k')$$, 'IK500', NULL, 'READ COMMITTED: begin twice');
SELECT is(idempotent_finish('READ COMMITTED', 'k', '"answer"'), '"answer"', 'READ COMMITTED: finish');
SELECT is(response, '"answer"', 'READ COMMITTED: replay in the same transaction') FROM idempotent_begin('READ COMMITTED', 'k', '{"a": 1}');
SELECT is(outcome, 'started', 'READ COMMITTED: another key') FROM idempotent_try_begin('READ COMMITTED', 'released');
SELECT is(idempotent_release('READ COMMITTED', 'released'), true, 'READ COMMITTED: released');
COMMIT;
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT is(response, '"answer"', 'READ COMMITTED: replay in the next transaction') FROM idempotent_begin('READ COMMITTED', 'k', '{"a": 1}');
SELECT throws_ok($$SELECT idempotent_begin('READ COMMITTED', 'k', '{"a": 2}')$$, 'IK422', NULL, 'READ COMMITTED: mismatch');
UPDATE idempotency_keys SET expires_at = now() WHERE scope = 'READ COMMITTED';
SELECT is(outcome, 'started', 'READ COMMITTED: begin on an expired key') FROM idempotent_begin('READ COMMITTED', 'k', '{"a": 2}');
SELECT is(idempotent_finish('READ COMMITTED', 'k', '"replaced"'), '"replaced"', 'READ COMMITTED: its finish replaces it');
COMMIT;
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT is(outcome, 'started', 'READ COMMITTED: lease') FROM idempotent_begin('READ COMMITTED', 'l', lease => '1 hour');
COMMIT;
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT is(idempotent_checkpoint('READ COMMITTED', 'l', 1, 'charged', lease => '1 microsecond') <= clock_timestamp(), true, 'READ COMMITTED: checkpoint');
COMMIT;
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT is(outcome || attempt || checkpoint, 'recovered2charged', 'READ COMMITTED: takeover') FROM idempotent_begin('READ COMMITTED', 'l', lease => '1 hour');
SELECT is(idempotent_finish('READ COMMITTED', 'l', '"leased"', attempt => 2), '"leased"', 'READ COMMITTED: finish of a lease');
COMMIT;
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT is(response, '"leased"', 'READ COMMITTED: replay of a lease') FROM idempotent_begin('READ COMMITTED', 'l');
UPDATE idempotency_keys SET expires_at = now();
SELECT is(idempotent_prune(), 2::bigint, 'READ COMMITTED: prune');
COMMIT;

BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM idempotency_keys \g /dev/null
SELECT is(outcome, 'started', 'REPEATABLE READ: begin') FROM idempotent_begin('REPEATABLE READ', 'k', '{"a": 1}');
SELECT throws_ok($$SELECT idempotent_begin('REPEATABLE READ', 'k')$$, 'IK500', NULL, 'REPEATABLE READ: begin twice');
SELECT is(idempotent_finish('REPEATABLE READ', 'k', '"answer"'), '"answer"', 'REPEATABLE READ: finish');
SELECT is(response, '"answer"', 'REPEATABLE READ: replay in the same transaction') FROM idempotent_begin('REPEATABLE READ', 'k', '{"a": 1}');
SELECT is(outcome, 'started', 'REPEATABLE READ: another key') FROM idempotent_try_begin('REPEATABLE READ', 'released');
SELECT is(idempotent_release('REPEATABLE READ', 'released'), true, 'REPEATABLE READ: released');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(response, '"answer"', 'REPEATABLE READ: replay in the next transaction') FROM idempotent_begin('REPEATABLE READ', 'k', '{"a": 1}');
SELECT throws_ok($$SELECT idempotent_begin('REPEATABLE READ', 'k', '{"a": 2}')$$, 'IK422', NULL, 'REPEATABLE READ: mismatch');
UPDATE idempotency_keys SET expires_at = now() WHERE scope = 'REPEATABLE READ';
SELECT is(outcome, 'started', 'REPEATABLE READ: begin on an expired key') FROM idempotent_begin('REPEATABLE READ', 'k', '{"a": 2}');
SELECT is(idempotent_finish('REPEATABLE READ', 'k', '"replaced"'), '"replaced"', 'REPEATABLE READ: its finish replaces it');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(outcome, 'started', 'REPEATABLE READ: lease') FROM idempotent_begin('REPEATABLE READ', 'l', lease => '1 hour');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(idempotent_checkpoint('REPEATABLE READ', 'l', 1, 'charged', lease => '1 microsecond') <= clock_timestamp(), true, 'REPEATABLE READ: checkpoint');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(outcome || attempt || checkpoint, 'recovered2charged', 'REPEATABLE READ: takeover') FROM idempotent_begin('REPEATABLE READ', 'l', lease => '1 hour');
SELECT is(idempotent_finish('REPEATABLE READ', 'l', '"leased"', attempt => 2), '"leased"', 'REPEATABLE READ: finish of a lease');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT is(response, '"leased"', 'REPEATABLE READ: replay of a lease') FROM idempotent_begin('REPEATABLE READ', 'l');
UPDATE idempotency_keys SET expires_at = now();
SELECT is(idempotent_prune(), 2::bigint, 'REPEATABLE READ: prune');
COMMIT;

BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM idempotency_keys \g /dev/null
SELECT is(outcome, 'started', 'SERIALIZABLE: begin') FROM idempotent_begin('SERIALIZABLE', 'k', '{"a": 1}');
SELECT throws_ok($$SELECT idempotent_begin('SERIALIZABLE', 'k')$$, 'IK500', NULL, 'SERIALIZABLE: begin twice');
SELECT is(idempotent_finish('SERIALIZABLE', 'k', '"answer"'), '"answer"', 'SERIALIZABLE: finish');
SELECT is(response, '"answer"', 'SERIALIZABLE: replay in the same transaction') FROM idempotent_begin('SERIALIZABLE', 'k', '{"a": 1}');
SELECT is(outcome, 'started', 'SERIALIZABLE: another key') FROM idempotent_try_begin('SERIALIZABLE', 'released');
SELECT is(idempotent_release('SERIALIZABLE', 'released'), true, 'SERIALIZABLE: released');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(response, '"answer"', 'SERIALIZABLE: replay in the next transaction') FROM idempotent_begin('SERIALIZABLE', 'k', '{"a": 1}');
SELECT throws_ok($$SELECT idempotent_begin('SERIALIZABLE', 'k', '{"a": 2}')$$, 'IK422', NULL, 'SERIALIZABLE: mismatch');
UPDATE idempotency_keys SET expires_at = now() WHERE scope = 'SERIALIZABLE';
SELECT is(outcome, 'started', 'SERIALIZABLE: begin on an expired key') FROM idempotent_begin('SERIALIZABLE', 'k', '{"a": 2}');
SELECT is(idempotent_finish('SERIALIZABLE', 'k', '"replaced"'), '"replaced"', 'SERIALIZABLE: its finish replaces it');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(outcome, 'started', 'SERIALIZABLE: lease') FROM idempotent_begin('SERIALIZABLE', 'l', lease => '1 hour');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(idempotent_checkpoint('SERIALIZABLE', 'l', 1, 'charged', lease => '1 microsecond') <= clock_timestamp(), true, 'SERIALIZABLE: checkpoint');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(outcome || attempt || checkpoint, 'recovered2charged', 'SERIALIZABLE: takeover') FROM idempotent_begin('SERIALIZABLE', 'l', lease => '1 hour');
SELECT is(idempotent_finish('SERIALIZABLE', 'l', '"leased"', attempt => 2), '"leased"', 'SERIALIZABLE: finish of a lease');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(response, '"leased"', 'SERIALIZABLE: replay of a lease') FROM idempotent_begin('SERIALIZABLE', 'l');
UPDATE idempotency_keys SET expires_at = now();
SELECT is(idempotent_prune(), 2::bigint, 'SERIALIZABLE: prune');
COMMIT;

SELECT * FROM finish();
