-- Bad input gets IK400 or IK413 from every function, and leaves nothing behind: no row, no lock, a usable transaction.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT no_plan();

-- A transaction at work, which must not notice any of what follows.
SELECT is(outcome, 'started', 'an attempt under way') FROM idempotent_begin('bystander', 'k', '{"a": 1}');
SELECT is(outcome, 'started', 'a lease under way') FROM idempotent_begin('bystander', 'l', lease => '1 hour');

-- Every function on a key: scope and key.
CREATE TEMP TABLE calls (call text);
INSERT INTO calls VALUES
	('idempotent_begin(%s, %s)'),
	('idempotent_try_begin(%s, %s)'),
	('idempotent_finish(%s, %s)'),
	('idempotent_release(%s, %s)'),
	('idempotent_checkpoint(%s, %s, 1, ''c'')'),
	('idempotent_call(%s, %s, ''SELECT 1'')'),
	('idempotent_park(%s, %s, 1, ''e'')'),
	('idempotent_retry(%s, %s, ''1 min'')'),
	('idempotent_resolve(%s, %s, ''reason'')'),
	('idempotent_derive(%s, %s, ''step'')'),
	('idempotent_lookup(%s, %s)'),
	('idempotent_forget(%s, %s)');
SELECT is_empty(
	$$SELECT p.proname FROM pg_proc p
	  WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'idempotent\_%'
		AND p.proargnames[1:2] = ARRAY['scope', 'key'] AND NOT EXISTS (SELECT FROM calls WHERE call LIKE p.proname || '(%')$$,
	'every function that takes scope and key is tried here');
SELECT throws_ok('SELECT ' || format(call, 'NULL', '''k'''), 'IK400', NULL, format(call, 'NULL', '''k''')) FROM calls;
SELECT throws_ok('SELECT ' || format(call, '''''', '''k'''), 'IK400', NULL, format(call, '''''', '''k''')) FROM calls;
SELECT throws_ok('SELECT ' || format(call, 'repeat(''s'', 1025)', '''k'''), 'IK400', NULL,
	format(call, '1025 characters', '''k''')) FROM calls;
SELECT throws_ok('SELECT ' || format(call, '''s''', 'NULL'), 'IK400', NULL, format(call, '''s''', 'NULL')) FROM calls;
SELECT throws_ok('SELECT ' || format(call, '''s''', ''''''), 'IK400', NULL, format(call, '''s''', '''''')) FROM calls;
SELECT throws_ok('SELECT ' || format(call, '''s''', 'repeat(''k'', 256)'), 'IK400', NULL,
	format(call, '''s''', '256 characters')) FROM calls WHERE call ~ '_(begin|try_begin|call|resolve)\(';
SELECT throws_ok('SELECT ' || format(call, 'NULL', 'NULL'), 'IK400', NULL, format(call, 'NULL', 'NULL')) FROM calls;

-- Arguments of begin and try_begin.
CREATE TEMP TABLE arguments (argument text);
INSERT INTO arguments VALUES
	('request => ''1'', fingerprint => ''\x01'''),
	('fingerprint => '''''),
	('fingerprint => decode(repeat(''00'', 65), ''hex'')'),
	('retention => ''0'''),
	('retention => ''-1 second'''),
	('retention => ''1 month -30 days'''),
	('retention => ''106751991 days'''),
	('retention => ''178000000 years'''),
	('lease => ''0'''),
	('lease => ''-1 microsecond'''),
	('lease => ''31 days'''),
	('lease => ''106751991 days'''),
	('lease => ''1 min'', retention => ''106751991 days'''),
	('first_sent => ''infinity'''),
	('first_sent => ''-infinity'''),
	('first_sent => clock_timestamp() + interval ''90 seconds''');
SELECT throws_ok(format('SELECT idempotent_begin(''s'', ''k'', %s)', argument), 'IK400', NULL, 'begin: ' || argument)
FROM arguments;
SELECT throws_ok(format('SELECT idempotent_try_begin(''s'', ''k'', %s)', argument), 'IK400', NULL, 'try_begin: ' || argument)
FROM arguments;

