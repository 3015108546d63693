"""The client's side of SMTP (RFC 5321) as a machine without I/O and clock.

Also RFC 1870, 2034, 2920, 3207, 3461, 6152, 6531, 9422. Left out: AUTH, CHUNKING,
and DATA pipelined behind RCPT (it saves a round trip, and then a server that
refused all recipients has to be sent an empty message).

Who calls: `mxpolicy.delivery.session`. Its loop is: give a command, write what
`data_to_send` returns, read, pass it to `receive_data`, act on the events,
*write what* `data_to_send` *returns*, and so on. What a reply means for a
recipient is not decided here.
"""

# Theory of operation
#
# The state says where the conversation is, by what the server has answered; it
# is also what we wait for, so timeouts and words for the log hang on it (_FACTS).
# It changes in two ways, each with its table:
#
#   COMMANDS     (state, command) -> state, when we give a command
#   TRANSITIONS  (state, command, first digit) -> state, when its reply comes
#
# What is not in COMMANDS raises LocalProtocolError and leaves everything as it
# was. What is not in TRANSITIONS raises RemoteProtocolError and ends the session.
# Only the first digit counts: RFC 5321 §4.3.2 lets servers invent codes.
#
#   GREETING -- 220 --> EHLO -- ehlo() 250 --> READY -- mail() --> MAIL -- 250 --+
#                        | 5yz                  ^ ^ |                            |
#                        v                      | | | starttls()                 v
#                       HELO -- helo() 250 -----+ | v            rcpt()* <---  RCPT
#                                                 | STARTTLS                     |
#                        EHLO <-- established --- | - TLS_HANDSHAKE      data()  v
#                                                 |                            DATA
#                                  250, 4yz, 5yz  |                              | 354
#                                                DOT <----------- dot() ----- BODY
#
# Three things are above the tables:
#
# 1. 421 closes, whenever it comes (RFC 5321 §3.8): event `Closing`. It is then
#    the answer to the oldest command that has none, if there is one.
# 2. A reply nobody asked for ends the session: whoever takes it for the answer
#    to the next command is out of step for ever, and that is how mail is lost.
#    The same for bytes that wait behind the 220 to STARTTLS: they would be
#    read as if TLS had protected them (CVE-2011-0411).
# 3. RCPT, and QUIT when nothing can depend on it, may be given while replies are
#    still due. They queue. With PIPELINING they leave at once, else one by one
#    as replies come. Every other command closes a group (RFC 2920 §3.1): the
#    caller waits until all before it has been answered.
#
# When MAIL is refused, RCPT commands behind it that have not left are dropped,
# and the replies to those that have are swallowed: whatever they say, there
# is no transaction. That is the row (READY, RCPT).
#
# A reply in BODY, before the dot, is looked up as an early answer to the dot. A
# refusal there counts (the server must not speak, but it has judged the
# message) and ends the session, for no two ends agree any more on what is
# mail data and what is a command. "Accepted" cannot be true there: no row.

from __future__ import annotations

import re
from collections import deque
from enum import Enum
from typing import NamedTuple

from mxpolicy.errors import LocalProtocolError, RemoteProtocolError
from mxpolicy.protocol.dot_stuffing import FINAL_DOT
from mxpolicy.protocol.extensions import (
    Extensions,
    Limits,
    MailDsn,
    RcptDsn,
    orcpt,
    xtext,
)
from mxpolicy.protocol.reply_reader import ReplyReader
from mxpolicy.reply import Reply

__all__ = [
    "COMMANDS",
    "MAX_IN_FLIGHT",
    "TRANSITIONS",
    "BodyRefused",
    "Closing",
    "DataAnswered",
    "DotAnswered",
    "EhloAnswered",
    "Event",
    "Extensions",
    "Facts",
    "Greeted",
    "HeloAnswered",
    "Limits",
    "MailAnswered",
    "MailDsn",
    "QuitAnswered",
    "RcptAnswered",
    "RcptDsn",
    "RsetAnswered",
    "SmtpClient",
    "StartTlsRefused",
    "State",
    "TlsReady",
    "Verb",
    "facts",
    "orcpt",
    "xtext",
]

