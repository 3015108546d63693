#!/bin/sh
# The command `mxpolicy`. What it does is done by Python; this starts it.
#
# For a mail server (`mxpolicy pipe`) it is also the process that waits. A command that
# ends by a signal, or with a status of its own, bounces the message: with Exim both do,
# with Postfix the status does. So this shell stays, with next to no memory, and makes
# "try later" of every end that is no answer. It gives Python its parent's process id,
# by which Python sees whether the mail server lives.
#
# pipe: the message is given to the daemon, if there is one. handover.pl does so where
# there is a Perl, whose start takes a fifth of Python's. Else handover.py does, started
# in the quickest way. Every other command, and an installation where these two are not at
# their usual place, is started in the usual way.
#
# A shell reads its script as it goes on, but what is in braces as a whole. So nothing that
# is written into this file, by whatever installs the next version, is run by a shell that
# waits for a delivery.
{
asks=0
case ${1-}${2-} in pipe-h | pipe--help | pipe-V | pipe--version) [ ! -t 0 ] || asks=1 ;; esac

case ${1-}$asks in pipe0)
    exim=0
    for word; do
        case $word in --) break ;; --exim) exim=1 ;; esac
    done
    status=
    ended() {
        status=${status:-$?}
        case $status in 0 | 69 | 75) return ;; esac
        trap - EXIT
        # To Postfix a signal is "try later", and what was printed counts for nothing: it
        # may have been the answer 2.0.0, which bounces with any status but 0.
        [ "$status" -le 128 ] || [ $exim = 1 ] || kill -KILL $$
        printf %s "4.3.0 mxpolicy: the delivery ended with status $status"
        exit 75
    }
    trap ended EXIT
    trap : HUP INT QUIT ALRM TERM USR1 USR2 XCPU
    trap '' PIPE XFSZ # whoever writes hears of it as an error
    exec 2>/dev/null
    ;;
esac

# Leave with the status of a client, or of Python.
leave() {
    status=$1
    # A daemon that was stopped keeps the pipe open, and the mail server would wait. When
    # this cannot fork, the shell ends: that is why it is not in the trap.
    case $status in
        0 | 69 | 75) ;;
        *) [ ! -p /proc/self/fd/0 ] || cat >/dev/null ;;
    esac
    exit "$status"
}

here=$0
[ ! -h "$here" ] || here=$(readlink -f "$here")
here=${here%/*}
python=$here/python3
isolated=-I
# Where pip has put it without an environment of its own, for a user too.
[ -x "$python" ] || { python=python3 isolated=-P; }

# Without proc(5) a shell in between would hide whether the mail server lives.
[ "${1-}$asks" = pipe0 ] && [ -e /proc/$$/stat ] || exec "$python" "$isolated" -m mxpolicy "$@"

for client in "$here"/../lib/python3*/*-packages/mxpolicy/handover.py; do break; done

# A Perl that has handed over nothing ends, and Python is a new process. So nothing has to
# be put back: signals, timers and descriptors are as the mail server gave them. What Perl
# has done is told by its status, for which see handover.pl. It cannot see whether it was
# started without a standard input; here that can be seen.
way=client
perl=${client%py}pl
if [ -r "$perl" ] && { [ -p /proc/self/fd/0 ] || [ -f /proc/self/fd/0 ]; }; then
    # What an operator wants of Perl is not for us. Python has no use for it.
    unset PERL5OPT PERL5LIB PERLLIB PERL5DB PERLIO PERL_UNICODE PERL_SIGNALS
    LC_ALL=C perl -f -- "$perl" "$PPID" "$@"
    case $? in
        200) exit 0 ;;
        201) exit 69 ;;
        202) exit 75 ;;
        203) way=alone ;;
        126 | 127) ;; # there is no Perl, or it can do nothing here
        0 | 69 | 75) leave 1 ;; # that was not handover.pl
        *) leave $? ;;
    esac
fi

if [ $way = alone ]; then
    set -- "$isolated" -X utf8 -c '
import sys
from mxpolicy import cli
cli.pipe(sys.argv[3:], int(sys.argv[1]))
' "$PPID" "$@"
elif [ -f "$client" ]; then
    # As `import` does it, with the byte code that is kept, but without a search for it,
    # and without `site` until that is needed.
    set -- -ISX utf8 -c '
import sys
from _frozen_importlib_external import SourceFileLoader
def alone(argv, mail_server):
    import site
    site.main()
    from mxpolicy import cli
    cli.pipe(argv, mail_server)
name = "mxpolicy.handover"
module = {"__name__": name}
exec(SourceFileLoader(name, sys.argv.pop(1)).get_code(name), module)
module["main"](alone)
' "$client" "$PPID" "$@"
else
    set -- "$isolated" -X utf8 -c '
from mxpolicy import cli, handover
handover.main(cli.pipe)
' "$PPID" "$@"
fi
"$python" "$@"
leave $?
}
