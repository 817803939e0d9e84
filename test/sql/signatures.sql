-- What applications build on: names, signatures, types, tables, and how the extension is declared.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(33);
SET LOCAL IntervalStyle = 'postgres';
CREATE TEMP VIEW functions AS
	SELECT p.* FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency');
CREATE TEMP VIEW relations AS
	SELECT c.* FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency');

SELECT is(pg_get_function_arguments(oid) || ' -> ' || pg_get_function_result(oid), signature, proname || ' has the signature it is known by')
FROM (VALUES
	(1, 'idempotent_begin', 'scope text, key text, request jsonb DEFAULT NULL::jsonb, fingerprint bytea DEFAULT NULL::bytea, retention interval DEFAULT NULL::interval, first_sent timestamp with time zone DEFAULT NULL::timestamp with time zone, lease interval DEFAULT NULL::interval -> idempotent_attempt'),
	(2, 'idempotent_try_begin', 'scope text, key text, request jsonb DEFAULT NULL::jsonb, fingerprint bytea DEFAULT NULL::bytea, retention interval DEFAULT NULL::interval, first_sent timestamp with time zone DEFAULT NULL::timestamp with time zone, lease interval DEFAULT NULL::interval -> idempotent_attempt'),
	(3, 'idempotent_finish', 'scope text, key text, response jsonb DEFAULT NULL::jsonb, status integer DEFAULT NULL::integer, headers jsonb DEFAULT NULL::jsonb, body bytea DEFAULT NULL::bytea, attempt integer DEFAULT NULL::integer, retention interval DEFAULT NULL::interval, body_text text DEFAULT NULL::text -> jsonb'),
	(4, 'idempotent_release', 'scope text, key text, attempt integer DEFAULT NULL::integer, error text DEFAULT NULL::text, retry_after interval DEFAULT NULL::interval, reset boolean DEFAULT false -> boolean'),
	(5, 'idempotent_checkpoint', 'scope text, key text, attempt integer, checkpoint text DEFAULT NULL::text, state jsonb DEFAULT NULL::jsonb, lease interval DEFAULT NULL::interval -> timestamp with time zone'),
	(6, 'idempotent_resume', 'lease interval, max_keys integer DEFAULT 1, scope text DEFAULT NULL::text -> SETOF idempotent_claim'),
	(7, 'idempotent_backoff', 'attempt integer, base interval DEFAULT ''00:01:00''::interval, cap interval DEFAULT ''01:00:00''::interval, jitter double precision DEFAULT 0 -> interval'),
	(8, 'idempotent_lookup', 'scope text, key text -> SETOF idempotent_attempt'),
	(9, 'idempotent_forget', 'scope text, key text -> boolean'),
	(10, 'idempotent_prune', 'max_keys integer DEFAULT 10000 -> bigint'),
	(11, 'idempotent_call', 'scope text, key text, command text, args jsonb DEFAULT NULL::jsonb, request jsonb DEFAULT NULL::jsonb, retention interval DEFAULT NULL::interval, remember_errors boolean DEFAULT false -> idempotent_attempt'),
	(12, 'idempotent_begin_many', 'scope text, keys text[], retention interval DEFAULT NULL::interval -> SETOF text'),
	(13, 'idempotent_finish_many', 'scope text, keys text[] -> bigint'),
	(14, 'idempotent_park', 'scope text, key text, attempt integer, error text -> boolean'),
	(15, 'idempotent_retry', 'scope text, key text, lease interval -> idempotent_claim'),
	(16, 'idempotent_resolve', 'scope text, key text, reason text, response jsonb DEFAULT NULL::jsonb, status integer DEFAULT NULL::integer, headers jsonb DEFAULT NULL::jsonb, body bytea DEFAULT NULL::bytea, body_text text DEFAULT NULL::text, retention interval DEFAULT NULL::interval, attempt integer DEFAULT NULL::integer, correct boolean DEFAULT false -> text'),
	(17, 'idempotent_reconcile', 'theirs jsonb, step text, since timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, scope text DEFAULT NULL::text -> TABLE(verdict text, scope text, key text, attempt integer, status integer, response jsonb, first_seen_at timestamp with time zone, theirs jsonb)'),
	(18, 'idempotent_derive', 'scope text, key text, step text -> text'),
	(19, 'idempotent_forget_scope', 'scope text, max_keys integer DEFAULT 10000 -> bigint')
) v(n, name, signature) LEFT JOIN functions ON proname = name ORDER BY n;

SELECT is_empty($$SELECT proname FROM functions GROUP BY proname HAVING count(*) > 1$$, 'no function is overloaded');
SELECT is_empty(
	$$SELECT f.proname FROM functions f JOIN pg_type t ON t.oid = f.prorettype WHERE t.typtype IN ('e', 'd') OR t.oid = 'void'::regtype$$,
	'none returns void, an enum or a domain');
