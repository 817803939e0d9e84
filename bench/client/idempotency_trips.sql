-- This extension in three round trips. The answer of begin is awaited, so a retry does not do the work.
\set k random(1000000000000000000, 9223372036854775806)
\startpipeline
BEGIN;
SELECT * FROM idempotent_begin('acct_42 POST /v1/charges (eur)', :k);
\endpipeline
INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id;
\startpipeline
SELECT idempotent_finish('acct_42 POST /v1/charges (eur)', :k, '{"id": 123456, "amount": 2000, "object": "charge", "status": "succeeded", "currency": "eur"}');
COMMIT;
\endpipeline
