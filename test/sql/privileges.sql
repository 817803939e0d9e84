-- Who may do what: nothing is for PUBLIC, the application needs EXECUTE alone, and row security hides no key.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT no_plan();

CREATE TEMP VIEW objects AS
	SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS what
	FROM pg_depend d WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency');
CREATE TEMP VIEW functions AS SELECT p.* FROM pg_proc p JOIN objects ON classid = 'pg_proc'::regclass AND objid = p.oid;
CREATE TEMP VIEW relations AS SELECT c.* FROM pg_class c JOIN objects ON classid = 'pg_class'::regclass AND objid = c.oid;
CREATE TEMP VIEW types AS SELECT t.* FROM pg_type t JOIN objects ON classid = 'pg_type'::regclass AND objid = t.oid WHERE t.typrelid NOT IN
	(SELECT oid FROM relations WHERE relkind <> 'c');

-- Enumerated from the catalogs.
SELECT cmp_ok(count(*), '>=', 10::bigint, 'there are functions to look at') FROM functions;
SELECT cmp_ok(count(*), '>=', 3::bigint, 'and tables and a view') FROM relations WHERE relkind IN ('r', 'v');
SELECT results_eq($$SELECT proname::text COLLATE "default" FROM functions WHERE provolatile <> 'v'$$, $$VALUES ('idempotent_derive')$$, 'every function is VOLATILE but the one that computes: all others read the clock, a random number or a lock');
SELECT results_eq($$SELECT proname::text COLLATE "default", proparallel::text FROM functions WHERE proparallel <> 'u' ORDER BY proname$$,
	$$VALUES ('idempotent_backoff', 'r'), ('idempotent_derive', 's'), ('idempotent_stats', 's'), ('idempotent_stats_reset', 'r')$$,
	'no function that reads or writes a key may run in a parallel worker');
SELECT is_empty($$SELECT proname FROM functions WHERE proisstrict$$, 'none is STRICT: a NULL key is an error, not a NULL answer');
SELECT is_empty($$SELECT proname FROM functions WHERE prosecdef$$, 'none is SECURITY DEFINER');
SELECT is_empty($$SELECT proname FROM functions WHERE proleakproof$$, 'none is LEAKPROOF');
SELECT is_empty($$SELECT proname FROM functions WHERE proconfig IS NOT NULL$$, 'none has settings that would hide the caller''s');
SELECT is_empty($$SELECT what FROM objects WHERE classid = 'pg_proc'::regclass AND obj_description(objid, 'pg_proc') IS NULL$$,
	'every function has a COMMENT');
SELECT is_empty($$SELECT oid::regclass FROM relations WHERE obj_description(oid, 'pg_class') IS NULL AND relkind IN ('r', 'v')$$,
	'every table and view has one');
SELECT is_empty($$SELECT oid::regtype FROM types WHERE obj_description(oid, 'pg_type') IS NULL AND typtype = 'c'$$, 'every type has one');
SELECT is_empty($$SELECT proname FROM functions WHERE proowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)$$,
	'every function belongs to who installed it');
SELECT is_empty($$SELECT relname FROM relations WHERE relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)$$,
	'every table and view too');
SELECT is_empty($$SELECT proname FROM functions, aclexplode(coalesce(proacl, acldefault('f', proowner))) a WHERE a.grantee <> proowner
	  EXCEPT VALUES ('idempotent_stats'::name)$$,
	'no function is granted to anyone, but for statistics');
SELECT is_empty($$SELECT relname FROM relations, aclexplode(coalesce(relacl, acldefault('r', relowner))) a WHERE a.grantee <> relowner
	  AND NOT (relkind = 'v' AND a.privilege_type = 'SELECT' AND a.grantee = 'pg_monitor'::regrole)$$,
	'no table is, and views are to pg_monitor alone, to be read');
SELECT is_empty($$SELECT proname FROM functions, aclexplode(proacl) a WHERE a.grantee <> proowner AND a.grantee <> 'pg_monitor'::regrole$$,
	'nothing at all is to PUBLIC');
SELECT is_empty($$SELECT typname FROM types, aclexplode(coalesce(typacl, acldefault('T', typowner))) a WHERE a.grantee <> typowner AND typtype = 'c'$$,
	'no type is');
