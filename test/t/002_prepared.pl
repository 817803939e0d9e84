# Two-phase commit: a prepared attempt holds its key, over a restart too, until it is decided.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use Ledger;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('prepared');
$node->init;
$node->append_conf('postgresql.conf', 'max_prepared_transactions = 10');
$node->start;
Ledger::create($node);

my $session = Session->new($node);
for my $key ('to commit', 'to roll back')
{
	$session->query('BEGIN');
	$session->query(Ledger::begin($key));
	$session->query(Ledger::work($key));
	$session->query(Ledger::finish($key));
	$session->query("PREPARE TRANSACTION '$key'");
}
$session->query('BEGIN');
$session->query("SELECT idempotent_begin('shop', 'leased', lease => '1 hour')");
$session->query("PREPARE TRANSACTION 'leased'");

# What is not finished must not be prepared: it would be committed unfinished.
$session->query('BEGIN');
$session->query(Ledger::begin('unfinished'));
$session->query(Ledger::work('unfinished'));
is($session->code("PREPARE TRANSACTION 'unfinished'"), 'IK500', 'an unfinished attempt cannot be prepared');
is( $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts ORDER BY gid'),
	"leased\nto commit\nto roll back", 'and is not');
is($session->query("SELECT outcome FROM charge('unfinished')"), 'started', 'its key is free again');

my %waiter;

sub start_waiters
{
	for my $key ('to commit', 'to roll back', 'leased')
	{
		$waiter{$key} = Session->new($node);
		$waiter{$key}->send("SELECT outcome FROM charge('$key')");
		ok($waiter{$key}->wait_for_lock, "$key: begin waits $_[0]");
		is( $session->query("SELECT outcome FROM idempotent_try_begin('shop', '$key')"),
			'in_progress', "$key: try_begin tells so $_[0]");
		is( $session->query("SELECT outcome FROM idempotent_lookup('shop', '$key')"),
			'in_progress', "$key: lookup tells so $_[0]");
	}
	return;
}

start_waiters('for a prepared transaction');
$node->stop('immediate');
ok($_->is_lost, 'the server went down') for values %waiter, $session;
$_->quit for values %waiter, $session;
$node->start;

$session = Session->new($node);
start_waiters('after a restart');
is(Ledger::discrepancies($node), '0|0|0', 'nothing of the prepared transactions shows');

$session->query("COMMIT PREPARED 'to commit'");
is($waiter{'to commit'}->result, 'replayed', 'COMMIT PREPARED: the waiter replays');
$session->query("ROLLBACK PREPARED 'to roll back'");
is($waiter{'to roll back'}->result, 'started', 'ROLLBACK PREPARED: the waiter does the work');
$session->query("COMMIT PREPARED 'leased'");
$waiter{'leased'}->result;
is($waiter{'leased'}->sqlstate, 'IK409', 'COMMIT PREPARED of a claim: the waiter meets a live lease');

is(Ledger::discrepancies($node), '0|0|0', 'keys and work are the same');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', 'no lock is left');

$_->quit for values %waiter, $session;
done_testing();
