-- The payments service's table, and a role that may do no more than it needs to.

CREATE EXTENSION IF NOT EXISTS idempotency;

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
GRANT SELECT, INSERT ON payments TO payments;
GRANT EXECUTE ON FUNCTION idempotent_try_begin, idempotent_finish TO payments;

-- Toss Payments allows 300 characters.
ALTER ROLE payments SET idempotency.max_key_length = 300;
