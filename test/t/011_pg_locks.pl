# The key's lock as an administrator sees it in pg_locks, and how long it is held.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use Ledger;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('locks');
$node->init;
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE other');
Ledger::create($node, $_) for qw(postgres other);

my $admin = Session->new($node);

sub locks
{
	my ($where) = @_;

	return $admin->query("SELECT pid, mode, granted FROM pg_locks WHERE locktype = 'advisory' AND $where ORDER BY granted DESC, pid");
}

my $holder = Session->new($node);
$holder->query('BEGIN');
$holder->query(Ledger::begin('key'));

# The identity, as design and documentation give it: SHA-256 over the scope's length, the scope and the key.
my $identity = q{
	SELECT encode(sha256(int8send(octet_length('shop')) || 'shop'::bytea || 'key'::bytea), 'hex')
};
is( $admin->query(q{
		SELECT lpad(to_hex(classid::bigint), 8, '0') || lpad(to_hex(objid::bigint), 8, '0'), objsubid,
			   database = (SELECT oid FROM pg_database WHERE datname = current_database()), virtualxid, transactionid
		FROM pg_locks WHERE locktype = 'advisory'}),
	substr($admin->query($identity), 16, 16) . '|30163|t||',
	'the lock is in a class of its own and tells database and key');
is(locks('true'), $holder->pid . '|ExclusiveLock|t', 'the holder holds it');

# Two waiters, who name their holder.
my @waiter = map { Session->new($node) } 1 .. 2;
for my $waiter (@waiter)
{
	$waiter->query('BEGIN');
	$waiter->send("SELECT outcome FROM charge('key')");
	ok($waiter->wait_for_lock, 'a second session waits');
}
is( locks('true'),
	join("\n", $holder->pid . '|ExclusiveLock|t', map { "$_|ExclusiveLock|f" } sort { $a <=> $b } map { $_->pid } @waiter),
	'both wait for it');
is( $admin->query('SELECT ' . $holder->pid . ' = ANY (pg_blocking_pids(' . $waiter[0]->pid . '))'),
	't', 'whom they wait for is told');

# Who does not wait holds nothing either, and can go on.
my $other = Session->new($node);
$other->query('BEGIN');
is($other->query("SELECT outcome FROM idempotent_try_begin('shop', 'key')"), 'in_progress', 'try_begin does not wait');
is($other->query("SELECT outcome FROM idempotent_lookup('shop', 'key')"), 'in_progress', 'nor does lookup');
is(locks('pid = ' . $other->pid), '', 'neither leaves a lock');

# The same key in another database is another key.
my $elsewhere = Session->new($node, dbname => 'other');
$elsewhere->query("SET lock_timeout = '5s'");
is($elsewhere->query("SELECT outcome FROM charge('key')"), 'started', 'another database does not wait');
$elsewhere->quit;

# A replay gives the lock back at once, and not with its transaction.
$holder->query(Ledger::work('key'));
$holder->query(Ledger::finish('key'));
is(locks('granted'), $holder->pid . '|ExclusiveLock|t', 'finish keeps the lock until the commit');
$holder->query('COMMIT');
is($_->result, 'replayed', 'a waiter replays') for @waiter;
is(locks('true'), '', 'after the replay no lock is left, though the transactions go on');
is($other->query("SELECT outcome FROM charge('key')"), 'replayed', 'who did not wait replays now');
is($other->query("SELECT outcome FROM idempotent_try_begin('shop', 'key')"), 'replayed', 'try_begin too');
is(locks('true'), '', 'and holds no lock');

# Nor does what is refused.
$other->query(q{SELECT idempotent_begin('shop', 'asked', '{"amount": 1}')});
$other->query("SELECT idempotent_finish('shop', 'asked')");
$other->query('COMMIT');
$other->query('BEGIN');
is( $other->query(q{SELECT outcome FROM idempotent_try_begin('shop', 'asked', '{"amount": 2}')}),
	'mismatch', 'a mismatch');
is(locks('true'), '', 'holds no lock');

# Who holds a key and waits for something else: here for a batch that is too large to lock each of its keys.
my $batch = Session->new($node);
$batch->query('BEGIN');
$batch->query(q{SELECT count(*) FROM idempotent_begin_many('shop', array(SELECT 'm' || n FROM generate_series(1, 300) n))});
is( $admin->query('SELECT waits_for IS NULL FROM idempotency_in_flight WHERE pid = ' . $batch->pid . ' LIMIT 1'),
	'', 'a large batch gives its locks back');
$other->send("SELECT outcome FROM idempotent_begin('shop', 'm7')");
ok( $node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = " . $other->pid),
	'a begin on a key of the batch waits');
is( $admin->query('SELECT waiting, waits_for FROM idempotency_in_flight WHERE pid = ' . $other->pid),
	'f|{' . $batch->pid . '}', 'it holds the key, and whom it waits for is shown');
$batch->query('ROLLBACK');
is($other->result, 'started', 'then it starts');
is( $admin->query('SELECT waiting, waits_for IS NULL FROM idempotency_in_flight WHERE pid = ' . $other->pid),
	'f|t', 'a holder that does not wait waits for nobody');
$other->query($_) for qw(ROLLBACK BEGIN);
$batch->quit;

# A release keeps the lock: its transaction may still write.
$other->query(Ledger::begin('given up'));
is(locks('true'), $other->pid . '|ExclusiveLock|t', 'an attempt holds its key');
$other->query("SELECT idempotent_release('shop', 'given up')");
is(locks('true'), $other->pid . '|ExclusiveLock|t', 'a release keeps it to the end of the transaction');
$other->query('COMMIT');

$_->quit for $holder, @waiter, $other, $admin;
done_testing();
