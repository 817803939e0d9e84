-- The batch: compares the provider's settlement file with what is stored here, settles what both sides prove, and lists
-- the rest for a person. It may be run at any time, killed at any time, and run again.
--
-- For the test, shop.skip names a step to leave out: open_here, open_refused, refused_here, ledger, lines,
-- amounts or list.

CREATE TABLE statements (
	file		text PRIMARY KEY,
	since		timestamptz NOT NULL,		-- our keys of this window must be in it
	until		timestamptz NOT NULL,
	settled_at	timestamptz
);
CREATE TABLE statement_lines (
	file		text NOT NULL REFERENCES statements,
	n			integer NOT NULL,
	line		jsonb NOT NULL,
	key			text GENERATED ALWAYS AS (line ->> 'key') STORED,
	PRIMARY KEY (file, n)
);
CREATE INDEX ON statement_lines (file, key);

CREATE TABLE for_a_person (
	file		text NOT NULL REFERENCES statements,
	verdict		text NOT NULL,
	order_id	bigint,						-- null: no order of ours
	theirs		jsonb						-- null: the file says nothing of it
);

CREATE FUNCTION skips(step text) RETURNS boolean LANGUAGE sql STABLE
	RETURN coalesce(current_setting('shop.skip', true) = step, false);

-- What does not agree, with the number of lines that the file has for the key and whether their amounts are the order's.
CREATE FUNCTION disagreements(of_file text)
	RETURNS TABLE (verdict text, order_id bigint, attempt integer, theirs jsonb, lines bigint, first_line integer, amounts_agree boolean)
	LANGUAGE sql
AS $$
	SELECT r.verdict, r.key::bigint, r.attempt, r.theirs, l.lines, l.first_line, l.amounts_agree
	FROM statements s
	CROSS JOIN idempotent_reconcile(
		(SELECT coalesce(jsonb_agg(line ORDER BY n), '[]') FROM statement_lines WHERE file = s.file),
		step => 'charge', since => s.since, until => s.until, scope => 'shop orders') r
	LEFT JOIN orders o ON o.id::text = r.key
	CROSS JOIN LATERAL (
		SELECT count(*) AS lines, min(n) AS first_line, bool_and((line -> 'amount')::bigint = o.amount) AS amounts_agree
		FROM statement_lines WHERE file = s.file AND key = o.charge_key) l
	WHERE s.file = of_file
$$;

-- Enter the money and the order's status. In the transaction that resolves the key: both or neither.
CREATE FUNCTION enter(of_file text, of_order bigint, theirs jsonb) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
	IF skips('ledger') THEN
		RETURN;
	END IF;
	IF (theirs -> 'ok')::boolean THEN
		INSERT INTO ledger VALUES (of_order, (theirs -> 'amount')::bigint, theirs ->> 'charge', of_file);
	END IF;
	UPDATE orders SET status = CASE WHEN (theirs -> 'ok')::boolean THEN 'paid' ELSE 'refused' END WHERE id = of_order;
END $$;

-- Settle one line; false if somebody has finished or taken over the key since it was compared. Then nothing has changed,
-- and the next run sees what is there by then.
CREATE FUNCTION settle_line(of_file text, verdict text, of_order bigint, of_attempt integer, theirs jsonb, n integer)
	RETURNS boolean LANGUAGE plpgsql
AS $$
BEGIN
	PERFORM idempotent_resolve('shop orders', of_order::text,
		reason => format('%s, line %s', of_file, n),
		response => CASE WHEN (theirs -> 'ok')::boolean
			THEN jsonb_build_object('order', of_order, 'charge', theirs -> 'charge')
			ELSE jsonb_build_object('order', of_order, 'error', 'card_declined') END,
		status => CASE WHEN (theirs -> 'ok')::boolean THEN 200 ELSE 402 END,
		attempt => of_attempt,
		correct => verdict = 'refused_here');
	PERFORM enter(of_file, of_order, theirs);
	RETURN true;
EXCEPTION WHEN SQLSTATE 'IK409' OR SQLSTATE 'IK410' THEN
	RETURN false;
END $$;

-- Orders whose amount is another one there. Reconcile compares what was done, not how much: that is for us to look at.
CREATE FUNCTION other_amounts(of_file text) RETURNS TABLE (order_id bigint, theirs jsonb) LANGUAGE sql
AS $$
	SELECT o.id, l.line
	FROM statement_lines l JOIN orders o ON o.charge_key = l.key
	WHERE l.file = of_file AND (l.line -> 'ok')::boolean AND (l.line -> 'amount')::bigint <> o.amount
$$;

-- What is left when all has been settled that can be.
CREATE FUNCTION list_for_a_person(of_file text) RETURNS void LANGUAGE sql
AS $$
	DELETE FROM for_a_person WHERE file = of_file;
	INSERT INTO for_a_person
	SELECT of_file, verdict, order_id, theirs FROM disagreements(of_file)
	UNION ALL
	SELECT of_file, 'amount_differs', order_id, theirs FROM other_amounts(of_file) WHERE NOT skips('amounts');
$$;

-- Only a key with exactly one line, of the order's own amount, is beyond doubt. Nothing is settled on a …_missing.
CREATE PROCEDURE settle(of_file text) LANGUAGE plpgsql
AS $$
DECLARE
	d record;
BEGIN
	FOR d IN
		SELECT * FROM disagreements(of_file)
		WHERE verdict IN ('open_here', 'open_refused', 'refused_here') AND NOT skips(verdict)
		AND (lines = 1 OR skips('lines')) AND (amounts_agree OR skips('amounts'))
	LOOP
		PERFORM settle_line(of_file, d.verdict, d.order_id, d.attempt, d.theirs, d.first_line);
		COMMIT;
	END LOOP;
	IF NOT skips('list') THEN
		PERFORM list_for_a_person(of_file);
	END IF;
	UPDATE statements SET settled_at = now() WHERE file = of_file;
END $$;

-- What pg_cron calls. One at a time: a second batch finds the lock taken, and leaves.
CREATE PROCEDURE settle_all() LANGUAGE plpgsql
AS $$
DECLARE
	next_file text;
BEGIN
	IF NOT pg_try_advisory_lock(hashtext('settle_all')) THEN
		RETURN;
	END IF;
	FOR next_file IN SELECT file FROM statements WHERE settled_at IS NULL ORDER BY file LOOP
		CALL settle(next_file);
		COMMIT;
	END LOOP;
	PERFORM pg_advisory_unlock(hashtext('settle_all'));
END $$;

GRANT SELECT, UPDATE ON orders, statements TO clerk;
GRANT INSERT ON ledger TO clerk;
GRANT SELECT ON statement_lines TO clerk;
GRANT SELECT, INSERT, DELETE ON for_a_person TO clerk;
GRANT EXECUTE ON FUNCTION idempotent_reconcile, idempotent_resolve, idempotent_derive TO clerk;
