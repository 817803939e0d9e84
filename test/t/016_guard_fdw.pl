# The commit guard runs before postgres_fdw commits at its remote server: a transaction that the guard refuses leaves nothing
# there, whichever of the two libraries was loaded first (I4).

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('guard_fdw');
$node->init;
$node->start;

if ($node->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'") eq '0')
{
	plan skip_all => 'postgres_fdw is not installed';
}

my $host = $node->host;
my $port = $node->port;
$node->safe_psql('postgres', 'CREATE DATABASE remote');
$node->safe_psql('remote', 'CREATE TABLE charges (key text)');
$node->safe_psql('postgres', <<"SQL");
CREATE EXTENSION idempotency;
CREATE EXTENSION postgres_fdw;
CREATE SERVER remote FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'remote');
CREATE USER MAPPING FOR CURRENT_USER SERVER remote;
CREATE FOREIGN TABLE charges (key text) SERVER remote;
SQL

# Is a key's charge at the remote server?
sub charged
{
	my ($key) = @_;
	return $node->safe_psql('remote', "SELECT count(*) FROM charges WHERE key = '$key'");
}

# Transactions of a session in which both libraries are at work: refused, finished, and refused again.
sub try_session
{
	my ($session, $who) = @_;

	for my $turn (1, 2)
	{
		$session->query('BEGIN');
		$session->query("SELECT outcome FROM idempotent_begin('guard', '$who refused $turn')");
		$session->query("INSERT INTO charges VALUES ('$who refused $turn')");
		is($session->code('COMMIT'), 'IK500', "$who: commit without finish is refused, turn $turn");
		is(charged("$who refused $turn"), '0', "$who: and nothing is left at the remote server, turn $turn");

		$session->query('BEGIN');
		$session->query("SELECT outcome FROM idempotent_begin('guard', '$who done $turn')");
		$session->query("INSERT INTO charges VALUES ('$who done $turn')");
		$session->query("SELECT idempotent_finish('guard', '$who done $turn')");
		is($session->code('COMMIT'), '00000', "$who: commit after finish is not, turn $turn");
		is(charged("$who done $turn"), '1', "$who: and its charge is there, turn $turn");

		# Begun and undone: the next transaction's guard is as good.
		$session->query('BEGIN');
		$session->query('SAVEPOINT s');
		$session->query("SELECT outcome FROM idempotent_begin('guard', '$who undone $turn')");
		$session->query("INSERT INTO charges VALUES ('$who undone $turn')");
		$session->query('ROLLBACK TO s');
		$session->query("SELECT outcome FROM idempotent_begin('guard', '$who begun anew $turn')");
		$session->query("INSERT INTO charges VALUES ('$who begun anew $turn')");
		is($session->code('COMMIT'), 'IK500', "$who: begun anew after ROLLBACK TO it is refused, turn $turn");
		is(charged("$who begun anew $turn"), '0', "$who: and nothing is left, turn $turn");
	}

	# The remote work first, the attempt after it.
	$session->query('BEGIN');
	$session->query("INSERT INTO charges VALUES ('$who before begin')");
	$session->query("SELECT outcome FROM idempotent_begin('guard', '$who before begin')");
	is($session->code('COMMIT'), 'IK500', "$who: an attempt that begins after the remote work is refused");
	is(charged("$who before begin"), '0', "$who: and what was done before it is not left either");
	$session->quit;
	return;
}

# A connection to the remote server registers postgres_fdw's callback, once in a session.
my $session = Session->new($node);
$session->query("LOAD 'idempotency'");
$session->query('SELECT count(*) FROM charges');
try_session($session, 'ours first');

$session = Session->new($node);
$session->query('SELECT count(*) FROM charges');
$session->query("LOAD 'idempotency'");
try_session($session, 'theirs first');

# An attempt has been made before the remote server is spoken to for the first time.
$session = Session->new($node);
$session->query('BEGIN');
$session->query("SELECT outcome FROM idempotent_begin('guard', 'an attempt')");
$session->query("SELECT idempotent_finish('guard', 'an attempt')");
$session->query('COMMIT');
$session->query('SELECT count(*) FROM charges');
try_session($session, 'an attempt first');

# The same from the start of the server.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'idempotency,postgres_fdw'");
$node->restart;
$session = Session->new($node);
$session->query('SELECT count(*) FROM charges');
try_session($session, 'ours preloaded first');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'postgres_fdw,idempotency'");
$node->restart;
$session = Session->new($node);
$session->query('SELECT count(*) FROM charges');
try_session($session, 'theirs preloaded first');

done_testing();
