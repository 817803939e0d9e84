-- A shop's orders and its ledger, what its clients have heard, and two roles that may do no more than they need to.

CREATE EXTENSION IF NOT EXISTS idempotency;

-- The order keeps the key under which its card is charged, so that a line of the provider's settlement file finds it.
CREATE TABLE orders (
	id			bigint PRIMARY KEY,
	amount		bigint NOT NULL CHECK (amount > 0),		-- in cents
	status		text NOT NULL DEFAULT 'accepted',		-- accepted, paid, refused
	charge_key	text NOT NULL UNIQUE GENERATED ALWAYS AS (idempotent_derive('shop orders', id::text, 'charge')) STORED
);

-- No unique constraint keeps an order from being entered twice: that is what the keys are for.
CREATE TABLE ledger (
	order_id	bigint NOT NULL REFERENCES orders,
	amount		bigint NOT NULL,
	charge		text NOT NULL,							-- the provider's number
	entered_by	text NOT NULL							-- worker, or the settlement file
);

-- The clients: each wants one order, and asks again after 1, 2, 4 and 8 minutes while it has no answer.
CREATE TABLE clients (
	order_id	bigint PRIMARY KEY,
	amount		bigint NOT NULL,
	asked		integer NOT NULL DEFAULT 0,
	ask_at		timestamptz NOT NULL,
	status		integer,								-- the HTTP status of the last answer
	answer		jsonb									-- 200 or 402: the answer to keep
);
CREATE INDEX ON clients (ask_at) WHERE answer IS NULL AND asked < 5;

-- A role belongs to all databases of a server, and may be there already.
SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest('{shop,clerk}'::text[]) name WHERE to_regrole(name) IS NULL \gexec

GRANT SELECT, INSERT, UPDATE ON orders TO shop;
GRANT INSERT ON ledger TO shop;
GRANT SELECT, UPDATE ON clients TO shop;
GRANT EXECUTE ON FUNCTION idempotent_try_begin, idempotent_checkpoint, idempotent_finish, idempotent_release, idempotent_park,
	idempotent_resume, idempotent_derive, idempotent_backoff TO shop;
