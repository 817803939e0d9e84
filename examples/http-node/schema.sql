-- The payments service's tables, and a role that may do no more than it needs to.

CREATE EXTENSION IF NOT EXISTS idempotency;

CREATE TABLE api_keys (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	secret_hash	bytea NOT NULL UNIQUE,		-- SHA-256
	account		text NOT NULL
);

CREATE TABLE payments (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account		text NOT NULL,
	kind		text NOT NULL,
	amount		bigint NOT NULL CHECK (amount > 0),
	currency	text NOT NULL,
	reference	text,
	created_at	timestamptz NOT NULL DEFAULT now()
);

SELECT $$CREATE ROLE payments LOGIN$$ WHERE to_regrole($$payments$$) IS NULL \gexec
GRANT SELECT ON api_keys TO payments;
GRANT SELECT, INSERT ON payments TO payments;
GRANT EXECUTE ON FUNCTION idempotent_try_begin, idempotent_finish TO payments;

-- Toss Payments allows 300 characters.
ALTER ROLE payments SET idempotency.max_key_length = 300;

-- Two keys for a try: sk_test_one and sk_test_two.
INSERT INTO api_keys (secret_hash, account)
SELECT sha256(convert_to(secret, 'UTF8')), account
FROM (VALUES ('sk_test_one', 'acct_1'), ('sk_test_two', 'acct_2')) v (secret, account);
