"""What goes into a mail transaction, and what comes out (RFC 5321 §3.3).

`mxpolicy.delivery.session` carries it out; `mxpolicy.delivery.attempt` owns the
message and judges the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from mxpolicy.delivery import trouble
from mxpolicy.delivery.envelope import Envelope
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.options import LongLines
from mxpolicy.protocol.dot_stuffing import DotStuffer
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import Reply
from mxpolicy.routing.candidate import Candidate

__all__ = ["Control", "Transaction", "TransactionResult"]

_CHUNK = 64 * 1024


class Control(Protocol):
    """What a transaction asks of whoever owns the message; see `Attempt`."""

    def patience(self, standard: float) -> float:
        """Seconds to wait for a reply whose standard time-out is *standard*."""

    def time_before_dot(self) -> float:
        """Seconds from now on in which the final dot may still be sent."""

    def patience_at_dot(self) -> float:
        """Seconds to wait for the reply to the final dot."""

    def progressed(self, candidate: Candidate) -> None:
        """*candidate* has answered, or acknowledged more of the mail data."""

    def recipients_answered(self, result: TransactionResult) -> None:
        """Every RCPT of a transaction has been answered, DATA not yet sent."""

    async def dot_is_next(self, relay: str, recipients: Sequence[int]) -> None:
        """Note that *relay* will see the final dot for *recipients*.

        Raises when it must not be sent, because somebody else has the message.
        """

    async def permit_dot(self) -> None:
        """Raise when the final dot must not be sent: out of time, or not permitted."""

    def taken(self, relay: str, recipients: Sequence[int], reply: Reply) -> None:
        """*relay* has the message for *recipients*: its 2yz to the final dot is here."""


class TransactionResult:
    """Who was answered what; filled in while the transaction runs.

    It is as true after an exception as after a return: what was answered
    before a session broke stays answered.

    Attributes:
        delivered: The 2yz to the final dot, by recipient index.
        refused: The verb and the 4yz or 5yz that decided, by recipient index.
        accepted: Recipients with a 2yz to RCPT, whatever came after it.
        in_doubt: Recipients whose final dot may be out and is unanswered.
        goodbye: What the host said when it broke the session, if it said anything.
    """

    __slots__ = ("accepted", "delivered", "goodbye", "in_doubt", "refused")

    def __init__(self) -> None:
        self.delivered: dict[int, Reply] = {}
        self.accepted: set[int] = set()
        self.refused: dict[int, tuple[Verb, Reply]] = {}
        self.in_doubt: frozenset[int] = frozenset()
        self.goodbye: Reply | None = None

    def refuse(self, recipients: Iterable[int], verb: Verb, reply: Reply) -> None:
        """*reply* to *verb* refused all of *recipients*."""
        for index in recipients:
            self.refused[index] = (verb, reply)

    def unsettled(self, recipients: Iterable[int]) -> list[int]:
        """Return those that were neither delivered nor refused, nor are in doubt."""
        settled = self.delivered.keys() | self.refused.keys() | self.in_doubt
        return [index for index in recipients if index not in settled]

    def take_back_for_want_of_tls(
        self, recipients: Iterable[int]
    ) -> tuple[list[int], Reply | None]:
        """Forget the refusals in clear that ask for TLS.

        Returns who may be offered again under TLS, and what the host said; None
        when it did not ask for it.
        """
        asked = {
            index: reply
            for index, (_, reply) in self.refused.items()
            if trouble.wants_tls(reply)
        }
        for index in asked:
            del self.refused[index]
        replies = [*asked.values()]
        if self.goodbye is not None and trouble.wants_tls(self.goodbye):
            replies.append(self.goodbye)
        self.goodbye = None
        return self.unsettled(recipients), replies[0] if replies else None

    def take_back_crowded(self, recipients: Iterable[int]) -> list[int]:
        """Forget and return those refused only because there were "too many" of them."""
        crowded = [
            index
            for index in recipients
            if index in self.refused
            and trouble.is_too_many_recipients(*self.refused[index])
        ]
        for index in crowded:
            del self.refused[index]
        return crowded


class Transaction:
    """What stays the same in all transactions of one `Session.transact`.

    Attributes:
        envelope: The whole envelope.
        mail_data: Readable any number of times.
        progress: Seconds without an acknowledged byte of the mail data.
        control: Who owns the message.
        result: Filled in.
    """

    __slots__ = (
        "_long_lines",
        "control",
        "envelope",
        "mail_data",
        "progress",
        "result",
    )

    def __init__(
        self,
        envelope: Envelope,
        mail_data: MailData,
        long_lines: LongLines,
        progress: float,
        control: Control,
        result: TransactionResult,
    ) -> None:
        self.envelope = envelope
        self.mail_data = mail_data
        self.progress = progress
        self.control = control
        self.result = result
        self._long_lines = long_lines

    def pieces(self) -> Iterator[bytes]:
        """Yield the mail data as it goes over the wire, all but the final dot."""
        stuffer = DotStuffer(self._long_lines)
        for chunk in self.mail_data.chunks(_CHUNK):
            yield stuffer.encode(chunk)
        yield stuffer.finish()
