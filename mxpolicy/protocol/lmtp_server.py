"""The server's side of LMTP (RFC 2033) as a machine without I/O and clock.

Also RFC 1870, 2034, 2920, 3461, 6152, 6531 and Postfix's XFORWARD. Left out: CHUNKING,
which neither Postfix's lmtp(8) nor Exim's lmtp transport uses.

Its caller is `mxpolicy.server.lmtp`. The loop there: pass what was read to
`receive_data`, act on each event of `next_event` until there is none, write what
`data_to_send` returns. The caller decides two things. It answers each `RecipientNamed`
by `answer`, and each recipient of a `DataBegun` by `settle`, in any order and at any
time: each reply leaves when it and all before it are there. All else is answered here.

`mxpolicy.protocol.lmtp_states` has the states, their table and the theory of operation.

What a client sends takes bounded memory. `buffered` says how much of it waits; the caller
stops reading while that is a lot.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.errors import LocalProtocolError
from mxpolicy.protocol.dot_stuffing import DotUnstuffer
from mxpolicy.protocol.lmtp_commands import (
    CommandError,
    MailCommand,
    RcptCommand,
    parse_mail,
    parse_rcpt,
    parse_xforward,
)
from mxpolicy.protocol.lmtp_states import (
    READS_COMMANDS,
    TRANSITIONS,
    LmtpInput,
    LmtpState,
)
from mxpolicy.protocol.receive_buffer import ReceiveBuffer
from mxpolicy.reply import EnhancedStatus, printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_LINE",
    "MAX_RECIPIENTS",
    "DataBegun",
    "DataCame",
    "DataEnded",
    "Event",
    "Left",
    "LmtpReply",
    "LmtpServer",
    "Offers",
    "RecipientNamed",
    "TransactionDropped",
]

# Bytes of a command line, without its end. The longest that may come is RCPT with a path
# of 998 bytes and an ORCPT of 500 (RFC 3461 §4.2).
MAX_LINE = 4096

# Recipients of a transaction (RFC 5321 §4.5.3.1.8: at least 100). Postfix sends 50, Exim
# as many as its batch_max says.
MAX_RECIPIENTS = 1000

# Bytes of a reply, line ends and all. Exim's lmtp transport reads a reply, all its lines
# together, into 256 bytes. A longer one is malformed to it: a message that was delivered
# would be sent again.
MAX_SHORT_REPLY = 240
# Postfix reads lines of 2048 (line_length_limit), and shows them to the sender.
MAX_REPLY = 1000

# What is said when nothing else is known, by RFC 2034 with a status (RFC 3463).
_OK = EnhancedStatus(2, 0, 0)
_BAD_COMMAND = EnhancedStatus(5, 5, 1)
_BAD_SYNTAX = EnhancedStatus(5, 5, 2)


class Offers(NamedTuple):
    """What the LHLO reply says.

    Attributes:
        name: The server's own.
        size: Bytes that a message may have.
        dsn: Whether RFC 3461 is offered.
    """

    name: str
    size: int
    dsn: bool = False

    def lines(self) -> list[str]:
        """Return the lines of the reply. They fit into `MAX_SHORT_REPLY` bytes."""
        # Of XFORWARD's attributes only the one that is used: Postfix sends no other.
        offered = ["PIPELINING", f"SIZE {self.size}", "8BITMIME", "SMTPUTF8"]
        offered += ["ENHANCEDSTATUSCODES", "XFORWARD IDENT"]
        offered += ["DSN"] if self.dsn else []
        room = MAX_SHORT_REPLY - sum(len(line) + len("250-\r\n") for line in offered)
        return [printable(self.name, room - len("250-\r\n")), *offered]


class LmtpReply(NamedTuple):
    """One reply.

    Attributes:
        text: One line, printable.
    """

    code: int
    status: EnhancedStatus
    text: str

    @property
    def is_positive(self) -> bool:
        """Whether it is 2yz."""
        return self.code // 100 == 2

    def line(self, limit: int) -> bytes:
        """Return it as one line of at most *limit* bytes."""
        text = f"{self.code} {self.status} {self.text}"
        return printable(text, limit - 2).encode("ascii") + b"\r\n"


# Said for each message.
_SAID_OK = LmtpReply(250, _OK, "Ok").line(MAX_SHORT_REPLY)
_SENDER_OK = LmtpReply(250, EnhancedStatus(2, 1, 0), "Ok").line(MAX_SHORT_REPLY)


class RecipientNamed(NamedTuple):
    """RCPT: call `LmtpServer.answer` with *number*, now or later.

    Attributes:
        number: That of the RCPT command in the transaction, from 0.
        recipient: What the command says.
        queue_id: The mail server's name for the message; empty when it has not said it.
    """

    number: int
    recipient: RcptCommand
    queue_id: str


class DataBegun(NamedTuple):
    """DATA: mail data follows. Call `LmtpServer.settle` for each of *recipients*.

    Attributes:
        sender: What MAIL said.
        recipients: Those that were accepted, in their order.
        queue_id: See `RecipientNamed`.
    """

    sender: MailCommand
    recipients: tuple[RcptCommand, ...]
    queue_id: str


class DataCame(NamedTuple):
    """Some mail data, as the client had it before dots were doubled."""

    data: bytes


class DataEnded(NamedTuple):
    """The mail data is complete."""


class TransactionDropped(NamedTuple):
    """The client gives the transaction up; no mail data had come."""


class Left(NamedTuple):
    """QUIT: write what `LmtpServer.data_to_send` returns, then close."""


Event = RecipientNamed | DataBegun | DataCame | DataEnded | TransactionDropped | Left


class _Slot:
    """The place of a reply that must not leave before those ahead of it."""

    __slots__ = ("recipient", "reply")

    def __init__(
        self, recipient: RcptCommand | None = None, reply: LmtpReply | None = None
    ) -> None:
        self.recipient = recipient
        self.reply = reply


class LmtpServer:
    """One session with one client, from the greeting on.

    Args:
        offers: What is offered to the client.

    Attributes:
        state: Where the conversation is.
    """

    def __init__(self, offers: Offers) -> None:
        self.state = LmtpState.LHLO
        self._offers = offers
        self._buffer = ReceiveBuffer(MAX_LINE + 1)
        self._out = [f"220 {offers.lines()[0]} LMTP\r\n".encode("ascii")]
        self._data: DotUnstuffer | None = None
        self._is_plain = True  # the client has used nothing of what we offer
        self._queue_id = ""
        self._sender = MailCommand("")
        self._named = 0  # RCPT commands of the transaction
        self._accepted: list[RcptCommand] = []
        # Replies to RCPT that have not left, by number; then those behind the mail data.
        self._unanswered: deque[_Slot] = deque()
        self._first_unanswered = 0
        self._final_replies: list[LmtpReply | None] = []
        self._said = 0  # of the final replies

    # -- bytes in and out ---------------------------------------------------

    @property
    def buffered(self) -> int:
        """How many bytes have come that no event has told of."""
        return len(self._buffer)

    @property
    def owes(self) -> bool:
        """Whether the client waits for a reply of the caller's."""
        return bool(self._unanswered) or self.state is LmtpState.ANSWERS

    def receive_data(self, data: bytes) -> None:
        """Take what was read. Call `next_event` until it returns None."""
        self._buffer.append(data)

    def next_event(self) -> Event | None:
        """Return what the client wants next.

        None: more bytes are needed, or an answer of the caller is, or the session is
        over. After `answer` and `settle` there may be another event.
        """
        while True:
            if self.state is LmtpState.DATA:
                return self._next_data()
            if self.state not in READS_COMMANDS or not self._may_read_on():
                return None
            line = self._buffer.next_line()
            if line is None:
                return None
            event = self._obey(line)
            if event is not None:
                return event

    def data_to_send(self) -> bytes:
        """Return the bytes that are to leave now; often there are none."""
        if not self._out:
            return b""
        leaving, self._out = b"".join(self._out), []
        return leaving

    # -- what the caller decides ----------------------------------------------

    def answer(self, number: int, reply: LmtpReply) -> None:
        """Answer the RCPT command *number*; a positive reply accepts the recipient.

        Raises:
            LocalProtocolError: It is answered, or was never asked.
        """
        at = number - self._first_unanswered
        if not 0 <= at < len(self._unanswered) or self._unanswered[at].reply:
            raise LocalProtocolError(f"no answer to RCPT {number} is due")
        self._unanswered[at].reply = reply
        while self._unanswered and (reply_now := self._unanswered[0].reply):
            slot = self._unanswered.popleft()
            self._first_unanswered += 1
            self._say(reply_now)
            if slot.recipient is not None and reply_now.is_positive:
                self._enter(LmtpInput.ACCEPTED)
                self._accepted.append(slot.recipient)

    def settle(self, recipient: int, reply: LmtpReply) -> None:
        """Say what became of the message for a recipient.

        Args:
            recipient: Its number in `DataBegun.recipients`, from 0.
            reply: What its client is told.

        It may be known before all mail data has come. The client is told after it.

        Raises:
            LocalProtocolError: It is settled, or there is none.
        """
        is_due = self.state in (LmtpState.DATA, LmtpState.ANSWERS)
        if (
            not is_due
            or not 0 <= recipient < len(self._final_replies)
            or self._final_replies[recipient]
        ):
            raise LocalProtocolError(f"no final reply for recipient {recipient} is due")
        self._final_replies[recipient] = reply
        self._say_final_replies()

    # -- inside -----------------------------------------------------------------

    def _may_read_on(self) -> bool:
        """Return whether the next command may be read while answers are due."""
        if not self._unanswered:
            return True
        is_rcpt = self._buffer.peek(5).upper() == b"RCPT "
        return is_rcpt and len(self._unanswered) < MAX_RECIPIENTS

    def _next_data(self) -> Event | None:
        assert self._data is not None, "DATA has made it"
        if self._data.is_over:
            self._data = None
            self._enter(LmtpInput.END)
            self._say_final_replies()
            return DataEnded()
        if not self._buffer:
            return None
        data, rest = self._data.decode(self._buffer.take())
        if rest:
            self._buffer.append(rest)
        if data:
            return DataCame(data)
        return self._next_data() if self._data.is_over else None

    def _obey(self, line: bytes) -> Event | None:
        """Do what a command line says, and answer it."""
        try:
            return self._understand(line)
        except CommandError as error:
            self._say_in_turn(LmtpReply(error.code, error.status, error.text))
            return None

    def _understand(self, line: bytes) -> Event | None:
        if len(line) > MAX_LINE:
            raise CommandError(500, _BAD_SYNTAX, "line too long")
        text = line.decode("utf-8", "surrogateescape")
        verb, _, arguments = text.partition(" ")
        verb = verb.upper()
        if verb in _REFUSED:
            raise CommandError(*_REFUSED[verb])
        command = _COMMANDS.get(verb)
        if command is None:
            raise CommandError(500, _BAD_SYNTAX, "command not known")
        what, obey = command
        if (self.state, what) not in TRANSITIONS:
            raise CommandError(503, _BAD_COMMAND, _OUT_OF_ORDER.get(what, "not now"))
        return obey(self, arguments.strip(" "))

    def _enter(self, what: LmtpInput) -> None:
        self.state = TRANSITIONS[self.state, what]

    def _say_in_turn(self, reply: LmtpReply) -> None:
        """Say *reply* behind those that are due. Only an RCPT is read while some are."""
        if not self._unanswered:
            self._say(reply)
            return
        self._unanswered.append(_Slot(None, reply))
        self._named += 1

    def _say(self, reply: LmtpReply) -> None:
        limit = MAX_SHORT_REPLY if self._is_plain else MAX_REPLY
        self._out.append(reply.line(limit))

    def _say_final_replies(self) -> None:
        """Say the final replies that are known, in their order, once the data has ended."""
        if self.state is not LmtpState.ANSWERS:
            return
        while self._said < len(self._final_replies):
            reply = self._final_replies[self._said]
            if reply is None:
                return
            self._say(reply)
            self._said += 1
        self._enter(LmtpInput.ANSWERED)
        self._forget()

    def _forget(self) -> None:
        """Forget the transaction, and what XFORWARD said for it."""
        self._queue_id = ""
        self._sender = MailCommand("")
        self._named = self._first_unanswered = self._said = 0
        self._accepted, self._final_replies = [], []

    def _drop(self, what: LmtpInput) -> TransactionDropped | None:
        is_open = self.state in (LmtpState.MAIL, LmtpState.RCPT)
        self._enter(what)
        self._forget()
        return TransactionDropped() if is_open else None

    # -- commands ---------------------------------------------------------------

    def _lhlo(self, arguments: str) -> Event | None:
        if not arguments:
            raise CommandError(501, EnhancedStatus(5, 5, 4), "LHLO needs a name")
        lines = self._offers.lines()
        ends = ["-"] * (len(lines) - 1) + [" "]
        reply = "".join(f"250{a}{b}\r\n" for a, b in zip(ends, lines, strict=True))
        self._out.append(reply.encode("ascii"))
        return self._drop(LmtpInput.LHLO)

    def _mail(self, arguments: str) -> None:
        command = parse_mail(arguments, dsn=self._offers.dsn)
        if (command.size or 0) > self._offers.size:
            text = f"message too large: at most {self._offers.size} bytes"
            raise CommandError(552, EnhancedStatus(5, 3, 4), text)
        self._is_plain = self._is_plain and not command.has_parameters
        self._sender = command
        self._enter(LmtpInput.MAIL)
        self._out.append(_SENDER_OK)

    def _rcpt(self, arguments: str) -> Event | None:
        command = parse_rcpt(arguments, dsn=self._offers.dsn)
        if len(self._accepted) + len(self._unanswered) >= MAX_RECIPIENTS:
            status = EnhancedStatus(4, 5, 3)  # RFC 5321 §4.5.3.1.10
            raise CommandError(452, status, "too many recipients")
        self._enter(LmtpInput.RCPT)
        number, self._named = self._named, self._named + 1
        self._unanswered.append(_Slot(command))
        return RecipientNamed(number, command, self._queue_id)

    def _begin_data(self, arguments: str) -> Event:
        if arguments:
            raise CommandError(501, EnhancedStatus(5, 5, 4), "DATA takes no argument")
        self._enter(LmtpInput.DATA)
        self._data = DotUnstuffer()
        self._final_replies = [None] * len(self._accepted)
        self._out.append(b"354 End data with <CR><LF>.<CR><LF>\r\n")
        return DataBegun(self._sender, tuple(self._accepted), self._queue_id)

    def _rset(self, arguments: str) -> Event | None:
        self._out.append(_SAID_OK)
        return self._drop(LmtpInput.RSET)

    def _noop(self, arguments: str) -> None:
        self._out.append(_SAID_OK)

    def _vrfy(self, arguments: str) -> None:
        self._say(LmtpReply(252, _OK, "Send it, and see"))

    def _xforward(self, arguments: str) -> None:
        attributes = parse_xforward(arguments)
        self._is_plain = False
        self._queue_id = attributes.get("IDENT", self._queue_id)
        self._out.append(_SAID_OK)

    def _quit(self, arguments: str) -> Event:
        self._say(LmtpReply(221, _OK, "Bye"))
        self._enter(LmtpInput.QUIT)
        return Left()


