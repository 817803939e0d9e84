-- The settings: defaults, units, what is refused, and values that were set before the library was loaded.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
-- Sessions that have not loaded the library: what is set there is checked when it is.
\c -
SET client_min_messages = error;
SET idempotency.retention = '36h';
SET idempotency.max_key_length = '10';
BEGIN;
SELECT expires_at - first_seen_at AS good FROM idempotent_begin('s', 'k') \gset
SELECT current_setting('idempotency.retention') AS good_shown, current_setting('idempotency.max_key_length') AS length,
	'' AS nothing \gset
ROLLBACK;
\c -
SET client_min_messages = error;
SET idempotency.retention = '15 dayz';
\set ON_ERROR_STOP off
SELECT outcome FROM idempotent_begin('s', 'k') \g /dev/null
\set bad :SQLSTATE
SET idempotency.retention = '15d';
SELECT outcome FROM idempotent_try_begin('s', 'k', lease => '1 microsecond') \g /dev/null
\set repaired :SQLSTATE
\c -
SET client_min_messages = error;
SET idempotency.retentoin = '15d';
SELECT idempotent_begin_many('s', '{k}') \g /dev/null
\set unheard_of :SQLSTATE
\c -
SET client_min_messages = error;
SET idempotency.key_time = 'maybe';
SELECT idempotent_call('s', 'k', 'SELECT 1') \g /dev/null
\set maybe :SQLSTATE
-- As a pooler resets a session that another client has used, before the library was loaded.
\c -
SET client_min_messages = error;
SET idempotency.retention = '36h';
DISCARD ALL;
SET client_min_messages = error;
SELECT idempotent_begin_many('s', '{}') \g /dev/null
\set discarded :SQLSTATE
SELECT current_setting('idempotency.retention') AS discarded_shown \gset
\c -
SET client_min_messages = error;
BEGIN;
SET LOCAL idempotency.max_key_length = '10';
COMMIT;
SELECT idempotent_begin_many('s', '{}') \g /dev/null
\set local_over :SQLSTATE
\set ON_ERROR_STOP on

\c -
SET client_min_messages = warning;
BEGIN;
SELECT no_plan();
SELECT is(text :'good_shown', '36h', 'a retention set before the library is loaded is kept');
SELECT is(interval :'good', interval '36 hours', 'and counts');
SELECT is(text :'length', '10', 'a length too');
SELECT is(text :'bad', 'IK500', 'under an invalid value, which PostgreSQL replaces by the default, nothing is begun');
SELECT is(text :'repaired', '00000', 'until a valid one has been set');
SELECT is(text :'unheard_of', 'IK500', 'nor under a name that does not exist');
SELECT is(text :'maybe', 'IK500', 'nor with what is no boolean');
SELECT is(text :'discarded', '00000', 'a value that was set and reset before is no invalid one');
SELECT is(text :'discarded_shown', '1d', 'but the default');
SELECT is(text :'local_over', '00000', 'nor is one of a transaction that is over');

-- Defaults, and who may set them.
LOAD 'idempotency';
SELECT results_eq(
	$$SELECT name, vartype, boot_val, context, unit FROM pg_settings WHERE name LIKE 'idempotency.%' ORDER BY name COLLATE "C"$$,
	$$VALUES ('idempotency.corrections_retention', 'integer', '0', 'user', 's'),
			 ('idempotency.key_time', 'bool', 'off', 'user', NULL),
			 ('idempotency.max_attempts', 'integer', '10', 'user', NULL),
			 ('idempotency.max_key_length', 'integer', '255', 'user', NULL),
			 ('idempotency.max_response_size', 'integer', '0', 'user', 'B'),
			 ('idempotency.retention', 'integer', '86400', 'user', 's')$$,
	'the settings, their types, defaults and contexts');
SELECT is_empty($$SELECT name FROM pg_settings WHERE name LIKE 'idempotency.%' AND coalesce(short_desc, '') = ''$$,
	'each is described');
SELECT throws_ok($$SET idempotency.unheard_of = 1$$, '42602', NULL, 'there are no others');

-- Retention: with a unit, or a number of seconds.
CREATE FUNCTION pg_temp.retention(setting text) RETURNS interval LANGUAGE plpgsql AS $$
DECLARE
	a idempotent_attempt;
BEGIN
	PERFORM set_config('idempotency.retention', setting, true);
	a := idempotent_begin('retention', setting);
	PERFORM idempotent_release('retention', setting);
	RETURN a.expires_at - a.first_seen_at;
END $$;
SELECT is(extract(epoch FROM pg_temp.retention(setting)), seconds::numeric, format('retention ''%s''', setting)) FROM (VALUES
	('24h', 86400),
	('24 h', 86400),
	('15d', 1296000),
	('90', 90),
	('90.4', 90),
	('1.5 h', 5400),
	('90min', 5400),
	('1000ms', 1),
	('1h', 3600)
) v(setting, seconds);
SELECT throws_ok(format('SET idempotency.retention = %L', setting), '22023', NULL, format('retention ''%s'' is refused', setting))
FROM (VALUES (''), (' '), ('abc'), ('0'), ('0h'), ('-1h'), ('24 hours'), ('1 day'), ('15 dayz'), ('5 parsecs'), ('24:00'),
	('infinity'), ('2020-01-01'), ('1e30'), ('25000d'), (repeat('1', 400)), (repeat('x', 4000))) v(setting);
SELECT is(current_setting('idempotency.retention'), '1h', 'what was refused changed nothing');
SELECT lives_ok($$SET LOCAL idempotency.retention TO DEFAULT$$, 'back to the default');
SELECT throws_ok($$SELECT set_config('idempotency.retention', NULL, true); SHOW idempotency.unheard_of$$, '42704', NULL,
	'NULL is the default, not a crash');
SELECT is(current_setting('idempotency.retention'), '1d', 'as it was');

-- The numbers.
SELECT throws_ok(format('SET idempotency.max_key_length = %L', setting), '22023', NULL, 'max_key_length ' || setting || ' is refused')
FROM (VALUES ('0'), ('-1'), ('65536'), ('x'), ('10kB')) v(setting);
SELECT lives_ok($$SET LOCAL idempotency.max_key_length = 300$$, 'max_key_length 300');
SELECT throws_ok(format('SET idempotency.max_response_size = %L', setting), '22023', NULL, 'max_response_size ' || setting || ' is refused')
FROM (VALUES ('-1'), ('x'), ('3GB'), ('1 min')) v(setting);
SELECT lives_ok($$SET LOCAL idempotency.max_response_size = '64kB'$$, 'max_response_size takes units');
SELECT is(current_setting('idempotency.max_response_size'), '64kB', 'and shows them');
SELECT throws_ok($$SET idempotency.key_time = 'maybe'$$, '22023', NULL, 'key_time is a boolean');

-- A function's own setting ends with it.
CREATE FUNCTION pg_temp.with_setting() RETURNS interval LANGUAGE sql SET idempotency.retention = '3h' AS $$
	SELECT expires_at - first_seen_at FROM idempotent_begin('s', 'function')
$$;
SELECT is(pg_temp.with_setting(), interval '3 hours', 'a function may have a setting of its own');
SELECT is(expires_at - first_seen_at, interval '24 hours', 'which ends with it') FROM idempotent_begin('s', 'outside');

SELECT * FROM finish();
ROLLBACK;
