# A crash of the server at any point of work under lease: it goes on at the last checkpoint, and no phase is done twice.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

# As in 001_crash.pl: a COMMIT with synchronous_commit = on happens, and its client never hears of it.
my $node = PostgreSQL::Test::Cluster->new('lease');
$node->init;
$node->append_conf('postgresql.conf', q{
	restart_after_crash = on
	wal_level = replica
	max_wal_senders = 1
	synchronous_standby_names = 'nobody'
	synchronous_commit = local
});
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION idempotency;
	CREATE TABLE done (key text NOT NULL, phase text NOT NULL, n serial);
});

# The steps of the work.  Between the first and the second the outside world is called.
my %step = (
	claim => sub { "SELECT attempt FROM idempotent_begin('shop', '$_[0]', '{\"n\": 1}', lease => '1 hour')" },
	charge => sub { phase($_[0], $_[1], 'charged') },
	mail => sub { phase($_[0], $_[1], 'mailed') },
	finish => sub {
		"INSERT INTO done VALUES ('$_[0]', 'finished')",
		"SELECT idempotent_finish('shop', '$_[0]', to_jsonb('by ' || $_[1]), attempt => $_[1])";
	});

# A phase's own work and its checkpoint, in one transaction.
sub phase
{
	my ($key, $attempt, $phase) = @_;

	return "INSERT INTO done VALUES ('$key', '$phase')",
	  "SELECT idempotent_checkpoint('shop', '$key', $attempt, '$phase', '{\"after\": \"$phase\"}')";
}

# A point is a step and how far it got: done but not committed, or committed, with the answer told or lost.
my %point = (
	'before the commit of the claim' => [ 'claim', 'open' ],
	'in the commit of the claim' => [ 'claim', 'committing' ],
	'after the commit of the claim' => [ 'claim', 'committed' ],
	'between outside call and checkpoint' => [ 'charge', 'open' ],
	'in the commit of the checkpoint' => [ 'charge', 'committing' ],
	'after the checkpoint' => [ 'charge', 'committed' ],
	'after the last checkpoint' => [ 'mail', 'committed' ],
	'before the commit of finish' => [ 'finish', 'open' ],
	'in the commit of finish' => [ 'finish', 'committing' ],
	'after the commit of finish' => [ 'finish', 'committed' ]);

# What a lookup tells afterwards, if nobody takes over; and the phases that are done.
my %left = (
	'before the commit of the claim' => [ '', '' ],
	'in the commit of the claim' => [ 'in_progress|1', '' ],
	'after the commit of the claim' => [ 'in_progress|1', '' ],
	'between outside call and checkpoint' => [ 'in_progress|1', '' ],
	'in the commit of the checkpoint' => [ 'in_progress|1', 'charged' ],
	'after the checkpoint' => [ 'in_progress|1', 'charged' ],
	'after the last checkpoint' => [ 'in_progress|1', 'charged mailed' ],
	'before the commit of finish' => [ 'in_progress|1', 'charged mailed' ],
	'in the commit of finish' => [ 'replayed|1', 'charged mailed finished' ],
	'after the commit of finish' => [ 'replayed|1', 'charged mailed finished' ]);

# Run the steps of attempt 1 up to the point and stay there.
sub session_at
{
	my ($key, $last, $how) = @_;
	my $session = Session->new($node);

	for my $step (qw(claim charge mail finish))
	{
		$session->query('BEGIN');
		$session->query($_) for $step{$step}->($key, 1);
		last if $step eq $last && $how eq 'open';
		$session->query('SET LOCAL synchronous_commit = on') if $step eq $last && $how eq 'committing';
		$session->send('COMMIT');
		last if $step eq $last && $how eq 'committing';
		$session->result;
		last if $step eq $last;
	}
	return $session;
}

