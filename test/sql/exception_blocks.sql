-- PL/pgSQL EXCEPTION blocks in each position behave as the savepoints they are.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(19);

CREATE TABLE work (what text CHECK (what <> 'bad'));

-- The work fails, the failure is the response.
CREATE FUNCTION pg_temp.charge(key text, what text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	a idempotent_attempt := idempotent_begin('s', key);
BEGIN
	IF a.replayed THEN
		RETURN a.response;
	END IF;
	BEGIN
		INSERT INTO work VALUES ('first');
		INSERT INTO work VALUES (what);
		RETURN idempotent_finish('s', key, '"done"', status => 201);
	EXCEPTION WHEN check_violation THEN
		RETURN idempotent_finish('s', key, '"declined"', status => 402);
	END;
END $$;
SELECT is(pg_temp.charge('bad', 'bad'), '"declined"', 'work that fails in a block, finish in its handler');
SELECT is_empty('TABLE work', 'the work is undone');
SELECT is(status, 402, 'the failure is stored') FROM idempotency_keys WHERE key = 'bad';
SELECT is(pg_temp.charge('bad', 'good'), '"declined"', 'and replayed');
SELECT is(pg_temp.charge('good', 'good'), '"done"', 'work and finish in a block that succeeds');
SELECT is(pg_temp.charge('good', 'good'), '"done"', 'are kept');
SELECT is((SELECT count(*) FROM work), 2::bigint, 'once');

-- The block is around begin.
CREATE FUNCTION pg_temp.around_begin(key text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		PERFORM idempotent_begin('s', key);
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	RETURN (SELECT outcome FROM idempotent_begin('s', key));
END $$;
SELECT is(pg_temp.around_begin('b'), 'started', 'an error after begin in the block forgets the attempt');
SELECT is(idempotent_release('s', 'b'), true, 'begun again after it');
SELECT is(pg_temp.locked('s', 'b'), true, 'with one lock, which is kept to the end of the transaction');

-- The block is around finish.
CREATE FUNCTION pg_temp.around_finish(key text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_begin('s', key);
	BEGIN
		PERFORM idempotent_finish('s', key, '"undone"');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		RETURN idempotent_finish('s', key, '"after"') #>> '{}';
	END;
END $$;
SELECT is(pg_temp.around_finish('f'), 'after', 'an error after finish in the block makes it unfinished again');
SELECT is(response, '"after"'::jsonb, 'and the handler''s finish counts') FROM idempotent_lookup('s', 'f');

-- The block is around release.
CREATE FUNCTION pg_temp.around_release(key text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_begin('s', key);
	BEGIN
		PERFORM idempotent_release('s', key);
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		RETURN idempotent_finish('s', key, '"open"') #>> '{}';
	END;
END $$;
SELECT is(pg_temp.around_release('r'), 'open', 'an error after release in the block makes it open again');

-- Our own errors are caught as any other.
CREATE FUNCTION pg_temp.caught(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN '';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT is(outcome, 'started', 'an open attempt') FROM idempotent_begin('s', 'c', '1');
SELECT is(pg_temp.caught($$SELECT idempotent_begin('s', 'c')$$), 'IK500', 'misuse is caught');
SELECT is(pg_temp.caught($$SELECT idempotent_begin('s', 'f' || repeat('x', 300))$$), 'IK400', 'bad input is caught');
SELECT ok(pg_temp.locked('s', 'c'), 'the attempt survives both');
SELECT lives_ok($$SELECT idempotent_finish('s', 'c')$$, 'and is finished');

-- Many blocks, each of which begins: locks and list do not grow.
DO $$
BEGIN
	FOR i IN 1 .. 2000 LOOP
		BEGIN
			PERFORM idempotent_begin('loop', i::text);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT is((SELECT count(*) FROM pg_locks WHERE objsubid = 30163 AND pid = pg_backend_pid()),
	(SELECT count(*) + 1 FROM idempotency_keys), 'two thousand begins rolled back leave no lock: there are those of the finished keys and of the released one');

SELECT * FROM finish();
ROLLBACK;