SELECT is_empty($$SELECT what FROM objects WHERE what !~ '^(function|table|sequence|view|type|composite type) ' AND what !~ 'idempoten'$$,
	'there are no other objects');

-- Even where the default privileges grant all, to PUBLIC, to a role, with the right to grant it on, everywhere and in the schema.
CREATE TEMP VIEW granted AS
	SELECT o.what, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee, a.privilege_type
	FROM objects o
	JOIN LATERAL (
		SELECT relowner AS owner, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) AS acl
			FROM pg_class WHERE o.classid = 'pg_class'::regclass AND oid = o.objid AND relkind IN ('r', 'v', 'S')
		UNION ALL SELECT proowner, coalesce(proacl, acldefault('f', proowner))
			FROM pg_proc WHERE o.classid = 'pg_proc'::regclass AND oid = o.objid
		UNION ALL SELECT t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
			FROM pg_type t LEFT JOIN pg_class r ON r.oid = t.typrelid
			WHERE o.classid = 'pg_type'::regclass AND t.oid = o.objid AND t.typtype = 'c' AND r.relkind = 'c'
		UNION ALL SELECT relowner, attacl FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
			WHERE o.classid = 'pg_class'::regclass AND pg_class.oid = o.objid AND attacl IS NOT NULL) x ON true, aclexplode(x.acl) a
	WHERE a.grantee <> x.owner;
CREATE TEMP TABLE granted_before AS TABLE granted;
SELECT is_empty($$SELECT what, grantee FROM granted WHERE grantee <> 'pg_monitor' OR privilege_type NOT IN ('SELECT', 'EXECUTE')$$,
	'of tables, views, sequences, types and functions nothing is anybody''s but pg_monitor''s');
SAVEPOINT defaults;
DROP EXTENSION idempotency CASCADE;
CREATE ROLE regress_idempotency_default;
CREATE ROLE "regress Idempotency ""quoted""";
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC, regress_idempotency_default;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC, regress_idempotency_default;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO regress_idempotency_default;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC, regress_idempotency_default;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO pg_monitor WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO pg_monitor;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO "regress Idempotency ""quoted""" WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO "regress Idempotency ""quoted""" WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TYPES TO "regress Idempotency ""quoted""" WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO "regress Idempotency ""quoted""" WITH GRANT OPTION;
CREATE TABLE of_the_defaults ();
SELECT cmp_ok(count(DISTINCT a.grantee), '>=', 4::bigint, 'a table that is made under such default privileges is everybody''s')
FROM pg_class, aclexplode(relacl) a WHERE oid = 'of_the_defaults'::regclass;
CREATE EXTENSION idempotency SCHEMA public;
SELECT set_eq('TABLE granted', 'TABLE granted_before', 'those of the extension are whose they are without them');
ROLLBACK TO defaults;

-- A role without any right.
CREATE ROLE regress_idempotency_none;
GRANT USAGE ON SCHEMA public TO regress_idempotency_none;
CREATE TEMP TABLE calls AS
	SELECT format('SELECT public.%I(%s)', proname, (SELECT string_agg('NULL::' || format_type(a, NULL), ', ' ORDER BY n)
		FROM unnest(proargtypes::oid[]) WITH ORDINALITY u(a, n))) AS call
	FROM functions;
GRANT SELECT ON calls TO PUBLIC;
SET LOCAL ROLE regress_idempotency_none;
SELECT is_empty($$SELECT call FROM calls WHERE pg_temp.sqlstate_of(call) <> '42501'$$, 'a role without a grant can call no function');
SELECT throws_ok('TABLE public.' || t, '42501', NULL, 'nor read ' || t)
FROM (VALUES ('idempotency_keys'), ('idempotency_claims'), ('idempotency_corrections'), ('idempotency_corrections_correction_seq'), ('idempotency_stalled'),
	('idempotency_stats'), ('idempotency_in_flight')) v(t);
RESET ROLE;

