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

-- The milliseconds inside a UUIDv7 or a ULID, null for any other key.
CREATE FUNCTION pg_temp.millis_of(key text) RETURNS bigint LANGUAGE sql AS $$
	SELECT CASE
		WHEN key ~* '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' THEN
			('x' || lpad(left(replace(key, '-', ''), 12), 16, '0'))::bit(64)::bigint
		WHEN key ~* '^[0-7][0-9a-hjkmnp-tv-z]{25}$' THEN
			(SELECT sum((strpos('0123456789abcdefghjkmnpqrstvwxyz', lower(substr(key, i, 1))) - 1)::bigint << (5 * (10 - i)))::bigint
			 FROM generate_series(1, 10) i)
	END
$$;

-- A key's identity, and with it its lock, computed here anew from what the design says.
CREATE FUNCTION pg_temp.id_of(scope text, key text) RETURNS uuid LANGUAGE sql AS $$
	SELECT CASE WHEN m IS NULL
		THEN encode(set_bit(substring(digest FOR 16), 7, 0), 'hex')::uuid
		ELSE encode(set_bit(substring(int8send(m) FROM 3), 7, 1) || substring(digest FROM 7 FOR 10), 'hex')::uuid
	END
	FROM (SELECT sha256(int8send(octet_length(convert_to(scope, 'UTF8'))) || convert_to(scope, 'UTF8') || convert_to(key, 'UTF8')),
		pg_temp.millis_of(key)) x(digest, m)
$$;

-- Does this session hold the key's lock?  30163 is the private class.
CREATE FUNCTION pg_temp.locked(scope text, key text) RETURNS boolean LANGUAGE sql AS $$
	SELECT EXISTS (
		SELECT FROM pg_locks, uuid_send(pg_temp.id_of(scope, key)) id
		WHERE locktype = 'advisory' AND objsubid = 30163 AND mode = 'ExclusiveLock'
		  AND granted AND pid = pg_backend_pid()
		  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		  AND int4send(classid::bigint::bit(32)::int) = substring(id FROM 9 FOR 4)
		  AND int4send(objid::bigint::bit(32)::int) = substring(id FROM 13 FOR 4))
$$;

-- Is a key kept for its retention?  Expiry is rounded up by less than 1/256 of it.
CREATE FUNCTION pg_temp.about(kept interval, retention interval) RETURNS boolean LANGUAGE sql AS $$
	SELECT kept >= retention AND kept < retention * (1 + 1 / 256.0)
$$;

-- How many advisory locks of whatever kind does this session hold?
CREATE FUNCTION pg_temp.locks() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
$$;

-- The lease of a key ends, without anyone waiting for that.
CREATE FUNCTION pg_temp.end_lease(key text) RETURNS text LANGUAGE sql AS $$
	UPDATE idempotency_claims c SET lease_until = clock_timestamp() WHERE c.key = end_lease.key RETURNING 'ended'
$$;

-- How a command ends, undone if it fails.
CREATE FUNCTION pg_temp.sqlstate_of(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