# Commands that may wait for their replies at once. So many replies of usual size
# (some 60 bytes) fit into any socket's buffer, and so many commands too: both
# sides never sit in a write that the other does not read (RFC 2920 §3.1).
MAX_IN_FLIGHT = 100


class State(Enum):
    """Where the conversation is; named for what is awaited or due."""

    GREETING = "greeting"
    EHLO = "ehlo"  # greeted: EHLO is due, or its reply
    HELO = "helo"  # EHLO was refused: HELO is due, or its reply
    STARTTLS = "starttls"
    TLS_HANDSHAKE = "tls_handshake"  # the shell's turn, then tls_established()
    READY = "ready"  # no transaction is open
    MAIL = "mail"
    RCPT = "rcpt"  # a transaction is open: replies to RCPT, more RCPT, or DATA
    DATA = "data"
    BODY = "body"  # the shell writes the mail data, then dot()
    DOT = "dot"
    RSET = "rset"
    QUIT = "quit"  # only QUIT is left, or its reply
    CLOSED = "closed"


class Verb(Enum):
    """What the server was asked; connecting asks for the greeting."""

    CONNECT = "CONNECT"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    DOT = "."
    RSET = "RSET"
    QUIT = "QUIT"


# (state, command) -> state while its reply is awaited.
COMMANDS: dict[tuple[State, Verb], State] = {
    (State.EHLO, Verb.EHLO): State.EHLO,
    (State.EHLO, Verb.HELO): State.HELO,
    (State.HELO, Verb.HELO): State.HELO,
    (State.READY, Verb.STARTTLS): State.STARTTLS,
    (State.READY, Verb.MAIL): State.MAIL,
    (State.MAIL, Verb.RCPT): State.MAIL,  # pipelined, or queued
    (State.RCPT, Verb.RCPT): State.RCPT,
    (State.RCPT, Verb.DATA): State.DATA,
    (State.BODY, Verb.DOT): State.DOT,
    (State.READY, Verb.RSET): State.RSET,
    (State.RCPT, Verb.RSET): State.RSET,
    # Not in BODY, where it would be mail data, and not before the greeting.
    (State.EHLO, Verb.QUIT): State.QUIT,
    (State.HELO, Verb.QUIT): State.QUIT,
    (State.READY, Verb.QUIT): State.QUIT,
    (State.RCPT, Verb.QUIT): State.QUIT,
    (State.QUIT, Verb.QUIT): State.QUIT,
}

# Those that need not wait for the replies to what was asked before (RFC 2920).
_MAY_QUEUE = {
    (State.MAIL, Verb.RCPT),
    (State.RCPT, Verb.RCPT),
    (State.READY, Verb.QUIT),
}

