# Many workers that ask for stalled claims at once: each attempt is handed to one of them, and all work gets done.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('workers');
$node->init;

# Where there is auto_explain, the plans are looked at too.
chomp(my $lib = `pg_config --pkglibdir`);
my $explained = grep { -e "$lib/auto_explain$_" } '.so', '.dylib', '.dll';
$node->append_conf('postgresql.conf', q{
	session_preload_libraries = 'auto_explain'
	auto_explain.log_min_duration = 0
	auto_explain.log_nested_statements = on
	auto_explain.log_analyze = on
}) if $explained;
$node->start;

# 300 claims of attempt 1, 2 or 3 whose lease has ended; and one that is live, one that is to wait for its next try.
#
# A worker takes some, commits, and finishes each in a transaction of its own.  Every second key it drops instead, once:
# its lease ends at once, and it is handed out again.
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	SELECT count(idempotent_begin('shop', 'key ' || i, to_jsonb(i), lease => '1 hour')) FROM generate_series(1, 300) i;
	UPDATE idempotency_claims
	SET attempt = 1 + (request::int % 3), lease_until = now() - request::int * interval '1 second';
	SELECT idempotent_begin('shop', 'live', lease => '1 hour');
	SELECT idempotent_begin('shop', 'waits', lease => '1 hour');
	SELECT idempotent_release('shop', 'waits', 1, 'time-out', '1 hour');

	CREATE TABLE handed (key text, attempt integer, request jsonb, checkpoint text, worker integer DEFAULT pg_backend_pid());
	CREATE TABLE work (key text, attempt integer);

	CREATE PROCEDURE worker() LANGUAGE plpgsql
	AS $$
	DECLARE
		claims idempotent_claim[];
		claim idempotent_claim;
	BEGIN
		LOOP
			claims := ARRAY(SELECT c FROM idempotent_resume('1 hour', 3) c);
			EXIT WHEN claims = '{}';
			INSERT INTO handed SELECT c.key, c.attempt, c.request, c.checkpoint FROM unnest(claims) c;
			COMMIT;
			FOREACH claim IN ARRAY claims LOOP
				IF claim.checkpoint IS NULL AND claim.request::integer % 2 = 0 THEN
					PERFORM idempotent_checkpoint(claim.scope, claim.key, claim.attempt, 'dropped', lease => '1 microsecond');
				ELSE
					INSERT INTO work VALUES (claim.key, claim.attempt);
					PERFORM idempotent_finish(claim.scope, claim.key, attempt => claim.attempt);
				END IF;
				COMMIT;
			END LOOP;
		END LOOP;
	END $$;
});

# A worker that finds nothing goes home; what others drop after that, they take themselves.
$node->pgbench(
	'--no-vacuum --client=8 --transactions=1', 0,
	[qr{processed: 8/8}], [qr{^$}],
	'eight workers go on until nothing is left',
	{ '008_worker' => 'CALL worker();' });

is($node->safe_psql('postgres', 'SELECT key FROM idempotency_claims ORDER BY key'),
	"live\nwaits", 'all that was stalled is finished, and nothing else');
is( $node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT (key, attempt)) FROM handed'),
	'450|450', 'each attempt was handed to one worker');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT worker) > 1 FROM handed'), 't', 'and not all to the same');
is( $node->safe_psql('postgres', q{
		SELECT count(*) FROM (
			SELECT FROM handed GROUP BY key, request
			HAVING min(attempt) <> 2 + request::integer % 3
				OR max(attempt) <> min(attempt) + 1 - request::integer % 2) h}),
	'0', 'each attempt has the number after the one before it');
is( $node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT key) FROM work'),
	'300|300', 'each work is done once');
is( $node->safe_psql('postgres', q{
		SELECT count(*) FROM idempotency_keys k JOIN work w USING (key)
		WHERE k.attempt = w.attempt AND w.attempt = (SELECT max(attempt) FROM handed h WHERE h.key = k.key)}),
	'300', 'by the last attempt, whose number the key tells');

SKIP:
{
	skip 'auto_explain is not installed', 2 if !$explained;
	my $log = slurp_file($node->logfile);

	# Compiling a plan takes longer than all the rest, and would be done by each call.
	# What the test itself asks may be compiled or not, as statistics have it.
	my @plans = grep { /Query Text: .*idempotency_claims.*OPERATOR\(pg_catalog/ } split /^(?=\d{4}-\d\d-\d\d )/m, $log;
	ok(@plans > 0, 'the plans are in the log');
	is(scalar(grep { /^\s+JIT:/m } @plans), 0, 'none of them is compiled');
}

done_testing();
