# Dump and restore: keys replay, claims go on, and grants stand, in another database made from a dump.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('dump');
$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->start;

# The extension in a schema of its own, whose name needs quotes.
my $schema = '"Idem potent"';
my $path = qq(options='-c search_path=public,"Idem\\\\ potent"');
$node->safe_psql('postgres', 'CREATE ROLE app; CREATE DATABASE source');

sub session
{
	my ($dbname) = @_;

	return Session->new($node, connstr => $node->connstr($dbname) . " $path");
}

my $source = session('source');
$source->query($_)
  for "CREATE SCHEMA $schema",
  "CREATE EXTENSION idempotency SCHEMA $schema",
  "GRANT EXECUTE ON FUNCTION idempotent_begin TO app",

  # A function of the application that needs the extension's type.
  q{CREATE FUNCTION ask(k text) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE a idempotent_attempt := idempotent_begin('shop', k); BEGIN RETURN a.outcome; END $$},

  # Everything that an answer can hold; NULL everywhere; a key that nobody would choose.
  'BEGIN',
  q{SELECT idempotent_begin('shop', 'full', '{"amount": 1.50}', retention => '90 days')},
  q{SELECT idempotent_finish('shop', 'full', '{"a": [1, null, "é\u20ac"]}', 201, '{"Location": "/1"}', '\x00ff0a5c27')},
  q{SELECT idempotent_begin('shop', 'empty')},
  q{SELECT idempotent_finish('shop', 'empty')},
  q{SELECT idempotent_begin('shop', E'odd \\\\ \'"\t\n\U0001F600 ', fingerprint => '\x0001')},
  q{SELECT idempotent_finish('shop', E'odd \\\\ \'"\t\n\U0001F600 ', 'null')},
  'COMMIT',

  # Claims, one live and one that nobody holds any more, at a checkpoint each.
  map {
	("SELECT idempotent_begin('shop', '$_', '{\"claim\": \"$_\"}', lease => '1 hour', retention => '90 days')",
		"SELECT idempotent_checkpoint('shop', '$_', 1, 'charged', '{\"charge\": \"ch_1\"}')")
  } 'live', 'left';
$source->query("SELECT idempotent_release('shop', 'left', 1, 'time-out', '0')");

# What each key answers, whole.
my %ask = (
	'full answer' => q{SELECT idempotent_begin('shop', 'full', '{"amount": 1.5}')},
	'empty answer' => q{SELECT idempotent_begin('shop', 'empty')},
	'odd key' => q{SELECT idempotent_begin('shop', E'odd \\\\ \'"\t\n\U0001F600 ', fingerprint => '\x0001')},
	'claim left' => q{SELECT outcome, attempt, checkpoint, state, first_seen_at, error FROM idempotent_lookup('shop', 'left')},
	'claims' => q{SELECT * FROM idempotency_claims ORDER BY key});
my %expected = map { $_ => $source->query($ask{$_}) } keys %ask;
like($expected{'full answer'}, qr/^\(replayed,t,1,201,/, 'a finished key replays before the dump');

my $dumps = $node->backup_dir;
mkdir $dumps;
my %restore = (
	plain => sub {
		$node->command_ok([ 'pg_dump', '-f', "$dumps/plain", 'source' ], 'pg_dump, plain');
		$node->command_ok([ 'psql', '-Xqv', 'ON_ERROR_STOP=1', '-d', $_[0], '-f', "$dumps/plain" ], 'restore');
	},
	custom => sub {
		$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/custom", 'source' ], 'pg_dump, custom');
		$node->command_ok([ 'pg_restore', '-e', '-d', $_[0], "$dumps/custom" ], 'restore');
	});

for my $format (sort keys %restore)
{
	$node->safe_psql('postgres', "CREATE DATABASE $format");
	$restore{$format}->($format);

	my $restored = session($format);
	is($restored->query($ask{$_}), $expected{$_}, "$format: $_: the same") for sort keys %ask;

	# The fingerprint came along.
	is($restored->code(q{SELECT idempotent_begin('shop', 'full', '{"amount": 2}')}),
		'IK422', "$format: another request is refused");
	is($restored->query("SELECT ask('full')"), 'replayed', "$format: a function of the application works");
	is( $restored->query(
			"SELECT string_agg(proname, ' ') FROM pg_proc"
			  . " WHERE proname ~ '^idempotent_' AND has_function_privilege('app', oid, 'EXECUTE')"),
		'idempotent_begin', "$format: the application's grant stands, and no other");

	# The holder of the lease goes on with its number, in the new database.
	is($restored->code("SELECT idempotent_begin('shop', 'live')"), 'IK409', "$format: a live lease is live");
	$restored->query("SELECT idempotent_checkpoint('shop', 'live', 1, 'mailed')");
	is( $restored->query(q{SELECT idempotent_finish('shop', 'live', '"done"', attempt => 1)}),
		'"done"', "$format: its holder finishes it");
	is($restored->query("SELECT ask('live')"), 'replayed', "$format: which then replays");

	# And what was left is handed out at its checkpoint.
	is( $restored->query("SELECT key, attempt, request, checkpoint, state FROM idempotent_resume('1 minute', 10)"),
		'left|2|{"claim": "left"}|charged|{"charge": "ch_1"}', "$format: resume goes on with the other");
	is($restored->code("SELECT idempotent_finish('shop', 'left', attempt => 1)"),
		'IK410', "$format: the overtaken attempt is refused");
	$restored->query("SELECT idempotent_finish('shop', 'left', attempt => 2)");

	# A restored extension is one like any other: its tables are dumped again.
	$node->command_ok([ 'pg_dump', '-f', "$dumps/again", $format ], "$format: can be dumped");
	like(slurp_file("$dumps/again"), qr/^COPY .*idempotency_keys.*\n(?s:.*)\tleft\t/m, "$format: with its keys");
	$restored->quit;
}

# The schema alone: an extension that works, and no key.
$node->command_ok([ 'pg_dump', '--schema-only', '-f', "$dumps/schema", 'source' ], 'pg_dump --schema-only');
$node->safe_psql('postgres', 'CREATE DATABASE schema_only');
$node->command_ok([ 'psql', '-Xqv', 'ON_ERROR_STOP=1', '-d', 'schema_only', '-f', "$dumps/schema" ], 'restore');
my $restored = session('schema_only');
is($restored->query('SELECT (SELECT count(*) FROM idempotency_keys), (SELECT count(*) FROM idempotency_claims)'),
	'0|0', 'schema only: no key, no claim');
$restored->query('BEGIN');
is($restored->query("SELECT ask('full')"), 'started', 'schema only: the key is new');

$_->quit for $restored, $source;
done_testing();
