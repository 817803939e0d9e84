# Through PgBouncer in transaction mode: many clients over few sessions of the server, and no lock outlives its transaction.

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
use Time::HiRes qw(usleep);

# Debian keeps it where only root looks.
$ENV{PATH} .= ':/usr/sbin';
plan skip_all => 'PgBouncer is not installed' if !grep { -x "$_/pgbouncer" } split /:/, $ENV{PATH};

my $node = PostgreSQL::Test::Cluster->new('pooled');
$node->init;
$node->start;
Ledger::create($node);
$node->safe_psql('postgres', 'CREATE TABLE answers (key text NOT NULL, receipt bigint NOT NULL); CREATE SEQUENCE tickets');

# Three sessions of the server for everybody.  As is usual in this mode, they change hands as they are; later they are
# reset by DISCARD ALL each time.
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $folder = PostgreSQL::Test::Utils::tempdir_short;
my $user = $node->safe_psql('postgres', 'SELECT current_user');
append_to_file("$folder/users", qq{"$user" ""\n});
append_to_file("$folder/pgbouncer.ini", qq{
[databases]
postgres = host=@{[ $node->host ]} port=@{[ $node->port ]}
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $folder
auth_type = trust
auth_file = $folder/users
logfile = $PostgreSQL::Test::Utils::log_path/010_pgbouncer.log
pool_mode = transaction
default_pool_size = 3
max_client_conn = 100
server_reset_query = DISCARD ALL
server_reset_query_always = 0
admin_users = $user
ignore_startup_parameters = options
});
my $bouncer = IPC::Run::start([ 'pgbouncer', '-q', "$folder/pgbouncer.ini" ], '>', \my $out, '2>', \my $err);
my $connstr = "host=$folder port=$port user=$user dbname=postgres";

END
{
	local $?;
	$bouncer->kill_kill(grace => 5) if defined $bouncer;
}

my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
my $up;
until ($up = IPC::Run::run([ 'psql', '-Xqc', 'SELECT', $connstr ], '>', \$out, '2>', \$err) or time > $deadline)
{
	usleep(10_000);
}
ok($up, 'PgBouncer is up') or die $err;

my $locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
my @client = map { Session->new($node, connstr => $connstr) } 1 .. 4;

# Start, and replay in whatever session of the server it hits.
my $receipt = $client[0]->query("SELECT receipt FROM charge('one')");
is($_->query("SELECT * FROM charge('one')"), "replayed|$receipt", 'each client gets the first answer') for @client;
is($client[0]->code(Ledger::begin('autocommit')), 'IK500', 'begin in autocommit is refused');
is($client[1]->query("SELECT outcome FROM charge('autocommit')"), 'started', 'and leaves the key free');
is($client[2]->code(q{SELECT idempotent_begin('shop', 'one', fingerprint => '\x01')}), '00000', 'no fingerprint, no mismatch');

# Two hold keys and the third waits for one: the three sessions are taken, and the fourth waits for a session.
for my $i (0, 1)
{
	$client[$i]->query($_) for 'BEGIN', Ledger::begin("held $i"), Ledger::work("held $i"), Ledger::finish("held $i");
}
$client[2]->send("SELECT outcome FROM charge('held 0')");
ok($node->poll_query_until('postgres', "$locks AND NOT granted", '1'), 'a client waits for a key');
$client[3]->send("SELECT outcome FROM charge('held 1')");
$client[0]->query('COMMIT');
is($client[2]->result, 'replayed', 'after COMMIT it replays');
ok($node->poll_query_until('postgres', "$locks AND NOT granted", '1'), 'another waits for another key');

# The holder's client goes away; PgBouncer then ends its session of the server.
$client[1]->kill;
is($client[3]->result, 'started', 'a client that dies frees its key');

# Under lease, each phase may be in another session of the server.
is( $client[0]->query("SELECT attempt FROM idempotent_begin('shop', 'leased', lease => '1 hour')"),
	'1', 'a claim');
$client[2]->query('BEGIN');
$client[3]->query("SELECT idempotent_checkpoint('shop', 'leased', 1, 'charged')");
$client[2]->query('COMMIT');
$client[2]->query("SELECT idempotent_finish('shop', 'leased', work('leased'), attempt => 1)");
is($client[0]->query("SELECT outcome FROM charge('leased')"), 'replayed', 'is finished elsewhere and replays');
$_->quit for @client;

# Thirty clients at once.  One request in ten is rolled back.
append_to_file("$folder/request", q{
	\set lot random(1, 10)
	SELECT nextval('tickets') / 20 AS n \gset
	BEGIN;
	SELECT receipt FROM charge('key ' || :n) \gset
	\if :lot = 1
		ROLLBACK;
	\else
		COMMIT;
		INSERT INTO answers VALUES ('key ' || :n, :receipt);
	\endif
});

sub storm
{
	my ($how) = @_;
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM answers');

	command_like([ 'pgbench', '-n', '-c', 30, '-t', 20, '-f', "$folder/request", '-h', $folder, '-p', $port, '-U', $user, 'postgres' ],
		qr{processed: 600/600\n}, "$how: many clients get through");
	is(Ledger::discrepancies($node), '0|0|0', "$how: each work is done once");
	is( $node->safe_psql('postgres', q{
			SELECT count(*) FROM answers a WHERE NOT EXISTS (SELECT FROM ledger l WHERE (l.key, l.receipt) = (a.key, a.receipt))}),
		'0', "$how: all answers of a key are the same");
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM answers'), '>', $before + 450, "$how: most requests were answered");

	# The sessions of the server are still there, and hold nothing.
	ok( $node->poll_query_until('postgres',	# the last query's own session may be on its way out
			"SELECT count(*) = 3 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"),
		"$how: they shared three sessions of the server");
	is($node->safe_psql('postgres', $locks), '0', "$how: no lock is left in them");
	return;
}

storm('as they are');
command_ok([ 'psql', '-Xqc', 'SET server_reset_query_always = 1', '-d', $connstr =~ s/dbname=\w+/dbname=pgbouncer/r ],
	'from now on with DISCARD ALL');
my $client = Session->new($node, connstr => $connstr);
$client->query("SET idempotency.retention = '1h'");
is($client->query("SELECT current_setting('idempotency.retention') FROM idempotent_prune()"), '1d', 'a session is reset when it changes hands');
$client->quit;
storm('with DISCARD ALL');

done_testing();
