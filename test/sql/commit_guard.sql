-- The commit guard: a transaction that began an attempt cannot commit without finishing or releasing it.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(43);
CREATE TABLE guarded_work (what text);
CREATE FUNCTION guarded_begin(key text) RETURNS text LANGUAGE sql AS $$
	SELECT outcome FROM public.idempotent_begin('guard', key)
$$;
CREATE FUNCTION guarded_finish(key text) RETURNS text LANGUAGE sql AS $$
	SELECT public.idempotent_finish('guard', key, '"ok"') #>> '{}'
$$;
-- Statements below fail on purpose; what they failed with is in :SQLSTATE.
\set ON_ERROR_STOP off

-- Autocommit.
SELECT guarded_begin('auto');
SELECT is(text :'SQLSTATE', 'IK500', 'begin in autocommit fails');
SELECT outcome FROM idempotent_try_begin('guard', 'auto');
SELECT is(text :'SQLSTATE', 'IK500', 'and so does try_begin');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock is left');
SELECT is_empty($$SELECT FROM idempotent_lookup('guard', 'auto')$$, 'and no trace');
SELECT outcome || coalesce(guarded_finish('auto'), '') FROM idempotent_begin('guard', 'auto');
SELECT is(text :'SQLSTATE', '00000', 'begin and finish in one statement commit');
SELECT outcome FROM idempotent_begin('guard', 'auto');
SELECT is(text :'SQLSTATE', '00000', 'a replay in autocommit is no attempt');
INSERT INTO guarded_work SELECT guarded_begin('insert');
SELECT is(text :'SQLSTATE', 'IK500', 'begin within an INSERT in autocommit fails');
SELECT is_empty('TABLE guarded_work', 'and takes the work with it');

-- COMMIT.
BEGIN;
SELECT guarded_begin('commit');
INSERT INTO guarded_work VALUES ('commit');
COMMIT;
SELECT is(text :'SQLSTATE', 'IK500', 'COMMIT without finish fails');
SELECT is_empty('TABLE guarded_work', 'the work is rolled back');
SELECT is(pg_temp.locks(), 0::bigint, 'the lock is gone');
SELECT is_empty($$SELECT FROM idempotent_lookup('guard', 'commit')$$, 'the key is free');
BEGIN;
SELECT guarded_begin('commit');
SELECT guarded_finish('commit');
INSERT INTO guarded_work VALUES ('commit');
COMMIT;
SELECT is(text :'SQLSTATE', '00000', 'COMMIT after finish commits');
SELECT is((SELECT count(*) FROM guarded_work), 1::bigint, 'the work is there');
SELECT is(outcome, 'replayed', 'and the key') FROM idempotent_lookup('guard', 'commit');
BEGIN;
SELECT guarded_begin('release');
SELECT idempotent_release('guard', 'release');
COMMIT;
SELECT is(text :'SQLSTATE', '00000', 'COMMIT after release commits');
BEGIN;
SELECT guarded_begin('rollback');
ROLLBACK;
SELECT is(text :'SQLSTATE', '00000', 'ROLLBACK is always possible');
BEGIN;
SELECT guarded_begin('chain');
COMMIT AND CHAIN;
SELECT is(text :'SQLSTATE', 'IK500', 'COMMIT AND CHAIN fails as COMMIT does');
BEGIN;
SELECT guarded_begin('two a');
SELECT guarded_begin('two b');
SELECT guarded_finish('two a');
COMMIT;
SELECT is(text :'SQLSTATE', 'IK500', 'one attempt of two unfinished is enough to fail');
SELECT is_empty($$SELECT FROM idempotent_lookup('guard', 'two a')$$, 'and the finished one is not kept');

-- An error that has ended the transaction already is not covered up.
BEGIN;
SELECT guarded_begin('failed');
SELECT 1 / 0;
COMMIT;
SELECT is(text :'SQLSTATE', '00000', 'COMMIT of a failed transaction is the usual rollback');
SELECT is(pg_temp.locks(), 0::bigint, 'and frees the key');

