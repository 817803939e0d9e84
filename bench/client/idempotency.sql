-- This extension.
\set k random(1000000000000000000, 9223372036854775806)
BEGIN;
SELECT * FROM idempotent_begin('acct_42 POST /v1/charges (eur)', :k);
INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id;
SELECT idempotent_finish('acct_42 POST /v1/charges (eur)', :k, '{"id": 123456, "amount": 2000, "object": "charge", "status": "succeeded", "currency": "eur"}');
COMMIT;
