-- Keys and payloads as the world sends them come back byte for byte, and no two keys are taken for one.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(37);

CREATE TEMP TABLE names (n serial, scope text, key text);
INSERT INTO names (scope, key) VALUES
	('keys', '7c1f1b3e-6f0a-4c2e-9d55-0b6f4c4f2f10'),
	('keys', '7C1F1B3E-6F0A-4C2E-9D55-0B6F4C4F2F10'),
	('keys', 'FDkJkm3AJaBnGAdM'),
	('keys', 'fdkjkm3ajabngadm'),
	('keys', '01ARZ3NDEKTSV4RRFFQ69G5FAV'),
	('keys', ' '),
	('keys', '  '),
	('keys', 'a key'),
	('keys', 'a  key'),
	('keys', ' a key'),
	('keys', 'a key '),
	('keys', 'a	key'),
	('keys', E'a\nkey'),
	('keys', E'a\r\nkey'),
	('keys', ''''),
	('keys', '"'),
	('keys', '"a key"'),
	('keys', '''); DROP TABLE idempotency_keys; --'),
	('keys', '%s $1 \'),
	('keys', '\x00'),
	('keys', 'NULL'),
	('keys', chr(128512)),
	('keys', chr(128512) || chr(128513)),
	('keys', chr(233)),
	('keys', 'e' || chr(769)),
	('keys', 'K'),
	('keys', chr(8490)),
	('keys', chr(1)),
	('keys', repeat('k', 255)),
	('keys', repeat(chr(128512), 255)),
	('keys', repeat(chr(128512), 254)),
	('acct_42 POST /v1/charges', 'k'),
	('acct_42 POST /v1/refunds', 'k'),
	('acct_4', '2 POST /v1/charges'),
	('ab', 'c'),
	('a', 'bc'),
	('a', 'b'),
	('b', 'a'),
	('c', 'ab'),
	(chr(233), 'x'),
	(chr(233) || 'x', 'x'),
	(' ', ' ');

SELECT is_empty(
	$$SELECT scope, key, outcome FROM names, idempotent_begin(scope, key) WHERE outcome <> 'started'$$,
	'each of them is a key of its own: begun before any is finished');
SELECT is_empty(
	$$SELECT scope, key FROM names WHERE NOT pg_temp.locked(scope, key)$$,
	'with a lock of its own');
SELECT is(pg_temp.locks(), (SELECT count(*) FROM names), 'and one lock only');
SELECT is(count(idempotent_finish(scope, key, to_jsonb(n))), (SELECT count(*) FROM names), 'each is finished') FROM names;
SELECT is_empty(
	$$SELECT scope, key, outcome FROM names, idempotent_begin(scope, key) WHERE response <> to_jsonb(n)$$,
	'each replays its own response');
SELECT results_eq(
	$$SELECT scope, key, id FROM idempotency_keys ORDER BY response$$,
	$$SELECT scope, key, pg_temp.id_of(scope, key) FROM names ORDER BY n$$,
	'scope and key are stored as they came');

-- Limits are in characters.
SELECT throws_ok($$SELECT idempotent_begin('limit', repeat(chr(128512), 256))$$, 'IK400', NULL, '256 characters of 4 bytes');
SELECT is(outcome, 'started', '255 of them') FROM idempotent_begin('limit', repeat(chr(128512), 255));
SET LOCAL idempotency.max_key_length = 300;
SELECT is(outcome, 'started', '300 characters, where that is allowed') FROM idempotent_begin('limit', repeat('t', 300));
SELECT throws_ok($$SELECT idempotent_begin('limit', repeat('t', 301))$$, 'IK400', NULL, '301 are too many still');
SELECT is(outcome, 'started', '300 of 4 bytes') FROM idempotent_begin('limit', repeat(chr(128512), 300));
SELECT is(idempotent_finish('limit', repeat(chr(128512), 300), '"long"'), '"long"', 'can be finished');
SELECT is(response, '"long"'::jsonb, 'and replayed') FROM idempotent_begin('limit', repeat(chr(128512), 300));
RESET idempotency.max_key_length;

-- Payloads.
CREATE FUNCTION pg_temp.sha256_bytes(n int) RETURNS bytea LANGUAGE sql AS $$
	SELECT string_agg(sha256(int4send(i)), NULL ORDER BY i) FROM generate_series(1, n / 32) i
$$;
CREATE TEMP TABLE payloads (n serial, what text, response jsonb, headers jsonb, body bytea);
INSERT INTO payloads (what, response, headers, body) VALUES
	('nothing', NULL, NULL, NULL),
	('JSON null, which is not NULL', 'null', 'null', NULL),
	('empty containers', '{}', '[]', NULL),
	('empty strings', '""', '""', NULL),
	('an empty body', NULL, NULL, ''),
	('NUL bytes', NULL, NULL, '\x00000000'),
	('invalid UTF-8', NULL, NULL, '\xfffe80c0af00ff'),
	('every byte', NULL, NULL, (SELECT string_agg(set_byte('\x00', 0, b), NULL ORDER BY b) FROM generate_series(0, 255) b)),
	('nested JSON', '{"a": [{"b": {"c": [1, [2, [3, {"d": null}]]]}}, true, "x"]}', '{"Content-Type": ["a", "b"]}', NULL),
	('numbers', '[1, 1.0, 1.50, -0.001, 1e400, 123456789012345678901234567890.123456789]', NULL, NULL),
	('text', to_jsonb(chr(128512) || E'\n\t"\\' || chr(233) || chr(1)), NULL, NULL),
	('deep JSON', (repeat('[', 500) || repeat(']', 500))::jsonb, NULL, NULL),
	('compressible', to_jsonb(repeat('x', 100000)), to_jsonb(repeat('y', 100000)), decode(repeat('00', 100000), 'hex')),
	('out of line', to_jsonb(encode(pg_temp.sha256_bytes(50000), 'hex')), to_jsonb(encode(pg_temp.sha256_bytes(40000), 'hex')),
	 pg_temp.sha256_bytes(60000)),
	('an array of many', (SELECT jsonb_agg(i) FROM generate_series(1, 10000) i), NULL, NULL);
CREATE TEMP TABLE expected_text AS SELECT n, response::text, headers::text FROM payloads;

SELECT is((SELECT count(*) FROM payloads p, idempotent_begin('payload', what) b WHERE b.outcome = 'started'),
	(SELECT count(*) FROM payloads), 'payloads: begun');
SELECT is_empty(
	$$SELECT what FROM payloads p
	  WHERE idempotent_finish('payload', what, response, headers => headers, body => body) IS DISTINCT FROM response$$,
	'finish returns each response');
SELECT ok(b.response IS NOT DISTINCT FROM p.response AND b.response::text IS NOT DISTINCT FROM e.response
	  AND b.headers::text IS NOT DISTINCT FROM e.headers AND b.body IS NOT DISTINCT FROM p.body, 'replayed: ' || what)
FROM payloads p JOIN expected_text e USING (n), idempotent_begin('payload', what) b ORDER BY n;
SELECT is_empty(
	$$SELECT what FROM payloads p, idempotent_begin('payload', what) b, idempotent_lookup('payload', what) l
	  WHERE l IS DISTINCT FROM b$$,
	'lookup shows the same');

-- 10 MB, of the kind that does not compress.
CREATE TEMP TABLE big AS
	SELECT string_agg(chunk, NULL) AS body FROM (SELECT pg_temp.sha256_bytes(128 * 1024) AS chunk) c, generate_series(1, 80);
SELECT is(octet_length(body), 10 * 1024 * 1024, '10 MB') FROM big;
SELECT is(outcome, 'started', 'begin') FROM idempotent_begin('payload', '10 MB');
SELECT ok(idempotent_finish('payload', '10 MB', to_jsonb(encode(body, 'hex')), headers => '{"big": true}', body => body)
	= to_jsonb(encode(body, 'hex')), 'finish with 10 MB of body and 20 MB of response') FROM big;
SELECT ok(b.body = big.body AND b.response #>> '{}' = encode(big.body, 'hex') AND b.headers = '{"big": true}', 'replayed as it was')
FROM big, idempotent_begin('payload', '10 MB') b;

-- The digests are ours; the server's own agrees with them, whatever the length does to the padding of a block.
SELECT lives_ok($$SELECT idempotent_begin('length', k, to_jsonb(k)), idempotent_finish('length', k)
	FROM generate_series(1, 255) n, repeat('k', n) k$$, 'keys and requests of every length');
SELECT is_empty(
	$$SELECT n FROM generate_series(1, 255) n, repeat('k', n) k
	  WHERE NOT EXISTS (SELECT FROM idempotency_keys
		WHERE id = pg_temp.id_of('length', k)
			AND fingerprint = '\x01' || sha256('"' || int4send(n) || convert_to(k, 'UTF8')))$$,
	'id and fingerprint are the SHA-256 that the server computes');

SELECT * FROM finish();
ROLLBACK;
