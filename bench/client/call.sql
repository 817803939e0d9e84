-- This extension, begin, work and finish in one statement and one round trip.
\set k random(1000000000000000000, 9223372036854775806)
SELECT * FROM idempotent_call('acct_42 POST /v1/charges (eur)', :k,
	'INSERT INTO charges (account, amount) VALUES ($1, $2) RETURNING id, amount, ''charge'' AS object, ''succeeded'' AS status, ''eur'' AS currency',
	'["acct_42", 2000]');
