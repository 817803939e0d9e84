-- SQL: begin and finish around a function that does the work.

CREATE TABLE subscribers (
	id		bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	email	text NOT NULL
);

-- The work is a function of its own, VOLATILE and so with a snapshot of its own: were it part of the statement below, it
-- would see the tables as they were before begin waited for another attempt.
CREATE FUNCTION subscribe_once(email text) RETURNS jsonb
LANGUAGE sql VOLATILE AS $$
	INSERT INTO subscribers (email) VALUES (subscribe_once.email)
	RETURNING jsonb_build_object('subscriber', id)
$$;

CREATE FUNCTION subscribe(key text, email text) RETURNS jsonb
LANGUAGE sql VOLATILE AS $$
	SELECT CASE WHEN attempt.replayed THEN attempt.response
				ELSE idempotent_finish(session_user || ' subscribe', key, subscribe_once(email), 201)
		   END
	FROM idempotent_begin(session_user || ' subscribe', key, request => jsonb_build_object('email', email)) attempt
$$;
