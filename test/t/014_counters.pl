# Counters of all sessions of a database add up, those of databases stay apart, and a server that cannot have them works
# without.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('counters');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'idempotency'\n");
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql($_, 'CREATE EXTENSION idempotency') foreach 'postgres', 'other';

sub counted
{
	my ($database) = @_;
	return $node->safe_psql($database, 'SELECT started, finished FROM idempotency_stats');
}

# More sessions at a time than there are copies of the counters.
my @sessions = map { Session->new($node) } 1 .. 20;
foreach my $round (1 .. 2)
{
	foreach my $i (0 .. $#sessions)
	{
		$sessions[$i]->query("BEGIN; SELECT FROM idempotent_begin('s', '$round $i'); SELECT idempotent_finish('s', '$round $i'); COMMIT");
	}
}
is(counted('postgres'), '40|40', 'what twenty sessions did');
$node->safe_psql('other', "BEGIN; SELECT FROM idempotent_begin('s', 'k'); ROLLBACK");
is(counted('other'), '1|0', 'another database has its own, and what rolled back counts');
is(counted('postgres'), '40|40', 'which nobody else sees');
is($node->safe_psql('other', 'SELECT idempotent_stats_reset()'), 't', 'one is reset');
is(counted('other'), '0|0', 'to zero');
is(counted('postgres'), '40|40', 'the other is not');
$_->quit foreach @sessions;

my $since = $node->safe_psql('postgres', 'SELECT stats_reset FROM idempotency_stats');
$node->restart;
is(counted('postgres'), '0|0', 'a restart begins at zero');
is($node->safe_psql('postgres', "SELECT stats_reset > '$since' FROM idempotency_stats"), 't', 'and says when');

# The pgTAP test of all counters, on a server that has them on every version.
SKIP:
{
	my $sql = "$FindBin::RealBin/..";
	skip 'pgTAP is not installed', 1
	  if $node->psql('postgres', 'CREATE DATABASE tap') || $node->psql('tap', 'CREATE EXTENSION pgtap');
	local $ENV{PG_ABS_SRCDIR} = $sql;
	my ($out, $err);
	IPC::Run::run([ 'psql', '-Xaq', '-d', $node->connstr('tap'), '-f', "$sql/sql/stats.sql" ], '>', \$out, '2>', \$err);
	is(join("\n", $out =~ /^((?:not )?ok .*|1\.\..*)$/mg) . "\n",
		join("\n", slurp_file("$sql/expected/stats.out") =~ /^((?:not )?ok .*|1\.\..*)$/mg) . "\n",
		'all counters count');
}

# Before 17 only a library that is loaded at the start gets memory.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->restart;
my $registry = $node->safe_psql('postgres', "SELECT current_setting('server_version_num')::int >= 170000") eq 't';
$node->safe_psql('postgres', "BEGIN; SELECT FROM idempotent_begin('s', 'k'); SELECT idempotent_finish('s', 'k'); COMMIT");
is(counted('postgres'), $registry ? '1|1' : '|', 'without that: from 17 on the same, before it nothing, and nothing fails');
is($node->safe_psql('postgres', 'SELECT idempotent_stats_reset()'), $registry ? 't' : 'f', 'nothing to reset then');

$node->stop;
done_testing();
