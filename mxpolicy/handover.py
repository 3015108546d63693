"""The client of the hand-over: ``mxpolicy pipe`` gives its message to the daemon.

`mxpolicy.protocol.handover_request` has the protocol. This module stands by itself: it is
all that a mail server's process loads while a daemon runs, and imports only what is part
of the interpreter. The script ``mxpolicy`` (command.sh) runs it, and waits for it.

Until descriptor 0 is sent, the daemon cannot read the message. After any trouble until
then (`PATIENCE`) this process delivers by itself, as it does without a daemon. That one
send is the commit. After it this process never delivers. Without an answer it says "try
later", once it has closed the connection, so that no final dot can leave any more, and
has read the message to its end: a daemon that was stopped (SIGSTOP) keeps the pipe open,
and the mail server would wait for it.

The status is 0, 69 or 75, and the answer one line in one write. See `mxpolicy.pipe`.

handover.pl is the same once more, for where there is a Perl: it executes a third of the
instructions. A change here is a change there.
"""

import _signal  # type: ignore[import-not-found]  # signal imports enum
import _socket
import posix
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

# Both as in mxpolicy.protocol.handover_request.
VERSION = 1
MAX_REQUEST = 256 * 1024

DEFAULT_SOCKET = "/run/mxpolicy/pipe"

# Seconds in all, from our start to the commit.
PATIENCE = 2.0

# As in mxpolicy.pipe_command.
OPTIONS = ("-f", "--nexthop", "--queue-id", "--deadline", "--socket", "--config")

# As in mxpolicy.pipe: 17 ms pass at most until a death that we may not see is seen.
UNSEEN_DEATH = 0.1

# As in mxpolicy.outcome and mxpolicy.protocol.pipe_answer.
EXIT_DEFER = 75
CLASSES = {b"0": b"2.", b"69": b"5.", b"75": b"4."}
MAX_ANSWER = 4096

# As in mxpolicy.processes.
NAMES = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "XCPU", "ALRM")
ENDING = [getattr(_signal, f"SIG{name}") for name in NAMES]
_EXITING = 0x4

# Where the client is. What the daemon says is told by its first byte; b"" is that it has
# closed the connection, or broken it, or that it has not said anything in time.
ASKED, COMMITTED, ALONE, ANSWERED, GAVE_UP = range(5)
_NEXT = {
    (ASKED, b"+"): COMMITTED,
    (COMMITTED, b"?"): COMMITTED,
    (COMMITTED, b"="): ANSWERED,
}
_ELSE = {ASKED: ALONE, COMMITTED: GAVE_UP}


def next_phase(phase: int, said: bytes) -> int:
    """Return the phase after the daemon *said* a line, none when it says no more."""
    return _NEXT.get((phase, said[:1]), _ELSE[phase])


def main(alone: "Callable[[list[str], int], NoReturn]") -> "NoReturn":
    """Hand over, or deliver in this process.

    ``sys.argv`` holds, from 1 on, the process id of the mail server and the command line
    of ``mxpolicy``. Our parent is the script.

    Args:
        alone: Delivers without a daemon: `mxpolicy.cli.pipe`.
    """
    began = time.monotonic()
    mail_server, argv = int(sys.argv[1]), sys.argv[3:]
    client = Client(mail_server)
    try:
        for number in ENDING:
            _signal.signal(number, client.on_signal)
        # Exim's children inherit some of them ignored, others may be blocked.
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, ENDING)
        path = socket_path(argv)
        # A process of Exim's own would hear our answer though Exim had gone.
        is_lost = mail_server == 1 and "--exim" in argv
        if path and not is_lost and _can_be_handed_over():
            client.hand_over(path, request(argv), began + PATIENCE)
        alone(argv, mail_server)
    except BaseException as trouble:  # of any kind: the mail server tries again
        client.give_up(f"{type(trouble).__name__}: {trouble}")


