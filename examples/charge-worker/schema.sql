-- A shop's orders, and a role that may do no more than it needs to.

CREATE EXTENSION IF NOT EXISTS idempotency;

CREATE TABLE orders (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	email		text NOT NULL,
	amount		integer NOT NULL CHECK (amount > 0),	-- in cents
	status		text NOT NULL DEFAULT 'new',			-- new, accepted, charged, done
	charge		text									-- the payment service's number
);
CREATE INDEX ON orders (id) WHERE status = 'new';

-- The books. No unique constraint keeps an order from being booked twice: that is what the checkpoint is for.
CREATE TABLE bookings (
	order_id	bigint NOT NULL REFERENCES orders,
	amount		integer NOT NULL
);

-- A role belongs to all databases of a server, and may be there already.
SELECT $$CREATE ROLE shop LOGIN$$ WHERE to_regrole($$shop$$) IS NULL \gexec
GRANT SELECT, UPDATE ON orders TO shop;
GRANT SELECT, INSERT ON bookings TO shop;
GRANT EXECUTE ON FUNCTION idempotent_begin, idempotent_checkpoint, idempotent_finish, idempotent_release,
	idempotent_resume, idempotent_backoff TO shop;
