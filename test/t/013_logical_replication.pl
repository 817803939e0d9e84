# Logical replication: a subscriber replays what the publisher has finished, and both sides must not begin the same key.
# The commands are those of doc/operation.md.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $setup = 'CREATE EXTENSION idempotency; CREATE TABLE charges (key text PRIMARY KEY, by text)';
my $charge = q{
	BEGIN;
	SELECT outcome FROM idempotent_begin('shop', '%1$s', request => '{"a": 1}');
	INSERT INTO charges VALUES ('%1$s', '%2$s');
	SELECT idempotent_finish('shop', '%1$s', '"%2$s"', status => 201, body => '\x00ff');
	COMMIT;
};

my $publisher = PostgreSQL::Test::Cluster->new('publisher');
$publisher->init(allows_streaming => 'logical');
$publisher->start;
my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');
$subscriber->init(allows_streaming => 'logical');
$subscriber->append_conf('postgresql.conf', "wal_retrieve_retry_interval = 100ms\nlog_line_prefix = '%e '");
$subscriber->start;
$_->safe_psql('postgres', $setup) for $publisher, $subscriber;

# Before and after the subscription begins.
$publisher->safe_psql('postgres', sprintf $charge, 'before', 'publisher');
$publisher->safe_psql('postgres', 'CREATE PUBLICATION shop FOR TABLE charges, idempotency_keys, idempotency_claims');
my $connection = $publisher->connstr . ' dbname=postgres';
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION shop CONNECTION '$connection' PUBLICATION shop");
$subscriber->wait_for_subscription_sync($publisher, 'shop') if $subscriber->can('wait_for_subscription_sync');
$publisher->safe_psql('postgres', sprintf $charge, 'after', 'publisher');
$publisher->safe_psql('postgres', q{
	SELECT idempotent_begin('shop', 'leased', lease => '1 hour');
	SELECT idempotent_checkpoint('shop', 'leased', 1, 'charged', '{"charge": "ch_1"}')});
$publisher->wait_for_catchup('shop');

sub on_subscriber { return $subscriber->safe_psql('postgres', @_) }

for my $key ('before', 'after')
{
	is(on_subscriber("SELECT outcome, status, response, body FROM idempotent_begin('shop', '$key', request => '{\"a\": 1.0}')"),
		'replayed|201|"publisher"|\x00ff', "$key: the subscriber replays the publisher's response");
	is(on_subscriber("SELECT outcome FROM idempotent_try_begin('shop', '$key', request => '2')"), 'mismatch',
		"$key: and knows another request");
	is(on_subscriber("SELECT count(*) FROM charges WHERE key = '$key'"), '1', "$key: the work came with it");
}
is(on_subscriber("SELECT outcome, attempt FROM idempotent_try_begin('shop', 'leased')"), 'in_progress|1',
	"the publisher's lease is honoured");

# Removed there, removed here.
$publisher->safe_psql('postgres', "UPDATE idempotency_keys SET expires_at = now() WHERE key = 'before'");
is($publisher->safe_psql('postgres', 'SELECT idempotent_prune()'), '1', 'a prune at the publisher');
$publisher->safe_psql('postgres', "SELECT idempotent_finish('shop', 'leased', '\"done\"', attempt => 1)");
$publisher->wait_for_catchup('shop');
is(on_subscriber("SELECT count(*) FROM idempotency_keys WHERE key = 'before'"), '0', 'comes along');
is(on_subscriber("SELECT outcome, response FROM idempotent_begin('shop', 'leased')"), 'replayed|"done"', 'and so does a finish under lease');
is(on_subscriber('SELECT count(*) FROM idempotency_claims'), '0', 'which ends the claim');

# Begun on both sides: both do the work, and the subscription stops at the conflict rather than hide it.
on_subscriber(sprintf $charge, 'both', 'subscriber');
$publisher->safe_psql('postgres', sprintf $charge, 'both', 'publisher');
ok($subscriber->wait_for_log(qr/^23505 /m), 'the same key on both sides stops the subscription')
	if $subscriber->can('wait_for_log');
is(on_subscriber("SELECT response FROM idempotent_begin('shop', 'both')"), '"subscriber"', 'and each side keeps its own answer');

# The switch: what has arrived is honoured, and what is new is begun here.
on_subscriber("DELETE FROM charges WHERE key = 'both'; SELECT idempotent_forget('shop', 'both')");
$publisher->wait_for_catchup('shop');
$publisher->stop;
on_subscriber('ALTER SUBSCRIPTION shop DISABLE; ALTER SUBSCRIPTION shop SET (slot_name = NONE); DROP SUBSCRIPTION shop');
is(on_subscriber("SELECT outcome, response FROM idempotent_begin('shop', 'both')"), 'replayed|"publisher"', 'once settled, the publisher\'s row is in');
like(on_subscriber(sprintf $charge, 'new', 'subscriber'), qr/^started$/m, 'after the switch new keys are begun here');
is(on_subscriber("SELECT by FROM charges WHERE key = 'new'"), 'subscriber', 'with their work');

done_testing();
