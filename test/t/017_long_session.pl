# A session that makes many calls keeps the memory it had, and a transaction of many EXCEPTION blocks takes a time that
# grows with their number and not with its square.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('long');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\nsynchronous_commit = off\n");
$node->start;
$node->safe_psql('postgres', <<'END');
CREATE EXTENSION idempotency;
-- Each kind of call, in transactions that end well, fail, and go on after an error.
CREATE PROCEDURE many_calls(first int, last int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN first .. last LOOP
		PERFORM idempotent_begin('single', i::text);
		PERFORM idempotent_finish('single', i::text, to_jsonb(i));
		PERFORM idempotent_begin('single', i::text);
		PERFORM idempotent_call('call', i::text, 'SELECT 1');
		PERFORM idempotent_begin_many('many', ARRAY[i::text, i || ' too']);
		PERFORM idempotent_finish_many('many', ARRAY[i::text, i || ' too']);
		COMMIT;
		PERFORM idempotent_begin('lease', i::text, lease => '1 hour');
		COMMIT;
		PERFORM idempotent_checkpoint('lease', i::text, 1, 'done');
		PERFORM idempotent_finish('lease', i::text, attempt => 1);
		COMMIT;
		BEGIN
			PERFORM idempotent_begin('failed', i::text);
			PERFORM 1 / 0;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
		COMMIT;
		PERFORM idempotent_begin('rolled back', i::text);
		ROLLBACK;
	END LOOP;
END $$;
CREATE FUNCTION memory() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT sum(used_bytes) FROM pg_backend_memory_contexts $$;
CREATE FUNCTION many_blocks(n int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		BEGIN
			PERFORM idempotent_begin('blocks', n || ' ' || i);
			PERFORM idempotent_finish('blocks', n || ' ' || i);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
	END LOOP;
END $$;
-- User and system time of this backend, in ticks.
CREATE FUNCTION cpu() RETURNS int LANGUAGE sql VOLATILE AS $$
	SELECT split_part(s, ' ', 14)::int + split_part(s, ' ', 15)::int FROM pg_read_file('/proc/self/stat') s
$$;
END

my $session = Session->new($node);
$session->query('CALL many_calls(1, 500)');
$session->query('SELECT memory()');
my $before = $session->query('SELECT memory()');
$session->query('CALL many_calls(501, 5000)');
# Less than two bytes a round.
cmp_ok($session->query('SELECT memory()'), '<', $before + 8192, 'calls of each kind in 4,500 rounds leave memory as it was');

# Eight times as many: a square would take up to 64 times as long. What others do on the machine is not in the time, but
# its caches are shared, so the shortest of three counts.
SKIP:
{
	skip 'no /proc on this system', 1 unless -r '/proc/self/stat';
	my %time;
	foreach my $n (2500, 20000)
	{
		foreach my $try (1 .. 3)
		{
			my $start = $session->query('SELECT cpu()');
			$session->query("SELECT many_blocks($n)");
			my $time = $session->query('SELECT cpu()') - $start;
			$time{$n} = $time if !defined $time{$n} || $time < $time{$n};
		}
	}
	note "2,500: $time{2500} ticks, 20,000: $time{20000} ticks";
	cmp_ok($time{20000}, '<', 20 * ($time{2500} + 1), 'a transaction of many aborted blocks takes a time in proportion');
}

$session->quit;
$node->stop;
done_testing();
