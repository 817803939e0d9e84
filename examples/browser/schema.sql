-- The shop's ledger, and a role that may do no more than it needs to.

CREATE EXTENSION IF NOT EXISTS idempotency;

CREATE TABLE payments (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account		text NOT NULL,
	order_no	text NOT NULL,
	amount		bigint NOT NULL CHECK (amount > 0),
	paid_at		timestamptz NOT NULL DEFAULT now()
);

SELECT $$CREATE ROLE shop LOGIN$$ WHERE to_regrole($$shop$$) IS NULL \gexec
GRANT SELECT, INSERT ON payments TO shop;
GRANT EXECUTE ON FUNCTION idempotent_try_begin, idempotent_finish TO shop;
