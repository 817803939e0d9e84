/* idempotency 1.0: the objects.  The protocol is told in idempotency.c. */

\echo Use "CREATE EXTENSION idempotency" to load this file. \quit

-- Tables -------------------------------------------------------------------

-- Rows are inserted, never updated, and pruned after expires_at.
CREATE TABLE @extschema@.idempotency_keys (
	id				uuid NOT NULL CONSTRAINT idempotency_keys_pkey PRIMARY KEY,
	scope			text NOT NULL,
	key				text NOT NULL,
	fingerprint		bytea,
	attempt			integer NOT NULL,
	status			integer,
	headers			jsonb,
	response		jsonb,
	body			bytea,
	first_seen_at	timestamptz NOT NULL,
	finished_at		timestamptz NOT NULL,
	expires_at		timestamptz NOT NULL,
	failed			boolean
);

-- Keys expire in about the order they came, which is what BRIN is for.
CREATE INDEX idempotency_keys_expires_at_idx
	ON @extschema@.idempotency_keys
	USING brin (expires_at) WITH (pages_per_range = 32);

-- Small and often updated: room for updates in place, no index but the key's.
CREATE TABLE @extschema@.idempotency_claims (
	id				uuid NOT NULL CONSTRAINT idempotency_claims_pkey PRIMARY KEY,
	scope			text NOT NULL,
	key				text NOT NULL,
	fingerprint		bytea,
	request			jsonb,
	attempt			integer NOT NULL,
	checkpoint		text,
	state			jsonb,
	last_error		text,
	retention		interval NOT NULL,
	lease			interval NOT NULL,
	first_seen_at	timestamptz NOT NULL,
	claimed_at		timestamptz NOT NULL,
	lease_until		timestamptz NOT NULL,
	retry_at		timestamptz
) WITH (fillfactor = 50);

-- Keys and claims are data: they go where the work goes.
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idempotency_keys', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idempotency_claims', '');

COMMENT ON TABLE @extschema@.idempotency_keys IS
	'Finished idempotency keys and their responses. Written by the idempotent_* functions only.';
COMMENT ON COLUMN @extschema@.idempotency_keys.id IS
	'First 128 bits of SHA-256 over the scope''s length, the scope and the key.';
COMMENT ON COLUMN @extschema@.idempotency_keys.fingerprint IS
	'What was asked for: a byte that names the form, and the digest.';
COMMENT ON COLUMN @extschema@.idempotency_keys.expires_at IS
	'When the key stops being honoured: first_seen_at plus its retention.';
COMMENT ON COLUMN @extschema@.idempotency_keys.failed IS
	'True if the response tells an error that idempotent_call remembered; null otherwise.';
COMMENT ON INDEX @extschema@.idempotency_keys_expires_at_idx IS
	'How idempotent_prune finds what has expired.';
COMMENT ON TABLE @extschema@.idempotency_claims IS
	'Idempotency keys under lease whose work is not finished. Written by the idempotent_* functions only.';
COMMENT ON COLUMN @extschema@.idempotency_claims.attempt IS
	'Number of the attempt that holds the claim: the fencing token.';
COMMENT ON COLUMN @extschema@.idempotency_claims.lease IS
	'How long a lease of this attempt is; a checkpoint renews it by this.';
COMMENT ON COLUMN @extschema@.idempotency_claims.retry_at IS
	'Set when the attempt was released: when idempotent_resume hands the claim out again.';

-- Claims whose lease has ended, for whoever is on call.
CREATE VIEW @extschema@.idempotency_stalled AS
	SELECT c.scope,
		   c.key,
		   c.attempt AS attempts,
		   c.checkpoint,
		   c.last_error,
		   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) c.first_seen_at AS age,
		   pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) c.lease_until AS stalled_for,
		   COALESCE(c.retry_at, c.lease_until) AS due_at,
		   c.first_seen_at,
		   c.lease_until
	FROM @extschema@.idempotency_claims c
	WHERE c.lease_until OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp();

COMMENT ON VIEW @extschema@.idempotency_stalled IS
	'Claims whose lease has ended: how old, how many attempts, where they stopped, why, and when idempotent_resume hands them out.';

-- Types --------------------------------------------------------------------

