# The SQL edition on Citus: a coordinator and two workers, keys and claims distributed by id, the business's table by tenant,
# callers at any node. Whichever node two retries are at, the work is done once; an attempt number is given out once; nobody
# commits what is not finished; and key and work are both there or neither, whatever moves or dies. Skipped where Citus is not
# installed.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;
use Time::HiRes qw(usleep);

my ($libraries) = run_command([ 'pg_config', '--pkglibdir' ]);
plan skip_all => 'Citus is not installed' unless -e "$libraries/citus.so";

my $scripts = "$FindBin::RealBin/../../sql";
my $patience = $PostgreSQL::Test::Utils::timeout_default;

sub start_node
{
	my ($name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init;
	$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'citus'
listen_addresses = '127.0.0.1'
wal_level = logical
max_wal_senders = 10
max_replication_slots = 10
max_prepared_transactions = 100
max_connections = 100
fsync = off
citus.shard_count = 8
# Who sets synchronous_commit to on waits for this standby for ever.
synchronous_standby_names = 'nobody'
synchronous_commit = local
CONF
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION citus');
	return $node;
}

my $coordinator = start_node('coordinator');
my @workers = map { start_node($_) } 'worker1', 'worker2';
my @nodes = ($coordinator, @workers);

sub load
{
	my ($node, $script, $role) = @_;

	my $errors = '';
	return run_log([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=sqlstate', '-f', "$scripts/$script",
		'-d', $node->connstr('postgres') . " user=$role" ], '2>', \$errors) ? '00000' : $errors =~ /(?:ERROR|FATAL):  (\w+)/ ? $1 : $errors;
}

# The roles and what belongs to the business; the script is loaded by an ordinary role.
$coordinator->safe_psql('postgres', sprintf("SELECT citus_set_coordinator_host('127.0.0.1', %d)", $coordinator->port));
sub add_node
{
	my ($worker) = @_;

	return $coordinator->safe_psql('postgres', sprintf("SELECT citus_add_node('127.0.0.1', %d)", $worker->port));
}
add_node($workers[0]);
$coordinator->safe_psql('postgres', <<'SQL');
CREATE ROLE keeper LOGIN;
CREATE ROLE shop LOGIN;
GRANT CREATE ON DATABASE postgres TO keeper;
SQL
is(load($workers[0], 'idempotency.citus.sql', 'keeper'), '0A000', 'the script is not for a worker');
is(load($coordinator, 'idempotency.sql', 'keeper'), '0A000', 'nor that without Citus for the coordinator');
is(load($coordinator, 'idempotency.citus.sql', 'keeper'), '00000', 'an ordinary role loads it');
is(load($coordinator, 'idempotency.citus.sql', 'keeper'), '00000', 'twice');

$coordinator->safe_psql('postgres', <<'SQL');
GRANT USAGE ON SCHEMA idempotency TO shop;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA idempotency TO shop;
SQL

# A node that comes later has all of it but its own table, and then its share of the shards.
add_node($workers[1]);
is(Session->new($workers[1])->code("SELECT idempotency.idempotent_begin('new', 'k')"), '0A000', 'a node that has no table of open attempts refuses');
$workers[1]->safe_psql('postgres', 'ALTER DEFAULT PRIVILEGES FOR ROLE keeper GRANT ALL ON TABLES TO shop');
$workers[1]->safe_psql('postgres', 'SET ROLE keeper; SELECT idempotency.idempotent__citus_node()');
is( $workers[1]->safe_psql('postgres', q{
		SELECT count(*) FROM pg_class c, aclexplode(c.relacl) x
		WHERE c.relname IN ('idempotency_open', 'idempotency_in_flight') AND x.grantee NOT IN (c.relowner, 'pg_monitor'::regrole)}),
	'0', 'what it makes there is nobody else\'s, whatever the default privileges say');
$workers[1]->safe_psql('postgres', 'ALTER DEFAULT PRIVILEGES FOR ROLE keeper REVOKE ALL ON TABLES FROM shop');
$coordinator->safe_psql('postgres', "SELECT rebalance_table_shards(shard_transfer_mode => 'block_writes')");
is($coordinator->safe_psql('postgres', "SELECT count(DISTINCT nodeport) FROM citus_shards WHERE table_name = 'idempotency.idempotency_keys'::regclass"),
	'2', 'keys are at both workers');

$coordinator->safe_psql('postgres', <<'SQL');
CREATE SCHEMA shop AUTHORIZATION shop;
ALTER ROLE shop SET search_path = shop, idempotency;
ALTER ROLE postgres SET search_path = shop, idempotency;
SET ROLE shop;
CREATE TABLE shop.charges (tenant text, key text, at text DEFAULT current_setting('port'));
SELECT create_distributed_table('shop.charges', 'tenant');
-- The work of a request: its tenant follows from the key.
CREATE FUNCTION shop.charge(of_scope text, of_key text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	a idempotency.idempotent_attempt := idempotency.idempotent_begin(of_scope, of_key);
BEGIN
	IF NOT a.replayed THEN
		INSERT INTO shop.charges VALUES ('t' || length(of_key) || right(of_key, 1), of_key, current_setting('port'));
		PERFORM idempotency.idempotent_finish(of_scope, of_key, to_jsonb(of_key), 201);
	END IF;
	RETURN a.outcome;
END $$;
SQL

sub session
{
	my ($node) = @_;

	return Session->new($node, connstr => $node->connstr('postgres') . ' user=shop');
}

# From any node, whatever it is asked.
sub answers
{
	my ($node) = @_;
	my ($name, $session) = ($node->name, session($node));
	my $says = sub {
		my ($sql, $wanted, $what) = @_;
		my $rows = $session->run($sql);
		is($session->sqlstate eq '00000' ? $rows : $session->sqlstate, $wanted, "$name: $what");
	};

	is($node->safe_psql('postgres', "SELECT has_function_privilege('public', 'idempotency.idempotent_begin(text, text, jsonb, bytea, interval, timestamptz, interval)', 'EXECUTE')"),
		'f', "$name: nothing is granted to PUBLIC");
	$says->("SELECT charge('$name', 'k')", 'started', 'a first request');
	$says->("SELECT charge('$name', 'k')", 'replayed', 'a retry');
	$says->("SELECT outcome, status, response FROM idempotent_lookup('$name', 'k')", 'replayed|201|"k"', 'lookup');
	$says->("SELECT outcome FROM idempotent_begin('$name', 'q', '1', retention => '1 hour', first_sent => now())", 'IK500', 'commit without finish');
	$says->("BEGIN; SELECT attempt FROM idempotent_begin('$name', 'q', '1', retention => '1 hour', first_sent => now())", '1', 'with all that can be said of it');
	$says->("SELECT idempotent_finish('$name', 'q', '1', body_text => 'b', retention => '2 hours')", '1', 'finished with all that can be said');
	$says->('COMMIT', '', 'and committed');
	$says->("SELECT outcome FROM idempotent_try_begin('$name', 'q', '2')", 'mismatch', 'another request');

	$says->("SELECT attempt FROM idempotent_begin('$name', 'l', lease => '1 hour')", '1', 'a lease');
	$says->("SELECT outcome, attempt FROM idempotent_try_begin('$name', 'l')", 'in_progress|1', 'which is live');
	$says->("SELECT idempotent_checkpoint('$name', 'l', 1, 'half', '7') > now()", 't', 'a checkpoint');
	$says->("SELECT idempotent_release('$name', 'l', 1, 'why', '0')", 't', 'a release');
	$says->("SELECT key, attempt, checkpoint, state, error FROM idempotent_resume('1 hour', 1, '$name')", 'l|2|half|7|why', 'resume');
	$says->("SELECT idempotent_finish('$name', 'l', '2', attempt => 1)", 'IK410', 'the attempt before is fenced');
	$says->("SELECT idempotent_park('$name', 'l', 2, 'unknown')", 't', 'park');
	$says->("SELECT attempt FROM idempotent_retry('$name', 'l', '1 hour')", '3', 'retry');
	$says->("SELECT idempotent_finish('$name', 'l', '3', attempt => 3)", '3', 'finish under lease');
	$says->("SELECT idempotent_resolve('$name', 'l', 'r', '4', correct => true)", 'corrected', 'resolve: a correction');
	$says->("SELECT idempotent_resolve('$name', 'm', 'r', '5')", 'recorded', 'resolve: a record');
	$says->("SELECT response FROM idempotent_begin('$name', 'm')", '5', 'which is replayed');
	$says->("SELECT attempt FROM idempotent_begin('$name', 'n', lease => '1 microsecond')", '1', 'a lease that ends');
	$says->("BEGIN; SELECT outcome, attempt FROM idempotent_begin('$name', 'n')", 'recovered|2', 'is recovered without one');
	$says->("SELECT idempotent_finish('$name', 'n', '6')", '6', 'and finished');
	$says->('COMMIT', '', 'and committed');

	my $batch = "ARRAY(SELECT 'b' || i FROM generate_series(1, 1000) i)";
	$says->("BEGIN; SELECT count(*) FROM idempotent_begin_many('$name many', $batch)", '1000', 'a batch of 1,000');
	$says->("SELECT idempotent_finish_many('$name many', $batch)", '1000', 'is finished');
	$says->('COMMIT', '', 'and committed');
	$says->("SELECT count(*) FROM idempotent_begin_many('$name many', $batch)", '0', 'and known');
	$says->("SELECT count(*) FROM idempotent_begin_many('$name many', '{more}')", 'IK500', 'one of it is not committed without finish');

	my $theirs = "(SELECT jsonb_agg(jsonb_build_object('key', idempotent_derive('$name', k, 'charge'), 'ok', k <> 'q')) FROM unnest(ARRAY['k', 'q', 'nobody']) k)";
	$says->("SELECT string_agg(concat(verdict, ' ', key), ', ' ORDER BY verdict, key) FROM idempotent_reconcile($theirs, 'charge', now() - interval '1 hour', scope => '$name')",
		'missing_there l, missing_there m, missing_there n, refused_there q, unknown_here ', 'reconcile');
	$says->("SELECT idempotent_forget('$name', 'l')", 't', 'forget');
	$says->("SELECT idempotent_forget_scope('$name', 2)", '2', 'forget_scope');
	$coordinator->safe_psql('postgres', "UPDATE idempotency_keys SET expires_at = now() WHERE scope = '$name many'");
	$says->('SELECT idempotent_prune(300)', '300', 'prune, some');
	$says->('SELECT idempotent_prune()', '700', 'prune, the rest');
	$says->("BEGIN; SELECT outcome FROM idempotent_begin('$name', 'p')", 'started', 'an attempt');
	$says->("SELECT idempotent_finish('$name', 'p')", '', 'is finished');
	$says->("PREPARE TRANSACTION 'p'", '0A000', 'PREPARE TRANSACTION is Citus\'s to refuse');
	$session->quit;
}
answers($_) foreach @nodes;
is(join(',', map { $_->safe_psql('postgres', 'SELECT count(*) FROM idempotency_open') } @nodes), '0,0,0', 'no attempt is left open');

# A transaction's number is that of a node: the same number at another node is another transaction's.
{
	my @sessions = map { session($_) } @nodes;

	$sessions[$_]->query("SELECT idempotent_begin('xact', 'n$_', lease => '1 hour')") foreach 0 .. 2;
	is($coordinator->safe_psql('postgres', "SELECT count(DISTINCT xid::text::bigint >> 48) FROM idempotency_claims WHERE scope = 'xact'"),
		'3', 'a transaction\'s name tells its node');
	$_->quit foreach @sessions;
}

# Commit without finish: nothing on any node, of the key or of the work.
foreach my $node (@nodes)
{
	my $session = session($node);
	my $count = "SELECT (SELECT count(*) FROM shop.charges WHERE key LIKE 'g%') || ' ' || (SELECT count(*) FROM idempotency_keys WHERE scope = 'guard')";

	$session->query('BEGIN');
	$session->query("SELECT outcome FROM idempotent_begin('guard', 'g$_')") foreach 1 .. 8;
	$session->query("INSERT INTO charges SELECT 't' || i, 'g' FROM generate_series(1, 20) i");
	$session->query("SELECT idempotent_finish('guard', 'g$_')") foreach 1 .. 7;
	is($session->code('COMMIT'), 'IK500', $node->name . ': one of eight is not finished');
	is($_->safe_psql('postgres', $count), '0 0', '  and nothing is there, seen from ' . $_->name) foreach @nodes;

	$session->query('BEGIN');
	$session->query('SET CONSTRAINTS ALL IMMEDIATE');
	is($session->code("SELECT idempotent_begin('guard', 'now')"), 'IK500', '  constraints that are immediate');
	$session->query('ROLLBACK');

	$session->query('BEGIN');
	$session->query('SAVEPOINT s');
	$session->query("SELECT outcome FROM idempotent_begin('guard', 'undone')");
	$session->query('ROLLBACK TO s');
	$session->query("SELECT outcome FROM idempotent_begin('guard', 'released')");
	$session->query("SELECT idempotent_release('guard', 'released')");
	is($session->code('COMMIT'), '00000', '  what was undone or released may be committed');
	is($node->safe_psql('postgres', $count), '0 0', '  and leaves nothing');
	$session->quit;
}

# --- at two nodes at once ---

# For psql: each of these statements in a transaction, until it has gone through; says its SQLSTATEs.
sub until_done
{
	my ($level, @statements) = @_;
	my $try = <<"PSQL";
\\if :todo
BEGIN ISOLATION LEVEL $level;
%s;
\\echo = :SQLSTATE
\\if :ERROR
COMMIT;
\\else
COMMIT;
\\echo = :SQLSTATE
\\set todo :ERROR
\\endif
\\endif
PSQL

	return join '', map { "\\set todo true\n" . sprintf($try, $_) x 10 } @statements;
}

# Start a script at a node; it comes and goes by files, so that nobody has to pump.
sub start_script
{
	my ($node, $script) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/script';

	PostgreSQL::Test::Utils::append_to_file("$file.sql", $script);
	return { out => "$file.out", psql => IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate', '-f', "$file.sql", '-d', $node->connstr('postgres') . ' user=shop' ],
		'<', \undef, '>', "$file.out", '2>', "$file.err", IPC::Run::timeout(3 * $patience)) };
}

# How often each line came, of all.
sub lines_of
{
	my (@runs) = @_;
	my %lines;

	$_->{psql}->finish foreach @runs;
	$lines{$_}++ foreach map { split /\n/, PostgreSQL::Test::Utils::slurp_file($_->{out}) } @runs;
	return \%lines;
}

# No SQLSTATE but success and the two that say "again".
sub only_retried
{
	my ($lines, $what) = @_;
	my @others = grep { /^= / && !/^= (00000|40001|40P01)$/ } sort keys %$lines;

	is("@others", '', "$what: no SQLSTATE but 40001 and 40P01");
	note("$what: " . join ', ', map { "$_: $lines->{$_}" } sort keys %$lines) if keys %$lines < 20;
	return;
}

sub effects
{
	my ($scope, $prefix) = @_;

	return $coordinator->safe_psql('postgres', "SELECT count(*) || ' effects of ' || count(DISTINCT key) FROM shop.charges WHERE key LIKE '$prefix %'")
		. ', keys ' . $coordinator->safe_psql('postgres', "SELECT count(*) FROM idempotency_keys WHERE scope = '$scope' AND finished_at IS NOT NULL");
}

sub race
{
	my ($level, $prefix, $n, @at) = @_;
	my $script = until_done($level, map { "SELECT charge('$prefix', '$prefix $_')" } 1 .. $n);
	my $lines = lines_of(map { start_script($_, $script) } @at);
	my $what = "$level, " . join(' and ', map { $_->name } @at);

	only_retried($lines, $what);
	is(effects($prefix, $prefix), "$n effects of $n, keys $n", "$what: each effect once");
	return $lines;
}

my $lines = race('READ COMMITTED', 'two workers', 1000, @workers);
is($lines->{started}, 1000, 'each key was started once');
is($lines->{replayed}, 1000, 'and replayed once');
my $at = $coordinator->safe_psql('postgres', "SELECT count(DISTINCT at) FROM shop.charges WHERE key LIKE 'two workers %'");
is($at, '2', 'by both nodes');
race('READ COMMITTED', 'three nodes', 200, @nodes);
race('REPEATABLE READ', 'repeatable', 200, $coordinator, $workers[0]);
race('SERIALIZABLE', 'serializable', 200, @workers);

# Batches of 250 that overlap, each in its own order.
{
	my @statements = map {
		my $names = sprintf("ARRAY(SELECT 'b ' || i FROM generate_series(%d, %d) i)", $_ * 100, $_ * 100 + 249);
		"SELECT charge_many($names)"
	} 1 .. 8;
	$coordinator->safe_psql('postgres', <<'SQL');
SET ROLE shop;
CREATE FUNCTION shop.charge_many(names text[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	new_ text[];
BEGIN
	SELECT array_agg(k) INTO new_ FROM idempotency.idempotent_begin_many('batch', names) k;
	INSERT INTO shop.charges SELECT 't' || right(k, 1), k FROM unnest(new_) k;
	RETURN idempotency.idempotent_finish_many('batch', coalesce(new_, '{}'));
END $$;
SQL
	my $lines = lines_of(start_script($workers[0], until_done('READ COMMITTED', @statements)),
		start_script($workers[1], until_done('READ COMMITTED', reverse @statements)));
	only_retried($lines, 'batches');
	is(effects('batch', 'b'), '950 effects of 950, keys 950', 'batches: each effect once');
}

# Leases that have ended, taken over at two nodes at once: a number is given to one of them.
{
	$coordinator->safe_psql('postgres', "SELECT idempotent_begin('lease', 'l ' || i, lease => '1 microsecond') FROM generate_series(1, 100) i");
	my $script = until_done('READ COMMITTED',
		(map { "SELECT '#' || outcome || attempt || ' $_' FROM idempotent_try_begin('lease', 'l $_', lease => '1 microsecond') WHERE outcome = 'recovered'" } (1 .. 100) x 2),
		("SELECT '#recovered' || attempt || ' ' || substr(key, 3) FROM idempotent_resume('1 microsecond', 10, 'lease')") x 20);
	my $lines = lines_of(map { start_script($_, $script) } @workers);

	only_retried($lines, 'leases');
	my @given = grep { /^#/ } keys %$lines;
	cmp_ok(scalar(@given), '>=', 400, 'leases are taken over');
	is(join(', ', grep { $lines->{$_} > 1 } @given), '', 'and never one number twice');
}

# --- what it costs ---

# Statements to the nodes with the rows, besides BEGIN.
sub statements
{
	my ($sql) = @_;
	my ($out, $err) = ('', '');

	$coordinator->psql('postgres', "SET citus.log_remote_commands = on; $sql", stdout => \$out, stderr => \$err);
	return scalar(() = $err =~ /issuing (?!BEGIN)/g);
}
my $warm = "SELECT outcome FROM idempotent_lookup('cost', 'k')";
is(statements("$warm; BEGIN; SELECT outcome FROM idempotent_begin('cost', 'k'); ROLLBACK") - statements("$warm; BEGIN; SELECT 1; ROLLBACK"), 4,
	'begin is three statements, and ROLLBACK one');
is(statements("BEGIN; SELECT outcome FROM idempotent_begin('cost', 'k'); SELECT idempotent_finish('cost', 'k'); COMMIT"), 5,
	'with finish four, and COMMIT one where there is no work at another node');
is(statements("SELECT outcome FROM idempotent_begin('cost', 'k')"), 1, 'a replay is one');

# Work that is at one node and its key at another is prepared at both; a local table counts if Citus knows it.
$coordinator->safe_psql('postgres', <<'SQL');
CREATE TABLE shop.known (key text);
SELECT citus_add_local_table_to_metadata('shop.known');
SQL
is(statements("BEGIN; SELECT outcome FROM idempotent_begin('cost', 'l'); INSERT INTO shop.known VALUES ('l'); SELECT idempotent_finish('cost', 'l'); COMMIT"),
	6, 'beside a local table that Citus knows: PREPARE TRANSACTION and COMMIT PREPARED');

# A procedure that Citus sends to the tenant's node, or does not: always once.
{
	$coordinator->safe_psql('postgres', <<'SQL');
CREATE FUNCTION shop.charge_of(of_tenant text, of_key text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	a idempotency.idempotent_attempt := idempotency.idempotent_begin('delegated', of_key);
BEGIN
	IF NOT a.replayed THEN
		INSERT INTO shop.charges VALUES (of_tenant, of_key, inet_server_port());
		PERFORM idempotency.idempotent_finish('delegated', of_key);
	END IF;
	RETURN a.outcome;
END $$;
SELECT create_distributed_function('shop.charge_of(text, text)', 'of_tenant', colocate_with => 'shop.charges');
SQL
	foreach my $node (@nodes)
	{
		$node->safe_psql('postgres', "SELECT charge_of('t' || $_, 'delegated $_')") foreach 1 .. 5;
		$node->safe_psql('postgres', "BEGIN; SELECT charge_of('t' || $_, 'delegated $_'); COMMIT") foreach 1 .. 5;
		$node->safe_psql('postgres', "DO 'BEGIN PERFORM shop.charge_of(''t$_'', ''delegated $_''); END'") foreach 1 .. 5;
	}
	is(effects('delegated', 'delegated'), '5 effects of 5, keys 5', 'a delegated procedure: each effect once');
}

# --- what waits, and how long ---

{
	my ($first, $second) = map { session($_) } @workers;

	$first->query('BEGIN');
	$first->query("SELECT outcome FROM idempotent_begin('wait', 'k')");
	$second->query("SET citus.propagate_set_commands = 'local'");
	$second->query('BEGIN');
	$second->query("SET LOCAL lock_timeout = '100ms'");
	is($second->code("SELECT idempotent_begin('wait', 'k')"), '55P03', 'lock_timeout reaches the other node');
	is($_->safe_psql('postgres', 'SELECT count(*) FROM idempotency_in_flight WHERE pid <> pg_backend_pid()'), $_ == $workers[0] ? 1 : 0,
		'who is at work is seen at his node alone: ' . $_->name) foreach $coordinator, $workers[0];
	$second->query('ROLLBACK');
	is($second->query("SELECT count(*) FROM idempotent_lookup('wait', 'k')"), '0', 'lookup does not see an attempt at another node');
	$first->query("SELECT idempotent_finish('wait', 'k')");
	$first->query('COMMIT');
	$_->quit foreach $first, $second;
}

# --- shards that move ---

sub move_shard
{
	my ($mode) = @_;
	my ($shard, $from, $to) = split /\|/, $coordinator->safe_psql('postgres', sprintf("SELECT shardid, nodeport, %d - nodeport FROM citus_shards
		WHERE table_name = 'idempotency.idempotency_keys'::regclass ORDER BY random() LIMIT 1", $workers[0]->port + $workers[1]->port));

	# Whoever waits may be in the way of the move, which may be tried again.
	return $coordinator->psql('postgres', "SELECT citus_move_shard_placement($shard, '127.0.0.1', $from, '127.0.0.1', $to, '$mode')");
}

{
	my $script = until_done('READ COMMITTED', map { "SELECT charge('moved', 'moved $_')" } 1 .. 1000);
	my @runs = map { start_script($_, $script) } @workers;
	my $moves = 0;

	foreach my $mode (qw(block_writes force_logical block_writes))
	{
		$moves++ if move_shard($mode) == 0;
	}
	is(scalar(grep { $_->{psql}->pumpable } @runs), 2, 'there was traffic until the last move was done');
	my $lines = lines_of(@runs);
	is($moves, 3, 'shards of keys were moved under load');
	only_retried($lines, 'moved');
	is(effects('moved', 'moved'), '1000 effects of 1000, keys 1000', 'and each effect is there once');
	is($lines->{started}, 1000, 'each key was started once');
}

# --- nodes that die between PREPARE and COMMIT PREPARED ---

# A commit that waits for a standby which there is not: at the session's node, it has been written there, and the other nodes
# have prepared it; at another node, that node's PREPARE waits. Not any more:
sub let_go
{
	my ($node) = @_;

	$node->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
	$node->reload;
	return;
}

# A key whose row is at this node.
sub key_at
{
	my ($node, $scope) = @_;

	return $coordinator->safe_psql('postgres', sprintf("SELECT 'dead ' || i FROM generate_series(1, 100) i, citus_shards s
		WHERE s.table_name = 'idempotency.idempotency_keys'::regclass AND s.nodeport = %d AND s.shardid = get_shard_id_for_distribution_column(
			'idempotency.idempotency_keys', left(idempotent_derive('$scope', 'dead ' || i, 's'), 32)::uuid) LIMIT 1", $node->port));
}

# An attempt with work at this node, sent as far as COMMIT, which is held here.
sub sent_commit
{
	my ($node, $scope, $key, $work, $held) = @_;
	# A new session has new connections to the other nodes.
	$held->safe_psql('postgres', "SET citus.enable_ddl_propagation = off; ALTER ROLE $_ SET synchronous_commit = on") foreach qw(keeper shop);
	my $session = session($node);
	my $tenants = sprintf("(SELECT 't' || i FROM generate_series(1, 100) i WHERE get_shard_id_for_distribution_column('shop.charges', 't' || i) IN
		(SELECT shardid FROM citus_shards WHERE table_name = 'shop.charges'::regclass AND nodeport = %d))", $work->port);
	my $tenant = $coordinator->safe_psql('postgres', "$tenants LIMIT 1");

	$session->query('BEGIN');
	$session->query("SELECT outcome FROM idempotent_begin('$scope', '$key')");
	$session->query("INSERT INTO charges VALUES ('$tenant', '$scope $key')");
	$session->query("SELECT idempotent_finish('$scope', '$key', '1')");
	$session->send('COMMIT');
	ok($held->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query ~ '^(COMMIT|PREPARE)'"),
		"$scope: the commit is held at " . $held->name);
	return $session;
}

sub prepared_at
{
	my (@at) = @_;
	my $n = 0;

	$n += $_->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts') foreach @at;
	return $n;
}

# All of it at once, as if the power were off.
sub kill_node
{
	my ($node, $session) = @_;

	kill('KILL', $session->pid) if $session;
	$node->kill9;
	return;
}

sub start_again
{
	my ($node) = @_;
	my $deadline = time + $patience;

	# Its orphans may still be there.
	until (run_log([ 'pg_ctl', '-w', '-s', '-D', $node->data_dir, '-l', $node->logfile, 'start' ]))
	{
		die $node->name . ' does not start' if time > $deadline;
		usleep(100_000);
	}
	$node->_update_pid(1);
	$node->safe_psql('postgres', "SET citus.enable_ddl_propagation = off; ALTER ROLE $_ RESET synchronous_commit") foreach qw(keeper shop);
	return;
}

# Citus does this every minute by itself.
sub recover
{
	my ($scope) = @_;
	my $deadline = time + $patience;

	until (prepared_at(@nodes) == 0)
	{
		last if time > $deadline;
		$_->psql('postgres', 'SELECT recover_prepared_transactions()') foreach @nodes;
		usleep(50_000);
	}
	is(prepared_at(@nodes), 0, "$scope: Citus has settled what was prepared");
	return;
}

sub is_there
{
	my ($scope, $key, $wanted, $what) = @_;

	foreach my $node (@nodes)
	{
		is($node->safe_psql('postgres', "SELECT (SELECT count(*) FROM shop.charges WHERE key = '$scope $key') || ' ' ||
			(SELECT count(*) FROM idempotency_keys WHERE scope = '$scope' AND finished_at IS NOT NULL)"), $wanted, "$scope: $what, seen from " . $node->name);
	}
	return;
}

# The session's node dies when it has written its commit and told nobody.
foreach my $case ([ $coordinator, $workers[0], $workers[0] ], [ $coordinator, @workers ], [ $workers[0], @workers ], [ $workers[0], reverse @workers ])
{
	my ($node, $row, $work) = @$case;
	my $scope = 'session at ' . $node->name . ', row at ' . $row->name . ', work at ' . $work->name;
	my $key = key_at($row, $scope);
	my $session = sent_commit($node, $scope, $key, $work, $node);

	cmp_ok(prepared_at(grep { $_ != $node } @nodes), '>', 0, "$scope: the others have prepared");
	kill_node($node, $session);
	start_again($node);
	recover($scope);
	is_there($scope, $key, '1 1', 'key and work');
	is($node->safe_psql('postgres', "SELECT outcome FROM idempotent_begin('$scope', '$key')"), 'replayed', "$scope: the retry replays");
	$session->quit;
}

# The node that has the row dies when it has prepared.
{
	my $scope = 'the node of the row';
	my $key = key_at($workers[0], $scope);
	my $session = sent_commit($coordinator, $scope, $key, $workers[1], $coordinator);

	cmp_ok(prepared_at($workers[0]), '>', 0, "$scope: it has prepared");
	kill_node($workers[0]);
	start_again($workers[0]);
	let_go($coordinator);
	$session->result;
	is($session->sqlstate, '00000', "$scope: the client is told that it is committed");
	recover($scope);
	is_there($scope, $key, '1 1', 'key and work');
	$session->quit;
}

# It dies when one of the others has prepared and one has not answered: neither key nor work.
{
	my $scope = 'not prepared everywhere';
	my $key = key_at($workers[0], $scope);
	my $session = sent_commit($coordinator, $scope, $key, $workers[1], $workers[1]);

	ok($workers[0]->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_prepared_xacts'), "$scope: one has prepared");
	kill_node($coordinator, $session);
	let_go($workers[1]);
	start_again($coordinator);
	ok($workers[1]->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), "$scope: the other is let go");
	recover($scope);
	is_there($scope, $key, '0 0', 'neither');
	is($coordinator->safe_psql('postgres', "BEGIN; SELECT outcome FROM idempotent_begin('$scope', '$key'); ROLLBACK"), 'started', "$scope: the retry starts");
	$session->quit;
}

$_->stop foreach @nodes;
done_testing();
