-- No protection.
\set k random(1000000000000000000, 9223372036854775806)
BEGIN;
INSERT INTO charges (account, amount) VALUES ('acct_42', 2000) RETURNING id;
COMMIT;
