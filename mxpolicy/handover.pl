# The client of the hand-over in Perl: handover.py once more, by a third of its instructions.
#
# Most of what handover.py takes is Python's start, of which Perl's is a fifth. Every Debian
# and Ubuntu has a Perl (perl-base). command.sh runs this where there is one.
# Read handover.py first: here are its steps, in its order and under its names. A change
# there is a change here. tests/test_handover.py runs its tests with both.
#
# Only what is built into Perl is used. A module would take longer to load than all of
# this: `strict` is for the tests. What Perl has no word for is asked of the kernel by
# `syscall`. For that the machine must be in %CALLS, with 64 bits and the low byte first.
#
# It never starts Python. It leaves with a status that says what is to be done, and
# command.sh does it, in a new process in which nothing has happened yet:
#
#   200, 201, 202   the answer is given: 0, 69, 75
#   203             nothing was handed over: deliver without a daemon
#   127             nothing was tried: take handover.py, as if there was no Perl
#
# No other status is an answer. A Perl that dies by itself leaves with an errno, which may
# be 69; an empty file in Perl's place leaves with 0.
#
# For those who seldom read Perl: `shift` takes the next argument. sysread, syswrite and
# send are the system calls, without any buffer: they return undef when they fail, and $!
# is the errno. -p, -S and -t say what a descriptor is. `pack` makes a struct of C: Q and q
# have 8 bytes, L and l 4, S and s 2, xN is N bytes of padding, P is a pointer to a string.
# Signal handlers run between two operations, never within one.

my ($mail_server, undef, @argv) = @ARGV;

# As in handover.py.
my $VERSION = 1;
my $MAX_REQUEST = 256 * 1024;
my $DEFAULT_SOCKET = '/run/mxpolicy/pipe';
my $PATIENCE = 2;
my %OPTIONS = map { $_ => 1 } qw(-f --nexthop --queue-id --deadline --socket --config);
my $UNSEEN_DEATH = 0.1;
my $EXIT_DEFER = 75;
my %CLASSES = (0 => '2.', 69 => '5.', 75 => '4.');
my $MAX_ANSWER = 4096;
my $EXITING = 0x4;
my %ENDING = qw(TERM 15 INT 2 HUP 1 QUIT 3 USR1 10 USR2 12 XCPU 24 ALRM 14);

# See above.
my %LEAVE_WITH = (0 => 200, 69 => 201, 75 => 202);
my ($ALONE, $UNABLE) = (203, 127);

# By the machine (e_machine, elf(5)): the numbers of sendmsg, ppoll and rt_sigprocmask.
my %CALLS = (
    62 => [46, 271, 14],      # x86_64
    183 => [211, 73, 135],    # aarch64
    243 => [211, 73, 135],    # riscv64
);
my ($SENDMSG, $PPOLL, $SIGPROCMASK);

# These are the same on all of them, and not on every other machine.
my ($AF_UNIX, $SOCK_STREAM, $SOL_SOCKET, $SCM_RIGHTS, $SO_PEERCRED) = (1, 1, 1, 1, 17);
my ($SO_RCVTIMEO, $SO_SNDTIMEO, $MSG_NOSIGNAL, $SIG_UNBLOCK) = (20, 21, 0x4000, 1);
my ($EINTR, $EAGAIN) = (4, 11);

my %NEXT = (
    'asked +' => 'committed',
    'committed ?' => 'committed',
    'committed =' => 'answered',
);
my %ELSE = (asked => 'alone', committed => 'gave up');

my $script = getppid;
my $connection;
my @null;    # stdout, where there was none
my $has_committed = 0;
my $leaving;
my $said = '';    # by the daemon, and not read yet

# Return the phase after the daemon said a line, none when it says no more.
sub next_phase {
    my ($phase, $line) = @_;
    return $NEXT{"$phase " . substr $line, 0, 1} || $ELSE{$phase};
}

sub main {
    exit $UNABLE unless $] >= 5.020 && knows_machine();
    my $set = 0;
    for my $name (keys %ENDING) {
        $SIG{$name} = \&on_signal;
        $set |= 1 << $ENDING{$name} - 1;
    }
    $SIG{PIPE} = 'IGNORE';
    # Exim's children inherit some of them ignored, others may be blocked.
    syscall $SIGPROCMASK, $SIG_UNBLOCK, my $unblocked = pack('Q', $set), 0, 8;
    alarm $PATIENCE;    # see on_signal
    my $path = socket_path();
    # A process of Exim's own would hear our answer though Exim had gone.
    my $is_lost = $mail_server == 1 && grep { $_ eq '--exim' } @argv;
    hand_over($path, request()) if $path ne '' && !$is_lost;
    exit $ALONE;
}

