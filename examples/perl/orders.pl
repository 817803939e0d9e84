#!/usr/bin/perl
# DBI with DBD::Pg. With PgBouncer in transaction mode, pg_server_prepare => 0.
use strict;
use warnings;
use DBI;
use JSON::PP;

my $json = JSON::PP->new->canonical;

sub connect_db
{
	return DBI->connect("dbi:Pg:", undef, undef,
		{ RaiseError => 1, PrintError => 0, AutoCommit => 1, pg_server_prepare => 0 });
}

sub transaction
{
	my ($db, $work) = @_;
	my $result = eval {
		$db->begin_work;
		my $got = $work->();
		$db->commit;
		$got;
	};
	if (my $error = $@)
	{
		my $state = $db->state;
		eval { $db->rollback } unless $db->{AutoCommit};
		die { state => $state, message => $error };
	}
	return $result;
}

sub place_order
{
	my ($db, $account, $key, $order) = @_;
	my $scope = "$account orders";    # the account from the authentication
	return transaction($db, sub {
		my $attempt = $db->selectrow_hashref(
			"SELECT * FROM idempotent_begin(?, ?, request => ?)", undef, $scope, $key, $json->encode($order));
		return $json->decode($attempt->{response}) if $attempt->{replayed};

		my ($id) = $db->selectrow_array("INSERT INTO orders (item, quantity) VALUES (?, ?) RETURNING id",
			undef, $order->{item}, $order->{quantity});
		my $response = { id => $id };
		$db->selectrow_array("SELECT idempotent_finish(?, ?, ?)", undef, $scope, $key, $json->encode($response));
		return $response;
	});
}

# For the test.
my ($what, $key, $item, $quantity) = @ARGV;
my $db = connect_db();
my $begin = sub { $db->selectrow_array("SELECT idempotent_begin('acct_1 orders', ?)", undef, $key) };
eval {
	if ($what eq 'place') { print place_order($db, $ENV{ACCOUNT}, $key, { item => $item, quantity => $quantity + 0 })->{id}, "\n" }
	elsif ($what eq 'begin') { transaction($db, $begin) }
	else { $begin->() }
	1;
} or print ref $@ ? $@->{state} : $db->state, "\n";
$db->disconnect;
