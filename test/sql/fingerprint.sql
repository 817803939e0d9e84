-- Fingerprints: equal exactly where the requests are equal (=), compared only where both sides have one.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(87);

-- The fingerprint that is stored for a request; the subtransaction takes its key and lock with it.
CREATE FUNCTION pg_temp.fp(request jsonb) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
	fp bytea;
BEGIN
	PERFORM FROM idempotent_begin('fp', 'k', request);
	PERFORM idempotent_finish('fp', 'k');
	fp := (SELECT fingerprint FROM idempotency_keys WHERE scope = 'fp');
	RAISE SQLSTATE 'UNDO0';
EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
	RETURN fp;
END $$;

-- What try_begin says to the second request after the first, and whether begin agrees.
CREATE FUNCTION pg_temp.says(first jsonb, second jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	PERFORM FROM idempotent_begin('fp', 'k', first);
	PERFORM idempotent_finish('fp', 'k');
	said := (SELECT outcome FROM idempotent_try_begin('fp', 'k', second));
	BEGIN
		PERFORM FROM idempotent_begin('fp', 'k', second);
		IF said <> 'replayed' THEN
			said := said || ' but begin replays';
		END IF;
	EXCEPTION WHEN SQLSTATE 'IK422' THEN
		IF said <> 'mismatch' THEN
			said := said || ' but begin raises';
		END IF;
	END;
	RAISE SQLSTATE 'UNDO0';
EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
	RETURN said;
END $$;

-- Equal requests, written differently.
SELECT is(pg_temp.says(a::jsonb, b::jsonb), 'replayed', format('%s and %s', a, b)) FROM (VALUES
	('{"a": 1, "b": 2}', '{"b":2,"a":1}'),
	('{"a": {"x": 1, "y": [1, 2]}}', '{ "a" : { "y" : [1,2], "x" : 1 } }'),
	('1', '1.0'),
	('1.0', '1.00'),
	('1', '1e0'),
	('100', '1e2'),
	('10000', '1e4'),
	('0.0001', '1e-4'),
	('123.4500', '123.45'),
	('1e400', '10e399'),
	('0', '-0'),
	('0', '0.000'),
	('-0.0', '0e10'),
	('{"a": 1, "a": 2}', '{"a": 2}'),
	('"\u00e9"', '"é"'),
	('"\ud83d\ude00"', '"😀"'),
	('"\/"', '"/"'),
	('"\u0041"', '"A"')
) v(a, b);

-- Different requests that look alike.
SELECT is(pg_temp.says(a::jsonb, b::jsonb), 'mismatch', format('%s and %s', a, b)) FROM (VALUES
	('1', '2'),
	('1', '-1'),
	('1', '10'),
	('1', '10000'),
	('1', '0.0001'),
	('1', '1.0000000000000000000000000000000000000001'),
	('12345678901234567890123456789012345678901', '12345678901234567890123456789012345678902'),
	('"1"', '1'),
	('"true"', 'true'),
	('"null"', 'null'),
	('"n"', 'null'),
	('true', 'false'),
	('null', 'false'),
	('0', 'false'),
	('0', 'null'),
	('""', 'null'),
	('[1]', '1'),
	('[[1]]', '[1]'),
	('[]', '{}'),
	('[]', 'null'),
	('[[]]', '[{}]'),
	('[1, 2]', '[2, 1]'),
	('[1, 2]', '[12]'),
	('[[1], 2]', '[[1, 2]]'),
	('["a", "b"]', '["ab"]'),
	('["a", "b"]', '{"a": "b"}'),
	('{"a": null}', '{}'),
	('{"a": {"b": 1}}', '{"a": [{"b": 1}]}'),
	('{"ab": "c"}', '{"a": "bc"}'),
	('{"a": "1"}', '{"a": 1}'),
	('"a"', '"A"'),
	('"a"', '"a "'),
	('"e\u0301"', '"\u00e9"')
) v(a, b);

-- Compared only where both sides have one.
CREATE FUNCTION pg_temp.keep(key text, request jsonb, fingerprint bytea) RETURNS text LANGUAGE sql AS $$
	SELECT outcome FROM idempotent_begin('kept', key, request, fingerprint);
	SELECT coalesce(idempotent_finish('kept', key) #>> '{}', 'kept')
$$;
SELECT is(pg_temp.keep('none', NULL, NULL), 'kept', 'a key without a fingerprint');
SELECT is(pg_temp.keep('request', '{"a": 1}', NULL), 'kept', 'one with a request');
SELECT is(pg_temp.keep('digest', NULL, '\x0102'), 'kept', 'one with the caller''s own digest');
SELECT results_eq($$SELECT key, fingerprint FROM idempotency_keys ORDER BY key COLLATE "C"$$,
	$$VALUES ('digest', '\x000102'::bytea), ('none', NULL), ('request', pg_temp.fp('{"a": 1}'))$$,
	'what is stored: a first byte for the form, and the digest');
SELECT is(outcome, want, format('%s, then %s', key, coalesce(request::text, digest::text, 'none'))) FROM (VALUES
	('none', NULL::jsonb, NULL::bytea, 'replayed'),
	('none', '{"a": 1}', NULL, 'replayed'),
	('none', NULL, '\x0102', 'replayed'),
	('request', NULL, NULL, 'replayed'),
	('request', '{"a": 1}', NULL, 'replayed'),
	('request', '{"a": 2}', NULL, 'mismatch'),
	('request', 'null', NULL, 'mismatch'),
	('request', NULL, '\x0102', 'mismatch'),
	('digest', NULL, NULL, 'replayed'),
	('digest', NULL, '\x0102', 'replayed'),
	('digest', NULL, '\x0103', 'mismatch'),
	('digest', NULL, '\x01', 'mismatch'),
	('digest', NULL, '\x010200', 'mismatch'),
	('digest', '{"a": 1}', NULL, 'mismatch')
) v(key, request, digest, want), idempotent_try_begin('kept', key, request, digest);
SELECT throws_ok($$SELECT idempotent_begin('kept', 'request', '{"a": 2}')$$, 'IK422', NULL, 'begin raises a mismatch');
SELECT throws_ok($$SELECT idempotent_begin('kept', 'digest', fingerprint => '\x0103')$$, 'IK422', NULL, 'of digests too');
SELECT throws_ok($$SELECT idempotent_begin('kept', 'request', '{"a": 2}', lease => '1 min')$$, 'IK422', NULL, 'and under lease');
SELECT results_eq(
	$$SELECT outcome, replayed, attempt, status, headers, response, body, checkpoint, state, first_seen_at, finished_at,
			 expires_at, retry_after
	  FROM idempotent_try_begin('kept', 'request', '{"a": 2}')$$,
	$$VALUES ('mismatch', false, NULL::int, NULL::int, NULL::jsonb, NULL::jsonb, NULL::bytea, NULL::text, NULL::jsonb,
			  NULL::timestamptz, NULL::timestamptz, NULL::timestamptz, NULL::int)$$,
	'a mismatch hands out nothing of the other request''s response');
SELECT is(pg_temp.locks(), (SELECT count(*) FROM idempotency_keys), 'and leaves no lock');
UPDATE idempotency_keys SET fingerprint = set_byte(fingerprint, 0, 2) WHERE key = 'request';
SELECT is(outcome, 'replayed', 'a form of a later release is not compared')
FROM idempotent_try_begin('kept', 'request', '{"a": 2}');

CREATE FUNCTION pg_temp.whole_error(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE command;
	RETURN NULL;
EXCEPTION WHEN SQLSTATE 'IK422' THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws('|', message, detail, hint);
END $$;
SELECT is(pg_temp.keep('secret', '{"card": "4242stored"}', NULL), 'kept', 'a request that is nobody''s business');
SELECT unalike(pg_temp.whole_error($$SELECT idempotent_begin('kept', 'secret', '{"card": "4242given"}')$$),
	pattern, 'the error does not tell ' || pattern)
FROM (VALUES ('%4242stored%'), ('%4242given%'), ('%' || encode(substring(pg_temp.fp('{"card": "4242stored"}') FROM 2), 'hex') || '%'))
	AS v(pattern);
SELECT matches(pg_temp.whole_error($$SELECT idempotent_begin('kept', 'secret', '1')$$), '^[^|]+\|', 'though there is one');

-- The form is kept with keys for as long as they live, so it is pinned down here, made by hand.
SELECT is(pg_temp.fp('{"n": [null, true, false, -12345.670, 0], "s": "é"}'),
	'\x01' || sha256('{' || int4send(2)
		|| '"' || int4send(1) || 'n' || '[' || int4send(5) || 'ntf'
		|| '#' || int2send(3::int2) || int2send(1::int2) || int2send(16384::int2) || int2send(1::int2) || int2send(2345::int2) || int2send(6700::int2)
		|| '#' || int2send(0::int2) || int2send(0::int2) || int2send(0::int2)
		|| '"' || int4send(1) || 's' || '"' || int4send(2) || '\xc3a9'),
	'the canonical form, version 1');

-- Generated values, with each many near and equal ones.
CREATE FUNCTION pg_temp.number() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT CASE WHEN random() < 0.5 THEN '' ELSE '-' END
		|| (ARRAY['0', '1', '10', '100', '9999', '10000', '10001', '12345678901234567890', '99999999999999999999999'])[1 + floor(random() * 9)]
		|| (ARRAY['', '', '.0', '.00', '.1', '.10', '.0001', '.00010', '.00000000000000000000001'])[1 + floor(random() * 9)]
		|| (ARRAY['', '', '', 'e0', 'e1', 'e-1', 'e4', 'e-4', 'e40', 'e-40'])[1 + floor(random() * 10)]
$$;
CREATE FUNCTION pg_temp.string() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT (ARRAY['""', '"a"', '"A"', '"\u0061"', '"ab"', '"b"', '"1"', '"1.0"', '"null"', '"é"', '"\u00e9"', '"[]"', '" "'])
		[1 + floor(random() * 13)]
$$;
CREATE FUNCTION pg_temp.value(depth int) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	kind float8 := random();
	n int := floor(random() * 4);
BEGIN
	IF depth = 0 OR kind < 0.4 THEN
		RETURN CASE WHEN kind < 0.22 THEN pg_temp.number() WHEN kind < 0.34 THEN pg_temp.string()
			ELSE (ARRAY['null', 'true', 'false'])[1 + floor(random() * 3)] END;
	ELSIF kind < 0.7 THEN
		RETURN (SELECT '[' || coalesce(string_agg(pg_temp.value(depth - 1), ', '), '') || ']' FROM generate_series(1, n) i);
	ELSE
		RETURN (SELECT '{' || coalesce(string_agg(pg_temp.string() || ': ' || pg_temp.value(depth - 1), ', '), '') || '}'
				FROM generate_series(1, n) i);
	END IF;
END $$;
SELECT setseed(0.75) \g /dev/null
CREATE TEMP TABLE generated AS
	SELECT n, pg_temp.value(n % 4)::jsonb AS j FROM generate_series(1, 4000) n;
-- Numbers in all spellings, alone and inside.
INSERT INTO generated SELECT 4000 + n, CASE WHEN n % 2 = 0 THEN pg_temp.number() ELSE '{"amount": ' || pg_temp.number() || '}' END::jsonb
	FROM generate_series(1, 1000) n;
ALTER TABLE generated ADD fp bytea;
UPDATE generated SET fp = pg_temp.fp(j);

SELECT ok(count(DISTINCT j) BETWEEN 1000 AND 4500, 'the generator makes many different values and many equal ones') FROM generated;
SELECT is_empty(
	$$SELECT j::text FROM generated WHERE octet_length(fp) <> 33 OR get_byte(fp, 0) <> 1$$,
	'each fingerprint is a version and a SHA-256');
SELECT is_empty(
	$$SELECT j, count(DISTINCT fp) FROM generated GROUP BY j HAVING count(DISTINCT fp) > 1$$,
	'equal values have one fingerprint');
SELECT is_empty(
	$$SELECT fp, count(DISTINCT j) FROM generated GROUP BY fp HAVING count(DISTINCT j) > 1$$,
	'different values have different ones');
SELECT is_empty(
	$$SELECT a.j::text, b.j::text FROM generated a, generated b
	  WHERE a.n <= 1500 AND b.n <= 1500 AND a.n < b.n AND (a.j = b.j) <> (a.fp = b.fp)$$,
	'pair by pair, by the operator =');
SELECT is_empty(
	$$SELECT a.j::text, b.j::text FROM generated a JOIN generated b ON b.n = a.n + 1
	  WHERE a.n > 4000 AND (a.j = b.j) <> (pg_temp.says(a.j, b.j) = 'replayed')$$,
	'try_begin and begin agree with it');

SELECT * FROM finish();
ROLLBACK;
