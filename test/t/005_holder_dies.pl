# Attempts that are ended from outside: the holder's death passes the key on, the waiter's leaves no trace.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use Ledger;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('holder');
$node->init;
$node->start;
Ledger::create($node);

my $admin = Session->new($node);

# A session that has done everything but commit.
sub holder
{
	my ($key, $setting) = @_;
	my $holder = Session->new($node);

	$holder->query($setting) if defined $setting;
	$holder->query('BEGIN');
	$holder->query(Ledger::begin($key));
	$holder->query(Ledger::work($key));
	$holder->query(Ledger::finish($key));
	return $holder;
}

sub waiter
{
	my ($key, $setting) = @_;
	my $waiter = Session->new($node);

	$waiter->query($setting) if defined $setting;
	$waiter->query('BEGIN');
	$waiter->send("SELECT outcome FROM charge('$key')");
	return $waiter;
}

# The holder dies: the waiter is the executor, and the holder's work is gone.
my %death = (
	'pg_terminate_backend' => sub { $admin->query('SELECT pg_terminate_backend(' . $_[0]->pid . ')') },
	'client dies' => sub { $_[0]->kill },
	'idle_in_transaction_session_timeout' => sub { $_[0]->query("SET idle_in_transaction_session_timeout = '1ms'") });

for my $death (sort keys %death)
{
	my $holder = holder($death);
	my $waiter = waiter($death);

	ok($waiter->wait_for_lock, "$death: a waiter waits");
	$death{$death}->($holder);
	is($waiter->result, 'started', "$death: the waiter does the work");
	$waiter->query('COMMIT');
	is(Ledger::discrepancies($node), '0|0|0', "$death: the work is done once");
	$_->quit for $holder, $waiter;
}

# The waiter is stopped: nothing of it is left, and holder and session go on.
my %stop = (
	'pg_cancel_backend' => [ '57014', undef, sub { $admin->query('SELECT pg_cancel_backend(' . $_[0]->pid . ')') } ],
	'lock_timeout' => [ '55P03', "SET lock_timeout = '20ms'", sub { } ],
	'statement_timeout' => [ '57014', "SET statement_timeout = '50ms'", sub { } ]);

for my $stop (sort keys %stop)
{
	my ($sqlstate, $setting, $act) = @{ $stop{$stop} };
	my $holder = holder($stop);
	my $waiter = waiter($stop, $setting);
	my $count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = ";

	ok($waiter->wait_for_lock, "$stop: a waiter waits") if !defined $setting;
	$act->($waiter);
	$waiter->result;
	is($waiter->sqlstate, $sqlstate, "$stop: begin fails");
	is($admin->query($count . $waiter->pid), '0', "$stop: it neither waits nor holds");
	is($admin->query($count . $holder->pid), '1', "$stop: the holder holds");

	$waiter->query('ROLLBACK');
	$waiter->query('RESET lock_timeout');
	$waiter->query('RESET statement_timeout');
	$waiter->send("SELECT outcome FROM charge('$stop')");
	ok($waiter->wait_for_lock, "$stop: the retry waits");
	$holder->query('COMMIT');
	is($waiter->result, 'replayed', "$stop: the retry replays");
	is(Ledger::discrepancies($node), '0|0|0', "$stop: the work is done once");
	$_->quit for $holder, $waiter;
}

# A waiter that dies while the holder works leaves the queue to the next.
my $holder = holder('dead waiter');
my $first = waiter('dead waiter');
ok($first->wait_for_lock, 'the first waiter waits');
my $second = waiter('dead waiter');
ok($second->wait_for_lock, 'the second waiter waits');
$admin->query('SELECT pg_terminate_backend(' . $first->pid . ')');
ok($first->is_lost, 'the first waiter dies');
$holder->query('ROLLBACK');
is($second->result, 'started', 'the second waiter does the work');
$second->query('COMMIT');
is(Ledger::discrepancies($node), '0|0|0', 'the work is done once');

$_->quit for $holder, $first, $second, $admin;
done_testing();
