-- What every test in sql/ starts from: output that is TAP alone, and the extension new and empty.
\set QUIET on
\set ON_ERROR_STOP on
\set VERBOSITY sqlstate
\pset format unaligned
\pset tuples_only on
\pset pager off
SET client_min_messages = warning;
SET client_encoding = 'UTF8';
DROP EXTENSION IF EXISTS idempotency CASCADE;
CREATE EXTENSION idempotency SCHEMA public;

-- A key's identity, and with it its lock, computed here anew from what the design says.
CREATE FUNCTION pg_temp.id_of(scope text, key text) RETURNS uuid LANGUAGE sql AS $$
	SELECT encode(substring(sha256(int8send(octet_length(b.scope)) || b.scope || b.key) FOR 16), 'hex')::uuid
	FROM (SELECT convert_to(scope, getdatabaseencoding()), convert_to(key, getdatabaseencoding())) b(scope, key)
$$;

-- Does this session hold the key's lock?  30163 is the private class.
CREATE FUNCTION pg_temp.locked(scope text, key text) RETURNS boolean LANGUAGE sql AS $$
	SELECT EXISTS (
		SELECT FROM pg_locks, uuid_send(pg_temp.id_of(scope, key)) id
		WHERE locktype = 'advisory' AND objsubid = 30163 AND mode = 'ExclusiveLock'
		  AND granted AND pid = pg_backend_pid()
		  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		  AND int4send(classid::bigint::bit(32)::int) = substring(id FROM 1 FOR 4)
		  AND int4send(objid::bigint::bit(32)::int) = substring(id FROM 5 FOR 4))
$$;

-- How many advisory locks of whatever kind does this session hold?
CREATE FUNCTION pg_temp.locks() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
$$;