-- The application's role: EXECUTE on the four, and nothing else.
CREATE ROLE regress_idempotency_app;
CREATE ROLE regress_idempotency_app2;
GRANT USAGE ON SCHEMA public TO regress_idempotency_app, regress_idempotency_app2;
GRANT EXECUTE ON FUNCTION idempotent_begin, idempotent_try_begin, idempotent_finish, idempotent_release, idempotent_checkpoint, idempotent_park, idempotent_derive, idempotent_backoff
	TO regress_idempotency_app, regress_idempotency_app2;
SET LOCAL ROLE regress_idempotency_app;
SELECT is(outcome, 'started', 'with EXECUTE alone: begin') FROM idempotent_begin('app', 'k', '{"a": 1}');
SELECT is(current_user, 'regress_idempotency_app'::name, 'who calls stays who it is');
SELECT is(idempotent_finish('app', 'k', '"answer"'), '"answer"', 'finish');
SELECT is(response, '"answer"', 'replay') FROM idempotent_begin('app', 'k', '{"a": 1}');
SELECT is(outcome, 'mismatch', 'mismatch') FROM idempotent_try_begin('app', 'k', '{"a": 2}');
SELECT is(outcome, 'started', 'begin another') FROM idempotent_try_begin('app', 'r');
SELECT is(idempotent_release('app', 'r'), true, 'release');
SELECT is(outcome, 'started', 'begin under lease') FROM idempotent_begin('app', 'l', lease => '1 hour');
SELECT is(idempotent_checkpoint('app', 'l', 1, 'c') > now(), true, 'checkpoint');
SELECT is(idempotent_finish('app', 'l', attempt => 1), NULL, 'finish');
SELECT is(outcome, 'started', 'begin under lease') FROM idempotent_begin('app', 'p', lease => '1 hour');
SELECT is(idempotent_park('app', 'p', 1, 'unknown'), true, 'park');
SELECT is(outcome, 'started', 'begin under lease') FROM idempotent_begin('app', 'q', lease => '1 hour');
SELECT is(idempotent_park('app', 'q', 1, 'unknown'), true, 'park');
SELECT is(left(idempotent_derive('app', 'p', 'charge'), 32), replace(pg_temp.id_of('app', 'p')::text, '-', ''), 'derive');
SELECT is(idempotent_backoff(1), interval '1 min', 'backoff');
SELECT is(current_setting('search_path'), (SELECT reset_val FROM pg_settings WHERE name = 'search_path'), 'search_path is the caller''s again');
SELECT throws_ok(command, '42501', NULL, command) FROM (VALUES
	('TABLE idempotency_keys'),
	('TABLE idempotency_claims'),
	('TABLE idempotency_corrections'),
	('TABLE idempotency_stalled'),
	('INSERT INTO idempotency_keys DEFAULT VALUES'),
	('UPDATE idempotency_keys SET expires_at = ''infinity'''),
	('DELETE FROM idempotency_keys'),
	('DELETE FROM idempotency_claims'),
	('TRUNCATE idempotency_keys'),
	('LOCK idempotency_keys'),
	('SELECT idempotent_prune()'),
	('SELECT idempotent_forget(''app'', ''k'')'),
	('SELECT idempotent_lookup(''app'', ''k'')'),
	('SELECT idempotent_forget_scope(''app'')'),
	('SELECT idempotent_retry(''app'', ''k'', ''1 min'')'),
	('SELECT idempotent_resolve(''app'', ''k'', ''a reason'')'),
	('SELECT idempotent_reconcile(''[]'', ''step'', now())'),
	('SELECT idempotent_resume(''1 min'')')) v(command);

-- SET ROLE between begin and finish.
SELECT is(outcome, 'started', 'begun by one role') FROM idempotent_begin('app', 'two roles');
SET LOCAL ROLE regress_idempotency_app2;
SELECT is(idempotent_finish('app', 'two roles', '"two"'), '"two"', 'finished by another');
SET LOCAL ROLE regress_idempotency_app;
SELECT is(response, '"two"', 'replayed to the first') FROM idempotent_begin('app', 'two roles');
RESET ROLE;

-- Administration is granted on its own.
CREATE ROLE regress_idempotency_admin;
GRANT USAGE ON SCHEMA public TO regress_idempotency_admin;
GRANT EXECUTE ON FUNCTION idempotent_prune, idempotent_forget, idempotent_forget_scope, idempotent_lookup, idempotent_resume, idempotent_retry,
	idempotent_resolve, idempotent_reconcile TO regress_idempotency_admin;
INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
	SELECT gen_random_uuid(), 'old', i::text, 1, now(), now(), now() FROM generate_series(1, 3) i;
SET LOCAL ROLE regress_idempotency_admin;
SELECT is(idempotent_prune(), 3::bigint, 'prune');
SELECT is(outcome, 'replayed', 'lookup') FROM idempotent_lookup('app', 'two roles');
SELECT is(idempotent_forget('app', 'two roles'), true, 'forget');
SELECT is_empty($$SELECT FROM idempotent_resume('1 min')$$, 'resume');
SELECT is((SELECT attempt FROM idempotent_retry('app', 'q', '1 min')), 2, 'retry');
SELECT is(idempotent_resolve('app', 'p', 'a reason', '"paid"', attempt => 1), 'settled', 'resolve a claim');
SELECT is(idempotent_resolve('app', 'p', 'a reason', '"not paid"', attempt => 2, correct => true), 'corrected', 'and a key');
SELECT results_eq($$SELECT verdict, scope, key, response FROM idempotent_reconcile('[]', 'charge', now() - interval '1 min', NULL, 'app') WHERE key = 'p'$$,
	$$VALUES ('missing_there', 'app', 'p', '"not paid"'::jsonb)$$, 'reconcile');
SELECT throws_ok('TABLE idempotency_' || t, '42501', NULL, 'all that without a right on idempotency_' || t) FROM (VALUES ('keys'), ('claims'), ('corrections')) v(t);
SELECT throws_ok($$SELECT idempotent_begin('app', 'k')$$, '42501', NULL, 'but not begin');
RESET ROLE;
SELECT results_eq('SELECT what, corrected_by = session_user FROM idempotency_corrections ORDER BY correction', $$VALUES ('settled', true), ('corrected', true)$$, 'a correction names who logged in');
SET LOCAL ROLE regress_idempotency_admin;
SELECT is(idempotent_forget_scope('old', 1), 0::bigint, 'forget a scope');
SELECT is(idempotent_forget('app', 'p'), true, 'forget what was resolved');
RESET ROLE;

-- Tables of a plain owner, under row security that is forced and shows nothing to anyone.
CREATE ROLE regress_idempotency_owner;
ALTER TABLE idempotency_keys OWNER TO regress_idempotency_owner;
ALTER TABLE idempotency_claims OWNER TO regress_idempotency_owner;
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE idempotency_claims ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY nothing ON idempotency_keys USING (false) WITH CHECK (false);
CREATE POLICY nothing ON idempotency_claims USING (false) WITH CHECK (false);
GRANT SELECT ON idempotency_keys TO regress_idempotency_app;
SET LOCAL ROLE regress_idempotency_app;
SELECT is_empty('TABLE idempotency_keys', 'row security hides every key from the application');
SELECT is(response, '"answer"', 'which is not a free key for that') FROM idempotent_begin('app', 'k', '{"a": 1}');
SELECT is(outcome, 'started', 'begin') FROM idempotent_begin('app', 'rls');
SELECT is(idempotent_finish('app', 'rls', '"rls"'), '"rls"', 'finish');
SELECT is(response, '"rls"', 'replay') FROM idempotent_begin('app', 'rls');
SELECT is(outcome, 'started', 'begin under lease') FROM idempotent_begin('app', 'rls lease', lease => '1 microsecond');
SELECT is(idempotent_release('app', 'rls lease', 1, retry_after => '0'), true, 'release');
SELECT is(outcome || attempt, 'recovered2', 'takeover') FROM idempotent_begin('app', 'rls lease');
SELECT is(idempotent_finish('app', 'rls lease', '1'), '1'::jsonb, 'finish');
RESET ROLE;
SET LOCAL ROLE regress_idempotency_owner;
SELECT is_empty('TABLE idempotency_keys', 'forced, it hides them from the owner too');
RESET ROLE;
UPDATE idempotency_keys SET expires_at = now();
SET LOCAL ROLE regress_idempotency_admin;
SELECT is(idempotent_prune(), 4::bigint, 'prune, too, sees what is there');
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
