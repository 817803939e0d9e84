-- A role for postgres_exporter that can run queries.yaml and nothing more: psql -d shop -f monitoring/role.sql
--
-- Run it once in each database that has the extension or the SQL edition, as the superuser or as an administrator who may grant
-- pg_read_all_stats and owns the objects. It may be run again. Variables, each with -v:
--   role     the role, idempotency_exporter by default. It is created if it does not exist. Debian's exporter runs as the user
--            prometheus, so that a role of this name needs no password on the local socket.
--   schema   where the views are. It is needed only if several schemas have them.
--
-- The role cannot read scopes, keys, requests or responses. pg_read_all_stats tells it when other sessions began, and with that also
-- lets it read their statements in pg_stat_activity.
\set ON_ERROR_STOP on
\set QUIET on
\if :{?role}
\else
	\set role idempotency_exporter
\endif
\if :{?schema}
\else
	SELECT n.nspname AS schema
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relname = 'idempotency_in_flight' AND c.relkind = 'v' \gset
\endif
SELECT current_database() AS database \gset

BEGIN;
SET LOCAL client_min_messages = warning;

-- A scrape that hangs must not hold anything for long.
SELECT format('CREATE ROLE %I LOGIN', :'role'),
	   format('ALTER ROLE %I SET statement_timeout = ''10s''', :'role'),
	   format('ALTER ROLE %I SET lock_timeout = ''2s''', :'role'),
	   format('ALTER ROLE %I SET default_transaction_read_only = on', :'role')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec

GRANT pg_read_all_stats TO :"role";
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT EXECUTE ON FUNCTION :"schema".idempotent_stats() TO :"role";
GRANT SELECT ON :"schema".idempotency_stats TO :"role";
GRANT SELECT (attempts, due_at, parked) ON :"schema".idempotency_stalled TO :"role";
GRANT SELECT (pid, waiting, since, id_suffix) ON :"schema".idempotency_in_flight TO :"role";
GRANT SELECT (expires_at) ON :"schema".idempotency_keys TO :"role";
ALTER ROLE :"role" IN DATABASE :"database" SET search_path = :"schema", "$user", public;

COMMIT;
