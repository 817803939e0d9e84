-- What the script makes, from the catalogs: whose it is, who may use it, how its functions are labelled.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(9);
CREATE TEMP VIEW functions AS SELECT p.* FROM pg_proc p
	WHERE p.pronamespace = 'public'::regnamespace AND p.proname ~ '^idempotent_';
CREATE TEMP VIEW relations AS SELECT c.* FROM pg_class c
	WHERE c.relnamespace = 'public'::regnamespace AND c.relname ~ '^idempotency_' AND c.relkind IN ('r', 'v', 'S');
SELECT cmp_ok(count(*), '>=', 22::bigint, 'there are functions to look at') FROM functions;
SELECT is_empty($$SELECT proname FROM functions WHERE proname !~ '__' AND NOT prosecdef AND prorettype <> 'trigger'::regtype$$,
	'every function is SECURITY DEFINER: the application has no right on the tables');
SELECT is_empty($$SELECT proname FROM functions WHERE prosecdef AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(proconfig, '{}'))$$,
	'with a search_path that ends in pg_temp');
SELECT is_empty($$SELECT proname FROM functions WHERE proisstrict$$, 'none is STRICT');
SELECT is_empty($$SELECT proname FROM functions WHERE obj_description(oid, 'pg_proc') IS NULL$$, 'each has a comment');
SELECT is_empty($$SELECT proname, a.grantee::regrole FROM functions p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
	WHERE a.grantee <> p.proowner AND NOT (p.proname = 'idempotent_stats' AND a.grantee = 'pg_monitor'::regrole)$$,
	'no function is granted to anybody');
SELECT is_empty($$SELECT relname, a.grantee::regrole FROM relations c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
	WHERE a.grantee <> c.relowner AND NOT (c.relkind = 'v' AND a.grantee = 'pg_monitor'::regrole AND a.privilege_type = 'SELECT')$$,
	'and no table');
SELECT results_eq(
	$$SELECT conname::text COLLATE "default", pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'idempotency_keys'::regclass AND contype = 'p'$$,
	$$VALUES ('idempotency_keys_pkey', 'PRIMARY KEY (id)')$$, 'the promise rests on the primary key');
SELECT is((SELECT attname::text FROM pg_attribute WHERE attrelid = 'idempotency_keys'::regclass ORDER BY attnum DESC LIMIT 1), 'xid',
	'whose an unfinished row is stands in the last column');
SELECT * FROM finish();
ROLLBACK;