-- Savepoints.
BEGIN;
SAVEPOINT a;
SELECT guarded_begin('sub');
ROLLBACK TO a;
COMMIT;
SELECT is(text :'SQLSTATE', '00000', 'an attempt whose begin was rolled back does not count');
BEGIN;
SAVEPOINT a;
SELECT guarded_begin('sub');
RELEASE a;
COMMIT;
SELECT is(text :'SQLSTATE', 'IK500', 'one in a released savepoint does');
BEGIN;
SELECT guarded_begin('sub');
SAVEPOINT a;
SELECT guarded_finish('sub');
ROLLBACK TO a;
COMMIT;
SELECT is(text :'SQLSTATE', 'IK500', 'so does one whose finish was rolled back');
BEGIN;
SELECT guarded_begin('sub');
SAVEPOINT a;
SELECT idempotent_release('guard', 'sub');
ROLLBACK TO a;
COMMIT;
SELECT is(text :'SQLSTATE', 'IK500', 'and one whose release was rolled back');
BEGIN;
SAVEPOINT a;
SELECT guarded_begin('sub');
SELECT guarded_finish('sub');
RELEASE a;
COMMIT;
SELECT is(text :'SQLSTATE', '00000', 'finished in a released savepoint is finished');

-- Procedures and DO blocks that commit inside.
DO $$ BEGIN PERFORM public.guarded_begin('do'); END $$;
SELECT is(text :'SQLSTATE', 'IK500', 'a DO block that only begins fails at its end');
DO $$ BEGIN PERFORM public.guarded_begin('do'); COMMIT; END $$;
SELECT is(text :'SQLSTATE', 'IK500', 'COMMIT inside a DO block fails');
CREATE PROCEDURE guarded_procedure(finish boolean) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.guarded_work VALUES ('before');
	COMMIT;
	PERFORM public.guarded_begin('procedure');
	INSERT INTO public.guarded_work VALUES ('procedure');
	IF finish THEN
		PERFORM public.guarded_finish('procedure');
	END IF;
	COMMIT;
	INSERT INTO public.guarded_work VALUES ('after');
END $$;
TRUNCATE guarded_work;
CALL guarded_procedure(false);
SELECT is(text :'SQLSTATE', 'IK500', 'COMMIT inside a procedure fails');
SELECT results_eq('TABLE guarded_work', $$VALUES ('before')$$, 'and undoes what was begun since the COMMIT before');
TRUNCATE guarded_work;
CALL guarded_procedure(true);
SELECT is(text :'SQLSTATE', '00000', 'with finish it commits');
SELECT results_eq('TABLE guarded_work', $$VALUES ('before'), ('procedure'), ('after')$$, 'all of it');
DO $$
BEGIN
	PERFORM public.guarded_begin('undone');
	ROLLBACK;
	INSERT INTO public.guarded_work VALUES ('after ROLLBACK');
END $$;
SELECT is(text :'SQLSTATE', '00000', 'ROLLBACK inside a DO block ends the attempt');

-- What runs at COMMIT comes before the guard.
CREATE FUNCTION guarded_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE NEW.what;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON guarded_work DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION guarded_at_commit();
BEGIN;
SELECT guarded_begin('deferred');
INSERT INTO guarded_work VALUES ($$SELECT public.guarded_finish('deferred')$$);
COMMIT;
SELECT is(text :'SQLSTATE', '00000', 'a deferred trigger may finish');
SELECT is(outcome, 'replayed', 'and it counts') FROM idempotent_lookup('guard', 'deferred');
INSERT INTO guarded_work VALUES ($$SELECT public.guarded_begin('deferred begin')$$);
SELECT is(text :'SQLSTATE', 'IK500', 'one that begins is caught');
ALTER TABLE guarded_work DISABLE TRIGGER at_commit;
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT guarded_begin('held');
COMMIT;
SELECT is(text :'SQLSTATE', 'IK500', 'so is a cursor that is run to its end by COMMIT');

-- PREPARE TRANSACTION.
BEGIN;
SELECT guarded_begin('prepare');
PREPARE TRANSACTION 'idempotency_guard';
SELECT is(text :'SQLSTATE', 'IK500', 'PREPARE TRANSACTION without finish fails');
SELECT is_empty($$SELECT FROM pg_prepared_xacts WHERE gid = 'idempotency_guard'$$, 'and nothing is prepared');
SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE gid = 'idempotency_guard' \gexec

-- A lease is a claim to be committed.
SELECT outcome FROM idempotent_begin('guard', 'leased', lease => '1 hour');
SELECT is(text :'SQLSTATE', '00000', 'an attempt begun under lease may commit');
SELECT is(outcome, 'in_progress', 'it holds the key') FROM idempotent_lookup('guard', 'leased');
UPDATE idempotency_claims SET lease_until = now();
SELECT outcome FROM idempotent_begin('guard', 'leased');
SELECT is(text :'SQLSTATE', 'IK500', 'one that took it over without a lease may not');

DROP PROCEDURE guarded_procedure;
DROP TABLE guarded_work;
DROP FUNCTION guarded_at_commit, guarded_begin, guarded_finish;
SELECT * FROM finish();
