-- The contenders: the same charge, protected in different ways. Each keeps a key, a 30-character scope and a response of
-- about a hundred bytes, and finds what has expired through the same index, the cheapest that there is.
CREATE EXTENSION idempotency;

CREATE TABLE charges (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account text NOT NULL,
	amount bigint NOT NULL,
	created_at timestamptz NOT NULL DEFAULT now()
);

-- The work: one INSERT of business data, and what the client is told.
CREATE FUNCTION work() RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	charge bigint;
BEGIN
	INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id INTO charge;
	RETURN jsonb_build_object('id', charge, 'object', 'charge', 'status', 'succeeded', 'amount', 2000, 'currency', 'eur');
END $$;

-- No protection: the floor.
CREATE FUNCTION pay_none(key text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN work();
END $$;

-- One bare INSERT more: what a durable record costs at the least. Protects from nothing.
CREATE TABLE bare (
	id uuid PRIMARY KEY, scope text NOT NULL, key text NOT NULL, fingerprint bytea, attempt int NOT NULL, status int,
	headers jsonb, response jsonb, body bytea,
	first_seen_at timestamptz NOT NULL, finished_at timestamptz NOT NULL, expires_at timestamptz NOT NULL
);
CREATE INDEX ON bare USING brin (expires_at) WITH (pages_per_range = 32);
CREATE FUNCTION pay_bare(key text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	response jsonb;
BEGIN
	response := work();
	INSERT INTO bare (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
		VALUES (key::uuid, 'acct_42 POST /v1/charges (eur)', key, 1, response, now(), now(), now() + interval '24 hours');
	RETURN response;
END $$;

-- Written by hand, as most applications do: INSERT ... ON CONFLICT DO NOTHING, work, UPDATE.
CREATE TABLE by_hand (
	scope text NOT NULL, key text NOT NULL, response jsonb,
	created_at timestamptz NOT NULL DEFAULT now(), expires_at timestamptz NOT NULL,
	PRIMARY KEY (scope, key)
);
CREATE INDEX ON by_hand USING brin (expires_at) WITH (pages_per_range = 32);
CREATE FUNCTION pay_by_hand(k text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	answer jsonb;
BEGIN
	INSERT INTO by_hand (scope, key, expires_at)
		VALUES ('acct_42 POST /v1/charges (eur)', k, now() + interval '24 hours') ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		SELECT response INTO answer FROM by_hand WHERE scope = 'acct_42 POST /v1/charges (eur)' AND key = k;
		RETURN answer;
	END IF;
	answer := work();
	UPDATE by_hand SET response = answer WHERE scope = 'acct_42 POST /v1/charges (eur)' AND key = k;
	RETURN answer;
END $$;

-- Advisory lock, SELECT, INSERT: right in READ COMMITTED, stale in REPEATABLE READ.
CREATE TABLE by_lock (LIKE by_hand INCLUDING ALL);
CREATE FUNCTION pay_by_lock(k text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	answer jsonb;
BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended('acct_42 POST /v1/charges (eur)' || k, 0));
	SELECT response INTO answer FROM by_lock WHERE scope = 'acct_42 POST /v1/charges (eur)' AND key = k;
	IF FOUND THEN
		RETURN answer;
	END IF;
	answer := work();
	INSERT INTO by_lock (scope, key, response, expires_at)
		VALUES ('acct_42 POST /v1/charges (eur)', k, answer, now() + interval '24 hours');
	RETURN answer;
END $$;

-- This extension, in the procedure, and around it.
CREATE FUNCTION pay_idempotency(key text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	attempt idempotent_attempt := idempotent_begin('acct_42 POST /v1/charges (eur)', key);
BEGIN
	IF attempt.replayed THEN
		RETURN attempt.response;
	END IF;
	RETURN idempotent_finish('acct_42 POST /v1/charges (eur)', key, work());
END $$;
-- PL/pgSQL like the others: a function in SQL would be parsed and planned in each call.
CREATE FUNCTION pay_call(key text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	attempt idempotent_attempt := idempotent_call('acct_42 POST /v1/charges (eur)', key, 'SELECT work()');
BEGIN
	RETURN attempt.response;
END $$;

-- The shape of middleware libraries: a key, committed; the work, committed; the response, committed. While the key is in
-- progress, or after a crash until its lock has timed out, a retry is told to come again. procedure_three is that with a
-- client that comes again every 10 ms.
CREATE TABLE three (
	scope text NOT NULL, key text NOT NULL, state text NOT NULL, locked_until timestamptz, status int, response jsonb,
	created_at timestamptz NOT NULL DEFAULT now(), expires_at timestamptz NOT NULL,
	PRIMARY KEY (scope, key)
);
CREATE INDEX ON three USING brin (expires_at) WITH (pages_per_range = 32);
CREATE PROCEDURE procedure_three(k text) LANGUAGE plpgsql AS $$
DECLARE
	stored three;
	answer jsonb;
BEGIN
	INSERT INTO three (scope, key, state, locked_until, expires_at)
		VALUES ('acct_42 POST /v1/charges (eur)', k, 'in_progress', now() + interval '1 minute', now() + interval '24 hours')
		ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		LOOP
			SELECT * INTO stored FROM three WHERE scope = 'acct_42 POST /v1/charges (eur)' AND key = k;
			EXIT WHEN stored.state = 'finished';
			COMMIT;
			PERFORM pg_sleep(0.01);
		END LOOP;
		RETURN;
	END IF;
	COMMIT;
	answer := work();
	COMMIT;
	UPDATE three SET state = 'finished', locked_until = NULL, status = 201, response = answer
		WHERE scope = 'acct_42 POST /v1/charges (eur)' AND key = k;
END $$;

-- The shape of rocket-rides-atomic: its table, and two of its atomic phases, each a SERIALIZABLE transaction.
CREATE TABLE rocket_keys (
	id bigserial PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now(),
	idempotency_key text NOT NULL CHECK (char_length(idempotency_key) <= 100),
	last_run_at timestamptz NOT NULL DEFAULT now(), locked_at timestamptz DEFAULT now(),
	request_method text NOT NULL, request_params jsonb NOT NULL, request_path text NOT NULL,
	response_code int, response_body jsonb, recovery_point text NOT NULL, user_id bigint NOT NULL
);
CREATE UNIQUE INDEX ON rocket_keys (user_id, idempotency_key);
CREATE PROCEDURE procedure_rocket(k text) LANGUAGE plpgsql AS $$
DECLARE
	stored rocket_keys;
	answer jsonb;
BEGIN
	LOOP
		COMMIT;
		SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;
		SELECT * INTO stored FROM rocket_keys WHERE user_id = 42 AND idempotency_key = k;
		EXIT WHEN NOT FOUND;
		IF stored.recovery_point = 'finished' THEN
			RETURN;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.01);
	END LOOP;
	INSERT INTO rocket_keys (user_id, idempotency_key, locked_at, request_method, request_params, request_path, recovery_point)
		VALUES (42, k, now(), 'POST', '{"amount": 2000}', '/v1/charges', 'started');
	COMMIT;
	SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;
	answer := work();
	UPDATE rocket_keys SET locked_at = NULL, recovery_point = 'finished', response_code = 201, response_body = answer
		WHERE user_id = 42 AND idempotency_key = k;
END $$;

-- The id under which begin stores a key, for tables that are filled without it.
CREATE FUNCTION key_id(scope text, key text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
	SELECT encode(CASE WHEN key ~ '^.{14}7.{3}-[89ab]'
		THEN set_byte(b, 0, get_byte(b, 0) | 128) ELSE set_byte(b, 0, get_byte(b, 0) & 127) END, 'hex')::uuid
	FROM (SELECT CASE WHEN key ~ '^.{14}7.{3}-[89ab]'
			THEN decode(left(replace(key, '-', ''), 12), 'hex') || substring(digest FROM 7 FOR 10)
			ELSE substring(digest FOR 16) END AS b
		FROM (SELECT sha256(int8send(octet_length(scope)) || convert_to(scope || key, 'UTF8')) AS digest) d) k
$$;

-- A UUIDv7 of a moment: its milliseconds, and for the rest a random UUID's.
CREATE FUNCTION uuid_v7(at timestamptz) RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT overlay(overlay(random PLACING left(ms, 8) || '-' || right(ms, 4) FROM 1 FOR 13) PLACING '7' FROM 15 FOR 1)
	FROM (SELECT lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS ms, gen_random_uuid()::text AS random) u
$$;
