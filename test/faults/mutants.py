# Mistakes that the machine must find: each is made in a database of its own, none in the product.
#
# A schema in front of the extension's own on the search_path holds functions of the same names. Those of the begin and
# finish of one transaction are the protocol written down in SQL, so that one part of it can be left out; without a
# mistake they must be found right, or a finding would say nothing of the mistake. They hold in READ COMMITTED alone.

PROTOCOL = """
CREATE SCHEMA mutant;
CREATE FUNCTION mutant.mistake() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT '{mistake}' $$;

CREATE FUNCTION mutant.id(scope text, key text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
	SELECT encode(set_bit(substr(sha256(int8send(octet_length(scope)) || convert_to(scope, 'UTF8')
										|| convert_to(key, 'UTF8')), 1, 16), 7, 0), 'hex')::uuid
$$;
CREATE FUNCTION mutant.number(scope text, key text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
	SELECT ('x' || left(replace(mutant.id(scope, key)::text, '-', ''), 16))::bit(64)::bigint
$$;

CREATE FUNCTION mutant.stored(scope text, key text) RETURNS idem.idempotent_attempt
	LANGUAGE plpgsql SECURITY DEFINER AS $$
#variable_conflict use_variable
DECLARE
	result idem.idempotent_attempt;
BEGIN
	SELECT 'replayed', true, k.attempt, k.status, k.headers, k.response
		INTO result.outcome, result.replayed, result.attempt, result.status, result.headers, result.response
		FROM idem.idempotency_keys k WHERE k.id = mutant.id(scope, key) AND expires_at > clock_timestamp();
	RETURN result;
END $$;

CREATE FUNCTION mutant.idempotent_begin(
	scope text, key text, request jsonb DEFAULT NULL, fingerprint bytea DEFAULT NULL, retention interval DEFAULT NULL,
	first_sent timestamptz DEFAULT NULL, lease interval DEFAULT NULL) RETURNS idem.idempotent_attempt
	LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
	result idem.idempotent_attempt := mutant.stored(scope, key);
BEGIN
	IF mutant.mistake() = 'session-level lock under PgBouncer' THEN
		PERFORM pg_advisory_lock(mutant.number(scope, key));
	ELSIF mutant.mistake() <> 'no lock' THEN
		PERFORM pg_advisory_xact_lock(mutant.number(scope, key));
	END IF;
	IF mutant.mistake() NOT IN ('no lock', 'a waiter that does not read again') THEN
		result := mutant.stored(scope, key);
	END IF;
	IF result.outcome IS NULL THEN
		result.outcome := 'started';
		result.attempt := 1;
	END IF;
	RETURN result;
END $$;

CREATE FUNCTION mutant.idempotent_finish(
	scope text, key text, response jsonb DEFAULT NULL, status integer DEFAULT NULL, headers jsonb DEFAULT NULL,
	body bytea DEFAULT NULL, attempt integer DEFAULT NULL, retention interval DEFAULT NULL, body_text text DEFAULT NULL)
	RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	INSERT INTO idem.idempotency_keys (id, scope, key, attempt, status, response, first_seen_at, finished_at, expires_at)
		VALUES (mutant.id(scope, key), scope, key, 1, status, response, now(), now(), now() + '1 day')
		ON CONFLICT DO NOTHING;
	RETURN response;
END $$;

-- What an application does that has taken a session-level lock, after its COMMIT.
CREATE FUNCTION mutant.unlock(scope text, key text) RETURNS boolean LANGUAGE sql AS $$
	SELECT pg_advisory_unlock(mutant.number(scope, key))
$$;
"""

UNFENCED = """
CREATE SCHEMA mutant;
CREATE FUNCTION mutant.idempotent_finish(
	scope text, key text, response jsonb DEFAULT NULL, status integer DEFAULT NULL, headers jsonb DEFAULT NULL,
	body bytea DEFAULT NULL, attempt integer DEFAULT NULL, retention interval DEFAULT NULL, body_text text DEFAULT NULL)
	RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
	current integer;
BEGIN
	-- Whichever attempt is the key's finishes it, whoever calls; and what is finished already counts as done.
	SELECT c.attempt INTO current FROM idem.idempotency_claims c
		WHERE c.scope = idempotent_finish.scope AND c.key = idempotent_finish.key;
	IF NOT FOUND AND attempt IS NOT NULL THEN
		RETURN response;
	END IF;
	RETURN idem.idempotent_finish(scope, key, response, status, headers, body,
								  CASE WHEN attempt IS NOT NULL THEN current END);
END $$;
"""

