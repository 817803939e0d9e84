-- The shape of middleware libraries: the key is taken, the work done, the response stored, each committed by itself.
\set k random(1000000000000000000, 9223372036854775806)
INSERT INTO three (scope, key, state, locked_until, expires_at)
	VALUES ('acct_42 POST /v1/charges (eur)', :k, 'in_progress', now() + interval '1 minute', now() + interval '24 hours')
	ON CONFLICT DO NOTHING;
BEGIN;
INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id;
COMMIT;
UPDATE three SET state = 'finished', locked_until = NULL, status = 201,
		response = '{"id": 123456, "amount": 2000, "object": "charge", "status": "succeeded", "currency": "eur"}'
	WHERE scope = 'acct_42 POST /v1/charges (eur)' AND key = :k;
