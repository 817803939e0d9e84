-- No hostile search_path captures a call: not by operators, functions, tables or types, whether plans are old or new.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
BEGIN;
SELECT plan(22);

-- A role that owns operators, functions, tables and types under the names that the extension uses, and puts them first.
-- Whatever runs one of them moves a sequence.
CREATE ROLE regress_idempotency_evil;
CREATE SCHEMA evil AUTHORIZATION regress_idempotency_evil;
GRANT USAGE ON SCHEMA public TO regress_idempotency_evil;
GRANT EXECUTE ON FUNCTION idempotent_begin, idempotent_try_begin, idempotent_finish, idempotent_release, idempotent_checkpoint,
	idempotent_resume, idempotent_lookup, idempotent_forget, idempotent_prune TO regress_idempotency_evil;
GRANT SELECT ON idempotency_keys, idempotency_claims, idempotency_stalled TO regress_idempotency_evil;
SET LOCAL ROLE regress_idempotency_evil;
CREATE SEQUENCE evil.trap;
CREATE FUNCTION evil.sprung() RETURNS boolean LANGUAGE sql AS $$ SELECT is_called FROM evil.trap $$;
SELECT format('CREATE FUNCTION evil.compare(%s, %s) RETURNS boolean LANGUAGE sql AS ''SELECT pg_catalog.nextval(''''evil.trap'''') > 0''', l, r),
	format('CREATE OPERATOR evil.= (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.compare)', l, r),
	format('CREATE OPERATOR evil.<> (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.compare)', l, r),
	format('CREATE OPERATOR evil.< (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.compare)', l, r),
	format('CREATE OPERATOR evil.<= (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.compare)', l, r),
	format('CREATE OPERATOR evil.> (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.compare)', l, r),
	format('CREATE OPERATOR evil.>= (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.compare)', l, r)
FROM (VALUES ('uuid', 'uuid'), ('text', 'text'), ('integer', 'integer'), ('bigint', 'bigint'), ('bytea', 'bytea'), ('jsonb', 'jsonb'),
	('timestamptz', 'timestamptz'), ('interval', 'interval'), ('boolean', 'boolean')) v(l, r) \gexec
CREATE FUNCTION evil.subtract(timestamptz, timestamptz) RETURNS interval LANGUAGE sql AS
	$$ SELECT pg_catalog.make_interval(secs => pg_catalog.nextval('evil.trap')) $$;
CREATE OPERATOR evil.- (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.subtract);
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.to_timestamp(pg_catalog.nextval('evil.trap')) $$;
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.to_timestamp(pg_catalog.nextval('evil.trap')) $$;
CREATE TABLE evil.idempotency_keys (LIKE public.idempotency_keys);
CREATE TABLE evil.idempotency_claims (LIKE public.idempotency_claims);
CREATE TYPE evil.idempotent_attempt AS (nonsense int);
CREATE TYPE evil.idempotent_claim AS (nonsense int);
CREATE DOMAIN evil.uuid AS pg_catalog.text;
CREATE DOMAIN evil.timestamptz AS pg_catalog.text;
CREATE DOMAIN evil.interval AS pg_catalog.text;
CREATE DOMAIN evil.jsonb AS pg_catalog.text;
CREATE TEMP TABLE idempotency_keys (LIKE public.idempotency_keys);
CREATE TEMP TABLE idempotency_claims (LIKE public.idempotency_claims);
-- Every table operation through a function of its own, so that nothing is said with an operator of the test's.
CREATE FUNCTION evil.whole_course(scope pg_catalog.text) RETURNS pg_catalog.text LANGUAGE plpgsql AS $$
DECLARE
	said text := '';
	a public.idempotent_attempt;
BEGIN
	a := public.idempotent_begin(scope, 'k', '{"a": 1}');
	said := pg_catalog.concat(said, a.outcome, a.attempt, ' ');
	PERFORM public.idempotent_finish(scope, 'k', '"k"');
	a := public.idempotent_begin(scope, 'k', '{"a": 1.0}');
	said := pg_catalog.concat(said, a.outcome, a.response, ' ');
	a := public.idempotent_try_begin(scope, 'k', '{"a": 2}');
	said := pg_catalog.concat(said, a.outcome, ' ');
	a := public.idempotent_begin(scope, 'expired', retention => '1 microsecond');
	PERFORM public.idempotent_finish(scope, 'expired');
	a := public.idempotent_begin(scope, 'expired', retention => '1 microsecond');
	said := pg_catalog.concat(said, a.outcome, ' ');
	PERFORM public.idempotent_finish(scope, 'expired');
	said := pg_catalog.concat(said, public.idempotent_prune(), ' ');
	a := public.idempotent_begin(scope, 'r');
	said := pg_catalog.concat(said, public.idempotent_release(scope, 'r'), ' ');
	a := public.idempotent_begin(scope, 'l', lease => '1 hour');
	PERFORM public.idempotent_checkpoint(scope, 'l', 1, 'c', '1', '1 hour');
	PERFORM public.idempotent_release(scope, 'l', 1, 'error', '0');
	SELECT pg_catalog.concat(said, attempt, checkpoint, state, ' ') INTO said FROM public.idempotent_resume('1 hour', 10, scope);
	PERFORM public.idempotent_release(scope, 'l', 2, 'error', '0');
	a := public.idempotent_begin(scope, 'l');
	said := pg_catalog.concat(said, a.outcome, a.attempt, ' ');
	PERFORM public.idempotent_finish(scope, 'l');
	SELECT pg_catalog.concat(said, outcome, attempt, ' ') INTO said FROM public.idempotent_lookup(scope, 'l');
	RETURN pg_catalog.concat(said, public.idempotent_forget(scope, 'l'));
