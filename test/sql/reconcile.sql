-- idempotent_reconcile: each verdict alone, all at once, at the edges of the window, with several steps a key.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT no_plan();
-- What is stored: finished fine and refused, open, expired, a counter; first seen an hour ago.
CREATE FUNCTION pg_temp.finished(scope text, key text, status int, at timestamptz DEFAULT now() - interval '1 hour', kept interval DEFAULT '1 day') RETURNS void LANGUAGE sql AS $$
	INSERT INTO idempotency_keys (id, scope, key, attempt, status, response, first_seen_at, finished_at, expires_at)
	VALUES (pg_temp.id_of(scope, key), scope, key, 2, status, to_jsonb(key), at, at, at + kept)
$$;
CREATE FUNCTION pg_temp.open(scope text, key text, at timestamptz DEFAULT now() - interval '1 hour', reset timestamptz DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
	INSERT INTO idempotency_claims (id, scope, key, attempt, max_attempts, retention, lease, first_seen_at, claimed_at, lease_until, reset_at)
	VALUES (pg_temp.id_of(scope, key), scope, key, 3, 10, '1 day', '1 min', at, at, at, reset)
$$;
SELECT pg_temp.finished('shop', 'fine', 200), pg_temp.finished('shop', 'no status', NULL), pg_temp.finished('shop', 'refused', 402),
	pg_temp.finished('shop', 'expired', 200, kept => '1 min'), pg_temp.open('shop', 'open'), pg_temp.open('shop', 'reset', reset => now()) \g /dev/null
CREATE FUNCTION pg_temp.line(key text, ok boolean, step text DEFAULT 'charge') RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('key', idempotent_derive('shop', key, step), 'ok', ok, 'line', key || ' ' || step)
$$;
-- What reconcile says of these lines, without what it says is missing.
CREATE FUNCTION pg_temp.verdicts(VARIADIC lines jsonb[]) RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(concat_ws(' ', verdict, key), ', ' ORDER BY verdict, key), 'agreed')
	FROM idempotent_reconcile(to_jsonb(lines), 'charge', 'infinity')
$$;
SELECT is(pg_temp.verdicts(pg_temp.line('fine', true), pg_temp.line('no status', true), pg_temp.line('refused', false), pg_temp.line('expired', true)), 'agreed', 'what agrees is not returned');
SELECT is(pg_temp.verdicts(pg_temp.line('open', true)), 'open_here open', 'open here, done there');
SELECT is(pg_temp.verdicts(pg_temp.line('open', false)), 'open_refused open', 'open here, refused there');
SELECT is(pg_temp.verdicts(pg_temp.line('refused', true)), 'refused_here refused', 'refused here, done there');
SELECT is(pg_temp.verdicts(pg_temp.line('fine', false)), 'refused_there fine', 'fine here, refused there');
SELECT is(pg_temp.verdicts(pg_temp.line('never', true)), 'unknown_here', 'done there, never seen here');
SELECT is(pg_temp.verdicts(pg_temp.line('never', false)), 'agreed', 'refused there, never seen here');
SELECT is(pg_temp.verdicts('{"key": "not ours", "ok": true}'), 'unknown_here', 'a key of no form of ours');
SELECT is(pg_temp.verdicts(pg_temp.line('reset', true)), 'unknown_here', 'a counter is nothing stored');
SELECT is(pg_temp.verdicts(pg_temp.line('fine', true), pg_temp.line('fine', true)), 'twice_there fine', 'done there twice');
SELECT is(pg_temp.verdicts(pg_temp.line('open', true), pg_temp.line('open', true)), 'open_here open, twice_there open', 'which comes in addition');
SELECT is(pg_temp.verdicts(pg_temp.line('never', true), pg_temp.line('never', true)), 'twice_there, unknown_here', 'for an unknown key too');
SELECT is(pg_temp.verdicts(pg_temp.line('fine', false), pg_temp.line('fine', true)), 'agreed', 'any ok outranks a not ok');
SELECT is(pg_temp.verdicts(pg_temp.line('open', NULL), pg_temp.line('fine', NULL), pg_temp.line('never', NULL)), 'agreed', 'what is pending there says nothing');
SELECT is(pg_temp.verdicts(pg_temp.line('fine', false), pg_temp.line('fine', NULL)), 'refused_there fine', 'beside another line of the key');
SELECT is(pg_temp.verdicts(pg_temp.line('fine', false, 'refund'), pg_temp.line('open', true, 'refund')), 'agreed', 'keys of another step are ignored');
SELECT is(pg_temp.verdicts(jsonb_set(pg_temp.line('open', true), '{key}', to_jsonb(upper(pg_temp.line('open', true)->>'key')))), 'open_here open', 'whatever the case of the digits');
UPDATE idempotency_keys SET failed = true WHERE key = 'no status';
SELECT is(pg_temp.verdicts(pg_temp.line('no status', true)), 'refused_here no status', 'a remembered error is a refusal');

