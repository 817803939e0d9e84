# Prune among a million keys: it does not read the table to find nothing, removes what it is told to, and is in no one's way.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use Ledger;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('prune');
$node->init;
$node->append_conf('postgresql.conf', q{
	autovacuum = off
	shared_buffers = 256MB
	max_wal_size = 4GB
	wal_level = minimal
	max_wal_senders = 0
});
$node->start;
Ledger::create($node);

# Rows as finish would leave them, in the order they expire, numbered as told.
sub insert_keys
{
	my ($first, $last, $expiry) = @_;

	return qq{
		INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
		SELECT lpad(to_hex(i), 32, '0')::uuid, 'shop', 'key', 1, t, t, t
		FROM generate_series($first, $last) i, LATERAL (SELECT now() + $expiry + i * interval '10 ms') t(t)
	};
}

my $session = Session->new($node);
$session->query(insert_keys(1, 2500, "interval '-1 hour'"));
$session->query(insert_keys(2501, 1_000_000, "interval '1 hour'"));
my $pages = $session->query("SELECT pg_relation_size('idempotency_keys') / current_setting('block_size')::integer");
cmp_ok($pages, '>', 10_000, 'the table is large');

# Pages of the table that a statement reads, cached or not; and what it returns.
sub pages_read
{
	my ($sql) = @_;
	my $read = "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = 'idempotency_keys'";
	my @at;

	$session->query('SELECT pg_stat_force_next_flush()');
	push @at, $session->query($read);
	my $result = $session->query($sql);
	$session->query('SELECT pg_stat_force_next_flush()');
	push @at, $session->query($read);
	return ($at[1] - $at[0], $result);
}

# While one prune's transaction is open, nobody waits.
my $pruner = Session->new($node);
$pruner->query('BEGIN');
is($pruner->query('SELECT idempotent_prune(1000)'), '1000', 'prune removes the number it is told to');

$session->query("SET lock_timeout = '1s'");
is($session->query('SELECT idempotent_prune(1000)'), '1000', 'a second prune does not wait: it takes others');
is($session->query("SELECT outcome FROM charge('new')"), 'started', 'another key is begun and finished');
is($session->query("SELECT outcome FROM charge('new')"), 'replayed', 'and replayed');
$pruner->query('COMMIT');
is($session->query('SELECT idempotent_prune()'), '500', 'prune removes the rest, and nothing else');
is( $session->query("SELECT count(*), min(expires_at) > now() FROM idempotency_keys"),
	'997501|t', 'what has not expired is all there');

# Rows that it has removed cost once to be looked at again; then there is nothing to read.
my ($read, $removed) = pages_read('SELECT idempotent_prune()');
is($removed, '0', 'nothing has expired');
cmp_ok($read, '<', $pages / 50, 'a prune after one that removed reads next to nothing');
($read, $removed) = pages_read('SELECT idempotent_prune()');
is($removed, '0', 'again nothing has expired');
cmp_ok($read, '<', 10, 'a prune that finds nothing expired reads no page');

# New keys, which no summary knows yet, cost their own pages and those once.
$session->query(insert_keys(1_000_001, 1_010_000, "interval '1 hour'"));
($read, $removed) = pages_read('SELECT idempotent_prune()');
is($removed, '0', 'new keys have not expired');
cmp_ok($read, '<', $pages / 50, 'only new pages are read');
($read) = pages_read('SELECT idempotent_prune()');
cmp_ok($read, '<', 10, 'and only once');

# A single expired key among a million is found.
$session->query(q{UPDATE idempotency_keys SET expires_at = now() - interval '1 s' WHERE id = lpad(to_hex(500000), 32, '0')::uuid});
($read, $removed) = pages_read('SELECT idempotent_prune()');
is($removed, '1', 'one key that has expired is found');
cmp_ok($read, '<', $pages / 50, 'without reading the table');

# A snapshot that is in use while keys are removed makes them count in the summaries that the next prune takes. When it
# has gone, and live keys have come into their place, prune must not read these pages for as long as the keys live.
$session->query('TRUNCATE idempotency_keys');
$session->query(insert_keys(1, 100_000, "interval '-1 hour'"));
$session->query(insert_keys(100_001, 200_000, "interval '1 hour'"));
$pages = $session->query("SELECT pg_relation_size('idempotency_keys') / current_setting('block_size')::integer / 2");
my $dump = Session->new($node);
$dump->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
$dump->query('SELECT 1 FROM idempotency_keys LIMIT 1');
is($session->query('SELECT idempotent_prune(100000)'), '100000', 'keys are removed that an old snapshot still sees');
pages_read('SELECT idempotent_prune()');
for my $prune ('a prune', 'and the next one')
{
	($read, $removed) = pages_read('SELECT idempotent_prune()');
	is($removed, '0', 'nothing has expired');
	cmp_ok($read, '>=', $pages * 0.9, "$prune reads the pages that the snapshot keeps");
	cmp_ok($read, '<', $pages * 1.5, 'and few of them twice');
}
$dump->query('COMMIT');
$session->query('VACUUM idempotency_keys');
$session->query(insert_keys(200_001, 300_000, "interval '1 hour'"));
is( $session->query("SELECT pg_relation_size('idempotency_keys') / current_setting('block_size')::integer / 2 - $pages < 50"),
	't', 'live keys are where the others were');
($read, $removed) = pages_read('SELECT idempotent_prune()');
is($removed, '0', 'nothing has expired');
# 19 looks into the visibility map for each page that it reads after an insert, which counts as well.
cmp_ok($read, '<', $pages * 3.5, 'one prune reads these pages, and summarizes them');
($read, $removed) = pages_read('SELECT idempotent_prune()');
is($removed, '0', 'nothing has expired');
cmp_ok($read, '<', 50, 'after it no prune reads them');

$_->quit for $session, $pruner, $dump;
done_testing();
