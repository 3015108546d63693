"""What an SMTP server's replies mean: the events that `SmtpClient` gives.

A closed union, consumed with ``match`` or ``isinstance``. Each docstring says what
the caller does next.
"""

from __future__ import annotations

from typing import NamedTuple

from mxpolicy.protocol.extensions import Extensions
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import Reply

__all__ = [
    "BodyRefused",
    "Closing",
    "DataAnswered",
    "DotAnswered",
    "EhloAnswered",
    "Event",
    "Greeted",
    "HeloAnswered",
    "MailAnswered",
    "QuitAnswered",
    "RcptAnswered",
    "RsetAnswered",
    "StartTlsRefused",
    "StrayReply",
    "TlsReady",
]


class Greeted(NamedTuple):
    """The greeting. 2yz: `SmtpClient.ehlo` is next; else only QUIT."""

    reply: Reply


class EhloAnswered(NamedTuple):
    """2yz: ready. Else, whatever the code, `SmtpClient.helo` is next, or QUIT."""

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
    """A 4yz or 5yz before the server had the final dot. It counts for all recipients.

    The session is over: close the connection, send no dot if none has left.
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


class StrayReply(NamedTuple):
    """A reply that answers nothing and refuses nothing. It changes nothing: log it."""

    reply: Reply


class Closing(NamedTuple):
    """421, or a 4yz or 5yz that answers nothing: the session is over.

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
    | StrayReply
    | Closing
)
