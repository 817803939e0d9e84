-- The vectors of test/vectors, which freeze ids, lock bits, derived keys and fingerprints.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
\set identity `cat "$PG_ABS_SRCDIR/vectors/identity.json"`
\set fingerprint `cat "$PG_ABS_SRCDIR/vectors/fingerprint.json"`
BEGIN;
SELECT plan(9);
CREATE TEMP TABLE keys AS SELECT * FROM jsonb_to_recordset(:'identity') v(scope text, key text, id text, lock text, derived jsonb);
CREATE TEMP TABLE requests AS SELECT v->>'request' AS request, v->>'fingerprint' AS fingerprint, n FROM jsonb_array_elements(:'fingerprint') WITH ORDINALITY x(v, n);
SELECT cmp_ok(count(*), '>=', 50::bigint, 'there are keys to look at') FROM keys;
SELECT is_empty($$SELECT scope, key, step, derived ->> step, idempotent_derive(scope, key, step)
	FROM keys, jsonb_object_keys(derived) step WHERE idempotent_derive(scope, key, step) <> derived ->> step$$, 'derived keys');
SELECT is((SELECT count(*) FROM keys v, idempotent_begin(v.scope, v.key) b WHERE b.outcome = 'started'), (SELECT count(*) FROM keys), 'each begins');
SELECT results_eq($$SELECT lpad(to_hex(classid::bigint), 8, '0') || lpad(to_hex(objid::bigint), 8, '0') COLLATE "C" AS lock FROM pg_locks
	WHERE locktype = 'advisory' AND objsubid = 30163 AND pid = pg_backend_pid() ORDER BY lock$$,
	$$SELECT lock COLLATE "C" FROM keys ORDER BY lock COLLATE "C"$$, 'under the lock that the end of its id gives');
SELECT is((SELECT count(*) FROM keys WHERE idempotent_finish(scope, key, '1') = '1'), (SELECT count(*) FROM keys), 'and is finished');
SELECT is_empty($$SELECT scope, key, v.id, replace(k.id::text, '-', '') FROM keys v LEFT JOIN idempotency_keys k USING (scope, key)
	WHERE replace(k.id::text, '-', '') IS DISTINCT FROM v.id$$, 'ids');
SELECT is_empty($$SELECT key, id, pg_temp.id_of(scope, key) FROM keys WHERE replace(pg_temp.id_of(scope, key)::text, '-', '') <> id$$,
	'the other tests compute them alike');
SELECT is(count(idempotent_finish('fingerprint', n::text)), 0::bigint, 'requests are finished')
FROM requests, LATERAL (SELECT outcome FROM idempotent_begin('fingerprint', n::text, request::jsonb)) b;
SELECT is_empty($$SELECT request, v.fingerprint, encode(k.fingerprint, 'hex') FROM requests v
	LEFT JOIN idempotency_keys k ON k.scope = 'fingerprint' AND k.key = n::text
	WHERE encode(k.fingerprint, 'hex') IS DISTINCT FROM v.fingerprint$$, 'fingerprints');
SELECT * FROM finish();
ROLLBACK;
