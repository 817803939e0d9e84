# The work that the tests' attempts do: lines in a ledger, and what must hold between ledger and keys.

package Ledger;

use strict;
use warnings FATAL => 'all';

# Extension and ledger in a database.  Nothing in the ledger is unique, so that work done twice shows.
#
# charge() is what an application does; its receipt tells one execution from another.
sub create
{
	my ($node, $dbname) = @_;

	$node->safe_psql($dbname // 'postgres', q{
		CREATE EXTENSION idempotency;
		CREATE SEQUENCE receipts;
		CREATE TABLE ledger (key text NOT NULL, receipt bigint NOT NULL DEFAULT nextval('receipts'));
		CREATE FUNCTION work(k text) RETURNS jsonb LANGUAGE sql
		AS $$ INSERT INTO ledger VALUES (k) RETURNING jsonb_build_object('receipt', receipt) $$;
		CREATE FUNCTION charge(k text, OUT outcome text, OUT receipt bigint) LANGUAGE plpgsql
		AS $$
		DECLARE
			a idempotent_attempt := idempotent_begin('shop', k);
			answer jsonb := a.response;
		BEGIN
			IF NOT a.replayed THEN
				answer := idempotent_finish('shop', k, work(k), status => 201);
			END IF;
			outcome := a.outcome;
			receipt := answer -> 'receipt';
		END $$;
	});
	return;
}

# The statements of an attempt, one by one.
sub begin { return "SELECT outcome FROM idempotent_begin('shop', '$_[0]')"; }
sub work { return "SELECT work('$_[0]')"; }

sub finish
{
	my ($key) = @_;

	return "SELECT idempotent_finish('shop', '$key', jsonb_build_object('receipt', receipt), status => 201)"
	  . " FROM ledger WHERE key = '$key'";
}

# "a|b|c": keys whose work is not there, or is not what was answered; work without its key; work done twice.
sub discrepancies
{
	my ($node, $dbname) = @_;

	return $node->safe_psql($dbname // 'postgres', q{
		SELECT (SELECT count(*) FROM idempotency_keys k
				WHERE NOT EXISTS (SELECT FROM ledger l
								  WHERE l.key = k.key AND to_jsonb(l.receipt) = k.response -> 'receipt')),
			   (SELECT count(*) FROM ledger l
				WHERE NOT EXISTS (SELECT FROM idempotency_keys k WHERE k.key = l.key)),
			   (SELECT count(*) FROM (SELECT FROM ledger GROUP BY key HAVING count(*) > 1) d)
	});
}

1;