# (state, command, first digit of its reply) -> next state.
TRANSITIONS: dict[tuple[State, Verb, int], State] = {
    (State.GREETING, Verb.CONNECT, 2): State.EHLO,
    (State.GREETING, Verb.CONNECT, 4): State.QUIT,
    (State.GREETING, Verb.CONNECT, 5): State.QUIT,  # §3.1: wait for our QUIT
    (State.EHLO, Verb.EHLO, 2): State.READY,
    (State.EHLO, Verb.EHLO, 4): State.HELO,
    (State.EHLO, Verb.EHLO, 5): State.HELO,  # §3.2
    (State.HELO, Verb.HELO, 2): State.READY,
    (State.HELO, Verb.HELO, 4): State.QUIT,
    (State.HELO, Verb.HELO, 5): State.QUIT,
    (State.STARTTLS, Verb.STARTTLS, 2): State.TLS_HANDSHAKE,
    (State.STARTTLS, Verb.STARTTLS, 4): State.READY,
    (State.STARTTLS, Verb.STARTTLS, 5): State.READY,
    (State.MAIL, Verb.MAIL, 2): State.RCPT,
    (State.MAIL, Verb.MAIL, 4): State.READY,
    (State.MAIL, Verb.MAIL, 5): State.READY,
    (State.RCPT, Verb.RCPT, 2): State.RCPT,
    (State.RCPT, Verb.RCPT, 4): State.RCPT,
    (State.RCPT, Verb.RCPT, 5): State.RCPT,
    (State.READY, Verb.RCPT, 2): State.READY,  # behind a refused MAIL
    (State.READY, Verb.RCPT, 4): State.READY,
    (State.READY, Verb.RCPT, 5): State.READY,
    (State.QUIT, Verb.RCPT, 2): State.QUIT,  # the same, and QUIT behind it
    (State.QUIT, Verb.RCPT, 4): State.QUIT,
    (State.QUIT, Verb.RCPT, 5): State.QUIT,
    (State.DATA, Verb.DATA, 3): State.BODY,
    # The transaction may still be open: RSET or QUIT is next.
    (State.DATA, Verb.DATA, 4): State.RCPT,
    (State.DATA, Verb.DATA, 5): State.RCPT,
    (State.BODY, Verb.DOT, 4): State.CLOSED,  # too early; see above
    (State.BODY, Verb.DOT, 5): State.CLOSED,
    (State.DOT, Verb.DOT, 2): State.READY,
    (State.DOT, Verb.DOT, 4): State.READY,  # §4.1.1.4: the buffers are cleared
    (State.DOT, Verb.DOT, 5): State.READY,
    (State.RSET, Verb.RSET, 2): State.READY,
    (State.RSET, Verb.RSET, 4): State.QUIT,
    (State.RSET, Verb.RSET, 5): State.QUIT,
    (State.QUIT, Verb.QUIT, 2): State.CLOSED,
    (State.QUIT, Verb.QUIT, 4): State.CLOSED,
    (State.QUIT, Verb.QUIT, 5): State.CLOSED,
}


class Facts(NamedTuple):
    """What a state means to somebody who waits.

    Attributes:
        timeout: Seconds after which RFC 5321 §4.5.3.2 lets a client give up.
        log_words: What we were doing, after "timed out" or "lost connection".
    """

    timeout: float
    log_words: str


# Where §4.5.3.2 says nothing (EHLO, STARTTLS, RSET) a reply costs the server no
# more than that to MAIL. Nothing depends on the reply to QUIT.
_FACTS: dict[State, Facts] = {
    State.GREETING: Facts(300, "waiting for the greeting"),
    State.EHLO: Facts(300, "waiting for the reply to EHLO"),
    State.HELO: Facts(300, "waiting for the reply to HELO"),
    State.STARTTLS: Facts(300, "waiting for the reply to STARTTLS"),
    State.TLS_HANDSHAKE: Facts(300, "in the TLS handshake"),
    State.READY: Facts(300, "between two transactions"),
    State.MAIL: Facts(300, "waiting for the reply to MAIL"),
    State.RCPT: Facts(300, "waiting for the reply to RCPT"),
    State.DATA: Facts(120, "waiting for the reply to DATA"),
    State.BODY: Facts(180, "sending the mail data"),
    State.DOT: Facts(
        600,
        "waiting for the reply to the final dot; message may be sent more than once",
    ),
    State.RSET: Facts(300, "waiting for the reply to RSET"),
    State.QUIT: Facts(10, "waiting for the reply to QUIT"),
    State.CLOSED: Facts(0, "after the end of the session"),
}


def facts(state: State) -> Facts:
    """Return the timeout and the words for the log that belong to *state*."""
    return _FACTS[state]


class Greeted(NamedTuple):
    """The greeting. 2yz: `SmtpClient.ehlo` is next; else only QUIT."""

    reply: Reply


class EhloAnswered(NamedTuple):
    """2yz: ready. Else `SmtpClient.helo` may be tried, or QUIT."""

    reply: Reply
    extensions: Extensions


