-- No statement of the extension is compiled just in time, which would cost more than all it does.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
-- A session that has not compiled anything yet.
\c -
SET client_min_messages = warning;
SET jit = on;
SELECT count(*) FROM idempotent_resume('1 min', 10) \g /dev/null
SELECT outcome FROM idempotent_begin('s', 'l', lease => '1 microsecond') \g /dev/null
SELECT count(*) FROM idempotent_resume('1 microsecond', 10) \g /dev/null
SELECT idempotent_finish('s', 'l', attempt => 2) \g /dev/null
SELECT count(*) FROM idempotent_lookup('s', 'l') \g /dev/null
SELECT idempotent_prune() \g /dev/null
SELECT plan(1);
-- The compiler is loaded into a session when it is first used.  Where /proc is not there this tells nothing.
SELECT unalike(coalesce(pg_read_file('/proc/self/maps', 0, 1000000, true), ''), '%llvmjit%', 'the compiler is not loaded');
SELECT * FROM finish();
