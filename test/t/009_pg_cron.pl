# pg_cron for real: a scheduled prune and a scheduled batch on idempotent_resume.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

chomp(my $sharedir = `pg_config --sharedir`);
plan skip_all => 'pg_cron is not installed' if !-e "$sharedir/extension/pg_cron.control";

my $node = PostgreSQL::Test::Cluster->new('cron');
$node->init;
$node->append_conf('postgresql.conf', q{
	shared_preload_libraries = 'pg_cron'
	cron.database_name = 'postgres'
	cron.use_background_workers = on
});
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION pg_cron;
	CREATE EXTENSION idempotency;

	-- A key that expires at once, one that does not; a claim that nobody holds any more, one that is held.
	BEGIN;
	SELECT idempotent_begin('shop', 'expired', retention => '1 microsecond'), idempotent_finish('shop', 'expired');
	SELECT idempotent_begin('shop', 'kept'), idempotent_finish('shop', 'kept');
	COMMIT;
	SELECT idempotent_begin('shop', 'left', lease => '1 microsecond');
	SELECT idempotent_begin('shop', 'held', lease => '1 hour');

	-- The batch: take over what is stalled, a transaction for each, and finish it.
	CREATE PROCEDURE reconcile() LANGUAGE plpgsql
	AS $$
	DECLARE
		claim idempotent_claim;
	BEGIN
		LOOP
			SELECT * INTO claim FROM idempotent_resume('1 minute');
			EXIT WHEN NOT FOUND;
			COMMIT;
			PERFORM idempotent_finish(claim.scope, claim.key, '"reconciled"', attempt => claim.attempt);
			COMMIT;
		END LOOP;
	END $$;
});

# From 1.5 on pg_cron knows seconds; before that, it is once a minute, on the minute.
my $schedule = $node->safe_psql('postgres',
	q{SELECT CASE WHEN string_to_array(substring(extversion, '^\d+\.\d+'), '.')::integer[] >= '{1,5}' THEN '1 seconds'
		ELSE '* * * * *' END FROM pg_extension WHERE extname = 'pg_cron'});
$node->safe_psql('postgres', qq{
	SELECT cron.schedule('idempotency-prune', '$schedule', 'SELECT idempotent_prune()');
	SELECT cron.schedule('idempotency-reconcile', '$schedule', 'CALL reconcile()');
});
ok( $node->poll_query_until('postgres', q{
		SELECT count(DISTINCT jobid) = 2 FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')}),
	'both jobs have run');
is( $node->safe_psql('postgres', q{
		SELECT DISTINCT jobname, status FROM cron.job_run_details JOIN cron.job USING (jobid)
		WHERE status NOT IN ('starting', 'running') ORDER BY 1}),
	"idempotency-prune|succeeded\nidempotency-reconcile|succeeded", 'and succeeded');

is($node->safe_psql('postgres', "SELECT key, attempt, response FROM idempotency_keys ORDER BY key"),
	"kept|1|\nleft|2|\"reconciled\"", 'the expired key is gone, and the claim that was left is finished');
is($node->safe_psql('postgres', 'SELECT key, attempt FROM idempotency_claims'), 'held|1', 'the other is held as before');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), '0', 'no lock is left');

$node->safe_psql('postgres', 'SELECT cron.unschedule(jobid) FROM cron.job');
done_testing();
