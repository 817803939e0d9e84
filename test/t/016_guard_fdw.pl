# The commit guard fails before other extensions commit their remote transactions (I8): with postgres_fdw, whose callback is
# registered with the session's first connection, and which commits there before the local commit.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('fdw');
$node->init;
$node->append_conf('postgresql.conf', "max_prepared_transactions = 10\n");
$node->start;
plan skip_all => 'postgres_fdw is not installed'
	if $node->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'") eq '0';

$node->safe_psql('postgres', 'CREATE DATABASE elsewhere');
$node->safe_psql('elsewhere', 'CREATE TABLE ledger (key text)');
my ($host, $port) = ($node->host, $node->port);
$node->safe_psql('postgres', qq{
	CREATE EXTENSION idempotency;
	CREATE EXTENSION postgres_fdw;
	CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'elsewhere');
	CREATE USER MAPPING FOR CURRENT_USER SERVER elsewhere;
	CREATE FOREIGN TABLE ledger (key text) SERVER elsewhere;
});

sub remote { return $node->safe_psql('elsewhere', "SELECT count(*) FROM ledger WHERE key = '$_[0]'"); }

# What the session has used first, before the transaction that is looked at.
my %first = (
	'postgres_fdw first' => [ 'SELECT count(*) FROM ledger', "SELECT idempotent_lookup('s', 'x')" ],
	'idempotency first' => [ "SELECT idempotent_lookup('s', 'x')", 'SELECT count(*) FROM ledger' ],
	'an attempt first' => [ "BEGIN; SELECT idempotent_begin('s', 'warm' || pg_backend_pid()); ROLLBACK", 'SELECT count(*) FROM ledger' ],
	'many times in turn' => [ map { ("BEGIN; SELECT idempotent_begin('s', 'warm' || pg_backend_pid()); ROLLBACK", 'SELECT count(*) FROM ledger') } 1 .. 3 ]);
for my $order (sort keys %first)
{
	my $session = Session->new($node);
	$session->query($_) for @{ $first{$order} };
	my $key = $order =~ s/ /_/gr;
	$session->query('BEGIN');
	$session->query("SELECT idempotent_begin('s', '$key')");
	$session->query("INSERT INTO ledger VALUES ('$key')");
	is($session->code('COMMIT'), 'IK500', "$order: a commit without finish fails");
	is(remote($key), '0', "$order: and has committed nothing elsewhere");
	$session->query('BEGIN');
	is($session->query("SELECT outcome FROM idempotent_begin('s', '$key')"), 'started', "$order: the key is free");
	$session->query("INSERT INTO ledger VALUES ('$key')");
	$session->query("SELECT idempotent_finish('s', '$key')");
	$session->query('COMMIT');
	is(remote($key), '1', "$order: with a finish it commits in both places");
	$session->quit;
}

# The guard outlives errors of all kinds in the session: it is there for the next transaction.
my $session = Session->new($node);
$session->query('SELECT count(*) FROM ledger');
for my $round (1 .. 5)
{
	$session->query('BEGIN');
	$session->query("SELECT idempotent_begin('s', 'round $round')");
	$session->query("INSERT INTO ledger VALUES ('round $round')");
	is($session->code('COMMIT'), 'IK500', "round $round: the guard is there");
	is(remote("round $round"), '0', "round $round: and comes first");
}
$session->quit;
done_testing();
