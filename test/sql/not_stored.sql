-- A statement on our tables that a trigger or a rule has emptied is an error, not a conflict to be tried again.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(13);
CREATE OR REPLACE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER suppress BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION suppress();
SELECT is(outcome, 'started', 'begun') FROM idempotent_begin('s', 'trigger');
SELECT throws_ok($$SELECT idempotent_finish('s', 'trigger')$$, '09000', NULL, 'a trigger that suppresses the row fails finish');
SELECT is(idempotent_release('s', 'trigger'), true, 'the attempt is still open');
SELECT throws_ok($$SELECT idempotent_begin_many('s', '{a,b}')$$, '09000', NULL, 'a batch does not take what was suppressed for known');
DROP TRIGGER suppress ON idempotency_keys;
CREATE TRIGGER suppress BEFORE UPDATE ON idempotency_claims FOR EACH ROW EXECUTE FUNCTION suppress();
SELECT is(outcome, 'started', 'begun under lease') FROM idempotent_begin('s', 'lease', lease => '1 hour');
SELECT throws_ok($$SELECT idempotent_checkpoint('s', 'lease', 1, 'c')$$, '09000', NULL, 'nor is a suppressed checkpoint one to be tried again');
SELECT throws_ok($$SELECT idempotent_release('s', 'lease', 1)$$, '09000', NULL, 'nor a release');
DROP TRIGGER suppress ON idempotency_claims;

CREATE RULE nothing AS ON INSERT TO idempotency_keys DO INSTEAD NOTHING;
SELECT is(outcome, 'started', 'begun') FROM idempotent_begin('s', 'rule');
SELECT throws_ok($$SELECT idempotent_finish('s', 'rule')$$, '0A000', NULL, 'and so does a rule');
SELECT is(idempotent_release('s', 'rule'), true, 'the attempt is still open');
DROP RULE nothing ON idempotency_keys;

-- An expired row whose removal a trigger suppresses.
INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
	VALUES (pg_temp.id_of('s', 'expired'), 's', 'expired', 1, now(), now(), now());
CREATE TRIGGER suppress BEFORE DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION suppress();
SELECT is(outcome, 'started', 'begun on an expired key') FROM idempotent_begin('s', 'expired');
SELECT throws_ok($$SELECT idempotent_finish('s', 'expired')$$, '09000', NULL, 'a trigger that keeps the expired row fails finish');
SELECT throws_ok($$SELECT idempotent_forget('s', 'expired')$$, '09000', NULL, 'and forget');
-- No finish(): pgTAP's own count is rolled back with the rest.
ROLLBACK;
