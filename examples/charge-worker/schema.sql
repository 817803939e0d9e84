-- A shop's orders, and two roles that may do no more than they need to.

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

-- A role belongs to all databases of a server, and may be there already. A person may do what the shop may, and more.
SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest('{shop,support}'::text[]) name WHERE to_regrole(name) IS NULL \gexec
GRANT shop TO support;
GRANT SELECT, UPDATE ON orders TO shop;
GRANT SELECT, INSERT ON bookings TO shop;
GRANT EXECUTE ON FUNCTION idempotent_begin, idempotent_checkpoint, idempotent_finish, idempotent_release, idempotent_park,
	idempotent_resume, idempotent_derive, idempotent_backoff TO shop;
GRANT EXECUTE ON FUNCTION idempotent_retry TO support;
GRANT SELECT ON idempotency_stalled TO support;
