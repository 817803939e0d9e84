-- PL/Python: a seat is booked, and a failure that is an answer is kept.

CREATE EXTENSION IF NOT EXISTS plpython3u;

CREATE TABLE seats (
	seat	text PRIMARY KEY,
	booked	text NOT NULL
);

CREATE FUNCTION book_seat(key text, seat text, passenger text) RETURNS jsonb
LANGUAGE plpython3u AS $$
import json

def query(text, types, *values):
    return plpy.execute(plpy.prepare(text, types), list(values))

def finish(response, status):
    return query("SELECT idempotent_finish(session_user || ' book_seat', $1, $2, $3) AS response", ["text", "jsonb", "integer"],
                 key, json.dumps(response), status)[0]["response"]

attempt = query("SELECT * FROM idempotent_begin(session_user || ' book_seat', $1, request => $2)", ["text", "jsonb"],
                key, json.dumps({"seat": seat, "passenger": passenger}))[0]
if attempt["replayed"]:
    return attempt["response"]

try:
    with plpy.subtransaction():     # a savepoint
        query("INSERT INTO seats VALUES ($1, $2)", ["text", "text"], seat, passenger)
except plpy.spiexceptions.UniqueViolation:
    return finish({"error": "the seat is taken"}, 402)
return finish({"seat": seat}, 200)
$$;
