-- idempotent_call with remember_errors stores an error that will be the same next time, and no other.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
CREATE TABLE errors_work (id int PRIMARY KEY, parent int REFERENCES errors_work, amount int CONSTRAINT positive CHECK (amount > 0));
CREATE FUNCTION errors_raise(code text) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO errors_work VALUES (99);
	RAISE EXCEPTION 'no' USING ERRCODE = code, DETAIL = 'why', HINT = 'what', CONSTRAINT = 'c';
END $$;

-- By class: what is stored, and what is raised.
CREATE TABLE errors_classes (code text, stored boolean);
INSERT INTO errors_classes
	SELECT code, true FROM unnest(ARRAY['P0001', 'P0002', 'P0004', '23505', '23503', '23514', '23502', '23P01', '22012', '22P02',
		'22003', '38001', '39P01', '44000', 'ZZ001', 'A0001', '99999']) code
	UNION ALL
	SELECT code, false FROM unnest(ARRAY['42601', '42P01', '42883', '42501', '0A000', '21000', '2F003', '00001', '54001', '25006', '26000', '3D000', '08006', '40001', '40P01', '53100', '53200', '55P03', '55006', '57014', '57P01', '57P03',
		'58030', '58P01', '72000', 'HV000', 'HV00N', 'XX000', 'XX001', 'XX002', 'IK400', 'IK409', 'IK410', 'IK412', 'IK413', 'IK422', 'IK423', 'IK500']) code;
CREATE FUNCTION pg_temp.outcome_of(code text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT outcome || ' ' || (response #>> '{error,sqlstate}')
			FROM idempotent_call('classes', code, 'SELECT errors_raise($1)', jsonb_build_array(code), remember_errors => true));
EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
	RETURN 'raised ' || SQLSTATE;
END $$;
SELECT is(pg_temp.outcome_of(code), CASE WHEN stored THEN 'failed ' ELSE 'raised ' END || code, code)
	FROM errors_classes ORDER BY stored DESC, code COLLATE "C";
SELECT is((SELECT array_agg(key ORDER BY key COLLATE "C") FROM idempotency_keys WHERE scope = 'classes'),
	(SELECT array_agg(code ORDER BY code COLLATE "C") FROM errors_classes WHERE stored), 'these are stored and no others');
SELECT is((SELECT count(*) FROM errors_work), 0::bigint, 'the work of each was undone');

-- Real ones.
CREATE FUNCTION pg_temp.run(key text, command text) RETURNS text LANGUAGE sql AS $$
	SELECT outcome || CASE WHEN replayed THEN ' again ' ELSE ' ' END || coalesce(response #>> '{error,sqlstate}', response::text, '')
	FROM idempotent_call('errors', key, command, remember_errors => true)
$$;
SELECT is(pg_temp.run('check', 'INSERT INTO errors_work VALUES (1, NULL, 0)'), 'failed 23514', 'a check');
SELECT is(pg_temp.run('check', 'INSERT INTO errors_work VALUES (1, NULL, 0)'), 'failed again 23514', 'replays as failed');
SELECT is(response, jsonb_build_object('error', jsonb_build_object('sqlstate', '23514', 'constraint', 'positive', 'hint', NULL,
		'message', response #>> '{error,message}', 'detail', response #>> '{error,detail}')), 'with all that is told of it')
	FROM idempotent_call('errors', 'check', 'INSERT INTO errors_work VALUES (1, NULL, 0)');
SELECT is(outcome || replayed, 'failedtrue', 'a replay needs no remember_errors')
	FROM idempotent_call('errors', 'check', 'INSERT INTO errors_work VALUES (1, NULL, 0)');
SELECT is(outcome || replayed, 'replayedtrue', 'for begin it is a response like any other') FROM idempotent_begin('errors', 'check');
SELECT is(pg_temp.run('foreign', 'INSERT INTO errors_work VALUES (1, -1, 1)'), 'failed 23503', 'a foreign key');
SELECT is(pg_temp.run('good', 'INSERT INTO errors_work VALUES (1, NULL, 1) RETURNING id'), 'executed 1', 'none');
SELECT is(pg_temp.run('unique', 'INSERT INTO errors_work VALUES (1, NULL, 1)'), 'failed 23505', 'a unique key');
SELECT is(pg_temp.run('data', 'SELECT 1/0'), 'failed 22012', 'a data error');
SELECT throws_ok($$SELECT pg_temp.run('own', 'SELECT idempotent_begin(''errors'', ''own'')')$$, 'IK500', NULL,
	'misuse of the key itself is raised');
SELECT is_empty($$SELECT FROM idempotent_lookup('errors', 'own')$$, 'and not stored');
SELECT is(pg_temp.run('legit', $$SELECT '{"error": {"sqlstate": "00000"}}'::jsonb$$), 'executed 00000', 'a result that looks like an error');
SELECT is(pg_temp.run('legit', $$SELECT '{"error": {"sqlstate": "00000"}}'::jsonb$$), 'replayed again 00000', 'is none');

-- What a deployment repairs is not remembered.
SELECT throws_ok($$SELECT idempotent_call('errors', 'args', 'SELEC $1', '[1]', remember_errors => true)$$, '42601', NULL, 'a syntax error is raised');
SELECT throws_ok($$SELECT idempotent_call('errors', 'args', 'SELECT errors_new($1::int)', '[1]', remember_errors => true)$$, '42883', NULL, 'and so is an unknown function');
CREATE FUNCTION errors_new(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
SELECT is(outcome || response, 'executed1', 'once it is there the retry succeeds') FROM idempotent_call('errors', 'args', 'SELECT errors_new($1::int)', '[1]', remember_errors => true);
DROP FUNCTION errors_new;

-- In the stricter levels a unique violation may be a serialization failure, which the retry settles.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT throws_ok($$SELECT idempotent_call('errors', 'rr', 'INSERT INTO errors_work VALUES (1, NULL, 1), (1, NULL, 1)', remember_errors => true)$$, '23505', NULL, 'a unique violation in REPEATABLE READ is raised');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT throws_ok($$SELECT idempotent_call('errors', 'ser', 'INSERT INTO errors_work VALUES (1, NULL, 1), (1, NULL, 1)', remember_errors => true)$$, '23505', NULL, 'in SERIALIZABLE too');
SELECT is(outcome, 'failed', 'a check is a check') FROM idempotent_call('errors', 'ser2', 'INSERT INTO errors_work VALUES (1, NULL, 0)', remember_errors => true);
ROLLBACK;

-- Without remember_errors nothing is stored.
SELECT throws_ok($$SELECT idempotent_call('errors', 'plain', 'SELECT 1/0')$$, '22012', NULL, 'raised as it is');
SELECT is_empty($$SELECT FROM idempotent_lookup('errors', 'plain')$$, 'and not stored');

-- The caller's own work stays.
BEGIN;
INSERT INTO errors_work VALUES (5);
SELECT is(pg_temp.run('kept', 'INSERT INTO errors_work VALUES (6), (5)'), 'failed 23505', 'the command fails');
SELECT is((SELECT array_agg(id ORDER BY id) FROM errors_work), '{1,5}', 'its work alone is undone');
SELECT is(pg_temp.locked('errors', 'kept'), true, 'the key stays locked');
COMMIT;
SELECT is(pg_temp.run('kept', 'INSERT INTO errors_work VALUES (6), (5)'), 'failed again 23505', 'the failure is committed');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock is left');

SELECT * FROM finish();
DROP TABLE errors_work, errors_classes;
DROP FUNCTION errors_raise;