# Return whether the system calls have numbers on this machine, as Perl is built for it.
sub knows_machine {
    open my $file, '<', '/proc/self/exe' or return 0;
    sysread($file, my $head, 20) == 20 or return 0;
    my ($ident, $machine) = unpack 'a6 x12 S', $head;
    my $calls = $ident eq "\x7fELF\2\1" && $CALLS{$machine} or return 0;
    ($SENDMSG, $PPOLL, $SIGPROCMASK) = @$calls;
    return 1;
}

# Return the daemon's socket; empty when @argv wants none, or is not understood.
sub socket_path {
    my %given;
    my @rest = @argv;
    while (defined(my $word = shift @rest)) {
        if ($word eq '--') {
            # A configuration of its own is another than the daemon's.
            my $has_own = exists $given{'--config'} || exists $ENV{MXPOLICY_CONFIG};
            return $given{'--socket'} if exists $given{'--socket'};
            return $has_own ? '' : $DEFAULT_SOCKET;
        }
        my ($name, $value) = split /=/, $word, 2;
        next unless defined $name && $OPTIONS{$name};
        $value = @rest ? shift @rest : '' unless defined $value;
        $given{$name} = $value;
    }
    return '';
}

# Return what is sent to the daemon first.
sub request {
    my $body = join '', map { "A$_\0" } @argv;
    $body .= "R$ENV{RETURN_PATH}\0" if exists $ENV{RETURN_PATH};
    $body .= "M$ENV{MESSAGE_ID}\0" if exists $ENV{MESSAGE_ID};
    return sprintf("mxpolicy pipe %d %d\n", $VERSION, length $body) . $body;
}

# Hand over, and leave with the answer; return when nothing was handed over.
sub hand_over {
    my ($path, $asked) = @_;
    return if length $asked > $MAX_REQUEST;
    connect_to($path) && send_all($asked) or return;
    my $line = next_line();
    alarm 0;    # the rest waits for nothing
    return if next_phase('asked', $line) ne 'committed';
    my ($seconds) = $line =~ /\A\+([1-9][0-9]{0,8})\z/ or return;
    commit() or return;
    wait_for_answer($seconds);
}

# Send descriptor 0. When this returns false, it has not been sent.
sub commit {
    my $byte = '@';
    my $io = pack 'P Q', $byte, 1;    # struct iovec
    my $rights = pack 'Q l l l x4', 20, $SOL_SOCKET, $SCM_RIGHTS, 0;    # struct cmsghdr
    my $message = pack 'Q L x4 P Q P Q l x4', 0, 0, $io, 1, $rights, length $rights, 0;
    $has_committed = 1;    # before it is true, for a signal's handler
    return 1 if syscall($SENDMSG, fileno $connection, $message, $MSG_NOSIGNAL) == 1;
    $has_committed = 0;
    return 0;
}

# Answer the daemon's questions until its answer comes, and leave with that.
sub wait_for_answer {
    alarm shift;    # see on_signal
    my ($phase, $line) = ('committed');
    while ($phase eq 'committed') {
        $line = next_line();
        $phase = next_phase($phase, $line);
        say_that_we_live() if $phase eq 'committed';
    }
    answer($line) if $phase eq 'answered';
    give_up('the daemon has gone without an answer');
}

# Return the next line without its end; none when the connection ends before it.
sub next_line {
    until ($said =~ /\n/) {
        my $count = sysread $connection, $said, 8192, length $said;
        next if !defined $count && ($! == $EINTR || $has_committed && $! == $EAGAIN);
        return '' if !$count || length $said > 2 * $MAX_ANSWER;
    }
    (my $line, $said) = split /\n/, $said, 2;
    return $line;
}

sub say_that_we_live {
    give_up('the mail server that started us has gone away') unless lives();
    # When it waits for this no more, what it said before it left is still to be read: its
    # answer may stand behind the question.
    send $connection, '!', $MSG_NOSIGNAL;
}

