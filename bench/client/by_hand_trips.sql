-- By hand in three round trips. The answer of the first INSERT is awaited.
\set k random(1000000000000000000, 9223372036854775806)
\startpipeline
BEGIN;
INSERT INTO by_hand (scope, key, expires_at)
	VALUES ('acct_42 POST /v1/charges (eur)', :k, now() + interval '24 hours') ON CONFLICT DO NOTHING;
\endpipeline
INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id;
\startpipeline
UPDATE by_hand SET response = '{"id": 123456, "amount": 2000, "object": "charge", "status": "succeeded", "currency": "eur"}'
	WHERE scope = 'acct_42 POST /v1/charges (eur)' AND key = :k;
COMMIT;
\endpipeline