-- What comes back.
SELECT results_eq($$SELECT verdict, scope, key, attempt, status, response, first_seen_at, theirs FROM idempotent_reconcile(jsonb_build_array(pg_temp.line('refused', true)), 'charge', 'infinity')$$,
	$$VALUES ('refused_here', 'shop', 'refused', 2, 402, '"refused"'::jsonb, now() - interval '1 hour', pg_temp.line('refused', true))$$, 'ours and theirs');
SELECT results_eq($$SELECT verdict, scope, key, attempt, theirs FROM idempotent_reconcile('[{"key": "zz", "ok": true, "amount": 5}]', 'charge', 'infinity')$$,
	$$VALUES ('unknown_here', NULL::text, NULL::text, NULL::int, '{"key": "zz", "ok": true, "amount": 5}'::jsonb)$$, 'theirs alone');
SELECT results_eq($$SELECT theirs FROM idempotent_reconcile(jsonb_build_array(pg_temp.line('fine', true), pg_temp.line('fine', false), pg_temp.line('fine', true)), 'charge', 'infinity')$$,
	$$SELECT jsonb_build_array(pg_temp.line('fine', true), pg_temp.line('fine', true))$$, 'of those that were done twice, all');

-- The window and the scope limit what is missing there, and nothing else.
CREATE FUNCTION pg_temp.missing(since timestamptz, until timestamptz DEFAULT NULL, scope text DEFAULT NULL, lines jsonb DEFAULT '[]') RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(concat_ws(' ', verdict, key), ', ' ORDER BY verdict, key), 'none')
	FROM idempotent_reconcile(lines, 'charge', since, until, scope)
$$;
SELECT is(pg_temp.missing(now() - interval '2 hours'), 'missing_there expired, missing_there fine, open_missing open', 'what is fine or open here, and not in their list');
SELECT is(pg_temp.missing(now() - interval '1 hour'), 'missing_there expired, missing_there fine, open_missing open', 'from since on');
SELECT is(pg_temp.missing(now() - interval '1 hour' + interval '1 microsecond'), 'none', 'not before');
SELECT is(pg_temp.missing(now() - interval '2 hours', now() - interval '1 hour'), 'none', 'before until');
SELECT is(pg_temp.missing(now() - interval '2 hours', now() - interval '1 hour' + interval '1 microsecond'), 'missing_there expired, missing_there fine, open_missing open', 'not from it on');
SELECT is(pg_temp.missing('-infinity', 'infinity', 'shop'), 'missing_there expired, missing_there fine, open_missing open', 'of one scope');
SELECT is(pg_temp.missing('-infinity', NULL, 'sho'), 'none', 'which is compared whole');
SELECT is(pg_temp.missing('-infinity', NULL, 'sh%'), 'missing_there expired, missing_there fine, open_missing open', 'or as a prefix');
SELECT is(pg_temp.missing('-infinity', NULL, '%'), 'missing_there expired, missing_there fine, open_missing open', 'or as any');
SELECT is(pg_temp.missing('-infinity', NULL, 's_op'), 'none', 'without other wildcards');
SELECT is(pg_temp.missing('-infinity', NULL, NULL, jsonb_build_array(pg_temp.line('fine', true), pg_temp.line('open', NULL), pg_temp.line('expired', false))), 'refused_there expired',
	'what is in their list, and be it pending, is not missing');
SELECT is(pg_temp.missing('-infinity', NULL, NULL, jsonb_build_array(pg_temp.line('fine', true, 'refund'))), 'missing_there expired, missing_there fine, open_missing open',
	'in their list for another step it is');
SELECT is(pg_temp.missing('infinity', NULL, 'other', jsonb_build_array(pg_temp.line('open', true))), 'open_here open', 'a line is looked up whatever window and scope');

