-- PL/pgSQL: a transfer between two accounts, and a long run in many transactions.

CREATE TABLE accounts (
	name	text PRIMARY KEY,
	cents	bigint NOT NULL CONSTRAINT accounts_covered CHECK (cents >= 0)
);

-- All in one transaction. The key is the client's; the same key again gets the first answer, whatever that was.
CREATE FUNCTION transfer(key text, payer text, payee text, amount bigint) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
	attempt		idempotent_attempt;
	response	jsonb;
	status		integer := 200;
	scope		text := payer || ' transfer';	-- whose key it is
BEGIN
	attempt := idempotent_begin(scope, key, request => jsonb_build_object(
		'payer', payer, 'payee', payee, 'amount', amount));
	IF attempt.replayed THEN
		RETURN attempt.response;
	END IF;

	-- A block with EXCEPTION is a savepoint. What failed in it is undone, the attempt goes on, and the failure is kept as
	-- the key's response. Catch what is an answer, such as an account that is not covered. Any other error ends the
	-- transaction and frees the key, and that is right: a retry may have more luck.
	BEGIN
		UPDATE accounts SET cents = cents + amount WHERE name = payee;
		UPDATE accounts SET cents = cents - amount WHERE name = payer RETURNING jsonb_build_object('left', cents)
			INTO STRICT response;
	EXCEPTION
		WHEN check_violation THEN
			status := 402;
			response := jsonb_build_object('error', 'the account is not covered');
	END;

	RETURN idempotent_finish(scope, key, response, status);
END
$$;

-- A run over all accounts, a few in each transaction, under a lease. Called again with the same key after a crash it goes
-- on behind the last checkpoint; called again while it runs it fails with IK409, after it has run it does nothing.
CREATE PROCEDURE add_interest(key text, percent numeric, batch_size integer DEFAULT 1000)
LANGUAGE plpgsql AS $$
DECLARE
	attempt	idempotent_attempt;
	last	text;
	total	integer;
	done	integer;
BEGIN
	attempt := idempotent_begin('interest', key, request => jsonb_build_object('percent', percent), lease => '1 minute');
	IF attempt.replayed THEN
		RETURN;
	END IF;
	COMMIT;

	last := coalesce(attempt.state->>'last', '');
	total := coalesce((attempt.state->>'total')::integer, 0);
	LOOP
		WITH batch AS (
			SELECT name FROM accounts WHERE name > last ORDER BY name LIMIT batch_size FOR UPDATE
		), paid AS (
			UPDATE accounts a SET cents = round(cents * (1 + percent / 100)) FROM batch b WHERE a.name = b.name
			RETURNING a.name
		)
		SELECT count(*), max(name) INTO done, last FROM paid;
		EXIT WHEN done = 0;
		total := total + done;
		-- In the transaction of the work it stands for. It renews the lease, too.
		PERFORM idempotent_checkpoint('interest', key, attempt.attempt, 'paid', jsonb_build_object(
			'last', last, 'total', total));
		COMMIT;
	END LOOP;

	PERFORM idempotent_finish('interest', key, jsonb_build_object('accounts', total), attempt => attempt.attempt);
END
$$;