CREATE TYPE @extschema@.idempotent_attempt AS (
	outcome			text,
	replayed		boolean,
	attempt			integer,
	status			integer,
	headers			jsonb,
	response		jsonb,
	body			bytea,
	checkpoint		text,
	state			jsonb,
	first_seen_at	timestamptz,
	finished_at		timestamptz,
	expires_at		timestamptz,
	retry_after		integer
);

CREATE TYPE @extschema@.idempotent_claim AS (
	scope			text,
	key				text,
	attempt			integer,
	request			jsonb,
	checkpoint		text,
	state			jsonb,
	first_seen_at	timestamptz,
	lease_until		timestamptz
);

COMMENT ON TYPE @extschema@.idempotent_attempt IS
	'What begin says: outcome is started, replayed, recovered, in_progress, mismatch or expired (from idempotent_call also executed or failed); retry_after is in seconds.';
COMMENT ON TYPE @extschema@.idempotent_claim IS
	'A claim that idempotent_resume hands out, with what is needed to go on.';

-- Functions ----------------------------------------------------------------
-- None is STRICT: a NULL key is an error, never a NULL answer.

CREATE FUNCTION @extschema@.idempotent_begin(
	scope text, key text,
	request jsonb DEFAULT NULL, fingerprint bytea DEFAULT NULL,
	retention interval DEFAULT NULL, first_sent timestamptz DEFAULT NULL,
	lease interval DEFAULT NULL)
	RETURNS @extschema@.idempotent_attempt
	AS 'MODULE_PATHNAME', 'idempotent_begin'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_try_begin(
	scope text, key text,
	request jsonb DEFAULT NULL, fingerprint bytea DEFAULT NULL,
	retention interval DEFAULT NULL, first_sent timestamptz DEFAULT NULL,
	lease interval DEFAULT NULL)
	RETURNS @extschema@.idempotent_attempt
	AS 'MODULE_PATHNAME', 'idempotent_try_begin'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_finish(
	scope text, key text,
	response jsonb DEFAULT NULL, status integer DEFAULT NULL,
	headers jsonb DEFAULT NULL, body bytea DEFAULT NULL,
	attempt integer DEFAULT NULL)
	RETURNS jsonb
	AS 'MODULE_PATHNAME', 'idempotent_finish'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_release(
	scope text, key text,
	attempt integer DEFAULT NULL, error text DEFAULT NULL,
	retry_after interval DEFAULT NULL)
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'idempotent_release'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_checkpoint(
	scope text, key text, attempt integer, checkpoint text,
	state jsonb DEFAULT NULL, lease interval DEFAULT NULL)
	RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'idempotent_checkpoint'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_resume(
	lease interval, max_keys integer DEFAULT 1, scope text DEFAULT NULL)
	RETURNS SETOF @extschema@.idempotent_claim
	AS 'MODULE_PATHNAME', 'idempotent_resume'
	LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1;

CREATE FUNCTION @extschema@.idempotent_backoff(
	attempt integer, base interval DEFAULT '1 minute',
	cap interval DEFAULT '1 hour', jitter double precision DEFAULT 0)
	RETURNS interval
	AS 'MODULE_PATHNAME', 'idempotent_backoff'
	LANGUAGE C VOLATILE PARALLEL RESTRICTED;

CREATE FUNCTION @extschema@.idempotent_call(
	scope text, key text, command text,
	args jsonb DEFAULT NULL, request jsonb DEFAULT NULL,
	retention interval DEFAULT NULL, remember_errors boolean DEFAULT false)
	RETURNS @extschema@.idempotent_attempt
	AS 'MODULE_PATHNAME', 'idempotent_call'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_begin_many(
	scope text, keys text[], retention interval DEFAULT NULL)
	RETURNS SETOF text
	AS 'MODULE_PATHNAME', 'idempotent_begin_many'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_finish_many(scope text, keys text[])
	RETURNS bigint
	AS 'MODULE_PATHNAME', 'idempotent_finish_many'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_lookup(scope text, key text)
	RETURNS SETOF @extschema@.idempotent_attempt
	AS 'MODULE_PATHNAME', 'idempotent_lookup'
	LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1;