-- The others' own arguments.
SELECT throws_ok('SELECT ' || call, 'IK400', NULL, call) FROM (VALUES
	($$idempotent_finish('s', 'k', attempt => 0)$$),
	($$idempotent_finish('s', 'k', attempt => -1)$$),
	($$idempotent_finish('bystander', 'k', attempt => 0)$$),
	($$idempotent_release('s', 'k', attempt => 0)$$),
	($$idempotent_release('bystander', 'l', attempt => 1, retry_after => '-1 second')$$),
	($$idempotent_release('bystander', 'l', attempt => 1, retry_after => '106751991 days')$$),
	($$idempotent_checkpoint('bystander', 'l', NULL, 'c')$$),
	($$idempotent_checkpoint('bystander', 'l', 0, 'c')$$),
	($$idempotent_checkpoint('bystander', 'l', 1, '')$$),
	($$idempotent_checkpoint('bystander', 'l', 1, state => '1')$$),
	($$idempotent_checkpoint('bystander', 'l', 1, 'c', lease => '31 days')$$),
	($$idempotent_release('bystander', 'l', 1, retry_after => '31 days')$$),
	($$idempotent_release('bystander', 'l', 1, reset => NULL)$$),
	($$idempotent_finish('bystander', 'k', body => '\x00', body_text => 'x')$$),
	($$idempotent_finish('bystander', 'k', retention => '0')$$),
	($$idempotent_park('bystander', 'l', NULL, 'e')$$),
	($$idempotent_park('bystander', 'l', 0, 'e')$$),
	($$idempotent_park('bystander', 'l', 1, NULL)$$),
	($$idempotent_retry('bystander', 'l', NULL)$$),
	($$idempotent_retry('bystander', 'l', '31 days')$$),
	($$idempotent_resolve('s', 'k', NULL)$$),
	($$idempotent_resolve('s', 'k', '')$$),
	($$idempotent_resolve('s', 'k', 'r', attempt => 0)$$),
	($$idempotent_resolve('s', 'k', 'r', correct => NULL)$$),
	($$idempotent_resolve('s', 'k', 'r', retention => '-1 s')$$),
	($$idempotent_resolve('s', 'k', 'r', body => '\x00', body_text => 'x')$$),
	($$idempotent_derive('s', 'k', NULL)$$),
	($$idempotent_derive('s', 'k', '')$$),
	($$idempotent_reconcile(NULL, 'step', now())$$),
	($$idempotent_reconcile('{}', 'step', now())$$),
	($$idempotent_reconcile('1', 'step', now())$$),
	($$idempotent_reconcile('[1]', 'step', now())$$),
	($$idempotent_reconcile('[{"ok": true}]', 'step', now())$$),
	($$idempotent_reconcile('[{"key": 1, "ok": true}]', 'step', now())$$),
	($$idempotent_reconcile('[{"key": "k", "ok": "yes"}]', 'step', now())$$),
	($$idempotent_reconcile('[]', NULL, now())$$),
	($$idempotent_reconcile('[]', 'step', NULL)$$),
	($$idempotent_forget_scope(NULL)$$),
	($$idempotent_forget_scope('s', 0)$$),
	($$idempotent_forget_scope('s', NULL)$$),
	($$idempotent_checkpoint('bystander', 'l', 1, 'c', lease => '0')$$),
	($$idempotent_checkpoint('bystander', 'l', 1, 'c', lease => '-1 day')$$),
	($$idempotent_checkpoint('bystander', 'l', 1, 'c', lease => '106751991 days')$$),
	($$idempotent_resume(NULL)$$),
	($$idempotent_resume('0')$$),
	($$idempotent_resume('-1 second')$$),
	($$idempotent_resume('1 min', NULL)$$),
	($$idempotent_resume('1 min', 0)$$),
	($$idempotent_resume('1 min', -1)$$),
	($$idempotent_prune(NULL)$$),
	($$idempotent_prune(0)$$),
	($$idempotent_prune(-1)$$),
	($$idempotent_backoff(NULL)$$),
	($$idempotent_backoff(0)$$),
	($$idempotent_backoff(-1)$$),
	($$idempotent_backoff(1, NULL)$$),
	($$idempotent_backoff(1, '0')$$),
	($$idempotent_backoff(1, '-1 second')$$),
	($$idempotent_backoff(1, '1 min', NULL)$$),
	($$idempotent_backoff(1, '1 min', '0')$$),
	($$idempotent_backoff(1, '1 min', '-1 hour')$$),
	($$idempotent_backoff(1, '1 min', '1 hour', NULL)$$),
	($$idempotent_backoff(1, '1 min', '1 hour', -0.1)$$),
	($$idempotent_backoff(1, '1 min', '1 hour', 1.1)$$),
	($$idempotent_backoff(1, '1 min', '1 hour', 'NaN')$$),
	($$idempotent_backoff(1, '1 min', '1 hour', 'Infinity')$$)
) c(call);

