CREATE EXTENSION idempotency;
CREATE TABLE payments (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account text NOT NULL, amount text NOT NULL CHECK (amount <> '"5"'));
CREATE ROLE app LOGIN;
GRANT SELECT, INSERT ON payments TO app;
GRANT EXECUTE ON FUNCTION idempotent_begin, idempotent_try_begin, idempotent_finish, idempotent_release, idempotent_checkpoint, idempotent_park, idempotent_derive,
  idempotent_lookup TO app;
ALTER ROLE app SET idempotency.max_key_length = 300;
ALTER ROLE app SET idempotency.max_response_size = '1MB';
