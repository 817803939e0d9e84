-- idempotent_call runs one statement at most once, as the caller, and stores what it returned.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup

-- A session without temporary objects: its first one changes where names are looked up, and neither the setting nor a plan,
-- if an earlier session has left the schema for them. psql connects before it disconnects, so the slot comes back with the
-- second \c; a slot of its own would only make the test pass.
\c -
CREATE TEMP TABLE call_path (a int);
\c -
CREATE TEMP TABLE call_path (a int);
\c -
CREATE TABLE call_path (a int);
SELECT outcome FROM idempotent_call('call', 'path 1', 'INSERT INTO call_path VALUES ($1)', '[1]') \g /dev/null
CREATE TEMP TABLE call_path (a text);
SELECT outcome AS path_outcome FROM idempotent_call('call', 'path 2', 'INSERT INTO call_path VALUES ($1)', '["x"]', remember_errors => true) \gset
SELECT count(*) AS path_rows FROM pg_temp.call_path \gset
DROP TABLE pg_temp.call_path, public.call_path;
\i :setup
SELECT no_plan();
SELECT is(:'path_outcome' || ' ' || :'path_rows', 'executed 1', 'a parameter has the type of the table that the name means now');
CREATE TABLE call_work (id int PRIMARY KEY, what text, amount numeric CHECK (amount >= 0));
CREATE FUNCTION call_charge(a int, b numeric) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO call_work VALUES (a, 'charge', b);
	RETURN jsonb_build_object('charged', b);
