-- The table that the recipes of the clients write to (c, java, node-clients, perl, php, python-clients, ruby).

CREATE EXTENSION IF NOT EXISTS idempotency;

CREATE TABLE orders (
	id			integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	item		text NOT NULL,
	quantity	integer NOT NULL CHECK (quantity > 0)
);