class HeloAnswered(NamedTuple):
    """2yz: ready, without extensions. Else only QUIT."""

    reply: Reply


class TlsReady(NamedTuple):
    """Do the handshake on the connection now, then call `SmtpClient.tls_established`."""

    reply: Reply


class StartTlsRefused(NamedTuple):
    """Still ready, in clear."""

    reply: Reply


class MailAnswered(NamedTuple):
    """Not 2yz: there is no transaction, and no `RcptAnswered` will come."""

    reply: Reply


class RcptAnswered(NamedTuple):
    """One recipient was answered.

    Attributes:
        place: Which of the transaction's `SmtpClient.rcpt` calls, from 0.
    """

    place: int
    reply: Reply


class DataAnswered(NamedTuple):
    """3yz: write the mail data. Else the transaction needs RSET, the session may go on."""

    reply: Reply


class BodyRefused(NamedTuple):
    """A 4yz or 5yz in the middle of the mail data. It counts for all recipients.

    The session is over: close the connection, send no dot.
    """

    reply: Reply


class DotAnswered(NamedTuple):
    """2yz: the server is responsible (RFC 5321 §6.1). In any case the session is ready."""

    reply: Reply


class RsetAnswered(NamedTuple):
    """2yz: ready. Else only QUIT."""

    reply: Reply


class QuitAnswered(NamedTuple):
    """The session is over, whatever the reply."""

    reply: Reply


class Closing(NamedTuple):
    """421: the session is over.

    Attributes:
        awaited: The oldest command without a reply (`Verb.DOT` in the middle of the
            mail data); None when nothing had been asked. It and all that
            were behind it count as answered with this 4yz.
    """

    reply: Reply
    awaited: Verb | None


Event = (
    Greeted
    | EhloAnswered
    | HeloAnswered
    | TlsReady
    | StartTlsRefused
    | MailAnswered
    | RcptAnswered
    | DataAnswered
    | BodyRefused
    | DotAnswered
    | RsetAnswered
    | QuitAnswered
    | Closing
)


class _Command(NamedTuple):
    verb: Verb
    wire: bytes
    place: int = 0  # of the recipient


# A firewall that "fixes up" SMTP overwrites the greeting's text with asterisks
# and spares what looks like its code.
_MASKED_BANNER = re.compile(r"[20 ]*\*[20* ]*")

# Nothing else may stand between "<" and ">": a quoted local part (RFC 5321 §4.1.2)
# may hold space and angle brackets, what is outside of it may not, or it could
# end the path and begin a parameter.
_PATH = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^\s<>"])*')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_WORD = re.compile(r"[!-~]+")


