# A streaming standby: read-only while it is one, and after promotion all keys and claims are there.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use Ledger;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', 'max_prepared_transactions = 10');
$primary->start;
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
Ledger::create($primary);

my $session = Session->new($primary);
my $receipt = $session->query("SELECT receipt FROM charge('finished')");
$session->query("SELECT idempotent_begin('shop', 'live', lease => '1 hour')");
$session->query("SELECT idempotent_checkpoint('shop', 'live', 1, 'charged')");
$session->query("SELECT idempotent_begin('shop', 'left', '{\"to\": \"Ann\"}', lease => '1 hour')");
$session->query("SELECT idempotent_checkpoint('shop', 'left', 1, 'charged', '{\"charge\": \"ch_1\"}')");
$session->query("SELECT idempotent_release('shop', 'left', 1, 'time-out', '0')");
for my $key ('to commit', 'to roll back')
{
	$session->query('BEGIN');
	$session->query("SELECT charge('$key')");
	$session->query("PREPARE TRANSACTION '$key'");
}

# Under way while the primary is lost: never heard of by the standby.
$session->query('BEGIN');
$session->query("SELECT charge('uncommitted')");

$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

my $reader = Session->new($standby);
for my $call (
	"idempotent_begin('shop', 'finished')",
	"idempotent_begin('shop', 'new')",
	"idempotent_begin('shop', 'new', lease => '1 minute')",
	"idempotent_try_begin('shop', 'new')",
	"idempotent_finish('shop', 'live', attempt => 1)",
	"idempotent_release('shop', 'live', attempt => 1)",
	"idempotent_checkpoint('shop', 'live', 1, 'mailed')",
	"idempotent_resume('1 minute')",
	"idempotent_forget('shop', 'finished')",
	'idempotent_prune()')
{
	is($reader->code("SELECT $call"), '25006', "standby: $call is refused");
}

sub lookup
{
	my ($key) = @_;

	return $reader->query("SELECT outcome, attempt, response ->> 'receipt', checkpoint FROM idempotent_lookup('shop', '$key')");
}

is(lookup('finished'), "replayed|1|$receipt|", 'standby: lookup finds a finished key and its answer');
is(lookup('live'), 'in_progress|1||charged', 'standby: and a live claim, with its checkpoint');
is(lookup('left'), 'recovered|2||charged', 'standby: and one that waits for the next attempt');
is(lookup('new'), '', 'standby: and nothing where begin would start');
is($reader->query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', 'standby: it takes no lock');

$primary->stop('immediate');
$standby->promote;
ok($standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'the standby is promoted');

# The session that read before goes on: what it remembers of a standby does not bind it.
is($reader->query("SELECT * FROM charge('finished')"), "replayed|$receipt", 'promoted: a finished key replays');
is($reader->query("SELECT outcome FROM charge('uncommitted')"), 'started', 'promoted: what was not committed is done now');
is($reader->code("SELECT idempotent_begin('shop', 'live')"), 'IK409', 'promoted: a live lease is live');
$reader->query("SELECT idempotent_checkpoint('shop', 'live', 1, 'mailed')");
my $done = $reader->query("SELECT idempotent_finish('shop', 'live', work('live'), attempt => 1)");
is($reader->query("SELECT outcome, response FROM idempotent_begin('shop', 'live')"),
	"replayed|$done", 'promoted: its holder finishes it');
is( $reader->query("SELECT key, attempt, request, checkpoint, state FROM idempotent_resume('1 minute', 10)"),
	'left|2|{"to": "Ann"}|charged|{"charge": "ch_1"}', 'promoted: the other claim goes on at its checkpoint');
is($reader->code("SELECT idempotent_checkpoint('shop', 'left', 1, 'mailed')"),
	'IK410', 'promoted: the overtaken attempt is refused');

# Prepared attempts hold their keys here as well.
my %waiter = map { $_ => Session->new($standby) } 'to commit', 'to roll back';
for my $key (sort keys %waiter)
{
	$waiter{$key}->send("SELECT outcome FROM charge('$key')");
	ok($waiter{$key}->wait_for_lock, "promoted: $key: begin waits for the prepared attempt");
}
$reader->query("COMMIT PREPARED 'to commit'");
$reader->query("ROLLBACK PREPARED 'to roll back'");
is($waiter{'to commit'}->result, 'replayed', 'promoted: which was committed');
is($waiter{'to roll back'}->result, 'started', 'promoted: or rolled back');

is(Ledger::discrepancies($standby), '0|0|0', 'promoted: keys and work are the same');

$_->quit for $session, $reader, values %waiter;
done_testing();