def socket_path(argv: list[str]) -> str:
    """Return the daemon's socket; empty when *argv* wants none, or is not understood."""
    given: dict[str, str] = {}
    rest = iter(argv)
    for word in rest:
        if word == "--":
            # A configuration of its own is another than the daemon's.
            has_own = "--config" in given or b"MXPOLICY_CONFIG" in posix.environ
            return given.get("--socket", "" if has_own else DEFAULT_SOCKET)
        name, inline, value = word.partition("=")
        if name in OPTIONS:
            given[name] = value if inline else next(rest, "")
    return ""


def request(argv: list[str]) -> bytes:
    """Return what is sent to the daemon first; the interpreter runs with ``-X utf8``."""
    fields = ["A" + word for word in argv]
    body = "\0".join([*fields, ""]).encode("utf-8", "surrogateescape")
    for letter, name in ((b"R", b"RETURN_PATH"), (b"M", b"MESSAGE_ID")):
        if name in posix.environ:
            body += letter + posix.environ[name] + b"\0"
    return b"mxpolicy pipe %d %d\n" % (VERSION, len(body)) + body


def _can_be_handed_over() -> bool:
    """Return whether the daemon can read our standard input: a pipe, or a file."""
    try:
        return posix.fstat(0).st_mode & 0o170000 in (0o010000, 0o100000)
    except OSError:  # it is closed
        return False


class Client:
    """One hand-over, seen from this side.

    Args:
        mail_server: Its process id; the script is between it and us.
    """

    def __init__(self, mail_server: int) -> None:
        self._mail_server = mail_server
        self._script = posix.getppid()
        self._connection: _socket.socket | None = None
        self._has_committed = False
        self._leaving: int | None = None
        self._said = b""  # by the daemon, and not read yet

    def hand_over(self, path: str, asked: bytes, until: float) -> None:
        """Hand over, and leave with the answer; return when nothing was handed over.

        Args:
            path: The daemon's socket.
            asked: The request.
            until: When this returns at the latest (monotonic).
        """
        phase, seconds = ASKED, 0
        connection = None
        try:
            if len(asked) <= MAX_REQUEST:
                connection = self._connection = _connect(path, until)
                _within(connection, until).sendall(asked)
                said = self._line(connection, until)
                phase = next_phase(phase, said)
                seconds = int(said[1:]) if said[1:].isdigit() else 0
                if phase == COMMITTED and 0 < seconds < 1_000_000_000:
                    self._commit(_within(connection, until))
        except (OSError, ValueError):
            pass
        if connection is not None and self._has_committed:
            self._wait(connection, seconds)
        if connection is not None:
            connection.close()

    def _commit(self, connection: _socket.socket) -> None:
        """Send descriptor 0. When this raises OSError, it has not been sent."""
        zero = (0).to_bytes(4, sys.byteorder)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, zero)
        self._has_committed = True  # before it is true, for a signal's handler
        try:
            connection.sendmsg([b"@"], [rights])
        except OSError:
            self._has_committed = False
            raise

    def _wait(self, connection: _socket.socket, seconds: int) -> "NoReturn":
        """Answer the daemon's questions until its answer comes, and leave with that."""
        _signal.setitimer(_signal.ITIMER_REAL, seconds)  # see on_signal
        connection.settimeout(None)
        phase, said = COMMITTED, b""
        try:
            while phase == COMMITTED:
                said = self._line(connection, None)
                phase = next_phase(phase, said)
                if phase == COMMITTED:
                    self._say_that_we_live(connection)
        except OSError:
            phase = GAVE_UP
        if phase == ANSWERED:
            self._answer(said)
        self.give_up("the daemon has gone without an answer")

    def _line(self, connection: _socket.socket, until: float | None) -> bytes:
        """Return the next line without its end; none when the connection ends before it."""
        while b"\n" not in self._said:
            if until is not None:
                _within(connection, until)
            data = connection.recv(8192)
            self._said += data
            if not data or len(self._said) > 2 * MAX_ANSWER:
                return b""
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _say_that_we_live(self, connection: _socket.socket) -> None:
        if not self._lives():
            self.give_up("the mail server that started us has gone away")
        try:  # noqa: SIM105, contextlib is no builtin
            connection.sendall(b"!")
        except OSError:
            # It waits for this no more. What it said before it left is still to be read:
            # its answer may stand behind the question.
            pass

    def _answer(self, said: bytes) -> "NoReturn":
        status, _, line = said[1:].partition(b" ")
        if (
            status not in CLASSES
            or not line.startswith(CLASSES[status])
            or len(line) >= MAX_ANSWER
            or not (line.isascii() and line.decode().isprintable())
        ):
            self.give_up("the daemon's answer cannot be understood")
        self._leave(int(status), line)

    def _lives(self) -> bool:
        """Return whether the mail server lives; as `mxpolicy.pipe.WayOut.is_watched`.

        Its death is seen by three things: it ends, as the kernel says; the script has
        another parent, or we have; nothing reads our stdout any more.
        """
        import select

        server = _look_at(self._mail_server)
        if server is None:
            time.sleep(UNSEEN_DEATH)  # it is gone, or hidden from us (proc(5), hidepid)
        elif server[1]:
            return False
        script = _look_at(self._script)
        if posix.getppid() != self._script or (
            script is not None and script[0] != self._mail_server
        ):
            return False
        if self._mail_server == 1 and not _has_another_end(1):
            return False
        poll = select.poll()
        poll.register(1, 0)  # POLLERR and POLLHUP are always told
        return not poll.poll(0)

    def on_signal(self, number: int, frame: "FrameType | None") -> None:
        """Leave with "try later", or with the answer that is being written."""
        if self._leaving is not None:
            posix._exit(self._leaving)
        if number == _signal.SIGALRM and self._has_committed:
            self.give_up("no answer from the daemon in its time")
        self.give_up(f"ended by SIG{NAMES[ENDING.index(number)]}")

    def give_up(self, why: str) -> "NoReturn":
        """Leave with "try later". It never raises."""
        text = "".join(one if " " <= one <= "~" else "?" for one in why[:1000])
        self._leave(EXIT_DEFER, f"4.3.0 mxpolicy: {text}".encode("ascii"))

    def _leave(self, status: int, line: bytes) -> "NoReturn":
        self._leaving = status
        try:
            if self._connection is not None:
                self._connection.close()  # from here on no final dot leaves
            posix.write(1, line)
            if self._has_committed and status == EXIT_DEFER:
                _drain()
        finally:
            posix._exit(status)


