-- The settings: defaults, units, what is refused, and values that were set before the library was loaded.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
-- Sessions that have not loaded the library: what is set there is checked when it is.
\c -
SET client_min_messages = error;
SET idempotency.retention = '36 hours';
SET idempotency.max_key_length = '10';
SET idempotency.max_response_size = 'nonsense';
SET idempotency.key_time = 'maybe';
SET idempotency.unheard_of = 'yes';
BEGIN;
SELECT expires_at - first_seen_at AS good FROM idempotent_begin('s', 'k') \gset
SELECT current_setting('idempotency.retention') AS good_shown, current_setting('idempotency.max_key_length') AS length,
	current_setting('idempotency.max_response_size') AS size, current_setting('idempotency.key_time') AS key_time,
	coalesce(current_setting('idempotency.unheard_of', true), 'gone') AS unheard_of \gset
ROLLBACK;
\c -
SET client_min_messages = error;
SET idempotency.retention = 'nonsense';
BEGIN;
SELECT expires_at - first_seen_at AS bad FROM idempotent_begin('s', 'k') \gset
SELECT current_setting('idempotency.retention') AS bad_shown \gset
ROLLBACK;

\c -
SET client_min_messages = warning;
BEGIN;
SELECT plan(67);
SELECT is(text :'good_shown', '36 hours', 'a retention set before the library is loaded is kept');
SELECT is(interval :'good', interval '36 hours', 'and counts');
SELECT is(text :'length', '10', 'a length too');
SELECT is(text :'size', '0', 'what is no number is dropped for the default');
SELECT is(text :'key_time', 'off', 'what is no boolean too');
SELECT is(text :'unheard_of', 'gone', 'and so is a name that does not exist');
SELECT is(text :'bad_shown', '24 hours', 'what is no interval is dropped for the default');
SELECT is(interval :'bad', interval '24 hours', 'which counts');

-- Defaults, and who may set them.
LOAD 'idempotency';
SELECT results_eq(
	$$SELECT name, vartype, boot_val, context, unit FROM pg_settings WHERE name LIKE 'idempotency.%' ORDER BY name COLLATE "C"$$,
	$$VALUES ('idempotency.key_time', 'bool', 'off', 'user', NULL),
			 ('idempotency.max_key_length', 'integer', '255', 'user', NULL),
			 ('idempotency.max_response_size', 'integer', '0', 'user', 'B'),
			 ('idempotency.retention', 'string', '24 hours', 'user', NULL)$$,
	'the settings, their types, defaults and contexts');
SELECT is_empty($$SELECT name FROM pg_settings WHERE name LIKE 'idempotency.%' AND coalesce(short_desc, '') = ''$$,
	'each is described');
SELECT throws_ok($$SET idempotency.unheard_of = 1$$, '42602', NULL, 'there are no others');

-- Retention: an interval, or a number of seconds.
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
	('24 hours', 86400),
	('24:00', 86400),
	('1 day', 86400),
	('15d', 1296000),
	('90', 90),
	('90.5', 90.5),
	('1 h', 3600),
	('1h 30m', 5400),
	('1 min 30 s', 90),
	('100 milliseconds', 0.1),
	('1 microsecond', 0.000001),
	('1 week', 604800),
	('1 month', 2592000),
	('1 year', 31104000),
	('1 month -29 days', 86400),
	('PT36H', 129600),
	('P1D', 86400),
	(' 2 hours ', 7200),
	('@ 1 hour', 3600)
) v(setting, seconds);
SELECT throws_ok(format('SET idempotency.retention = %L', setting), '22023', NULL, format('retention ''%s'' is refused', setting))
FROM (VALUES (''), (' '), ('abc'), ('0'), ('0 hours'), ('-1 hour'), ('1 day -24 hours'), ('5 parsecs'), ('1 hour ago'),
	('infinity'), ('now'), ('2020-01-01'), ('1e30 years'), ('1000000 years'), ('178000000 years'), (repeat('1', 400)),
	(repeat('x', 4000))) v(setting);
SELECT is(current_setting('idempotency.retention'), '@ 1 hour', 'what was refused changed nothing');
SET LOCAL intervalstyle = 'sql_standard';
SELECT is(extract(epoch FROM pg_temp.retention('1 day')), 86400::numeric, 'IntervalStyle does not change the meaning');
RESET intervalstyle;
SELECT lives_ok($$SET LOCAL idempotency.retention TO DEFAULT$$, 'back to the default');
SELECT throws_ok($$SELECT set_config('idempotency.retention', NULL, true); SHOW idempotency.unheard_of$$, '42704', NULL,
	'NULL is the default, not a crash');
SELECT is(current_setting('idempotency.retention'), '24 hours', 'as it was');

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
CREATE FUNCTION pg_temp.with_setting() RETURNS interval LANGUAGE sql SET idempotency.retention = '3 hours' AS $$
	SELECT expires_at - first_seen_at FROM idempotent_begin('s', 'function')
$$;
SELECT is(pg_temp.with_setting(), interval '3 hours', 'a function may have a setting of its own');
SELECT is(expires_at - first_seen_at, interval '24 hours', 'which ends with it') FROM idempotent_begin('s', 'outside');

SELECT * FROM finish();
ROLLBACK;
