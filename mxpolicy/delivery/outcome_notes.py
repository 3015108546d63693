"""What became of each recipient, noted in the journal for the next attempt.

1. Each outcome is noted as it comes, beside the delivery. The recipient is released then:
   another delivery may have it.
2. In the end (`OutcomeNotes.finish`) the refusals follow. Where some recipients do not
   have the message, all that is noted is kept for longer, and survives a loss of power.
3. A late reply to a dot is noted when it comes (`OutcomeNotes.finish_late`).

Where a host has the message, that is the truth and replaces whatever is written. All else
replaces only our own entry. Nothing here makes a delivery fail.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.delivery.entries import KEPT, KEPT_IN_PART
from mxpolicy.delivery.settlement import RecipientState
from mxpolicy.delivery.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mxpolicy.delivery.entries import Entries
    from mxpolicy.delivery.settlement import Recipient, Settlement

__all__ = ["OutcomeNotes"]

# Told to the mail server as a deferral.
_PUT_OFF = frozenset({RecipientState.DEFERRED, RecipientState.WAITING})

# A refusal is noted in the end; see `OutcomeNotes.finish`.
_NOTED_AT_ONCE = _PUT_OFF | {RecipientState.DELIVERED}


class OutcomeNotes:
    """Notes the outcomes of one message.

    Args:
        entries: The journal's entries of the message.
        settlement: Its recipients.
        tell: Given what goes wrong in the background: a bug of ours.
    """

    def __init__(
        self,
        entries: Entries,
        settlement: Settlement,
        tell: Callable[[Exception], None],
    ) -> None:
        self._entries = entries
        self._settlement = settlement
        self._tell = tell
        self._are_all_taken = self._may_wait = False
        self._unwritten = 0  # recipients that have it, and the store does not know yet
        self._when_written: list[Callable[[], None]] = []
        self._writer = Writer(tell)

    # -- as they come -------------------------------------------------------

    def note(self, recipient: Recipient) -> None:
        """Begin to write what became of *recipient*; see `finish`."""
        number = recipient.number
        if number not in self._entries or self._entries.earlier(number) is not None:
            return
        if self._are_all_taken:
            self._note_later(recipient)
        elif recipient.state in _NOTED_AT_ONCE:
            self._writer.do_later(partial(self._note, recipient))

    def all_are_taken(self, *, may_wait: bool) -> None:
        """One host has the message for all recipients: `when_written` is for `finish`.

        Args:
            may_wait: The mail server has its answer before that is written.
        """
        self._are_all_taken, self._may_wait = True, may_wait

    def when_written(self, told: Callable[[], None]) -> None:
        """Call *told* when that is written for all, perhaps at once."""
        if self._unwritten:
            self._when_written.append(told)
        else:
            told()

    def _note_later(self, recipient: Recipient) -> None:
        """Begin to write that *recipient* has it, without a task."""
        number = recipient.number
        self._unwritten += 1
        self._entries.leave_later(
            number,
            self._settlement.delivered(number),
            recipient.past,
            partial(self._wrote, number),
            may_wait=self._may_wait,
        )

    def _wrote(self, number: int, answer: BaseException | None) -> None:
        self._entries.release(number)
        self._unwritten -= 1
        if isinstance(answer, Exception):
            self._tell(answer)
        if not self._unwritten:
            for told in self._when_written:
                told()
            self._when_written.clear()

    async def _note(self, recipient: Recipient) -> None:
        """Write what became of *recipient*, then let another delivery have it."""
        try:
            await self._leave(recipient)
        finally:
            self._entries.release(recipient.number)

    async def _leave(
        self, recipient: Recipient, kept: float = KEPT, *, durable: bool = False
    ) -> None:
        """Leave what became of *recipient* to the next attempt; see `Entries.leave`."""
        outcome = recipient.taken or recipient.outcome
        assert outcome is not None, "it is settled"
        is_waiting = recipient.state is RecipientState.WAITING
        await self._entries.leave(
            recipient.number,
            outcome,
            recipient.past,
            awaits=recipient.relay if is_waiting else "",
            kept=kept,
            durable=durable,
        )

    # -- the end --------------------------------------------------------------

    async def finish(self) -> None:
        """Wait for what is to be written; call it when all recipients are settled.

        A refusal is kept only while others are deferred. Without others the mail server
        may have made a deferral of it, or has not heard it. Then the host is to be asked
        again, and what was in doubt still is.

        Where some do not have the message, the entries must outlive all retries of the
        mail server, and a loss of power.
        """
        try:
            await self._finish()
        finally:
            self._entries.release_all()

    async def _finish(self) -> None:
        await self._writer.wait()
        written = asyncio.Event()
        self.when_written(written.set)
        await written.wait()
        entries = self._entries
        states = [recipient.state for recipient in self._settlement]
        known = [self._settlement[number] for number in entries]
        for recipient in known:
            if recipient.state is RecipientState.BOUNCED:
                if not _PUT_OFF.isdisjoint(states):
                    await self._leave(recipient)
                else:
                    await entries.leave_past(recipient.number, recipient.past)
        delivered = [one for one in known if one.state is RecipientState.DELIVERED]
        if all(state is RecipientState.DELIVERED for state in states):
            for recipient in delivered:
                if entries.earlier(recipient.number) is not None:
                    await self._leave(recipient)
            return
        for recipient in delivered:
            # A durable write makes all earlier writes durable.
            durable = recipient is delivered[-1]
            await self._leave(recipient, KEPT_IN_PART, durable=durable)

    async def finish_late(self, numbers: Iterable[int]) -> None:
        """Write what became of recipients that have waited; `finish` has returned.

        The next attempt may come in days: a loss of power must not undo a late 250.
        """
        self._entries.late_replies_follow()
        for number in numbers:
            await self._leave(self._settlement[number], KEPT_IN_PART, durable=True)
