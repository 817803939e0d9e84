#!/usr/bin/perl
#
# Figures from turns. A file of turns has a line for each: round, contender, value, and where they were taken p50, p95 and
# p99 in milliseconds. A ratio is taken within a round, and the median of the rounds is told with the lowest and highest.
#
#   stats.pl percentiles LOG...                      of pgbench's per-transaction logs: p50 p95 p99
#   stats.pl median FILE CONTENDER [COLUMN]          of a column, from 3 on
#   stats.pl ratio FILE CONTENDER BASE [COLUMN]      median lowest highest
#   stats.pl label CONTENDER                         as tables call it
#   stats.pl table FILE HEAD DIGITS LATENCY BASE...  a table in Markdown; LATENCY is 1 or 0
#   stats.pl bars FILE                               for a chart: label, median value, p50, p95, p99, colour

use strict;
use warnings;
use utf8;
use open qw(:std :encoding(UTF-8));

my %label = (
	none => 'no protection',
	bare => 'one bare INSERT more',
	by_hand => 'ON CONFLICT, UPDATE',
	by_hand_trips => 'ON CONFLICT, UPDATE, in three round trips',
	by_lock => 'advisory lock, INSERT',
	three => 'three transactions',
	rocket => 'rocket-rides',
	idempotency => 'idempotency',
	idempotency_trips => 'idempotency in three round trips',
	call => 'idempotent_call',
	select => 'SELECT by primary key',
	replay => 'idempotent_begin',
	replay_value => 'idempotent_begin without FROM',
	three_transactions => 'three transactions',
	rocket_rides => 'rocket-rides',
	idempotency_procedure => 'idempotency in a procedure',
	idempotency_call => 'idempotent_call',
	dbos => 'DBOS',
	node_idempotency => 'node-idempotency',
	powertools => 'Powertools over Redis',
	http_none => 'no protection',
	http_package => 'idempotency-postgres',
	http_three_transactions => 'three transactions',
	http_express_idempotency => 'express-idempotency over PostgreSQL',
);
my %ours = map { $_ => 1 } qw(idempotency idempotency_trips idempotency_procedure idempotency_call call replay replay_value
	http_package);

sub label { my $name = shift; return $label{$name} // $name }
sub strong { my $name = shift; return $ours{$name} ? '**' . label($name) . '**' : label($name) }

sub median {
	my @v = sort { $a <=> $b } @_;
	return @v % 2 ? $v[ $#v / 2 ] : ($v[ @v / 2 - 1 ] + $v[ @v / 2 ]) / 2;
}

# The contenders in the order of their first turn, and their turns by round.
sub read_turns {
	my ($file) = @_;
	my (@order, %turns);
	open my $in, '<', $file or die "$file: $!\n";
	while (<$in>) {
		my ($round, $name, @values) = split;
		push @order, $name unless $turns{$name};
		$turns{$name}{$round} = \@values;
	}
	return (\@order, \%turns);
}

sub values_of {
	my ($turns, $name, $column) = @_;
	my $of = $turns->{$name} or die "no turn of $name\n";
	return map { $_->[ $column - 3 ] } values %$of;
}

# Only rounds in which both had their turn.
sub ratios {
	my ($turns, $name, $base, $column) = @_;
	my ($of, $to) = map { $turns->{$_} or die "no turn of $_\n" } $name, $base;
	my @ratios = map { $of->{$_}[ $column - 3 ] / $to->{$_}[ $column - 3 ] }
		grep { $to->{$_} && $to->{$_}[ $column - 3 ] > 0 } keys %$of;
	my @sorted = sort { $a <=> $b } @ratios or die "no round of both $name and $base\n";
	return (median(@sorted), $sorted[0], $sorted[-1]);
}

sub percentiles {
	my (%seen, $total, $below, @out);
	while (<>) {
		my $time = (split)[2];
		next unless $time =~ /^\d+$/;    # a transaction that failed has no time
		$seen{$time}++;
		$total++;
	}
	die "no transaction in the log\n" unless $total;
	my @wanted = (0.5, 0.95, 0.99);
	for my $time (sort { $a <=> $b } keys %seen) {
		$below += $seen{$time};
		while (@wanted && $below >= $wanted[0] * $total) {
			push @out, sprintf '%.3f', $time / 1000;
			shift @wanted;
		}
	}
	print "@out\n";
}

sub cells { return '| ' . join(' | ', @_) . " |\n" }

sub table {
	my ($file, $head, $digits, $latency, @bases) = @_;
	my ($order, $turns) = read_turns($file);
	my @heads = ('', $head, (map { 'of ' . label($_), 'lowest to highest' } @bases));
	push @heads, 'p50 ms', 'p95 ms', 'p99 ms' if $latency;
	print cells(@heads), '|---', '|---:' x $#heads, "|\n";
	for my $name (@$order) {
		my @row = (strong($name), sprintf "%.${digits}f", median(values_of($turns, $name, 3)));
		for my $base (@bases) {
			push @row, sprintf('%.2f|%.2f to %.2f', ratios($turns, $name, $base, 3)) =~ /[^|]+/g;
		}
		push @row, map { sprintf '%.2f', median(values_of($turns, $name, $_)) } 4 .. 6 if $latency;
		print cells(@row);
	}
}

sub bars {
	my ($order, $turns) = read_turns(shift);
	for my $name (@$order) {
		my ($first) = values %{ $turns->{$name} };
		my @columns = map { median(values_of($turns, $name, $_)) } 3 .. 2 + @$first;
		my $colour = $ours{$name} ? 0x1f5fbf : $name =~ /^(none|bare|select)$/ ? 0x7f7f7f : 0xa8a8a8;
		printf "\"%s\" %s %d\n", label($name), "@columns", $colour;
	}
}

my $command = shift // '';
if ($command eq 'percentiles') { percentiles() }
elsif ($command eq 'median') {
	my ($file, $name, $column) = @ARGV;
	print median(values_of((read_turns($file))[1], $name, $column // 3)), "\n";
}
elsif ($command eq 'ratio') {
	my ($file, $name, $base, $column) = @ARGV;
	printf "%.4f %.4f %.4f\n", ratios((read_turns($file))[1], $name, $base, $column // 3);
}
elsif ($command eq 'label') { print strong(@ARGV), "\n" }
elsif ($command eq 'table') { table(@ARGV) }
elsif ($command eq 'bars') { bars(@ARGV) }
else { die "usage: stats.pl percentiles|median|ratio|label|table|bars ...\n" }
