"""What an SMTP server's replies mean: the events that `SmtpClient` gives.

A closed union, consumed with ``match`` or ``isinstance``. Each docstring says what
the caller does next.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Answered(NamedTuple):
    """A reply; its class says what it means."""

    reply: Reply


class Greeted(Answered):
    """The greeting. 2yz: `SmtpClient.ehlo` is next; else only QUIT."""


class EhloAnswered(Answered):
    """2yz: ready. With any other code, `SmtpClient.helo` is next, or QUIT."""


class HeloAnswered(Answered):
    """2yz: ready, without extensions. Else only QUIT."""


class TlsReady(Answered):
    """Do the handshake on the connection now, then call `SmtpClient.tls_established`."""


class StartTlsRefused(Answered):
    """Still ready, in clear."""


class MailAnswered(Answered):
    """Not 2yz: there is no transaction, and no `RcptAnswered` will come."""


class RcptAnswered(NamedTuple):
    """One recipient was answered.

    Attributes:
        position: Which of the transaction's `SmtpClient.rcpt` calls, from 0.
    """

    position: int
    reply: Reply


class DataAnswered(Answered):
    """3yz: write the mail data. Else the transaction needs RSET, the session may go on."""


class BodyRefused(Answered):
    """A 4yz or 5yz before the server had the final dot. It counts for all recipients.

    The session is over: close the connection. Do not send the dot any more.
    """


class DotAnswered(Answered):
    """2yz: the server is responsible (RFC 5321 §6.1). The session is ready in any case."""


class RsetAnswered(Answered):
    """2yz: ready. Else only QUIT."""


class QuitAnswered(Answered):
    """The session is over, whatever the reply."""


class StrayReply(Answered):
    """A reply that answers nothing and refuses nothing. It changes nothing: log it."""


class Closing(NamedTuple):
    """421, or a 4yz or 5yz that answers nothing: the session is over.

    Attributes:
        awaited: The oldest command without a reply (`Verb.DOT` in the middle of the
            mail data), or None. It and all commands behind it count as answered with
            this reply.
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
