# A psql session that a test feeds statement by statement.
#
# The server's own BackgroundPsql came with 16 and behaves differently from version to version; this one also tells each
# statement's SQLSTATE and takes the loss of its connection for an answer.

package Session;

use strict;
use warnings FATAL => 'all';

use Carp;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(usleep);

# Session->new($node [, dbname => …] [, connstr => …]): connected when it returns.
sub new
{
	my ($class, $node, %param) = @_;
	my $connstr = $param{connstr} // $node->connstr($param{dbname} // 'postgres');
	my $self = bless { node => $node, in => '', out => '', err => '', turn => 0 }, $class;

	$self->{timer} = IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default);
	$self->{psql} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate', '-d', $connstr ],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err},
		$self->{timer});
	$self->{pid} = $self->query('SELECT pg_backend_pid()');
	return $self;
}

# The process of the server.
sub pid { return $_[0]->{pid}; }

# SQLSTATE of the last statement that was waited for; "lost" if the connection went before it was answered.
sub sqlstate { return $_[0]->{sqlstate}; }

# Send and do not wait.
sub send
{
	my ($self, $sql) = @_;
	local $SIG{PIPE} = 'IGNORE';

	# A second semicolon would be a statement of its own, with an SQLSTATE of its own.
	$sql =~ s/;?\s*\z/;/;
	$self->{turn}++;
	$self->{in} .= "$sql\n\\echo == $self->{turn} :SQLSTATE\n";
	eval { $self->{psql}->pump_nb; };
	return;
}

# Wait for what was sent; its rows.
sub result
{
	my ($self) = @_;
	local $SIG{PIPE} = 'IGNORE';

	$self->{timer}->start($PostgreSQL::Test::Utils::timeout_default);
	until ($self->take_answer)
	{
		croak "no answer in time: $self->{err}" if $self->{timer}->is_expired;
		next if eval { $self->{psql}->pump; };
		last if $self->take_answer;
		@$self{qw(rows sqlstate)} = ('', 'lost');
		last;
	}
	return $self->{rows};
}

# What has come so far, if it is complete.
sub take_answer
{
	my ($self) = @_;

	return 0 if $self->{out} !~ s/\A(.*?)^== $self->{turn} (\S*)\n//ms;
	@$self{qw(rows sqlstate)} = ($1, $2);
	$self->{rows} =~ s/\n\z//;
	return 1;
}

# Send and wait; the rows, whatever became of the last statement.
sub run
{
	my ($self, $sql) = @_;

	$self->send($sql);
	return $self->result;
}

# As run(), but anything except success ends the test.
sub query
{
	my ($self, $sql) = @_;
	my $rows = $self->run($sql);

	croak "\"$sql\" failed with $self->{sqlstate}: $self->{err}" if $self->{sqlstate} ne '00000';
	return $rows;
}

# As run(), but tells the SQLSTATE.
sub code
{
	my ($self, $sql) = @_;

	$self->run($sql);
	return $self->{sqlstate};
}

# Until the statement that was sent waits for a key's lock.
sub wait_for_lock
{
	my ($self) = @_;

	return $self->{node}->poll_query_until('postgres',
		"SELECT wait_event_type = 'Lock' AND wait_event = 'advisory' FROM pg_stat_activity WHERE pid = $self->{pid}");
}

# Has the connection gone?  Asks until it has, or time is up.
sub is_lost
{
	my ($self) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while ($self->code('SELECT 1') ne 'lost')
	{
		return 0 if time > $deadline;
		usleep(10_000);
	}
	return 1;
}

# Cut the connection as a client that dies does: without a word.
sub kill
{
	my ($self) = @_;

	$self->{psql}->kill_kill(grace => 0);
	return;
}

sub quit
{
	my ($self) = @_;
	local $SIG{PIPE} = 'IGNORE';

	$self->{in} .= "\\q\n";
	eval { $self->{psql}->finish; };
	return;
}

1;