-- A claim outranks the expired key before it.
SELECT pg_temp.open('shop', 'expired') \g /dev/null
SELECT is(pg_temp.verdicts(pg_temp.line('expired', true)), 'open_here expired', 'an expired key with a claim is open');
SELECT is(pg_temp.missing('-infinity'), 'missing_there fine, open_missing expired, open_missing open', 'and missing as such, once');

-- Forgotten and pruned keys are unknown.
SELECT is(idempotent_forget('shop', 'fine'), true, 'forgotten');
SELECT is(pg_temp.verdicts(pg_temp.line('fine', true)), 'unknown_here', 'is unknown');
SELECT is(idempotent_forget('shop', 'open'), true, 'a claim that is forgotten');
SELECT is(pg_temp.verdicts(pg_temp.line('open', true)), 'unknown_here', 'is unknown as well');

-- All verdicts at once, among a thousand that agree.
SELECT pg_temp.finished('all', 'a' || i, 200) FROM generate_series(1, 1000) i \g /dev/null
SELECT pg_temp.finished('all', 'refused here', 402), pg_temp.finished('all', 'refused there', 200), pg_temp.finished('all', 'missing', 200),
	pg_temp.open('all', 'here'), pg_temp.open('all', 'refused'), pg_temp.open('all', 'gone') \g /dev/null
SELECT results_eq($$
	SELECT verdict, key FROM idempotent_reconcile(
		(SELECT jsonb_agg(jsonb_build_object('key', idempotent_derive('all', key, 'charge'), 'ok', ok)) FROM (
			SELECT 'a' || i, true FROM generate_series(1, 1000) i UNION ALL VALUES
			('refused here', true), ('refused there', false), ('here', true), ('refused', false), ('unknown', true), ('a7', true)) theirs(key, ok)),
		'charge', now() - interval '2 hours', NULL, 'all') ORDER BY verdict COLLATE "C"$$,
	$$VALUES ('missing_there', 'missing'), ('open_here', 'here'), ('open_missing', 'gone'), ('open_refused', 'refused'),
		('refused_here', 'refused here'), ('refused_there', 'refused there'), ('twice_there', 'a7'), ('unknown_here', NULL)$$, 'all eight at once');

-- Derived keys.
SELECT matches(idempotent_derive('s', 'k', 'charge'), '^[0-9a-f]{64}$', '64 lower-case hexadecimal digits');
SELECT is(left(idempotent_derive('s', 'k', 'charge'), 32), replace(pg_temp.id_of('s', 'k')::text, '-', ''), 'the first half is the id of the key');
SELECT is(right(idempotent_derive('s', 'k', 'charge'), 32),
	encode(substr(sha256(int8send(1) || 'sk'::bytea || '\x00'::bytea || 'charge'::bytea), 1, 16), 'hex'), 'the second a digest over key and step');
SELECT is(left(idempotent_derive('s', '019aba10-7a30-7cc3-98c4-dc0c0c07398f', 'x'), 12), '819aba107a30', 'of a UUIDv7 it begins with its time, behind a leading 1');
SELECT is(count(DISTINCT idempotent_derive(s, k, p)), 27::bigint, 'no two keys and no two steps share one')
FROM unnest('{a,b,ab}'::text[]) s, unnest('{a,b,ab}'::text[]) k, unnest('{a,b,ab}'::text[]) p;
-- A line finds its key by the primary key, however many keys are stored.
SELECT count(pg_temp.finished('shop', 'many ' || i, 200)) FROM generate_series(1, 3000) i \g /dev/null
CREATE FUNCTION pg_temp.rows_read() RETURNS bigint LANGUAGE sql AS $$
	SELECT sum(pg_stat_get_xact_tuples_returned(r::regclass)) FROM unnest('{idempotency_keys,idempotency_keys_pkey}'::text[]) r
$$;
SELECT count(*) AS stored FROM idempotency_keys \gset
SELECT pg_temp.rows_read() AS before \gset
SELECT is(pg_temp.verdicts(pg_temp.line('many 7', false)), 'refused_there many 7', 'one line beside many keys');
SELECT cmp_ok(pg_temp.rows_read() - :before, '<', :stored + 10::bigint, 'reads its own key, beside one look through all for the window');
SELECT * FROM finish();
ROLLBACK;
