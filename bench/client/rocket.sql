-- The shape of rocket-rides-atomic: two atomic phases, each a SERIALIZABLE transaction. Where the second one
-- cannot be serialized pgbench runs both again, so the key may be there.
\set k random(1000000000000000000, 9223372036854775806)
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM rocket_keys WHERE user_id = 42 AND idempotency_key = :k;
INSERT INTO rocket_keys (user_id, idempotency_key, locked_at, request_method, request_params, request_path, recovery_point)
	VALUES (42, :k, now(), 'POST', '{"amount": 2000}', '/v1/charges', 'started')
	ON CONFLICT DO NOTHING;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id;
UPDATE rocket_keys SET locked_at = NULL, recovery_point = 'finished', response_code = 201,
		response_body = '{"id": 123456, "amount": 2000, "object": "charge", "status": "succeeded", "currency": "eur"}'
	WHERE user_id = 42 AND idempotency_key = :k;
COMMIT;