sub wait_for_commits
{
	my $committing = grep { $_->[1] eq 'committing' } values %point;

	$node->poll_query_until('postgres', "SELECT count(*) = $committing FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
	  or die 'COMMIT does not wait for a standby';
	return;
}

# The worker that comes after: all that is left to do, from the checkpoint on.
sub go_on
{
	my ($session, $key, $attempt, $checkpoint) = @_;
	my %rest = ('' => [qw(charge mail finish)], charged => [qw(mail finish)], mailed => ['finish']);

	for my $step (@{ $rest{$checkpoint} })
	{
		$session->query($_) for 'BEGIN', $step{$step}->($key, $attempt), 'COMMIT';
	}
	return;
}

# Ways to take over what is stalled: key, attempt, checkpoint and state of each.
my %take_over = (
	'begin' => sub {
		my ($session, @keys) = @_;
		return map {
			$session->query("SELECT '$_', attempt, checkpoint, state FROM idempotent_begin('shop', '$_', lease => '1 hour')"
				  . " WHERE outcome = 'recovered'");
		} @keys;
	},
	'resume' => sub {
		my ($session) = @_;
		return split /\n/, $session->query(q{SELECT key, attempt, checkpoint, state FROM idempotent_resume('1 hour', 100)
			WHERE request = '{"n": 1}'});
	});

sub crash
{
	my ($round, $down, $take_over) = @_;
	my %key = map { $_ => "$round: $_" } keys %point;
	my %at = map { $_ => session_at($key{$_}, @{ $point{$_} }) } sort keys %point;
	my $sentinel = Session->new($node);

	wait_for_commits();
	$down->($at{'between outside call and checkpoint'}->pid);
	ok($sentinel->is_lost, "$round: the server went down");
	ok($node->poll_query_until('postgres', 'SELECT true'), "$round: and comes up again");
	$_->quit for values %at, $sentinel;

	my $session = Session->new($node);
	for my $point (sort keys %point)
	{
		is( $session->query("SELECT outcome, attempt FROM idempotent_lookup('shop', '$key{$point}')"),
			$left{$point}[0], "$key{$point}: what is left");
		is( $session->query("SELECT coalesce(string_agg(phase, ' ' ORDER BY n), '') FROM done WHERE key = '$key{$point}'"),
			$left{$point}[1], "$key{$point}: the work that is done");
		is($session->code("SELECT idempotent_begin('shop', '$key{$point}')"),
			'IK409', "$key{$point}: the lease is still live")
		  if $left{$point}[0] =~ /in_progress/;
	}

	# The leases end.
	$session->query("UPDATE idempotency_claims SET lease_until = now()");
	my @stalled = sort grep { $left{$_}[0] =~ /in_progress/ } keys %point;
	my @taken = $take_over{$take_over}->($session, map { $key{$_} } @stalled);
	is_deeply(
		[ sort @taken ],
		[   map {
				(my $checkpoint = $left{$_}[1]) =~ s/.* //;
				"$key{$_}|2|$checkpoint|" . ($checkpoint ? "{\"after\": \"$checkpoint\"}" : '');
			} @stalled ],
		"$round: $take_over takes over each at its last checkpoint");

	# Whoever believes to be the first attempt is told.
	for my $key (map { $key{$_} } @stalled)
	{
		is($session->code("SELECT idempotent_checkpoint('shop', '$key', 1, 'late')"), 'IK410', "$key: a late checkpoint");
		is($session->code("SELECT idempotent_finish('shop', '$key', attempt => 1)"), 'IK410', "$key: a late finish");
	}

	go_on($session, (split /\|/, $_, -1)[ 0 .. 2 ]) for @taken;
	is($session->query($step{claim}->($key{'before the commit of the claim'})), '1', "$round: without a claim it begins");
	go_on($session, $key{'before the commit of the claim'}, 1, '');

	for my $point (sort keys %point)
	{
		my $attempt = $left{$point}[0] =~ /in_progress/ ? 2 : 1;

		is( $session->query("SELECT string_agg(phase, ' ' ORDER BY n) FROM done WHERE key = '$key{$point}'"),
			'charged mailed finished', "$key{$point}: each phase is done once");
		is( $session->query("SELECT outcome, attempt, response FROM idempotent_begin('shop', '$key{$point}')"),
			"replayed|$attempt|\"by $attempt\"", "$key{$point}: its answer");
	}
	is($session->query('SELECT count(*) FROM idempotency_claims'), '0', "$round: no claim is left");
	$session->quit;
	return;
}

crash('kill -9 of a backend', sub { kill 'KILL', $_[0] }, 'resume');
crash('immediate stop', sub { $node->stop('immediate'); $node->start; }, 'begin');

done_testing();
