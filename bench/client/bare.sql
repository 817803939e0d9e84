-- One bare INSERT more. The hexadecimal digits at the end make a UUID of the number.
\set k random(1000000000000000000, 9223372036854775806)
BEGIN;
INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id;
INSERT INTO bare (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
	VALUES ((:k || 'abcdefabcdefa')::uuid, 'acct_42 POST /v1/charges (eur)', :k, 1, '{"id": 123456, "amount": 2000, "object": "charge", "status": "succeeded", "currency": "eur"}',
			now(), now(), now() + interval '24 hours');
COMMIT;