_COMMANDS: dict[str, tuple[LmtpInput, Callable[[LmtpServer, str], Event | None]]] = {
    "LHLO": (LmtpInput.LHLO, LmtpServer._lhlo),
    "MAIL": (LmtpInput.MAIL, LmtpServer._mail),
    "RCPT": (LmtpInput.RCPT, LmtpServer._rcpt),
    "DATA": (LmtpInput.DATA, LmtpServer._begin_data),
    "RSET": (LmtpInput.RSET, LmtpServer._rset),
    "NOOP": (LmtpInput.NOOP, LmtpServer._noop),
    "VRFY": (LmtpInput.VRFY, LmtpServer._vrfy),
    "XFORWARD": (LmtpInput.XFORWARD, LmtpServer._xforward),
    "QUIT": (LmtpInput.QUIT, LmtpServer._quit),
}

# RFC 2033 §4.1: never a positive reply. The one to HELO is for now, as it bounces the mail
# of an smtp(8) that was sent here by mistake; after the one to EHLO it says HELO.
_REFUSED = {
    "EHLO": (500, _BAD_COMMAND, "this is LMTP: say LHLO"),
    "HELO": (450, EnhancedStatus(4, 5, 1), "this is LMTP: say LHLO"),
}

_OUT_OF_ORDER = {
    LmtpInput.MAIL: "LHLO comes first, and one transaction after the other",
    LmtpInput.RCPT: "MAIL comes first",
    LmtpInput.DATA: "no recipient was accepted",
}
