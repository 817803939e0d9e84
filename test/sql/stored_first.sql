-- What is stored outranks every judgement about time, length and settings (I10), and an answer expires from its finish (I11).
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT no_plan();
-- Leases of other transactions, which those of this one would not be.
SET idempotency.max_key_length = 300;
SELECT is(count(*), 4::bigint, 'leases') FROM (VALUES ('clock', 'l'), ('length', repeat('l', 300)), ('name', 'l'), ('hint', 'l')) v(scope, key),
	idempotent_begin(v.scope, v.key, lease => '1 hour') b WHERE b.outcome = 'started';
RESET idempotency.max_key_length;
BEGIN;
CREATE FUNCTION pg_temp.done(scope text, key text, retention interval DEFAULT NULL, first_sent timestamptz DEFAULT NULL, finish_retention interval DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_begin(scope, key, retention => retention, first_sent => first_sent);
	PERFORM idempotent_finish(scope, key, '"answer"', retention => finish_retention);
	RETURN 'done';
END $$;
CREATE FUNCTION pg_temp.expire(s text, k text) RETURNS text LANGUAGE sql AS $$ UPDATE idempotency_keys SET expires_at = now() WHERE scope = s AND key = k RETURNING 'expired' $$;

-- A clock that is behind afterwards.
SELECT is(pg_temp.done('clock', 'k'), 'done', 'a finished key');
SELECT is(outcome, 'replayed', 'is replayed, however far ahead the client''s clock: ' || ahead)
FROM (VALUES ('90 s'), ('1 year')) v(ahead), idempotent_try_begin('clock', 'k', first_sent => clock_timestamp() + ahead::interval);
SELECT is(outcome, 'replayed', 'or absurd: ' || sent) FROM (VALUES ('infinity'), ('-infinity')) v(sent), idempotent_try_begin('clock', 'k', first_sent => sent::timestamptz);
SELECT is(outcome, 'in_progress', 'is in progress, whatever the client''s clock') FROM idempotent_try_begin('clock', 'l', first_sent => clock_timestamp() + interval '1 day');
SELECT throws_ok($$SELECT idempotent_try_begin('clock', 'new', first_sent => 'infinity')$$, 'IK400', NULL, 'with nothing stored it is refused');
SELECT throws_ok($$SELECT idempotent_try_begin('clock', 'new', first_sent => '-infinity')$$, 'IK400', NULL, 'infinite the other way too');

-- Lengths and settings.
SET LOCAL idempotency.max_key_length = 300;
SELECT is(pg_temp.done('length', repeat('k', 300)), 'done', 'a long key');
SET LOCAL idempotency.max_key_length = 10;
SELECT is(outcome, 'replayed', 'begin finds it whatever the caller''s limit') FROM idempotent_begin('length', repeat('k', 300));
SELECT is(outcome, 'replayed', 'lookup too') FROM idempotent_lookup('length', repeat('k', 300));
SELECT is(outcome, 'in_progress', 'and the lease') FROM idempotent_try_begin('length', repeat('l', 300));
SELECT is((SELECT count(*) FROM idempotent_begin_many('length', ARRAY[repeat('k', 300)])), 0::bigint, 'a batch knows it');
SELECT is(idempotent_finish('length', repeat('l', 300), attempt => 1), NULL, 'a worker finishes it');
SELECT is(idempotent_forget('length', repeat('k', 300)), true, 'and forget forgets it');
SELECT throws_ok($$SELECT idempotent_begin('length', repeat('k', 300))$$, 'IK400', NULL, 'then it is too long');
SELECT throws_ok($$SELECT idempotent_begin_many('length', ARRAY[repeat('k', 300)])$$, 'IK400', NULL, 'for a batch too');
RESET idempotency.max_key_length;

-- A late duplicate: the expired row that is still there proves it.
SELECT is(pg_temp.done('late', 'k', '1 hour', now() - interval '30 min'), 'done', 'a key with a short retention');
SELECT is(pg_temp.expire('late', 'k'), 'expired', 'expires');
SELECT is(outcome, 'expired', 'a retry that was sent before that is late, whatever retention it brings')
FROM idempotent_try_begin('late', 'k', retention => '1 year', first_sent => now() - interval '30 min');
SELECT throws_ok($$SELECT idempotent_begin('late', 'k', retention => '1 year', first_sent => now() - interval '30 min')$$, 'IK412', NULL, 'begin raises it');
SELECT throws_ok($$SELECT idempotent_begin('late', 'k', retention => '1 year', first_sent => now() - interval '30 min', lease => '1 min')$$, 'IK412', NULL, 'under lease too');
SELECT is(outcome, 'started', 'one that was sent after it starts') FROM idempotent_try_begin('late', 'k', first_sent => now());
SELECT is(idempotent_release('late', 'k'), true, 'released');
SELECT is(outcome, 'started', 'and so does one that does not say') FROM idempotent_try_begin('late', 'k');
SELECT is(idempotent_release('late', 'k'), true, 'released');
SET LOCAL idempotency.key_time = on;
SELECT is(pg_temp.done('late', left(h, 8) || '-' || substr(h, 9, 4) || '-7abc-8def-0123456789ab'), 'done', 'a key with its own time')
FROM lpad(to_hex((extract(epoch FROM now() - interval '1 min') * 1000)::bigint), 12, '0') h;
UPDATE idempotency_keys SET expires_at = now() WHERE key LIKE '%-7abc-8def-%';
SELECT is(outcome, 'expired', 'is late by its own time') FROM idempotency_keys k, idempotent_try_begin('late', k.key, retention => '1 year') WHERE k.key LIKE '%-7abc-8def-%';
SELECT throws_ok(format('SELECT idempotent_begin_many(%L, %L, %L)', 'late', ARRAY[key], '1 year'), 'IK412', NULL, 'in a batch too')
FROM idempotency_keys WHERE key LIKE '%-7abc-8def-%';
SET LOCAL idempotency.key_time = off;

-- Where finish has shortened the retention, the answer was meant to be forgotten.
SELECT is(pg_temp.done('short', 's', '1 day', now() - interval '10 min', '1 hour'), 'done', 'finish shortens the retention');
SELECT ok(pg_temp.about(expires_at - finished_at, '1 hour') AND shortened, 'which the row says') FROM idempotency_keys WHERE key = 's';
SELECT is(pg_temp.expire('short', 's'), 'expired', 'it expires');
SELECT is(outcome, 'started', 'a retry of before starts') FROM idempotent_try_begin('short', 's', first_sent => now() - interval '10 min');
SELECT is(idempotent_release('short', 's'), true, 'released');
SELECT is(pg_temp.done('short', 'longer', '1 hour', NULL, '1 day'), 'done', 'finish may lengthen it too');
SELECT ok(pg_temp.about(expires_at - finished_at, '1 day') AND shortened IS NULL, 'and does not say so') FROM idempotency_keys WHERE key = 'longer';
SELECT is(outcome, 'started', 'under lease') FROM idempotent_begin('short', 'leased', lease => '1 hour', retention => '2 days');
SELECT is(idempotent_finish('short', 'leased', attempt => 1, retention => '1 min'), NULL, 'it is shortened as well');
SELECT ok(pg_temp.about(expires_at - finished_at, '1 min') AND shortened, 'and the row says it') FROM idempotency_keys WHERE key = 'leased';

-- Expiry counts from finish: no answer is stored expired, on any path.
SELECT is(outcome, 'started', 'a retention shorter than the work') FROM idempotent_begin('work', 'k', retention => '1 microsecond');
SELECT is(outcome, 'started', 'under lease') FROM idempotent_begin('work', 'l', lease => '1 hour', retention => '1 microsecond');
SELECT is(outcome, 'started', 'to be resumed') FROM idempotent_begin('work', 'r', lease => '1 microsecond', retention => '1 microsecond');
SELECT is(idempotent_finish('work', 'k', '1'), '1', 'finished');
SELECT is(idempotent_finish('work', 'l', '1', attempt => 1), '1', 'finished');
SELECT is(idempotent_release('work', 'r', 1, retry_after => '0'), true, 'released in its own transaction, so that resume gets it');
SELECT is((SELECT attempt FROM idempotent_resume('1 hour', 1, 'work')), 2, 'resumed');
SELECT is(idempotent_finish('work', 'r', '1', attempt => 2), '1', 'finished');
SELECT is_empty($$SELECT FROM idempotency_keys WHERE scope = 'work' AND expires_at <= finished_at$$, 'no row has expired as of its finish');
SELECT is(pg_temp.done('ahead', 'k', '1 hour', clock_timestamp() + interval '50 s'), 'done', 'a client that is ahead');
SELECT ok(expires_at - finished_at > interval '1 hour 45 s', 'has its key for a retention from its own time') FROM idempotency_keys WHERE scope = 'ahead';
SELECT is(count(DISTINCT expires_at) <= 2, true, 'neighbours share their expiry') FROM (SELECT pg_temp.done('coarse', i::text) FROM generate_series(1, 100) i) d, idempotency_keys WHERE scope = 'coarse';
SELECT is_empty($$SELECT FROM idempotency_keys WHERE scope = 'coarse' AND (extract(epoch FROM expires_at - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::bigint % (2^28)::bigint <> 0$$,
	'a multiple of the largest power of two of microseconds that is not above a 256th of the retention');

-- Under one id, another name: only a forged row shows it here.
SELECT is(pg_temp.done('name', 'k'), 'done', 'a key');
UPDATE idempotency_keys SET key = 'other' WHERE scope = 'name';
SELECT is(outcome, 'mismatch', 'under whose id another name is stored: a mismatch') FROM idempotent_try_begin('name', 'k');
SELECT throws_ok(command, 'IK422', NULL, command) FROM (VALUES ($$SELECT idempotent_begin('name', 'k')$$), ($$SELECT idempotent_begin('name', 'k', lease => '1 min')$$),
	($$SELECT idempotent_begin_many('name', '{k}')$$), ($$SELECT idempotent_forget('name', 'k')$$), ($$SELECT idempotent_resolve('name', 'k', 'r', correct => true)$$),
	($$SELECT idempotent_retry('name', 'k', '1 min')$$), ($$SELECT idempotent_checkpoint('name', 'k', 1, 'c')$$), ($$SELECT idempotent_call('name', 'k', 'SELECT 1')$$)) c(command);
SELECT is(outcome || coalesce(response::text, ''), 'mismatch', 'lookup tells no more') FROM idempotent_lookup('name', 'k');
UPDATE idempotency_claims SET scope = 'another' WHERE scope = 'name';
SELECT is(outcome, 'mismatch', 'of a claim too') FROM idempotent_try_begin('name', 'l');
SELECT throws_ok($$SELECT idempotent_finish('name', 'l', attempt => 1)$$, 'IK422', NULL, 'and nobody writes to it under the wrong name');

-- Hints tell what this caller did.
CREATE FUNCTION pg_temp.hint_of(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	EXECUTE command;
	RETURN NULL;
EXCEPTION WHEN SQLSTATE 'IK500' THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN hint;
END $$;
SELECT is(count(DISTINCT pg_temp.hint_of(c)), 3::bigint, 'finish without begin, after replayed, and of a lease have hints of their own')
FROM (VALUES ($$SELECT idempotent_finish('hint', 'none')$$), ($$SELECT idempotent_finish('clock', 'k')$$), ($$SELECT idempotent_finish('hint', 'l')$$)) v(c);

-- A text as body, byte for byte.
SELECT is(outcome, 'started', 'an attempt') FROM idempotent_begin('text', 'k');
SELECT is(idempotent_finish('text', 'k', body_text => '{"path":"C:\\dir","e":"\u00e9","ä":"€"}'), NULL, 'finished with a text');
SELECT is(convert_from(body, 'UTF8'), '{"path":"C:\\dir","e":"\u00e9","ä":"€"}', 'which comes back as its UTF-8 bytes') FROM idempotent_begin('text', 'k');

-- A checkpoint that only renews.
SELECT is(outcome, 'started', 'a lease') FROM idempotent_begin('renew', 'k', lease => '1 hour');
SELECT is(idempotent_checkpoint('renew', 'k', 1, 'one', '"state"') > now(), true, 'a checkpoint');
SELECT is(idempotent_checkpoint('renew', 'k', 1) > now() + interval '59 min', true, 'without one the lease is renewed');
SELECT is(idempotent_checkpoint('renew', 'k', 1, lease => '2 hours') > now() + interval '119 min', true, 'by another length too');
SELECT is(checkpoint || state::text, 'one"state"', 'and checkpoint and state stay') FROM idempotency_claims WHERE scope = 'renew';
-- No finish(): pgTAP's own count is rolled back with the rest.
ROLLBACK;
