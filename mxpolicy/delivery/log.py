"""Where log lines go: syslog, the journal, standard error, or a file.

Each line is one datagram or one write, and never waits: a log that cannot be written
must not stop or delay mail. Lost lines are counted. The next line that can be written
comes after one that says so.

`logging` is not used: it takes five times as long for each line, and `mxpolicy pipe`
would have to import it.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING

from mxpolicy.delivery.events import (
    DUNNO,
    AccessJudged,
    HostRecovered,
    LateReplyEnded,
    Notice,
    RecipientSettled,
    StrayReply,
    Trouble,
)
from mxpolicy.delivery.log_line import json_line, text_line
from mxpolicy.options import LogDetail, LogFormat

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from mxpolicy.delivery.events import Event
    from mxpolicy.options import LogOptions

__all__ = ["ALWAYS_LOGGED", "Log", "is_always_logged"]

SYSLOG_SOCKET = "/dev/log"
JOURNAL_SOCKET = "/run/systemd/journal/socket"

# RFC 5424 §6.2.1; the same numbers are in syslog(3) and in the journal's fields.
FACILITY_MAIL = 2
SEVERITY_WARNING = 4
SEVERITY_INFO = 6

STDERR = 2

# Events that are logged even where the single steps are not.
ALWAYS_LOGGED = (
    RecipientSettled,
    LateReplyEnded,
    StrayReply,
    HostRecovered,
    Trouble,
    Notice,
)


class Log:
    """The log of all messages and all questions: observes the events.

    Nothing is opened before the first line, and no method raises.

    Attributes:
        lost: Lines that could not be written since the last one that could.
        trouble: Why, in the system's words; empty when all is well.

    Args:
        options: Where to, which form, how much.
        syslog_socket, journal_socket: Where the two listen.
    """

    def __init__(
        self,
        options: LogOptions,
        *,
        syslog_socket: str = SYSLOG_SOCKET,
        journal_socket: str = JOURNAL_SOCKET,
    ) -> None:
        self.lost = 0
        self.trouble = ""
        self._json = options.format is LogFormat.JSON
        self._every_step = options.detail is LogDetail.EVENTS
        self._sink: _Syslog | _Journald | _Stderr | _LogFile
        match options.to:
            case "syslog":
                self._sink = _Syslog(syslog_socket)
            case "journald":
                self._sink = _Journald(journal_socket)
            case "stderr":
                self._sink = _Stderr()
            case path:
                self._sink = _LogFile(path, plain=self._json)

    def observe(self, event: Event) -> None:
        """Write *event* if it is to be logged; lose it rather than wait."""
        if not self._every_step and not is_always_logged(event):
            return
        if self.lost:
            text = f"log lines lost: {self.lost}; {self.trouble}"
            if not self._write(Trouble(event.at, text, event.queue_id)):
                self.lost += 1
                return
            self.lost, self.trouble = 0, ""
        if not self._write(event):
            self.lost += 1

    def _write(self, event: Event) -> bool:
        severity = SEVERITY_WARNING if isinstance(event, Trouble) else SEVERITY_INFO
        try:
            line = json_line(event, _now()) if self._json else text_line(event)
            self._sink.write(line, severity)
        except OSError as exc:
            self.trouble = exc.strerror or str(exc)
            return False
        except Exception as exc:
            # A bug of ours in a log line must not change what happens to mail: the event
            # after a host's 250 is observed before we have answered.
            self.trouble = f"{type(exc).__name__}: {exc}"
            return False
        return True

    def close(self) -> None:
        """Let go of the socket or the file."""
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def is_always_logged(event: Event) -> bool:
    """Return whether *event* is logged even where the single steps are not."""
    if isinstance(event, AccessJudged):
        return event.action != DUNNO
    return isinstance(event, ALWAYS_LOGGED)


def _now() -> str:
    """Return the time as RFC 3339 says, UTC, in milliseconds."""
    now = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now % 1 * 1000):03d}Z"


def _tag() -> str:
    return f"mxpolicy[{os.getpid()}]"


# Sinks: `write` writes one line, or raises OSError at once.


class _Datagrams:
    """A unix datagram socket, connected when it is first needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def send(self, datagram: bytes) -> None:
        """Send it; when the other side was restarted, once more."""
        if self._socket is not None:
            try:
                self._socket.send(datagram)
            except (ConnectionError, FileNotFoundError):
                self.close()
            else:
                return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(self._path)
            self._socket.send(datagram)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket; the next datagram opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Syslog(_Datagrams):
    """syslogd's local socket; syslogd adds the time and the host (RFC 3164 §4.1)."""

    def write(self, line: str, severity: int) -> None:
        self.send(f"<{FACILITY_MAIL << 3 | severity}>{_tag()}: {line}".encode("ascii"))


class _Journald(_Datagrams):
    """The journal's native protocol: one ``FIELD=value`` a line; our lines hold no line end."""

    def write(self, line: str, severity: int) -> None:
        fields = (
            f"MESSAGE={line}",
            f"PRIORITY={severity}",
            f"SYSLOG_FACILITY={FACILITY_MAIL}",
            "SYSLOG_IDENTIFIER=mxpolicy",
            f"SYSLOG_PID={os.getpid()}",
        )
        self.send("".join(f"{one}\n" for one in fields).encode("ascii"))


class _Stderr:
    """Standard error, which may be a pipe that is not read."""

    def write(self, line: str, severity: int) -> None:
        # O_NONBLOCK would be set for all processes that hold the same open file. A pipe
        # that polls writable takes PIPE_BUF bytes, and no line has more.
        poll = select.poll()
        poll.register(STDERR, select.POLLOUT)
        if not any(ready & select.POLLOUT for _, ready in poll.poll(0)):
            raise BlockingIOError(0, "standard error is full or closed")
        os.write(STDERR, f"{_tag()}: {line}\n".encode("ascii"))

    def close(self) -> None:
        """It is not ours."""


class _LogFile:
    """A file that grows at its end, also under several processes at once."""

    def __init__(self, path: str, *, plain: bool) -> None:
        self._path = path
        self._plain = plain  # a JSON line has its own time
        self._descriptor: int | None = None
        self._mend = ""  # ends a line that was written in part

    def write(self, line: str, severity: int) -> None:
        if self._descriptor is None:
            # Not blocking: the path may name a FIFO that is not read.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
            self._descriptor = os.open(
                self._path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o640
            )
        before = "" if self._plain else f"{_now()} {_tag()}: "
        data = f"{self._mend}{before}{line}\n".encode("ascii")
        written = os.write(self._descriptor, data)
        self._mend = "" if written == len(data) else "\n"
        if self._mend:
            raise OSError(0, "a line was written in part: no space left")

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