CREATE FUNCTION @extschema@.idempotent_forget(scope text, key text)
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'idempotent_forget'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_prune(max_keys integer DEFAULT 10000)
	RETURNS bigint
	AS 'MODULE_PATHNAME', 'idempotent_prune'
	LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.idempotent_stats(
	OUT started bigint, OUT replayed bigint, OUT waited bigint,
	OUT in_progress bigint, OUT mismatches bigint, OUT expired bigint,
	OUT finished bigint, OUT released bigint, OUT executed bigint,
	OUT failed bigint, OUT recovered bigint, OUT overtaken bigint,
	OUT pruned bigint, OUT guard_failures bigint, OUT stats_reset timestamptz)
	AS 'MODULE_PATHNAME', 'idempotent_stats'
	LANGUAGE C VOLATILE PARALLEL SAFE;

CREATE FUNCTION @extschema@.idempotent_stats_reset()
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'idempotent_stats_reset'
	LANGUAGE C VOLATILE PARALLEL SAFE;

COMMENT ON FUNCTION @extschema@.idempotent_begin(text, text, jsonb, bytea, interval, timestamptz, interval) IS
	'Begin an attempt on a key, waiting while another transaction holds it: started, recovered, or replayed with the stored response. Raises IK409, IK412, IK422.';
COMMENT ON FUNCTION @extschema@.idempotent_try_begin(text, text, jsonb, bytea, interval, timestamptz, interval) IS
	'Like idempotent_begin, but never waits: in_progress, mismatch and expired come back as outcomes.';
COMMENT ON FUNCTION @extschema@.idempotent_finish(text, text, jsonb, integer, jsonb, bytea, integer) IS
	'Finish the attempt with its response, which is stored with the key and returned. A lease is finished by its attempt number.';
COMMENT ON FUNCTION @extschema@.idempotent_release(text, text, integer, text, interval) IS
	'Give the attempt up and free the key; false if this transaction has no attempt on it. For a lease, keeps the error and the time of the next try.';
COMMENT ON FUNCTION @extschema@.idempotent_checkpoint(text, text, integer, text, jsonb, interval) IS
	'Record the point that work under lease has reached and its state, and renew the lease; returns when it now ends.';
COMMENT ON FUNCTION @extschema@.idempotent_resume(interval, integer, text) IS
	'Take over claims that are stalled or due for another try, each under a new lease and attempt number.';
COMMENT ON FUNCTION @extschema@.idempotent_backoff(integer, interval, interval, double precision) IS
	'How long to wait after this attempt: base doubled for each attempt before it, at most cap; jitter is the share, 0 to 1, that is random.';
COMMENT ON FUNCTION @extschema@.idempotent_call(text, text, text, jsonb, jsonb, interval, boolean) IS
	'Run a command at most once, as the caller, and store what it returned: executed, replayed, or with remember_errors failed.';
COMMENT ON FUNCTION @extschema@.idempotent_begin_many(text, text[], interval) IS
	'Begin an attempt on each key of a batch that is new, waiting for those in flight; returns these, without duplicates.';
COMMENT ON FUNCTION @extschema@.idempotent_finish_many(text, text[]) IS
	'Finish the attempts that this transaction began on these keys; returns how many.';
COMMENT ON FUNCTION @extschema@.idempotent_lookup(text, text) IS
	'What begin would meet now; no row where it would start. Neither waits nor writes.';
COMMENT ON FUNCTION @extschema@.idempotent_forget(text, text) IS
	'Drop a key or claim, finished or not; false if there is none.';
COMMENT ON FUNCTION @extschema@.idempotent_prune(integer) IS
	'Remove at most max_keys expired keys, passing over those in use; returns how many.';

COMMENT ON FUNCTION @extschema@.idempotent_stats() IS
	'The counters that idempotency_stats shows.';
COMMENT ON FUNCTION @extschema@.idempotent_stats_reset() IS
	'Set this database''s counters to zero.';

-- Monitoring ---------------------------------------------------------------

CREATE VIEW @extschema@.idempotency_stats AS
	SELECT started, replayed, waited, in_progress, mismatches, expired,
		   finished, released, executed, failed, recovered, overtaken,
		   pruned, guard_failures, stats_reset
	FROM @extschema@.idempotent_stats();