SELECT is_empty(
	$$SELECT proname FROM functions WHERE coalesce(array_length(proargnames, 1), 0) <> coalesce(array_length(proallargtypes, 1), pronargs) OR '' = ANY (proargnames)$$,
	'every parameter can be named');

CREATE FUNCTION pg_temp.columns(rel regclass) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END, ', ' ORDER BY attnum)
	FROM pg_attribute WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped
$$;
SELECT set_config('search_path', 'public', true) \g /dev/null
SELECT is(pg_temp.columns((SELECT typrelid FROM pg_type WHERE oid = 'idempotent_attempt'::regtype)),
	'outcome text, replayed boolean, attempt integer, status integer, headers jsonb, response jsonb, body bytea, checkpoint text, state jsonb, '
	'first_seen_at timestamp with time zone, finished_at timestamp with time zone, expires_at timestamp with time zone, retry_after integer, error text',
	'the type idempotent_attempt');
SELECT is_empty(
	$$SELECT unnest(ARRAY['id', 'scope', 'key', 'what', 'attempt', 'checkpoint', 'state', 'error', 'status', 'headers', 'response', 'body',
						  'failed', 'finished_at', 'corrected_at', 'corrected_by', 'reason'])
	  EXCEPT SELECT attname FROM pg_attribute WHERE attrelid = 'idempotency_corrections'::regclass$$,
	'the columns of idempotency_corrections');
SELECT is(pg_temp.columns((SELECT typrelid FROM pg_type WHERE oid = 'idempotent_claim'::regtype)),
	'scope text, key text, attempt integer, request jsonb, checkpoint text, state jsonb, first_seen_at timestamp with time zone, '
	'lease_until timestamp with time zone, error text',
	'the type idempotent_claim');
SELECT is_empty(
	$$SELECT unnest(ARRAY['id', 'scope', 'key', 'fingerprint', 'attempt', 'status', 'headers', 'response', 'body', 'first_seen_at',
						  'finished_at', 'expires_at', 'failed', 'shortened'])
	  EXCEPT SELECT attname FROM pg_attribute WHERE attrelid = 'idempotency_keys'::regclass$$,
	'the columns of idempotency_keys');
SELECT is_empty(
	$$SELECT unnest(ARRAY['id', 'scope', 'key', 'fingerprint', 'request', 'attempt', 'checkpoint', 'state', 'last_error', 'retention',
						  'max_attempts', 'lease', 'first_seen_at', 'claimed_at', 'lease_until', 'retry_at', 'parked_at', 'reset_at'])
	  EXCEPT SELECT attname FROM pg_attribute WHERE attrelid = 'idempotency_claims'::regclass$$,
	'the columns of idempotency_claims');
SELECT results_eq(
	$$SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint
	  WHERE conrelid IN ('idempotency_keys'::regclass, 'idempotency_claims'::regclass) AND contype = 'p' ORDER BY conrelid::regclass::text COLLATE "C"$$,
	$$VALUES ('idempotency_claims', 'PRIMARY KEY (id)'), ('idempotency_keys', 'PRIMARY KEY (id)')$$,
	'both tables have the id as primary key');
SELECT is((SELECT count(*) FROM pg_index WHERE indrelid = 'idempotency_keys'::regclass AND indexrelid IN (
	SELECT c.oid FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'brin')), 1::bigint, 'expiry is indexed by BRIN');

-- The extension.
-- Its control file as it stands beside the tests: the views of what is available pass over a folder like extension_destdir.
\set control `cat "$PG_ABS_SRCDIR/../idempotency.control"`
SELECT is(extversion, substring(:'control' FROM 'default_version *= *''([^'']*)'), 'the version installed is the control file''s')
FROM pg_extension WHERE extname = 'idempotency';
SELECT is((extrelocatable, :'control' ~ 'superuser *= *false', :'control' ~ 'trusted *= *true'), (false, false, false),
	'it is not relocatable, for superusers, and not trusted')
FROM pg_extension WHERE extname = 'idempotency';
SELECT results_eq(
	$$SELECT c::regclass::text FROM pg_extension, unnest(extconfig) c WHERE extname = 'idempotency' ORDER BY c::regclass::text COLLATE "C"$$,
	$$VALUES ('idempotency_claims'), ('idempotency_corrections'), ('idempotency_corrections_correction_seq'), ('idempotency_keys')$$,
	'the tables are dumped');
SELECT is_empty(
	$$SELECT condition FROM pg_extension, unnest(extcondition) condition WHERE extname = 'idempotency' AND condition <> ''$$,
	'with all their rows');
SELECT * FROM finish();
ROLLBACK;