PRUNE = """
CREATE SCHEMA mutant;
CREATE FUNCTION mutant.idempotent_prune(max_keys integer) RETURNS bigint LANGUAGE sql AS $$
	WITH pruned AS (DELETE FROM idem.idempotency_keys WHERE id IN (
		SELECT id FROM idem.idempotency_keys ORDER BY expires_at LIMIT max_keys FOR UPDATE SKIP LOCKED) RETURNING 1)
	SELECT count(*) FROM pruned
$$;
"""

# What conflicts counts as known, be it expired.
BATCH = """
CREATE SCHEMA mutant;
CREATE FUNCTION mutant.idempotent_begin_many(scope text, keys text[], retention interval DEFAULT NULL)
	RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS $$
	INSERT INTO idem.idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
	SELECT encode(set_bit(substr(sha256(int8send(octet_length(scope)) || convert_to(scope, 'UTF8')
										|| convert_to(k, 'UTF8')), 1, 16), 7, 0), 'hex')::uuid,
		   scope, k, 1, clock_timestamp(), clock_timestamp(), clock_timestamp() + coalesce(retention, '1 day')
	FROM (SELECT DISTINCT k FROM unnest(keys) k ORDER BY k) AS k
	ON CONFLICT DO NOTHING RETURNING key
$$;
CREATE FUNCTION mutant.idempotent_finish_many(scope text, keys text[]) RETURNS bigint LANGUAGE sql AS $$
	SELECT cardinality(keys)::bigint
$$;
"""

ONE_TRANSACTION = ("procedure", "READ COMMITTED")


TWICE = ("work was done twice",)
# A key that went before its time. The work is done twice when its client asks again, which not every one still does.
GONE = ("work without its key",)


class Mutant:
    """expected: what the machine must find, one of these; nothing if the variant is right."""

    def __init__(self, name, sql, modes, expected, faults=(), pooled=0.3, stalls=0.01, seconds=15, patience=10,
                 unlock=False, inbox=False):
        self.name, self.sql, self.modes, self.expected, self.faults = name, sql, modes, expected, faults
        self.pooled, self.stalls, self.seconds, self.patience, self.unlock = pooled, stalls, seconds, patience, unlock
        self.inbox = inbox


def protocol(name, *more, **settings):
    return Mutant(name, PROTOCOL.replace("{mistake}", name), *more, **settings)


MUTANTS = (
    protocol("no mistake, the protocol in SQL", ONE_TRANSACTION, (), ("terminate", "kill -9"), seconds=4,
             patience=60),
    Mutant("key committed apart from the work", "", ("key apart",), ("a key without its work",), ("terminate",),
           seconds=3),
    protocol("no lock", ONE_TRANSACTION, TWICE),
    protocol("a waiter that does not read again", ONE_TRANSACTION, TWICE),
    protocol("session-level lock under PgBouncer", ("READ COMMITTED",),
             TWICE + ("a key is stuck", "a lock is left"), pooled=1.0, seconds=3, patience=3, unlock=True),
    Mutant("finish without fencing", UNFENCED, ("lease",), TWICE, stalls=0.2),
    Mutant("UNLOGGED keys table", PROTOCOL.replace("{mistake}", "none") + "ALTER TABLE idem.idempotency_keys SET UNLOGGED;",
           ONE_TRANSACTION, GONE + TWICE, ("kill -9",)),
    Mutant("a batch that takes expired keys for known", BATCH, ONE_TRANSACTION, ("a message was lost",), inbox=True),
    Mutant("prune that ignores expiry", PRUNE, ONE_TRANSACTION, GONE + TWICE),
)