COMMENT ON VIEW @extschema@.idempotency_stats IS
	'What happened to keys in this database since stats_reset, counted when it happened, in transactions that rolled back too.';

-- The lock's fields hold 64 bits of the key's id; 30163 is the lock's class
-- (src/keylock.h).  A key under lease can be named, one in its first
-- transaction is written nowhere yet.
CREATE VIEW @extschema@.idempotency_in_flight AS
	SELECT l.pid,
		   NOT l.granted AS waiting,
		   COALESCE(l.waitstart, a.xact_start) AS since,
		   c.id,
		   c.scope,
		   c.key,
		   l.id_prefix,
		   a.usename,
		   a.application_name,
		   a.state,
		   a.query
	FROM (SELECT pid, granted, waitstart,
				 pg_catalog.lpad(pg_catalog.to_hex(classid::pg_catalog.int8), 8, '0')
				 OPERATOR(pg_catalog.||)
				 pg_catalog.lpad(pg_catalog.to_hex(objid::pg_catalog.int8), 8, '0') AS id_prefix
		  FROM pg_catalog.pg_locks
		  WHERE locktype OPERATOR(pg_catalog.=) 'advisory'
		  AND objsubid OPERATOR(pg_catalog.=) 30163::pg_catalog.int2
		  AND database OPERATOR(pg_catalog.=)
			  (SELECT oid FROM pg_catalog.pg_database
			   WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())) l
	LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
	LEFT JOIN @extschema@.idempotency_claims c
		ON pg_catalog.left(pg_catalog.replace(c.id::pg_catalog.text, '-', ''), 16)
		   OPERATOR(pg_catalog.=) l.id_prefix;

COMMENT ON VIEW @extschema@.idempotency_in_flight IS
	'Who holds or waits for a key right now. pid is null for a prepared transaction; scope and key are known for keys under lease.';

-- Privileges ---------------------------------------------------------------
-- Nothing is for PUBLIC, whatever the default privileges here say.

REVOKE ALL ON TABLE @extschema@.idempotency_keys FROM PUBLIC;
REVOKE ALL ON TABLE @extschema@.idempotency_claims FROM PUBLIC;
REVOKE ALL ON TABLE @extschema@.idempotency_stalled FROM PUBLIC;
REVOKE ALL ON TYPE @extschema@.idempotent_attempt FROM PUBLIC;
REVOKE ALL ON TYPE @extschema@.idempotent_claim FROM PUBLIC;
REVOKE ALL ON FUNCTION
	@extschema@.idempotent_begin(text, text, jsonb, bytea, interval, timestamptz, interval),
	@extschema@.idempotent_try_begin(text, text, jsonb, bytea, interval, timestamptz, interval),
	@extschema@.idempotent_finish(text, text, jsonb, integer, jsonb, bytea, integer),
	@extschema@.idempotent_release(text, text, integer, text, interval),
	@extschema@.idempotent_checkpoint(text, text, integer, text, jsonb, interval),
	@extschema@.idempotent_resume(interval, integer, text),
	@extschema@.idempotent_backoff(integer, interval, interval, double precision),
	@extschema@.idempotent_call(text, text, text, jsonb, jsonb, interval, boolean),
	@extschema@.idempotent_begin_many(text, text[], interval),
	@extschema@.idempotent_finish_many(text, text[]),
	@extschema@.idempotent_lookup(text, text),
	@extschema@.idempotent_forget(text, text),
	@extschema@.idempotent_prune(integer),
	@extschema@.idempotent_stats(),
	@extschema@.idempotent_stats_reset()
	FROM PUBLIC;
REVOKE ALL ON TABLE @extschema@.idempotency_stats FROM PUBLIC;
REVOKE ALL ON TABLE @extschema@.idempotency_in_flight FROM PUBLIC;

-- A view runs its functions as whoever reads it.
GRANT EXECUTE ON FUNCTION @extschema@.idempotent_stats() TO pg_monitor;
GRANT SELECT ON TABLE
	@extschema@.idempotency_stats,
	@extschema@.idempotency_in_flight,
	@extschema@.idempotency_stalled
	TO pg_monitor;
