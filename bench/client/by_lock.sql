-- An advisory lock by hand. Lock and SELECT are two statements, since a statement's snapshot is older than its lock.
\set k random(1000000000000000000, 9223372036854775806)
BEGIN;
SELECT pg_advisory_xact_lock(hashtextextended('acct_42 POST /v1/charges (eur)' || :k, 0));
SELECT response FROM by_lock WHERE scope = 'acct_42 POST /v1/charges (eur)' AND key = :k;
INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id;
INSERT INTO by_lock (scope, key, response, expires_at)
	VALUES ('acct_42 POST /v1/charges (eur)', :k, '{"id": 123456, "amount": 2000, "object": "charge", "status": "succeeded", "currency": "eur"}',
			now() + interval '24 hours');
COMMIT;
