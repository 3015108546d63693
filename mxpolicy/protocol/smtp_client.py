"""The client's side of SMTP (RFC 5321) as a machine without I/O and clock.

Also RFC 1870, 2034, 2920, 3207, 3461, 6152, 6531, 9422. Left out: AUTH, CHUNKING.

Its caller is `mxpolicy.delivery.dialogue`. The loop there: give a command, write what
`data_to_send` returns, read, pass the bytes to `receive_data`, act on the events, *write
what* `data_to_send` *returns*, and so on. What a reply means for a recipient is decided
elsewhere. `mxpolicy.protocol.smtp_states` has the states, their tables and the theory of
operation.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import is_utf8
from mxpolicy.errors import LocalProtocolError, RemoteProtocolError
from mxpolicy.protocol.dot_stuffing import FINAL_DOT
from mxpolicy.protocol.extensions import Extensions, MailDsn, RcptDsn
from mxpolicy.protocol.reply_reader import KEPT, ReplyReader
from mxpolicy.protocol.smtp_events import (
    BodyRefused,
    Closing,
    DataAnswered,
    DotAnswered,
    EhloAnswered,
    Event,
    Greeted,
    HeloAnswered,
    MailAnswered,
    QuitAnswered,
    RcptAnswered,
    RsetAnswered,
    StartTlsRefused,
    StrayReply,
    TlsReady,
)
from mxpolicy.protocol.smtp_states import (
    COMMANDS,
    MAY_QUEUE,
    TRANSITIONS,
    State,
    Verb,
)
from mxpolicy.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_IN_FLIGHT", "MAX_STRAYS", "SmtpClient"]

# Commands that may wait for their replies at once. So many replies of usual size (some
# 60 bytes) fit into any socket's buffer, and so many commands too. So the two sides never
# both block in a write (RFC 2920 §3.1).
MAX_IN_FLIGHT = 100

# Replies that answer nothing, between two commands. A server that sends one has a bug; a
# server without end would make us read for ever.
MAX_STRAYS = 10

# Bytes of an EHLO reply that are kept. Its lines are keywords, and a lost one may be
# STARTTLS. The longest in the field have some 2 KiB.
_KEPT_OF_EHLO = 64 * 1024


class _Command(NamedTuple):
    verb: Verb
    wire: bytes
    position: int = 0  # of the recipient


# The events of replies that need no more than their class.
_EVENTS: dict[Verb, Callable[[Reply], Event]] = {
    Verb.CONNECT: Greeted,
    Verb.HELO: HeloAnswered,
    Verb.MAIL: MailAnswered,
    Verb.DATA: DataAnswered,
    Verb.DOT: DotAnswered,
    Verb.RSET: RsetAnswered,
    Verb.QUIT: QuitAnswered,
}

# A firewall that "fixes up" SMTP overwrites the greeting's text with asterisks, except
# for what looks like its code.
_MASKED_BANNER = re.compile(r"[20 ]*\*[20* ]*")

# What may stand between "<" and ">". A quoted local part (RFC 5321 §4.1.2) may hold space
# and angle brackets. Outside of it they could end the path and begin a parameter. No path
# has control characters.
_PATH = re.compile(
    r'(?:"(?:\\[^\x00-\x1f\x7f]|[^"\\\x00-\x1f\x7f])*"|[^\s<>"\x00-\x1f\x7f])*'
)
# A sender need not be an address, as long as the end of its path is clear: each angle
# bracket is in a quoted string, and a quote without end begins none.
_REVERSE_PATH = re.compile(
    r'(?>"(?:\\[^\r\n\0]|[^"\\\r\n\0])*"|[^<>"\r\n\0]|"(?=[^<>\r\n\0]*\Z))*\Z'
)


class SmtpClient:
    """One session with one server, from its greeting to the end.

    When the server breaks the protocol behind good replies, their events are returned
    first: one may be the 250 to the dot. The next call of `receive_data` or
    `data_to_send` raises the error, and so does every later one. A command given
    meanwhile has no effect.

    Args:
        helo: Our name for EHLO and HELO: a domain or an address literal.

    Attributes:
        state: Where the conversation is.
        extensions: What the last EHLO reply offered; empty before it.
        ehlo_name: The server's name for itself in its last EHLO or HELO reply; may be
            empty. The caller checks whether it is our own.
        banner_masked: A firewall overwrites this server's SMTP: it gets one command at
            a time.
    """

    def __init__(self, helo: str) -> None:
        self.state = State.GREETING
        self.extensions = Extensions()
        self.ehlo_name = ""
        self.banner_masked = False
        self._helo = _parameter(helo)
        self._reader = ReplyReader()
        # Not yet answered, oldest first. The first `_in_flight` of them have left.
        self._commands = deque([_Command(Verb.CONNECT, b"")])
        self._in_flight = 1
        # Bytes received before the first of them left: they belong to no answer.
        self._answers_begin = 0
        self._is_group = False  # several were in flight at once
        self._strays = 0  # since the last command left
        self._error: RemoteProtocolError | None = None
        self._secured = False
        self._utf8 = False
        self._recipients = 0
        self._accepted = 0

    # -- bytes in and out ---------------------------------------------------

    @property
    def awaits(self) -> Verb | None:
        """The command with the next reply, None when no reply is due."""
        return self._commands[0].verb if self._commands else None

    @property
    def is_asking(self) -> bool:
        """Whether a reply is due: to a command that has left, or the greeting."""
        return self._in_flight > 0

    @property
    def is_in_mid_reply(self) -> bool:
        """Whether the last bytes received are a part of a line or of a reply."""
        return self._reader.has_unread

    @property
    def error(self) -> RemoteProtocolError | None:
        """How the server broke the protocol; None if it did not."""
        return self._error

    @property
    def skipped(self) -> str:
        """The first line that came in place of the awaited reply; mostly empty."""
        return self._reader.skipped

    @property
    def pipelining(self) -> bool:
        """Whether commands may leave before earlier ones were answered."""
        return "PIPELINING" in self.extensions and not self.banner_masked

    def receive_data(self, data: bytes, *, is_early: bool = False) -> list[Event]:
        """Take what was read; return what it means, in order.

        Then write what `data_to_send` returns: replies let queued commands go. Bytes
        after the end of the session are dropped.

        Args:
            data: As it came.
            is_early: The server sent *data* before it had the command in flight, so it
                does not answer that.

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
        if is_early:
            self._answers_begin = self._reader.received
        try:
            self._read_replies(events)
        except RemoteProtocolError as error:
            self._end(error)
            if not events:
                raise
        return events

    def data_to_send(self) -> bytes:
        """Return the bytes that may leave now; write them all. Often there are none.

        The final dot is always returned alone. Unless the client `is_asking`, first pass
        to `receive_data` what can be read: it came before the command, and later it would
        look like its answer.

        Raises:
            RemoteProtocolError: See the class.
        """
        self._raise_error()
        window = MAX_IN_FLIGHT if self.pipelining else 1
        leaving = []
        if self._commands and not self._in_flight:
            self._answers_begin = self._reader.received
            self._is_group, self._strays = False, 0
        while self._in_flight < min(len(self._commands), window):
            leaving.append(self._commands[self._in_flight].wire)
            self._in_flight += 1
        self._is_group |= self._in_flight > 1
        return b"".join(leaving)

    # -- commands -------------------------------------------------------------
    #
    # Each raises LocalProtocolError where the protocol does not allow it, and when
    # an argument holds what must not reach the wire; then nothing has changed.

    def ehlo(self) -> None:
        """Say EHLO (§4.1.1.1). Next: `EhloAnswered`."""
        self._command(Verb.EHLO, f"EHLO {self._helo}")

    def helo(self) -> None:
        """Say HELO, to a server that did not answer 2yz to EHLO. Next: `HeloAnswered`."""
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

        Parameters that the server does not offer are left out, except for SMTPUTF8:
        without 8BITMIME it may still take 8-bit data.

        Args:
            reverse_path: What goes between ``<`` and ``>``; empty for ``<>``. Only what
                would end the path or the command is refused here; the server decides on
                the rest. Bytes that are not UTF-8 are lone surrogates.
            size: Bytes of the message (RFC 1870), None when unknown.
            body8bit: The mail data has bytes over 127 (RFC 6152).
            smtputf8: Addresses may go beyond ASCII (RFC 6531).
            dsn: What the sender asked for.
        """
        if smtputf8 and "SMTPUTF8" not in self.extensions:
            raise LocalProtocolError("SMTPUTF8 is not offered")
        offered = self.extensions
        parameters = [f"MAIL FROM:<{_reverse_path(reverse_path, smtputf8)}>"]
        if size is not None and offered.size is not None:
            parameters.append(f"SIZE={size}")
        if body8bit and "8BITMIME" in offered:
            parameters.append("BODY=8BITMIME")
        if smtputf8:
            parameters.append("SMTPUTF8")
        if dsn is not None and "DSN" in offered:
            parameters += map(_parameter, dsn.parameters())
        self._command(Verb.MAIL, " ".join(parameters))
        self._utf8 = smtputf8
        self._recipients = self._accepted = 0

    def rcpt(self, forward_path: str, *, dsn: RcptDsn | None = None) -> None:
        """Name a recipient (§4.1.1.3). Next: `RcptAnswered` with its position.

        May be called again and again without waiting, right after `mail` too.

        Args:
            forward_path: What goes between ``<`` and ``>``.
            dsn: What the sender asked for; left out when not offered.
        """
        if not forward_path:
            raise LocalProtocolError("no recipient")
        parameters = [f"RCPT TO:<{_path(forward_path, self._utf8)}>"]
        if dsn is not None and "DSN" in self.extensions:
            parameters += map(_parameter, dsn.parameters())
        self._command(Verb.RCPT, " ".join(parameters), self._recipients)
        self._recipients += 1

    def data(self) -> None:
        """Ask to send the mail data (§4.1.1.4). Next: `DataAnswered`.

        When every RCPT was answered and one was accepted; or right behind the last RCPT
        of a transaction without an answer yet. Then a server that has refused all
        recipients may say 354 all the same: the session must be reset. In state BODY the caller
        writes what `DotStuffer` gives, and reads meanwhile: a refusal comes as
        `BodyRefused` or `Closing`. Then it calls `dot`.
        """
        if self.state is State.RCPT and not self._accepted:
            raise LocalProtocolError("no recipient was accepted")
        if self.state is State.MAIL and not self._recipients:
            raise LocalProtocolError("no recipient was named")
        self._command(Verb.DATA, "DATA")

    def dot(self) -> None:
        """End the mail data, all of which has been written. Next: `DotAnswered`.

        Or `BodyRefused`, as long as the server does not have the dot.
        """
        self._command(Verb.DOT, FINAL_DOT)

    def rset(self) -> None:
        """Give the transaction up (§4.1.1.5). Next: `RsetAnswered`."""
        self._command(Verb.RSET, "RSET")

    def quit(self) -> None:
        """End the session (§4.1.1.10). Next: `QuitAnswered`, or the end of the stream."""
        self._command(Verb.QUIT, "QUIT")

    # -- inside -----------------------------------------------------------------

    def _command(self, verb: Verb, line: str | bytes, position: int = 0) -> None:
        """Queue one command, if it is allowed in this state."""
        if self._error is not None:
            return  # it would never leave: data_to_send raises
        following = COMMANDS.get((self.state, verb))
        if following is None:
            raise LocalProtocolError(f"{verb.value} in state {self.state.name}")
        is_closed = bool(self._commands) and self._commands[-1].verb is Verb.DATA
        if self._commands and (is_closed or (self.state, verb) not in MAY_QUEUE):
            raise LocalProtocolError(
                f"{verb.value} before the reply to {self._commands[0].verb.value}"
            )
        wire = (
            line
            if isinstance(line, bytes)
            else line.encode("utf-8", "surrogateescape") + b"\r\n"
        )
        self._commands.append(_Command(verb, wire, position))
        self.state = following

    def _read_replies(self, events: list[Event]) -> None:
        """Turn the replies that are whole into events, until one ends the session."""
        while self.state is not State.CLOSED:
            reply = self._reader.next_reply(
                keep=_KEPT_OF_EHLO if self.awaits is Verb.EHLO else KEPT,
                skip=self._in_flight <= 1,
            )
            if reply is None:
                return
            event = self._take(reply)
            if event is not None:
                events.append(event)

    def _take(self, reply: Reply) -> Event | None:
        """Pair a reply with its command, change the state, and return the event."""
        if reply.code == 421:
            return self._take_421(reply)
        if not self._in_flight or self._reader.began < self._answers_begin:
            return self._take_stray(reply)
        self._in_flight -= 1
        command = self._commands.popleft()
        was = self.state
        following = TRANSITIONS.get((was, command.verb, reply.code // 100))
        if following is None:
            raise RemoteProtocolError(
                f"{command.verb.value} in state {was.name} was answered {reply.text}"
            )
        self.state = following
        if command.verb is not Verb.EHLO:  # its lines are keywords
            reply = reply.shortened()
        return self._describe(was, command, reply)

    def _take_421(self, reply: Reply) -> Event:
        asked = self.awaits if self._in_flight else None
        awaited = Verb.DOT if self._is_in_message else asked
        self._end()
        return Closing(reply.shortened(), awaited)

    def _take_stray(self, reply: Reply) -> Event:
        """Return the event for a reply that came before its command had left."""
        reply = reply.shortened()
        if self._is_group:
            raise RemoteProtocolError(f"a reply to nothing: {reply.text}")
        if reply.is_transient or reply.is_permanent:
            refused = (
                BodyRefused(reply) if self._is_in_message else Closing(reply, None)
            )
            self._end()
            return refused
        self._strays += 1
        if self._strays > MAX_STRAYS:
            raise RemoteProtocolError(f"more and more replies to nothing: {reply.text}")
        return StrayReply(reply)

    @property
    def _is_in_message(self) -> bool:
        """True from the 354 to the answer to the final dot."""
        return self.state in (State.BODY, State.DOT)

    def _describe(self, was: State, command: _Command, reply: Reply) -> Event | None:
        """Return the event for a reply that the tables allow, and note its facts."""
        match command.verb:
            case Verb.CONNECT:
                text = "".join(reply.lines)
                is_masked = _MASKED_BANNER.fullmatch(text) is not None
                self.banner_masked = reply.is_positive and is_masked
            case Verb.EHLO:
                return self._note_ehlo(reply)
            case Verb.STARTTLS:
                return self._note_starttls(reply)
            case Verb.RCPT:
                if was is not State.RCPT:
                    return None
                self._accepted += reply.is_positive
                return RcptAnswered(command.position, reply)
            case Verb.HELO:
                self.ehlo_name = _first_word(reply)
            case Verb.MAIL | Verb.RSET if not reply.is_positive:
                while len(self._commands) > self._in_flight:
                    self._commands.pop()
        return _EVENTS[command.verb](reply)

    def _note_ehlo(self, reply: Reply) -> Event:
        if self.state is State.READY:
            self.ehlo_name = _first_word(reply)
            self.extensions = Extensions.from_reply(reply)
        return EhloAnswered(reply.shortened())

    def _note_starttls(self, reply: Reply) -> Event:
        if not reply.is_positive:
            return StartTlsRefused(reply)
        if self._reader.has_unread:
            raise RemoteProtocolError("bytes in clear behind the reply to STARTTLS")
        return TlsReady(reply)

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
    if not (text.isascii() and text.isprintable()) or not text or " " in text:
        raise LocalProtocolError(f"no argument for a command: {text!r}")
    return text


def _reverse_path(text: str, utf8: bool) -> str:
    """Return a sender unchanged, if nothing in it can leave its brackets."""
    if not _REVERSE_PATH.match(text):
        raise LocalProtocolError(f"no path: {text!r}")
    if not text.isascii() and not utf8 and is_utf8(text):
        raise LocalProtocolError(f"a path beyond ASCII without SMTPUTF8: {text!r}")
    return text


def _path(text: str, utf8: bool) -> str:
    """Return a path's inside unchanged, if nothing in it can leave its brackets."""
    if not _PATH.fullmatch(text):
        raise LocalProtocolError(f"no path: {text!r}")
    if not text.isascii() and not utf8:
        raise LocalProtocolError(f"a path beyond ASCII without SMTPUTF8: {text!r}")
    if not is_utf8(text):
        raise LocalProtocolError(f"a path that is no UTF-8: {text!r}")
    return text
