# A crash of the server at any point of an attempt: no key without its work, no work without its key.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use Ledger;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

# A COMMIT with synchronous_commit = on is carried out here and then waits for a standby that does not exist: the point
# where the transaction has happened and its client does not know.
my $node = PostgreSQL::Test::Cluster->new('crash');
$node->init;
$node->append_conf('postgresql.conf', q{
	restart_after_crash = on
	synchronous_standby_names = 'nobody'
	synchronous_commit = local
	wal_level = replica
	max_wal_senders = 1
});
$node->start;
Ledger::create($node);

# Each round brings attempts to all points at once, and then the server down.
my %down = (
	'kill -9 of a backend' => sub { kill 'KILL', $_[0] },
	'immediate stop' => sub { $node->stop('immediate'); $node->start; });

sub session_at
{
	my ($point, $key) = @_;
	my $session = Session->new($node);

	$session->query('BEGIN');
	$session->query(Ledger::begin($key));
	return $session if $point eq 'begun';
	$session->query(Ledger::work($key));
	return $session if $point eq 'worked';
	$session->query(Ledger::finish($key));
	return $session if $point eq 'finished';
	$session->query('SET LOCAL synchronous_commit = on') if $point eq 'committing';
	$session->send('COMMIT');
	if ($point eq 'committing')
	{
		$node->poll_query_until('postgres',
			"SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = " . $session->pid)
		  or die 'COMMIT does not wait for a standby';
		return $session;
	}
	$session->result;
	return $session;
}

sub crash
{
	my ($how, $victim) = @_;
	my %at = map { $_ => session_at($_, "$how, $victim: $_") } qw(begun worked finished committing committed);
	my $waiter = $at{waiting} = Session->new($node);
	my $sentinel = Session->new($node);
	my $round = "$how, $victim";

	$waiter->query('BEGIN');
	$waiter->send(Ledger::begin("$round: finished"));
	ok($waiter->wait_for_lock, "$round: another session waits for the key");

	$down{$how}->($at{$victim}->pid);

	# Whoever had only lost its own process would leave the sentinel alone.
	ok($sentinel->is_lost, "$round: the server went down");
	for my $point (sort keys %at)
	{
		ok($at{$point}->is_lost, "$round: $point: the client lost its connection");
	}
	ok($node->poll_query_until('postgres', 'SELECT true'), "$round: and comes up again");

	is(Ledger::discrepancies($node), '0|0|0', "$round: keys and work are the same");
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
		'0', "$round: no lock is left");
	for my $point (qw(begun worked finished))
	{
		like($node->safe_psql('postgres', "SELECT charge('$round: $point')"),
			qr/^\(started,/, "$round: $point: the retry does the work");
	}
	for my $point (qw(committing committed))
	{
		is( $node->safe_psql('postgres', "SELECT charge('$round: $point')"),
			$node->safe_psql('postgres', "SELECT ROW('replayed', receipt) FROM ledger WHERE key = '$round: $point'"),
			"$round: $point: the retry gets the answer that was lost");
	}
	is(Ledger::discrepancies($node), '0|0|0', "$round: the retries did each work once");
	is($node->safe_psql('postgres', "SELECT count(*) FROM ledger WHERE key LIKE '$round: %'"),
		'5', "$round: and each of it");
	$_->quit for values %at, $sentinel;
	return;
}

crash('kill -9 of a backend', $_) for qw(worked committing waiting);
crash('immediate stop', 'finished');

done_testing();
