# Thousands of concurrent retries of a hundred keys, some rolled back, some cut off: each work once, one answer for all.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use IPC::Run;
use Ledger;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('retries');
$node->init;
# Who ends other sessions may come too late, and is warned.
$node->append_conf('postgresql.conf', 'client_min_messages = error');
$node->start;
Ledger::create($node);
$node->safe_psql('postgres', q{
	CREATE TABLE answers (key text NOT NULL, receipt bigint NOT NULL);
	CREATE VIEW doomed AS SELECT pid FROM pg_stat_activity WHERE application_name = 'doomed';
});

# Twenty tickets in a row are for the same key, so that clients meet there.  One request in ten is rolled back.  An
# answer counts when its COMMIT has come back.
sub request
{
	my ($isolation, $keys) = @_;

	return qq{
		\\set lot random(1, 10)
		SELECT nextval('tickets') / 20 % $keys AS n \\gset
		BEGIN ISOLATION LEVEL $isolation;
		SELECT receipt FROM charge('$isolation ' || :n) \\gset
		\\if :lot = 1
			ROLLBACK;
		\\else
			COMMIT;
			INSERT INTO answers VALUES ('$isolation ' || :n, :receipt);
		\\endif
	};
}

# Clients that will be cut off wait at a gate for the others, so that all begin with the first key.
my $wait_at_gate = "SELECT pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1);";
my $open_gate = q{
	\\if :client_id = 0
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gate';
	\\endif
};

# Now and then a client cuts another one off, wherever that one is.
my $cut_off = q{
	\\set lot random(1, 20)
	\\if :lot = 1
		SELECT pg_terminate_backend(pid) FROM doomed ORDER BY random() LIMIT 1;
	\\endif
};

# The lock spares an application serialization failures.  Only SERIALIZABLE may have them, since it takes more for a
# conflict than there is: there they are tried again, as an application would.
sub storm
{
	my ($isolation, $keys, $clients, $transactions, $doomed) = @_;
	my $tries = $isolation eq 'SERIALIZABLE' ? 1000 : 1;
	my $name = '004_' . lc($isolation) =~ s/ /_/gr;
	my $script = PostgreSQL::Test::Utils::tempdir . '/doomed';
	my $gate = Session->new($node);
	my ($out, $err);

	$gate->query("SET application_name = 'gate'");
	$gate->query('SELECT pg_advisory_lock(1)');
	$node->safe_psql('postgres', 'CREATE SEQUENCE tickets MINVALUE 0');
	append_to_file($script, $wait_at_gate . request($isolation, $keys));
	my $victims = do
	{
		local $ENV{PGAPPNAME} = 'doomed';
		IPC::Run::start([ 'pgbench', '-n', '-c', $doomed, '-T', 1000, '--max-tries', 0, '-f', $script,
				'-h', $node->host, '-p', $node->port, 'postgres' ], '>', \$out, '2>', \$err);
	};
	ok($node->poll_query_until('postgres', "SELECT count(*) = $doomed FROM pg_locks WHERE objid = 1 AND objsubid = 1 AND NOT granted"),
		"$isolation: clients that will be cut off");

	$node->pgbench(
		"--no-vacuum --client=$clients --transactions=$transactions --max-tries=$tries", 0,
		[ qr{processed: (\d+)/\1\n}, qr{failed transactions: 0 } ], [qr{^$}],
		"$isolation: all others get through",
		{ $name => $open_gate . request($isolation, $keys) . $cut_off });
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM doomed'), '<', $doomed, "$isolation: some were cut off");
	$node->safe_psql('postgres', 'SELECT count(pg_terminate_backend(pid)) FROM doomed');
	$victims->finish;
	$gate->quit;
	is($victims->result, 2, "$isolation: in the end all of them") or diag $err;
	$node->safe_psql('postgres', 'DROP SEQUENCE tickets');

	# A key all of whose requests were rolled back gets its work now.
	$node->safe_psql('postgres', "SELECT charge('$isolation ' || i) FROM generate_series(0, $keys - 1) i");
	is(Ledger::discrepancies($node), '0|0|0', "$isolation: each key's work is done once");
	is($node->safe_psql('postgres', "SELECT count(*) FROM ledger WHERE key LIKE '$isolation%'"), $keys, "$isolation: of each key");
	is( $node->safe_psql('postgres', q{
			SELECT count(*) FROM answers a WHERE NOT EXISTS (SELECT FROM ledger l WHERE (l.key, l.receipt) = (a.key, a.receipt))}),
		'0', "$isolation: all answers of a key are the same");
	cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM answers WHERE key LIKE '$isolation%'"),
		'>', $clients * $transactions * 0.8, "$isolation: most requests were answered");
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', "$isolation: no lock is left");
	return;
}

storm('READ COMMITTED', 100, 40, 50, 20);
storm('REPEATABLE READ', 20, 20, 20, 10);
storm('SERIALIZABLE', 20, 20, 20, 10);
done_testing();