sub answer {
    my ($status, $line, $class) = $_[0] =~ /\A=(0|69|75) (([245]\.)[ -~]*)\z/;
    leave($status, $line)
        if defined $line && $class eq $CLASSES{$status} && length $line < $MAX_ANSWER;
    give_up("the daemon's answer cannot be understood");
}

# Return whether the mail server lives; as in handover.py, by three things.
sub lives {
    my ($server, $ends) = look_at($mail_server);
    return 0 if $ends;
    # It is gone, or hidden from us (proc(5), hidepid).
    select undef, undef, undef, $UNSEEN_DEATH unless defined $server;
    my ($parent) = look_at($script);
    return 0 if getppid != $script || defined $parent && $parent != $mail_server;
    return 0 if $mail_server == 1 && !(-p STDOUT || -S STDOUT || -t STDOUT);
    my $poll = pack 'l s s', 1, 0, 0;    # POLLERR and POLLHUP are always told
    return !syscall $PPOLL, $poll, 1, my $at_once = pack('qq', 0, 0), 0, 8;
}

# Leave with "try later", or with the answer that is being written. Our own alarm before
# the commit means that it is too late for the daemon.
sub on_signal {
    my $name = shift;
    exit $LEAVE_WITH{$leaving} if defined $leaving;
    give_up("ended by SIG$name") if $name ne 'ALRM';
    exit $ALONE if !$has_committed;
    give_up('no answer from the daemon in its time');
}

# Leave with "try later".
sub give_up {
    my $why = substr shift, 0, 1000;
    $why =~ tr/ -~/?/c;
    leave($EXIT_DEFER, "4.3.0 mxpolicy: $why");
}

sub leave {
    ($leaving, my $line) = @_;
    close $connection if $connection;    # from here on no final dot leaves
    syswrite STDOUT, $line;
    drain() if $has_committed && $leaving == $EXIT_DEFER;
    exit $LEAVE_WITH{$leaving};
}

# Connect to the daemon; return false unless it is root's or ours.
sub connect_to {
    my $path = shift;
    my %trusted = (0 => 1, $> => 1);
    my (undef, undef, $mode, undef, $owner) = stat $path or return 0;
    return 0 if ($mode & 0170000) != 0140000 || !$trusted{$owner} || length $path > 107;
    do {    # or the connection would be taken for stdout
        open my $null, '+<', '/dev/null' or return 0;
        push @null, $null;
    } until fileno $null[-1] > 2;
    socket $connection, $AF_UNIX, $SOCK_STREAM, 0 or return 0;
    # The alarm ends a call, but not one that begins just after it; this does.
    for my $waiting ($SO_RCVTIMEO, $SO_SNDTIMEO) {
        setsockopt $connection, $SOL_SOCKET, $waiting, pack('qq', $PATIENCE, 0) or return 0;
    }
    connect $connection, pack 'S a* x', $AF_UNIX, $path or return 0;
    # struct ucred: pid, uid, gid of who listens (unix(7)).
    my (undef, $user) = unpack 'l L', getsockopt $connection, $SOL_SOCKET, $SO_PEERCRED;
    return $trusted{$user};
}

sub send_all {
    my $data = shift;
    while (length $data) {
        my $sent = syswrite $connection, $data;
        return 0 unless defined $sent || $! == $EINTR;
        substr $data, 0, $sent || 0, '';
    }
    return 1;
}

# Read the message to its end, unless it is in a file.
sub drain {
    return unless -p STDIN;
    my $count = 1;
    while ($count || !defined $count && $! == $EINTR) {
        $count = sysread STDIN, my $data, 65536;
    }
}

# Return the parent of a process, and whether it ends, as proc(5) says, or nothing.
sub look_at {
    my $pid = shift;
    open my $file, '<', "/proc/$pid/stat" or return;
    sysread $file, my $text, 4096 or return;
    # The name is in parentheses, and may hold some. State and parent follow.
    my @fields = split ' ', substr $text, 1 + rindex $text, ')';
    return if @fields < 7;
    return ($fields[1], $fields[0] =~ /[ZXx]/ || $fields[6] & $EXITING);
}

unless (caller) {    # a test has none of it run
    eval { main() };
    # It has died; only a bug of ours, or too little memory, has it come so far.
    exit $LEAVE_WITH{$leaving} if defined $leaving;
    give_up($@) if $has_committed;
    exit($connection ? $ALONE : $UNABLE);
}
1;
