"""The hand-over: ``mxpolicy pipe`` gives its message to the daemon. The daemon's side.

It is a protocol of our own, between two parts of one installation. One unix stream is one
delivery (C: the client, D: the daemon):

    C: mxpolicy pipe 1 LENGTH LF    the request: LENGTH bytes follow, see `parse_request`
    D: +SECONDS LF                  there is a place; or -REASON LF, and it is over
    C: @                            with descriptor 0 (SCM_RIGHTS, unix(7)): the commit
    D: ? LF                         does your mail server live? any number of times
    C: !                            it does
    D: =STATUS TEXT LF              exit status, and the line for the mail server

The commit decides which side reads the message. Until then the daemon has no
descriptor, so after any trouble the client delivers by itself. From then on the client
never delivers: without an answer it says "try later". `mxpolicy.handover` is the client.

After SECONDS the client waits no more. An `=` leaves only when every recipient has its
outcome, or when the message was never tried. The dot leaves only after a `!` to a `?`
that was sent when the message had been read to its end.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mxpolicy.errors import LocalProtocolError, RemoteProtocolError
from mxpolicy.reply import printable

__all__ = [
    "MAX_REQUEST",
    "TRANSITIONS",
    "VERSION",
    "Handover",
    "HandoverInput",
    "HandoverRequest",
    "HandoverState",
    "parse_request",
]

VERSION = 1

# Bytes of a request. Postfix gives 50 recipients by default, of some 300 bytes at most;
# an Exim transport with a batch_max of 500 has 150 KiB. What is larger runs alone.
MAX_REQUEST = 256 * 1024

_HEAD = b"mxpolicy pipe "
# The head, a version and a length.
_MAX_HEAD = 64


class HandoverState(Enum):
    """What is awaited, and from which side."""

    REQUEST = "request"  # of the client
    JUDGE = "judge"  # the request is here: of the caller, to accept or to refuse it
    COMMIT = "commit"  # of the client: the descriptor
    WORK = "work"  # of the caller: the outcome
    ASKED = "asked"  # of the client: that its mail server lives
    ENDED = "ended"


class HandoverInput(Enum):
    """What moves the state: three things that the client says, and four of the caller."""

    REQUEST = "request"
    COMMIT = "commit"
    LIVES = "lives"
    ACCEPT = "accept"
    REFUSE = "refuse"
    ASK = "ask"
    ANSWER = "answer"


# What is not here is an error of the side that did it, and ends the hand-over.
TRANSITIONS: dict[tuple[HandoverState, HandoverInput], HandoverState] = {
    (HandoverState.REQUEST, HandoverInput.REQUEST): HandoverState.JUDGE,
    (
        HandoverState.REQUEST,
        HandoverInput.REFUSE,
    ): HandoverState.ENDED,  # it could not be understood
    (HandoverState.JUDGE, HandoverInput.ACCEPT): HandoverState.COMMIT,
    (HandoverState.JUDGE, HandoverInput.REFUSE): HandoverState.ENDED,
    (HandoverState.COMMIT, HandoverInput.COMMIT): HandoverState.WORK,
    (HandoverState.COMMIT, HandoverInput.REFUSE): HandoverState.ENDED,  # we stop
    (HandoverState.WORK, HandoverInput.ASK): HandoverState.ASKED,
    (HandoverState.ASKED, HandoverInput.LIVES): HandoverState.WORK,
    (HandoverState.WORK, HandoverInput.ANSWER): HandoverState.ENDED,
    (HandoverState.ASKED, HandoverInput.ANSWER): HandoverState.ENDED,
}


class HandoverRequest(NamedTuple):
    """What the client was called with.

    Attributes:
        argv: What follows ``mxpolicy pipe`` on its command line.
        environ: ``RETURN_PATH`` and ``MESSAGE_ID``, where it has them.
    """

    argv: tuple[str, ...]
    environ: dict[str, str]


_NAMES = {b"R": "RETURN_PATH", b"M": "MESSAGE_ID"}


def parse_request(body: bytes) -> HandoverRequest:
    """Return what *body* says: fields, each one letter, a value, and a NUL.

    ``A`` is an argument, ``R`` and ``M`` are the two variables. Values are read as UTF-8,
    which a mail server writes (RFC 6531); what is none becomes surrogates.

    Raises:
        RemoteProtocolError: It is not made that way.
    """
    argv: list[str] = []
    environ: dict[str, str] = {}
    *fields, rest = body.split(b"\0")
    if rest:
        raise RemoteProtocolError("the request ends within a field")
    for field in fields:
        letter, value = field[:1], field[1:].decode("utf-8", "surrogateescape")
        if letter == b"A":
            argv.append(value)
        elif letter in _NAMES and _NAMES[letter] not in environ:
            environ[_NAMES[letter]] = value
        else:
            raise RemoteProtocolError(f"a field {printable(field, 20)!r}")
    return HandoverRequest(tuple(argv), environ)


class Handover:
    """One hand-over. Bytes come in by `receive_data`; what is to be sent is returned.

    Attributes:
        state: Where it is.
        request: None until it is complete.
    """

    def __init__(self) -> None:
        self.state = HandoverState.REQUEST
        self.request: HandoverRequest | None = None
        self._buffer = bytearray()

    def receive_data(self, data: bytes, descriptors: int = 0) -> None:
        """Take what one recvmsg(2) returned; `state` says what it was.

        Args:
            data: At least one byte.
            descriptors: How many came with it, those that were cut off included. They
                are the caller's to close; one is the message when the state is now WORK.

        Raises:
            RemoteProtocolError: The client broke the protocol. The state is ENDED, or
                REQUEST for a request that can be refused.
        """
        if self.state is HandoverState.REQUEST and not descriptors:
            self._buffer += data
            self._look_for_request()
        elif self.state is HandoverState.COMMIT and (data, descriptors) == (b"@", 1):
            self._move(HandoverInput.COMMIT)
        elif self.state is HandoverState.ASKED and (data, descriptors) == (b"!", 0):
            self._move(HandoverInput.LIVES)
        else:
            where, self.state = self.state.value, HandoverState.ENDED
            what = f"{printable(data, 20)!r} with {descriptors} descriptors"
            raise RemoteProtocolError(f"{what} in state {where}")

    def receive_eof(self) -> None:
        """The client has closed the connection."""
        self.state = HandoverState.ENDED

    def accept(self, seconds: float) -> bytes:
        """Return what says that there is a place, and how long to wait for the answer."""
        self._move(HandoverInput.ACCEPT)
        return b"+%d\n" % seconds

    def refuse(self, reason: str) -> bytes:
        """Return what makes the client deliver by itself."""
        self._move(HandoverInput.REFUSE)
        return f"-{printable(reason, 200)}\n".encode("ascii")

    def ask(self) -> bytes:
        """Return the question whether the client's mail server lives."""
        self._move(HandoverInput.ASK)
        return b"?\n"

    def answer(self, status: int, line: bytes) -> bytes:
        """Return the answer: exit status, and a line, given without its end."""
        self._move(HandoverInput.ANSWER)
        return b"=%d %b\n" % (status, line)

    def _move(self, what: HandoverInput) -> None:
        new = TRANSITIONS.get((self.state, what))
        if new is None:
            raise LocalProtocolError(f"{what.value} in state {self.state.value}")
        self.state = new

    def _look_for_request(self) -> None:
        head, line_end, body = self._buffer.partition(b"\n")
        if not head.startswith(_HEAD[: len(head)]) or len(head) > _MAX_HEAD:
            raise RemoteProtocolError("not a request")
        if not line_end:
            return
        words = head[len(_HEAD) :].split(b" ")
        if not all(word.isdigit() for word in words):
            raise RemoteProtocolError("not a request")
        if int(words[0]) != VERSION:
            raise RemoteProtocolError(f"version {int(words[0])}, not {VERSION}")
        if len(words) != 2 or int(words[1]) > MAX_REQUEST:
            raise RemoteProtocolError("a request that is too long")
        if len(body) > int(words[1]):
            raise RemoteProtocolError("more than a request")
        if len(body) == int(words[1]):
            self.request = parse_request(bytes(body))
            self._move(HandoverInput.REQUEST)
            self._buffer.clear()
