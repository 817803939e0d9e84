-- An inbox: messages as the broker delivers them, some of them more than once, and what is done with them.

CREATE EXTENSION IF NOT EXISTS idempotency;

-- One row for each delivery. The broker's message_id is not unique here, or a duplicate would stop the receiver.
CREATE TABLE inbox (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	message_id	text NOT NULL,
	body		jsonb NOT NULL,
	due_at		timestamptz NOT NULL DEFAULT now(),
	failures	integer NOT NULL DEFAULT 0
);
CREATE INDEX ON inbox (due_at);

-- What no retry will help, for somebody to look at.
CREATE TABLE dead_letters (
	message_id	text NOT NULL,
	body		jsonb NOT NULL,
	reason		text NOT NULL,
	died_at		timestamptz NOT NULL DEFAULT now()
);

-- The work that must be done once for each message.
CREATE TABLE stock (
	item	text PRIMARY KEY,
	pieces	integer NOT NULL CHECK (pieces >= 0)
);
