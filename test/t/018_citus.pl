# On Citus the functions refuse (0A000) whatever they cannot promise there: tables that are distributed, and any node but
# the coordinator, which has tables of its own. On the coordinator the guard runs before Citus commits at the workers, in
# both orders of loading. Skipped where Citus is not installed.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my ($libraries) = run_command([ 'pg_config', '--pkglibdir' ]);
plan skip_all => 'Citus is not installed' unless -e "$libraries/citus.so";

sub start_node
{
	my ($name, $preload) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init;
	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$preload'\nlisten_addresses = '127.0.0.1'\nfsync = off\n");
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION citus');
	return $node;
}

my $coordinator = start_node('coordinator', 'citus');
my @workers = map { start_node($_, 'citus') } 'worker1', 'worker2';
$coordinator->safe_psql('postgres', sprintf("SELECT citus_set_coordinator_host('127.0.0.1', %d)", $coordinator->port));
$coordinator->safe_psql('postgres', sprintf("SELECT citus_add_node('127.0.0.1', %d)", $_->port)) foreach @workers;
$coordinator->safe_psql('postgres', <<'SQL');
CREATE EXTENSION idempotency;
CREATE TABLE charges (tenant text, key text);
SELECT create_distributed_table('charges', 'tenant', shard_count => 4);
SQL

my @calls = (
	"SELECT idempotent_begin('s', 'k')",
	"SELECT idempotent_try_begin('s', 'k')",
	"SELECT idempotent_begin('s', 'k', lease => '1 min')",
	"SELECT idempotent_call('s', 'k', 'SELECT 1')",
	"SELECT idempotent_begin_many('s', '{k}')",
	"SELECT idempotent_begin_many('s', array(SELECT i::text FROM generate_series(1, 300) i))",
	"SELECT idempotent_resume('1 min')",
	"SELECT idempotent_retry('s', 'k', '1 min')",
	"SELECT idempotent_resolve('s', 'k', 'reason')",
	"SELECT idempotent_lookup('s', 'k')",
	"SELECT idempotent_forget('s', 'k')",
	"SELECT idempotent_forget_scope('s')",
	"SELECT idempotent_prune()",
	"SELECT idempotent_reconcile('[]', 'charge', now())");

sub refused
{
	my ($node, $what) = @_;
	my $session = Session->new($node);

	is($session->code($_), '0A000', "$what: $_") foreach @calls;
	$session->quit;
}

# Each node has its own tables: two retries at two nodes would both begin.
refused($_, $_->name) foreach @workers;

# Commit without finish leaves nothing at the workers; with finish, the work is there and a retry replays.
sub guard_holds
{
	my ($order) = @_;
	my $session = Session->new($coordinator);

	foreach my $turn (1, 2)
	{
		my $key = "$order $turn";

		$session->query('BEGIN');
		$session->query("SELECT outcome FROM idempotent_begin('guard', '$key')");
		$session->query("INSERT INTO charges SELECT 't' || i, '$key' FROM generate_series(1, 10) i");
		is($session->code('COMMIT'), 'IK500', "$order: commit without finish is refused, turn $turn");
		is($session->query("SELECT count(*) FROM charges WHERE key = '$key'"), '0', "$order: and leaves nothing at the workers");

		$session->query('BEGIN');
		$session->query("SELECT outcome FROM idempotent_begin('guard', '$key')");
		$session->query("INSERT INTO charges SELECT 't' || i, '$key' FROM generate_series(1, 10) i");
		$session->query("SELECT idempotent_finish('guard', '$key')");
		is($session->code('COMMIT'), '00000', "$order: commit after finish is not");
		is($session->query("SELECT outcome FROM idempotent_begin('guard', '$key')"), 'replayed', "$order: and the retry replays");
		is($session->query("SELECT count(*) FROM charges WHERE key = '$key'"), '10', "$order: the work is there");
	}
	$session->quit;
}

guard_holds('loaded on demand');
foreach my $order ('citus,idempotency', 'idempotency,citus')
{
	$coordinator->append_conf('postgresql.conf', "shared_preload_libraries = '$order'\n");
	$coordinator->restart;
	guard_holds($order);
}

$coordinator->safe_psql('postgres', <<'SQL');
TRUNCATE idempotency_keys, idempotency_claims;
SELECT create_distributed_table('idempotency_keys', 'id');
SELECT create_distributed_table('idempotency_claims', 'id', colocate_with => 'idempotency_keys');
SQL
refused($coordinator, 'distributed');
refused($workers[0], 'distributed, at a worker');

$_->stop foreach $coordinator, @workers;
done_testing();