def _connect(path: str, until: float) -> _socket.socket:
    """Return a connection to a daemon; raise OSError unless it is root's or ours."""
    trusted = (0, posix.geteuid())
    found = posix.stat(path)
    if found.st_mode & 0o170000 != 0o140000 or found.st_uid not in trusted:
        raise OSError
    null = posix.open("/dev/null", posix.O_RDWR)
    while null < 3:  # or the connection would be taken for stdout
        null = posix.dup(null)
    posix.close(null)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
    _within(connection, until).connect(path)
    # struct ucred: pid, uid, gid of who listens (unix(7)).
    peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    if int.from_bytes(peer[4:8], sys.byteorder) not in trusted:
        raise OSError
    return connection


def _within(connection: _socket.socket, until: float) -> _socket.socket:
    """Return *connection*, its next operation bounded; raise OSError if it is too late."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection


def _drain() -> None:
    """Read the message to its end, unless it is in a file."""
    if posix.fstat(0).st_mode & 0o170000 == 0o010000:
        while posix.read(0, 65536):
            pass


def _look_at(pid: int) -> tuple[int, bool] | None:
    """Return the parent of *pid*, and whether it ends, as proc(5) says, or None."""
    try:
        descriptor = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY)
        try:
            text = posix.read(descriptor, 4096)
        finally:
            posix.close(descriptor)
        # The name is in parentheses, and may hold some. State and parent follow.
        fields = text.rpartition(b")")[2].split()
        ends = fields[0] in b"ZXx" or bool(int(fields[6]) & _EXITING)
        return int(fields[1]), ends
    except (OSError, ValueError, IndexError):
        return None


def _has_another_end(descriptor: int) -> bool:
    """Return whether poll(2) tells when nothing can read from *descriptor* any more."""
    kind = posix.fstat(descriptor).st_mode & 0o170000
    return kind in (0o010000, 0o140000) or posix.isatty(descriptor)