-- What the limits still allow.
SELECT is(outcome, 'started', 'a scope of 1024 characters') FROM idempotent_begin(repeat(chr(8364), 1024), 'k');
SELECT is(idempotent_release(repeat(chr(8364), 1024), 'k'), true, 'can be released');
SELECT is(outcome, 'started', 'a fingerprint of 64 bytes')
FROM idempotent_begin('s', 'k', fingerprint => decode(repeat('00', 64), 'hex'));
SELECT is(idempotent_release('s', 'k'), true, 'can be released');
SELECT is(outcome, 'started', 'a retention of a microsecond') FROM idempotent_begin('s', 'k', retention => '1 microsecond');
SELECT is(idempotent_release('s', 'k'), true, 'can be released');
SELECT is(outcome, 'started', 'a client''s clock that is fast by less than a minute')
FROM idempotent_begin('s', 'k', first_sent => clock_timestamp() + interval '50 seconds');
SELECT is(idempotent_release('s', 'k'), true, 'can be released');

-- The size of a response.
SET LOCAL idempotency.max_response_size = 100;
SELECT throws_ok($$SELECT idempotent_finish('bystander', 'k', to_jsonb(repeat('x', 100)))$$, 'IK413', NULL, 'a response too large');
SELECT throws_ok($$SELECT idempotent_finish('bystander', 'k', headers => to_jsonb(repeat('x', 100)))$$, 'IK413', NULL,
	'headers too large');
SELECT throws_ok($$SELECT idempotent_finish('bystander', 'k', body => decode(repeat('00', 101), 'hex'))$$, 'IK413', NULL,
	'a body too large, however well it compresses');
SELECT throws_ok($$SELECT idempotent_finish('bystander', 'k', to_jsonb(repeat('x', 40)), headers => to_jsonb(repeat('x', 40)),
	body => decode(repeat('00', 40), 'hex'))$$, 'IK413', NULL, 'all three together');
SELECT throws_ok($$SELECT idempotent_finish('bystander', 'l', body => decode(repeat('00', 101), 'hex'), attempt => 1)$$,
	'IK413', NULL, 'under lease too');
SELECT lives_ok(
	$$SELECT idempotent_begin('s', 'full');
	  SELECT idempotent_finish('s', 'full', body => decode(repeat('00', 100), 'hex'))$$, 'as large as allowed');
SET LOCAL idempotency.max_response_size = 0;
SELECT lives_ok(
	$$SELECT idempotent_begin('s', 'unlimited');
	  SELECT idempotent_finish('s', 'unlimited', body => decode(repeat('00', 1000), 'hex'))$$, '0 is no limit');

-- Nothing is left behind.
SELECT results_eq('SELECT key FROM idempotency_keys ORDER BY key', $$VALUES ('full'), ('unlimited')$$, 'no key is left');
SELECT results_eq('SELECT key, attempt, checkpoint, retry_at FROM idempotency_claims',
	$$VALUES ('l', 1, NULL::text, NULL::timestamptz)$$, 'no claim is left, and the one there is untouched');
SELECT is(pg_temp.locks(), 6::bigint, 'no lock is left but those of the attempts, finished or released');
SELECT is(outcome, 'in_progress', 'the attempt is still there') FROM idempotent_lookup('bystander', 'k');
SELECT is(idempotent_finish('bystander', 'k', '"done"'), '"done"', 'and can be finished');
SELECT is(idempotent_finish('bystander', 'l', '"done"', attempt => 1), '"done"', 'and so can the lease');

SELECT * FROM finish();
ROLLBACK;