END $$;
\set course 'started1 replayed"k" mismatch started 1 t 2c1 recovered3 replayed3 t'

-- The trap works.
SET LOCAL search_path = evil, pg_catalog, public;
SELECT '{}'::pg_catalog.jsonb = '{}'::pg_catalog.jsonb AS equal \gset
RESET search_path;
SELECT ok(evil.sprung(), 'a hostile operator is taken where the path lets it');
RESET ROLE;
ALTER SEQUENCE evil.trap RESTART;
SELECT ok(NOT evil.sprung(), 'the trap is set again');

-- Plans that are made under the hostile path.
SET LOCAL ROLE regress_idempotency_evil;
SET LOCAL search_path = evil, pg_temp, pg_catalog, public;
SELECT evil.whole_course('new') AS said \gset
RESET search_path;
SELECT is(text :'said', :'course', 'plans made under a hostile path do what they should');
SELECT ok(NOT evil.sprung(), 'and run nothing of it');

-- Plans that were made under another path.
SELECT is(evil.whole_course('old'), :'course', 'with the usual path');
SET LOCAL search_path = evil, pg_temp, pg_catalog, public;
SELECT evil.whole_course('hostile') AS said \gset
RESET search_path;
SELECT is(text :'said', :'course', 'plans made before');
SELECT ok(NOT evil.sprung(), 'run nothing of the path that is there later');

-- Plans that were made under another path, and are parsed again.
DISCARD PLANS;
SET LOCAL search_path = evil, pg_temp, pg_catalog, public;
SELECT evil.whole_course('again') AS said \gset
RESET search_path;
SELECT is(text :'said', :'course', 'plans made before and invalid by now');
SELECT ok(NOT evil.sprung(), 'are not parsed under the hostile path');
RESET ROLE;
ALTER TABLE idempotency_keys SET (fillfactor = 90);
ALTER TABLE idempotency_claims SET (fillfactor = 90);
SET LOCAL ROLE regress_idempotency_evil;
SET LOCAL search_path = evil, pg_temp, pg_catalog, public;
SELECT evil.whole_course('altered') AS said \gset
RESET search_path;
SELECT is(text :'said', :'course', 'nor are those that a change of the table invalidates');
SELECT ok(NOT evil.sprung(), 'run nothing of it either');

-- Hidden names, and none at all.
SET LOCAL search_path = pg_temp, evil;
SELECT evil.whole_course('temporary') AS said \gset
RESET search_path;
SELECT is(text :'said', :'course', 'pg_temp first');
SELECT ok(NOT evil.sprung(), 'captures nothing');
SET LOCAL search_path = '';
SELECT evil.whole_course('empty') AS said \gset
SELECT current_setting('search_path') AS path \gset
RESET search_path;
SELECT is(text :'said', :'course', 'an empty path');
SELECT is(text :'path', '""', 'is as it was after the calls');
SET LOCAL search_path = evil, pg_catalog, public;
SELECT count(*) AS stalled FROM public.idempotency_stalled \gset
RESET search_path;
SELECT ok(NOT evil.sprung(), 'the view captures nothing');

-- Everything went where it belongs.
SELECT is_empty('TABLE evil.idempotency_keys', 'no key went into a table of the same name');
SELECT is_empty('TABLE evil.idempotency_claims', 'no claim');
SELECT is_empty('TABLE pg_temp.idempotency_keys', 'no key into a temporary one');
SELECT is_empty('TABLE pg_temp.idempotency_claims', 'no claim');
SELECT results_eq('SELECT scope, key FROM public.idempotency_keys ORDER BY scope COLLATE "C"',
	$$VALUES ('again', 'k'), ('altered', 'k'), ('empty', 'k'), ('hostile', 'k'), ('new', 'k'), ('old', 'k'), ('temporary', 'k')$$,
	'they are in the extension''s own');
SELECT is_empty('TABLE public.idempotency_claims', 'and so were the claims');
RESET ROLE;
SELECT * FROM finish();
ROLLBACK;