END $$;
CREATE PROCEDURE call_procedure(a int, INOUT b text) LANGUAGE plpgsql AS $$ BEGIN b := b || a; END $$;
CREATE PROCEDURE call_commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE FUNCTION pg_temp.run(key text, command text, args jsonb DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
	SELECT outcome || coalesce(' ' || response::text, '') FROM idempotent_call('call', key, command, args)
$$;

-- At most once.
SELECT is(pg_temp.run('once', 'SELECT call_charge($1, $2)', '[1, 2000]'), 'executed {"charged": 2000}', 'executed');
SELECT is(pg_temp.run('once', 'SELECT call_charge($1, $2)', '[1, 2000]'), 'replayed {"charged": 2000}', 'then replayed');
SELECT is((SELECT count(*) FROM call_work), 1::bigint, 'the work was done once');
SELECT throws_ok($$SELECT pg_temp.run('once', 'SELECT call_charge($1, $2)', '[1, 2001]')$$, 'IK422', NULL,
	'other args are another request');
SELECT is(pg_temp.run('once', 'select  call_charge( $1,$2 ) -- reformatted', '[1, 2000]'), 'replayed {"charged": 2000}', 'the text of the command is not compared: a deploy may reformat it');
SELECT is(pg_temp.run('no args', 'SELECT 1'), 'executed 1', 'without args and request');
SELECT throws_ok($$SELECT pg_temp.run('no args', 'SELECT 2')$$, 'IK422', NULL, 'it is');
SELECT is(outcome, 'executed', 'a request of its own') FROM idempotent_call('call', 'request', 'SELECT $1::int', '[1]', request => '{"a": 1}');
SELECT is(outcome, 'replayed', 'is compared instead') FROM idempotent_call('call', 'request', 'SELECT $1::int', '[2]', request => '{"a": 1.0}');
SELECT is(outcome, 'replayed', 'begin sees the key too') FROM idempotent_begin('call', 'request', request => '{"a": 1}');
SELECT ok(expires_at - first_seen_at >= '15 days'::interval, 'retention')
	FROM idempotent_call('call', 'retention', 'SELECT 1', retention => '15 days');
SELECT ok(NOT replayed AND attempt = 1 AND status IS NULL AND finished_at >= first_seen_at, 'the other fields')
	FROM idempotent_call('call', 'fields', 'SELECT 1');

-- What the statement returns.
SELECT is(pg_temp.run('insert', 'INSERT INTO call_work VALUES ($1, $2, $3) RETURNING *', '[2, "ü😀", "12.50"]'),
	'executed {"id": 2, "what": "ü😀", "amount": 12.50}', 'several columns are an object');
SELECT is(pg_temp.run('update', 'UPDATE call_work SET what = $1 WHERE id = $2', '["x", 2]'), 'executed', 'no row is NULL');
SELECT is((SELECT what FROM call_work WHERE id = 2), 'x', 'but the work is done');
SELECT is(pg_temp.run('null', 'SELECT NULL::int'), 'executed', 'a null is NULL');
SELECT is(pg_temp.run('empty', 'SELECT id FROM call_work WHERE id = -1'), 'executed', 'no row from a SELECT is NULL');
SELECT throws_ok($$SELECT pg_temp.run('rows', 'SELECT id FROM call_work')$$, '21000', NULL, 'two rows are an error');
SELECT throws_ok($$SELECT pg_temp.run('rows', 'UPDATE call_work SET what = NULL RETURNING id')$$, '21000', NULL, 'for RETURNING too');
SELECT is((SELECT count(*) FROM call_work WHERE what IS NULL), 0::bigint, 'and undone');
SELECT is(pg_temp.run('call', 'CALL call_procedure($1, $2)', '[7, "x"]'), 'executed "x7"', 'CALL of a procedure');
SELECT throws_ok($$SELECT pg_temp.run('commits', 'CALL call_commits()')$$, '2D000', NULL, 'which must not end the transaction');
SELECT is(pg_temp.run('ddl', 'CREATE TABLE call_made (i int)'), 'executed', 'DDL');
SELECT has_table('public'::name, 'call_made'::name, 'is done');
SELECT is(pg_temp.run('ddl', 'CREATE TABLE call_made (i int)'), 'replayed', 'once');
SELECT is(length(response #>> '{}'), 5000000, 'a result of 10 MB')
	FROM idempotent_call('call', 'large', 'SELECT repeat($1, $2)', '["é", 5000000]');
SELECT is(response #>> '{}', repeat('é', 5000000), 'is replayed as it was')
	FROM idempotent_call('call', 'large', 'SELECT repeat($1, $2)', '["é", 5000000]');

-- How parameters are bound.
SELECT is(pg_temp.run('types', 'SELECT $1::int[] a, $2::jsonb b, $3 c, $4::date d, $5::boolean e, $6::bigint f, $7::json g',
	'[[1, 2], {"x": [null]}, null, "2020-02-29", true, 9007199254740993, "s"]'),
	'executed {"a": [1, 2], "b": {"x": [null]}, "c": null, "d": "2020-02-29", "e": true, "f": 9007199254740993, "g": "s"}',
	'as the types that the statement gives them');
SELECT is(pg_temp.run('text', 'SELECT $1 || $2', '["''; DROP TABLE call_work; --", "\"$1"]'),
	'executed "''; DROP TABLE call_work; --\"$1"', 'never as text of the statement');
SELECT is(pg_temp.run('number as text', 'SELECT length($1)', '[12345]'), 'executed 5', 'a number where a text is wanted');
SELECT is(pg_temp.run('domain', 'SELECT $1::information_schema.cardinal_number', '[5]'), 'executed 5', 'a domain');
CREATE FUNCTION call_either(a int) RETURNS text LANGUAGE sql AS $$ SELECT 'int' $$;
CREATE FUNCTION call_either(a date) RETURNS text LANGUAGE sql AS $$ SELECT 'date' $$;
SELECT throws_ok($$SELECT pg_temp.run('ambiguous', 'SELECT call_either($1)', '[42]')$$, '42725', NULL, 'what stays ambiguous is PostgreSQL''s own error');
SELECT is(pg_temp.run('ambiguous', 'SELECT call_either($1::int)', '[42]'), 'executed "int"', 'and a cast settles it');
SELECT throws_ok($$SELECT pg_temp.run('type', 'SELECT $1::int', '["x"]')$$, '22P02', NULL, 'a value that is none of the type');
SELECT throws_ok($$SELECT pg_temp.run('few', 'SELECT $1::int + $2::int', '[1]')$$, 'IK400', NULL, 'too few args');
SELECT throws_ok($$SELECT pg_temp.run('many', 'SELECT $1::int', '[1, 2]')$$, 'IK400', NULL, 'too many');
SELECT throws_ok($$SELECT pg_temp.run('none', 'SELECT $1::int')$$, 'IK400', NULL, 'none');
SELECT throws_ok($$SELECT pg_temp.run('gap', 'SELECT $2::int', '[1, 2]')$$, '42P18', NULL, 'a parameter without a type');
SELECT throws_ok($$SELECT pg_temp.run('object', 'SELECT 1', '{}')$$, 'IK400', NULL, 'args that are no array');
SELECT throws_ok($$SELECT pg_temp.run('scalar', 'SELECT 1', '1')$$, 'IK400', NULL, 'not a scalar either');

-- What cannot be a command.
SELECT throws_ok($$SELECT pg_temp.run('two', 'SELECT 1; SELECT 2')$$, '42601', NULL, 'two statements');
SELECT throws_ok($$SELECT pg_temp.run('zero', ' -- nothing')$$, '42601', NULL, 'none');
SELECT throws_ok($$SELECT pg_temp.run('zero', '')$$, 'IK400', NULL, 'an empty text');
SELECT throws_ok($$SELECT pg_temp.run('zero', NULL)$$, 'IK400', NULL, 'NULL');
SELECT throws_ok($$SELECT idempotent_call('call', 'zero', 'SELECT 1', remember_errors => NULL)$$, 'IK400', NULL, 'remember_errors NULL');
SELECT throws_ok($$SELECT pg_temp.run('transaction', 'COMMIT')$$, '0A000', NULL, 'the end of a transaction');
SELECT throws_ok($$SELECT pg_temp.run('savepoint', 'SAVEPOINT a')$$, '0A000', NULL, 'a savepoint');
SELECT throws_ok($$SELECT pg_temp.run('copy', 'COPY call_work TO STDOUT')$$, '0A000', NULL, 'COPY to the client');
SET idempotency.max_response_size = '100B';
SELECT throws_ok($$SELECT pg_temp.run('size', 'SELECT repeat(''x'', 100)')$$, 'IK413', NULL, 'a response that is too large');
RESET idempotency.max_response_size;

-- Nested.
SELECT is(pg_temp.run('outer', 'SELECT outcome FROM idempotent_call($1, $2, $3)', '["call", "inner", "SELECT 5"]'),
	'executed "executed"', 'a call within a call, on another key');
SELECT is(pg_temp.run('inner', 'SELECT 5'), 'replayed 5', 'is remembered by itself');
SELECT throws_ok($$SELECT pg_temp.run('same', 'SELECT idempotent_begin($1, $2)', '["call", "same"]')$$, 'IK500', NULL,
	'a command that begins its own key');
SELECT throws_ok($$SELECT pg_temp.run('same', 'SELECT idempotent_call($1, $2, $3)', '["call", "same", "SELECT 1"]')$$, 'IK500', NULL,
	'or calls with it');
SELECT throws_ok($$SELECT pg_temp.run('ends', 'SELECT idempotent_finish($1, $2)', '["call", "ends"]')$$, 'IK410', NULL,
	'or finishes it');
CREATE FUNCTION call_recursive(n int) RETURNS int LANGUAGE sql AS $$
	SELECT CASE WHEN n = 0 THEN 0
		ELSE (SELECT response::int + 1 FROM public.idempotent_call('call', 'depth ' || n, 'SELECT call_recursive($1)', jsonb_build_array(n - 1))) END
$$;
SELECT is(pg_temp.run('recursion', 'SELECT call_recursive($1)', '[20]'), 'executed 20', 'twenty calls deep');

-- A command's plan is kept for the session, and never outlives what it means.
CREATE TABLE call_kept (a int);
SELECT is(pg_temp.run('kept ' || i, 'INSERT INTO call_kept VALUES ($1) RETURNING a', jsonb_build_array(i)), 'executed ' || i, 'the same text again') FROM generate_series(1, 8) i;
ALTER TABLE call_kept ALTER COLUMN a TYPE text;
SELECT is(pg_temp.run('kept text', 'INSERT INTO call_kept VALUES ($1) RETURNING a', '["x"]'), 'executed "x"', 'a column of another type: parameters have it too');
DROP TABLE call_kept;
CREATE TABLE call_kept (a int, b int DEFAULT 7);
SELECT is(pg_temp.run('kept new', 'INSERT INTO call_kept VALUES ($1) RETURNING a', '[1]'), 'executed 1', 'another table of the name');
CREATE SCHEMA call_other;
CREATE TABLE call_other.call_kept (a int);
SET search_path = call_other, public;
SELECT is(public.idempotent_call('call', 'kept path', 'INSERT INTO call_kept VALUES ($1) RETURNING a', '[5]')::text LIKE '(executed%', true, 'another search_path');
SELECT is((SELECT count(*) FROM call_other.call_kept), 1::bigint, 'is another table');
RESET search_path;
SELECT is(pg_temp.run('kept function', 'SELECT call_either($1::date)', '["2020-02-29"]'), 'executed "date"', 'a function');
CREATE OR REPLACE FUNCTION call_either(a date) RETURNS text LANGUAGE sql AS $$ SELECT 'replaced' $$;
SELECT is(pg_temp.run('kept function 2', 'SELECT call_either($1::date)', '["2020-02-29"]'), 'executed "replaced"', 'that is replaced');
DISCARD PLANS;
SELECT is(pg_temp.run('kept discard', 'SELECT call_either($1::date)', '["2020-02-29"]'), 'executed "replaced"', 'after DISCARD PLANS');
SELECT throws_ok($$SELECT pg_temp.run('kept error', 'SELECT 1 / $1::int', '[0]')$$, '22012', NULL, 'a command that fails');
SELECT is(pg_temp.run('kept error', 'SELECT 1 / $1::int', '[1]'), 'executed 1', 'can be run again');
SELECT is(count(*), 200::bigint, 'more commands than are kept') FROM generate_series(1, 200) i WHERE pg_temp.run('many ' || i, 'SELECT ' || i) = 'executed ' || i;
SELECT is(pg_temp.run('kept after', 'SELECT call_either($1::date)', '["2020-02-29"]'), 'executed "replaced"', 'and one of before');
SELECT cmp_ok((SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'idempotency command'), '<=', 64::bigint, 'no more are kept than 64');
CREATE FUNCTION call_alters(n int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	IF n > 0 THEN
		EXECUTE 'DISCARD PLANS';
		RETURN (SELECT response::int + 1 FROM public.idempotent_call('call', 'alters ' || n, 'SELECT call_alters($1) FROM call_kept LIMIT 1', jsonb_build_array(n - 1)));
	END IF;
	RETURN 0;
END $$;
SELECT is(pg_temp.run('alters', 'SELECT call_alters($1) FROM call_kept LIMIT 1', '[5]'), 'executed 5', 'a command that invalidates its own plan while it runs');
DROP FUNCTION call_alters;
DROP TABLE call_kept, call_other.call_kept;
DROP SCHEMA call_other;

-- (f()).* calls the function once for each column: the command still runs once.
CREATE TABLE call_star (a int);
SELECT (idempotent_call('call', 'star', 'INSERT INTO call_star VALUES (1)')).* \g /dev/null
SELECT is((SELECT count(*) FROM call_star), 1::bigint, 'a call that is expanded into columns runs its command once');
DROP TABLE call_star;

-- A claim, live or not, is not for a call to go on with.
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('call', 'leased', lease => '1 microsecond');
SELECT throws_ok($$SELECT pg_temp.run('leased', 'SELECT 1')$$, 'IK409', NULL, 'whose lease has ended is refused: a part of it may be done');

-- Within the caller's transaction, and as the caller.
BEGIN;
SELECT is(pg_temp.run('rollback', 'SELECT call_charge(3, 1)'), 'executed {"charged": 1}', 'in a transaction');
ROLLBACK;
SELECT is(pg_temp.run('rollback', 'SELECT call_charge(3, 1)'), 'executed {"charged": 1}', 'whose rollback forgets it');
CREATE TABLE call_deferred (id int REFERENCES call_work DEFERRABLE INITIALLY DEFERRED);
\set ON_ERROR_STOP off
SELECT outcome FROM idempotent_call('call', 'deferred', 'INSERT INTO call_deferred VALUES (-1)', remember_errors => true) \g /dev/null
SELECT is(text :'SQLSTATE', '23503', 'a command that fails at COMMIT fails');
\set ON_ERROR_STOP on
SELECT is_empty($$SELECT FROM idempotent_lookup('call', 'deferred')$$, 'and leaves no key');
DROP ROLE IF EXISTS idempotency_test_caller;
CREATE ROLE idempotency_test_caller;
SELECT is(pg_temp.run('who 1', 'SELECT count(*) FROM call_work'), 'executed ' || (SELECT count(*) FROM call_work), 'a command of one role');
GRANT EXECUTE ON FUNCTION idempotent_call TO idempotency_test_caller;
SELECT throws_ok($$SELECT idempotent_call('call', 'same names', 'SELECT 1 AS a, 2 AS b, 3 AS a')$$, '42701', NULL, 'no column gets lost behind another of its name');
SELECT is_empty($$SELECT FROM idempotent_lookup('call', 'same names')$$, 'and nothing is stored');
SELECT is(outcome || coalesce(response::text, ' NULL'), 'executed NULL', 'void is NULL') FROM idempotent_call('call', 'void', 'SELECT pg_sleep(0)');
SELECT throws_ok($$SELECT idempotent_call('call', 'read only', 'SET TRANSACTION READ ONLY')$$, '25006', NULL, 'no key is written in a transaction that the command made read-only');
SET ROLE idempotency_test_caller;
SELECT is(response #>> '{}', 'idempotency_test_caller', 'the command runs as the caller')
	FROM idempotent_call('call', 'who', 'SELECT current_user');
\set ON_ERROR_STOP off
SELECT idempotent_call('call', 'table', 'SELECT count(*) FROM idempotency_keys') \g /dev/null
SELECT is(text :'SQLSTATE', '42501', 'never as the owner of our tables');
SELECT idempotent_call('call', 'who 2', 'SELECT count(*) FROM call_work') \g /dev/null
SELECT is(text :'SQLSTATE', '42501', 'nor by the plan of another role');
\set ON_ERROR_STOP on
RESET ROLE;
REVOKE ALL ON FUNCTION idempotent_call FROM idempotency_test_caller;
DROP ROLE idempotency_test_caller;

SELECT is(outcome, 'executed', 'called with the shortest retention there is') FROM idempotent_call('shortest', 'call', 'SELECT 1', retention => '1 microsecond');
SELECT is_empty('SELECT FROM idempotency_keys WHERE expires_at <= finished_at', 'no row expires before it is finished');
SELECT * FROM finish();
DROP TABLE call_deferred, call_work, call_made;
DROP FUNCTION call_charge, call_recursive, call_either(int), call_either(date);
DROP PROCEDURE call_procedure, call_commits;