class SmtpClient:
    """One session with one server, from its greeting to the end.

    When the server breaks the protocol behind replies that were good, their
    events are returned first (one may be the 250 to the dot), and the error is
    raised by the next call of `receive_data`, `receive_eof` or `data_to_send`;
    so it is by every later one. A command given meanwhile has no effect.

    Args:
        helo: Our name for EHLO and HELO: a domain or an address literal.

    Attributes:
        state: Where the conversation is.
        extensions: What the last EHLO reply offered; empty before it.
        greeting: The greeting, None before it.
        ehlo_name: The name the server gave itself in its last EHLO or HELO
            reply, empty when none; whether that is our own is for the caller.
        banner_masked: A firewall overwrites this server's SMTP. It is not
            sent more than one command at a time.
    """

    def __init__(self, helo: str) -> None:
        self.state = State.GREETING
        self.extensions = Extensions()
        self.greeting: Reply | None = None
        self.ehlo_name = ""
        self.banner_masked = False
        self._helo = _parameter(helo)
        self._reader = ReplyReader()
        # Not yet answered, oldest first; so many of them have left.
        self._commands = deque([_Command(Verb.CONNECT, b"")])
        self._in_flight = 1
        self._error: RemoteProtocolError | None = None
        self._secured = False
        self._utf8 = False
        self._recipients = 0
        self._accepted = 0

    # -- bytes in and out ---------------------------------------------------

    @property
    def awaits(self) -> Verb | None:
        """The command whose reply is next, None when no reply is due."""
        return self._commands[0].verb if self._commands else None

    @property
    def pipelining(self) -> bool:
        """Whether commands may leave before those ahead of them were answered."""
        return self.extensions.pipelining and not self.banner_masked

    def receive_data(self, data: bytes) -> list[Event]:
        """Take what was read; return what it means, in order.

        Then write what `data_to_send` returns: replies let queued commands go.
        What comes after the end of the session is thrown away.

        Raises:
            RemoteProtocolError: The server broke the protocol. The state is
                CLOSED; close the connection.
        """
        self._raise_error()
        if self.state is State.TLS_HANDSHAKE:
            raise LocalProtocolError("bytes of the handshake are not for us")
        events: list[Event] = []
        if self.state is State.CLOSED:
            return events
        self._reader.receive_data(data)
        try:
            self._read_replies(events)
        except RemoteProtocolError as error:
            self._end(error)
            if not events:
                raise
        return events

    def receive_eof(self) -> None:
        """The server has closed the connection.

        Raises:
            RemoteProtocolError: Not at the end of the session; the text says what
                we were doing.
        """
        self._raise_error()
        state = self.state
        self._end()
        if state not in (State.QUIT, State.CLOSED):
            text = f"connection closed while {_FACTS[state].log_words}"
            self._end(RemoteProtocolError(text))
            self._raise_error()

    def data_to_send(self) -> bytes:
        """Return the bytes that may leave now; write them all. Often there are none.

        The final dot is never returned together with anything else.

        Raises:
            RemoteProtocolError: See the class.
        """
        self._raise_error()
        window = MAX_IN_FLIGHT if self.pipelining else 1
        leaving = []
        while self._in_flight < min(len(self._commands), window):
            leaving.append(self._commands[self._in_flight].wire)
            self._in_flight += 1
        return b"".join(leaving)

    # -- commands -------------------------------------------------------------
    #
    # Each raises LocalProtocolError where the protocol does not allow it, and when
    # an argument holds what must not reach the wire; then nothing has changed.

    def ehlo(self) -> None:
        """Say EHLO (§4.1.1.1). Next: `EhloAnswered`."""
        self._command(Verb.EHLO, f"EHLO {self._helo}")

    def helo(self) -> None:
        """Say HELO, to a server that did not take EHLO. Next: `HeloAnswered`."""
        self._command(Verb.HELO, f"HELO {self._helo}")

    def starttls(self) -> None:
        """Ask for TLS (RFC 3207). Next: `TlsReady` or `StartTlsRefused`."""
        if self._secured or not self.extensions.starttls:
            raise LocalProtocolError("STARTTLS is not offered")
        self._command(Verb.STARTTLS, "STARTTLS")

    def tls_established(self) -> None:
        """The handshake is done: EHLO is due again.

        All that was learned before is forgotten (RFC 3207 §4.2).
        """
        if self.state is not State.TLS_HANDSHAKE:
            raise LocalProtocolError(f"no handshake in {self.state.name}")
        self.state = State.EHLO
        self.extensions = Extensions()
        self.ehlo_name = ""
        self._secured = True

    def mail(
        self,
        reverse_path: str,
        *,
        size: int | None = None,
        body8bit: bool = False,
        smtputf8: bool = False,
        dsn: MailDsn | None = None,
    ) -> None:
        """Begin a transaction (§4.1.1.2). Next: `MailAnswered`.

        Parameters that the server does not offer are left out: it takes 8-bit
        data as it is, or does not. SMTPUTF8 cannot be left out.

        Args:
            reverse_path: What goes between ``<`` and ``>``; empty for ``<>``.
            size: Bytes of the message (RFC 1870), None when unknown.
            body8bit: The mail data has bytes over 127 (RFC 6152).
            smtputf8: Addresses here may go beyond ASCII (RFC 6531).
            dsn: What the sender asked for.
        """
        if smtputf8 and not self.extensions.smtputf8:
            raise LocalProtocolError("SMTPUTF8 is not offered")
        offered = self.extensions
        parameters = [f"MAIL FROM:<{_path(reverse_path, smtputf8)}>"]
        if size is not None and offered.size is not None:
            parameters.append(f"SIZE={size}")
        if body8bit and offered.eightbitmime:
            parameters.append("BODY=8BITMIME")
        if smtputf8:
            parameters.append("SMTPUTF8")
        if dsn is not None and offered.dsn:
            parameters += map(_parameter, dsn.parameters())
        self._command(Verb.MAIL, " ".join(parameters))
        self._utf8 = smtputf8
        self._recipients = self._accepted = 0

    def rcpt(self, forward_path: str, *, dsn: RcptDsn | None = None) -> None:
        """Name a recipient (§4.1.1.3). Next: `RcptAnswered` with its place.

        May be called again and again without waiting, right after `mail` too.

        Args:
            forward_path: What goes between ``<`` and ``>``.
            dsn: What the sender asked for; left out when not offered.
        """
        if not forward_path:
            raise LocalProtocolError("no recipient")
        parameters = [f"RCPT TO:<{_path(forward_path, self._utf8)}>"]
        if dsn is not None and self.extensions.dsn:
            parameters += map(_parameter, dsn.parameters())
        self._command(Verb.RCPT, " ".join(parameters), self._recipients)
        self._recipients += 1

    def data(self) -> None:
        """Ask to send the mail data (§4.1.1.4). Next: `DataAnswered`.

        Only when every RCPT was answered and one was accepted. At state BODY the
        caller itself writes what `DotStuffer` gives, reads meanwhile (an early
        refusal comes as `BodyRefused`, or `Closing`), and then calls `dot`.
        """
        if self.state is State.RCPT and not self._accepted:
            raise LocalProtocolError("no recipient was accepted")
        self._command(Verb.DATA, "DATA")

    def dot(self) -> None:
        """End the mail data, all of which has been written. Next: `DotAnswered`.

        Bytes that had come before this are no answer to it: then no dot is
        sent, and `data_to_send` raises.
        """
        self._command(Verb.DOT, FINAL_DOT)

    def rset(self) -> None:
        """Give the transaction up (§4.1.1.5). Next: `RsetAnswered`."""
        self._command(Verb.RSET, "RSET")

    def quit(self) -> None:
        """End the session (§4.1.1.10). Next: `QuitAnswered`, or the end of the stream."""
        self._command(Verb.QUIT, "QUIT")

    # -- inside -----------------------------------------------------------------

    def _command(self, verb: Verb, line: str | bytes, place: int = 0) -> None:
        """Queue one command, if it may be given here and now."""
        if self._error is not None:
            return  # it would never leave: data_to_send raises
        following = COMMANDS.get((self.state, verb))
        if following is None:
            raise LocalProtocolError(f"{verb.value} in state {self.state.name}")
        if self._commands and (self.state, verb) not in _MAY_QUEUE:
            raise LocalProtocolError(
                f"{verb.value} before the reply to {self._commands[0].verb.value}"
            )
        if not self._commands and self._reader.has_unread:
            self._end(RemoteProtocolError(f"bytes before {verb.value} was sent"))
            return
        wire = line if isinstance(line, bytes) else line.encode() + b"\r\n"
        self._commands.append(_Command(verb, wire, place))
        self.state = following

    def _read_replies(self, events: list[Event]) -> None:
        """Turn the replies that are whole into events, until one ends the session."""
        while self.state is not State.CLOSED:
            reply = self._reader.next_reply()
            if reply is None:
                return
            event = self._take(reply)
            if event is not None:
                events.append(event)

    def _take(self, reply: Reply) -> Event | None:
        """Pair a reply with what was asked, move on, and say what it means."""
        if reply.code == 421:
            return self._take_421(reply)
        command = self._pop_answered(reply)
        was = self.state
        following = TRANSITIONS.get((was, command.verb, reply.code // 100))
        if following is None:
            raise RemoteProtocolError(
                f"{command.verb.value} in state {was.name} was answered {reply.text}"
            )
        self.state = following
        return self._describe(was, command, reply)

    def _take_421(self, reply: Reply) -> Event:
        awaited = Verb.DOT if self.state is State.BODY else self._asked
        self._end()
        return Closing(reply, awaited)

    @property
    def _asked(self) -> Verb | None:
        return self.awaits if self._in_flight else None

    def _pop_answered(self, reply: Reply) -> _Command:
        if self.state is State.BODY:
            return _Command(Verb.DOT, b"")
        if not self._in_flight:
            raise RemoteProtocolError(f"a reply to nothing: {reply.text}")
        self._in_flight -= 1
        return self._commands.popleft()

    def _describe(self, was: State, command: _Command, reply: Reply) -> Event | None:
        """Return the event for a reply that the tables allow; keep what it tells."""
        match command.verb:
            case Verb.CONNECT:
                return self._note_greeting(reply)
            case Verb.EHLO:
                return self._note_ehlo(reply)
            case Verb.HELO:
                self.ehlo_name = _first_word(reply)
                return HeloAnswered(reply)
            case Verb.STARTTLS:
                return self._note_starttls(reply)
            case Verb.MAIL:
                if not reply.is_positive:
                    self._drop_unsent()
                return MailAnswered(reply)
            case Verb.RCPT:
                if was is not State.RCPT:
                    return None
                self._accepted += reply.is_positive
                return RcptAnswered(command.place, reply)
            case Verb.DATA:
                return DataAnswered(reply)
            case Verb.DOT:
                return BodyRefused(reply) if was is State.BODY else DotAnswered(reply)
            case Verb.RSET:
                return RsetAnswered(reply)
            case Verb.QUIT:
                return QuitAnswered(reply)

    def _note_greeting(self, reply: Reply) -> Event:
        self.greeting = reply
        text = "".join(reply.lines)
        self.banner_masked = reply.is_positive and bool(_MASKED_BANNER.fullmatch(text))
        return Greeted(reply)

    def _note_ehlo(self, reply: Reply) -> Event:
        if reply.is_positive:
            self.ehlo_name = _first_word(reply)
            self.extensions = Extensions.from_reply(reply)
        return EhloAnswered(reply, self.extensions)

    def _note_starttls(self, reply: Reply) -> Event:
        if not reply.is_positive:
            return StartTlsRefused(reply)
        if self._reader.has_unread:
            raise RemoteProtocolError("bytes in clear behind the reply to STARTTLS")
        return TlsReady(reply)

    def _drop_unsent(self) -> None:
        while len(self._commands) > self._in_flight:
            self._commands.pop()

    def _end(self, error: RemoteProtocolError | None = None) -> None:
        self.state = State.CLOSED
        self._error = error
        self._commands.clear()
        self._in_flight = 0

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _first_word(reply: Reply) -> str:
    return next(iter(reply.lines[0].split()), "")


def _parameter(text: str) -> str:
    """Return *text* unchanged, if it is one word of printable ASCII."""
    if not _WORD.fullmatch(text):
        raise LocalProtocolError(f"no argument for a command: {text!r}")
    return text


def _path(text: str, utf8: bool) -> str:
    """Return a path's inside unchanged, if nothing in it can leave its brackets."""
    if _CONTROL.search(text) or not _PATH.fullmatch(text):
        raise LocalProtocolError(f"no path: {text!r}")
    if not text.isascii() and not utf8:
        raise LocalProtocolError(f"a path beyond ASCII without SMTPUTF8: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"a path that is no UTF-8: {text!r}") from error
    return text
