"""What is delivered: the envelope of RFC 5321 §2.3.1, the mail data, and what goes with it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mxpolicy.protocol.smtp_states import DOT_TIME

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from mxpolicy.address import Mailbox, ReversePath
    from mxpolicy.delivery.mail_data import MailData
    from mxpolicy.delivery.session import Session
    from mxpolicy.delivery.settlement import Settlement
    from mxpolicy.delivery.trace import Trace
    from mxpolicy.protocol.extensions import MailDsn, RcptDsn

__all__ = ["Envelope", "Journal", "Message"]


class Envelope(NamedTuple):
    """What SMTP carries beside the mail data.

    Attributes:
        reverse_path: None is the null reverse-path ``<>``.
        recipients: Forward-paths by their number on the mail server's own list, from 0.
            The same address may be there twice. One that is no address is left out.
        dsn: What the sender wants to be told (RFC 3461); None where nothing was said.
        recipients_dsn: The same of recipients, by their number.
    """

    reverse_path: ReversePath | None
    recipients: Mapping[int, Mailbox]
    dsn: MailDsn | None = None
    recipients_dsn: Mapping[int, RcptDsn] = MappingProxyType({})

    @property
    def sender(self) -> str:
        """The reverse-path as on the wire; empty for the null one."""
        return self.reverse_path.wire if self.reverse_path else ""

    def needs_smtputf8(self, numbers: Iterable[int]) -> bool:
        """Return whether a transaction with these recipients needs RFC 6531.

        It does when a local part is not ASCII (§3.3), or the sender's domain has no
        A-labels: nothing else needs it.
        """
        if self.reverse_path is not None and self.reverse_path.needs_smtputf8:
            return True
        return any(self.recipients[number].needs_smtputf8 for number in numbers)


class Journal(Protocol):
    """What an attempt asks and tells the journal: `mxpolicy.delivery.claims.Claims`."""

    def has_memory(self) -> bool:
        """Whether the notes outlive this process, as far as can be told."""

    async def dot_is_next(self, relay: str, numbers: Sequence[int]) -> None:
        """Called before each final dot, which is sent when it has returned.

        Raises:
            LocalTrouble: It is not to be sent.
        """


class Message(NamedTuple):
    """What is delivered; all times are as the trace's `now`.

    Attributes:
        trace: Told what happens.
        envelope: The whole envelope.
        mail_data: Readable any number of times.
        settlement: The state of each recipient.
        journal: Notes each final dot.
        may_send_dot: Asked before the mail data is sent, and again just before the final
            dot, which makes the message the host's (RFC 5321 §4.1.1.4).
        deadline: Until then hosts are asked and mail data is sent.
        ends: When the mail server stops listening. A dot whose reply may come after it
            is not sent.
        keep: Given a session whose final dot was not answered in time, and for which
            recipients. Returns whether it listens on; the session is its own then.
        is_wanted: What *may_send_dot* would say, without waiting; None where it waits.
    """

    trace: Trace
    envelope: Envelope
    mail_data: MailData
    settlement: Settlement
    journal: Journal
    may_send_dot: Callable[[], Awaitable[bool]]
    deadline: float
    ends: float
    keep: Callable[[Session, Sequence[int]], bool] = lambda session, numbers: False
    is_wanted: Callable[[], bool] | None = None

    def time_left(self) -> float:
        """Return the seconds in which the final dot may still be sent."""
        last_dot = min(self.deadline, self.ends - DOT_TIME)
        return max(0.0, last_dot - self.trace.now())
