# Identity, fingerprint and derived keys are those of UTF-8, whatever the database's encoding: a key of a LATIN1 database is
# found again where its dump was restored into a UTF8 one.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('encodings');
$node->init;
$node->start;

my %encodings = (latin1 => 'LATIN1', utf8 => 'UTF8', ascii => 'SQL_ASCII');
for my $name (sort keys %encodings)
{
	$node->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE template0 ENCODING '$encodings{$name}' LC_COLLATE 'C' LC_CTYPE 'C'");
	$node->safe_psql($name, 'CREATE EXTENSION idempotency') unless $name eq 'utf8';
}

# Scopes, keys and requests with characters that LATIN1 has in one byte and UTF-8 in two. The keys of the last object change
# their order with that: three letters are longer than two umlauts in LATIN1, and shorter in UTF-8.
my @keys = (
	[ "'plain'", "'k'", "'1'" ],
	[ "'M' || U&'\\00fc' || 'ller'", "'k'", "'1'" ],
	[ "'shop'", "U&'\\00e4\\00f6\\00fc'", "to_jsonb(U&'\\00df'::text)" ],
	[ "'shop'", "'sorted'", "jsonb_build_object('abc', 1, U&'\\00e4\\00f6', jsonb_build_object('zz', 2, U&'\\00fc', jsonb_build_array(U&'\\00e9', 1.50)))" ]);

sub session { return Session->new($node, dbname => $_[0]); }

my $latin1 = session('latin1');
$latin1->query("SET client_encoding = 'UTF8'");
my $i = 0;
for my $key (@keys)
{
	my ($scope, $name, $request) = @$key;
	$latin1->query('BEGIN');
	is($latin1->query("SELECT outcome FROM idempotent_begin($scope, $name, $request)"), 'started', "key $i starts in LATIN1");
	$latin1->query("SELECT idempotent_finish($scope, $name, '\"answer $i\"')");
	$latin1->query('COMMIT');
	$i++;
}
my @derived = map { $latin1->query("SELECT idempotent_derive($_->[0], $_->[1], U&'Geb\\00fchr')") } @keys;

my $dump = PostgreSQL::Test::Utils::tempdir() . '/latin1.sql';
$node->command_ok([ 'pg_dump', '--encoding=UTF8', '-f', $dump, 'latin1' ], 'the LATIN1 database is dumped');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, 'utf8' ], 'and restored into UTF8');

my $utf8 = session('utf8');
$i = 0;
for my $key (@keys)
{
	my ($scope, $name, $request) = @$key;
	is($utf8->query("SELECT outcome, response FROM idempotent_begin($scope, $name, $request)"), "replayed|\"answer $i\"",
		"key $i is replayed in UTF8: identity and fingerprint are the same");
	is($utf8->query("SELECT idempotent_derive($scope, $name, U&'Geb\\00fchr')"), $derived[$i], 'and so is its derived key');
	is($utf8->query("SELECT outcome FROM idempotent_try_begin($scope, $name, '\"another request\"')"), 'mismatch', 'another request is told');
	$i++;
}
is($utf8->query("SELECT id = encode(set_bit(substr(sha256(int8send(octet_length('shop')) || convert_to('shop' || U&'\\00e4\\00f6\\00fc', 'UTF8')), 1, 16), 7, 0), 'hex')::uuid
		FROM idempotency_keys WHERE key = U&'\\00e4\\00f6\\00fc'"), 't', 'which is what the design says');

# A user's own conversion does not make another key of it.
$latin1->query("CREATE SCHEMA mine");
$latin1->query("CREATE DEFAULT CONVERSION mine.to_utf8 FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8");
$latin1->query("SET search_path = mine, public, pg_catalog");
is($latin1->query("SELECT idempotent_derive($keys[2][0], $keys[2][1], U&'Geb\\00fchr')"), $derived[2], 'a conversion of a user\'s does not matter');

# SQL_ASCII: the bytes as they are.
my $ascii = session('ascii');
$ascii->query("SET client_encoding = 'SQL_ASCII'");
is($ascii->query("SELECT idempotent_derive('shop', convert_from('\\xc3a4c3b6c3bc', 'SQL_ASCII'), convert_from('\\x476562c3bc6872', 'SQL_ASCII'))"), $derived[2],
	'SQL_ASCII: UTF-8 bytes are the same key');
is(length($ascii->query("SELECT idempotent_derive('shop', convert_from('\\xff80', 'SQL_ASCII'), 'x')")), 64, 'and any other bytes are one');

# MULE_INTERNAL, which PostgreSQL cannot convert to UTF-8, is refused, where there is such a database at all.
SKIP:
{
	my ($status) = $node->psql('postgres', "CREATE DATABASE mule TEMPLATE template0 ENCODING 'MULE_INTERNAL' LC_COLLATE 'C' LC_CTYPE 'C'");
	skip 'this server has no MULE_INTERNAL', 2 if $status != 0;
	$node->safe_psql('mule', 'CREATE EXTENSION idempotency');
	for my $call ("idempotent_begin('s', 'k')", "idempotent_derive('s', 'k', 'x')")
	{
		my (undef, undef, $stderr) = $node->psql('mule', "\\set VERBOSITY sqlstate\nSELECT $call");
		like($stderr, qr/0A000/, "no conversion to UTF-8: $call");
	}
}

$_->quit for $latin1, $utf8, $ascii;
done_testing();
