CREATE EXTENSION IF NOT EXISTS idempotency;

CREATE TABLE payments (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	amount		integer NOT NULL,
	currency	text NOT NULL
);
