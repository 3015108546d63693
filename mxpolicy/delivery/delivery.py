"""One message on its way: from the mail server's call to an outcome for each recipient.

A `Delivery` calls the parts in their order and decides nothing itself. Recipients that
go the same way are a `mxpolicy.delivery.group.Group`. For each group:

1. `Claims`: which recipients have it already, were refused, or are delivered to by
   another process (the journal).
2. `Stay.enter`: whether there is a place, or others wait for the same destination.
3. `Planner`: the hosts, in order of preference, or why there are none.
   `FailedLookups` says which better hosts could not be looked up. `DomainHistory` says
   whether a domain that DNS does not know took mail lately.
4. `consult`: the order by what is remembered, or that all failed a moment ago.
5. `Stay.dial`: whether those hosts may be dialled now. In a daemon, `Turn`: wait until
   they have a connection free, and look at what is remembered again.
6. `Attempt`: the race and the transactions. A `Learner` remembers what its events say of
   hosts. `Probes` dial, beside it, hosts whose pause is over.
7. `Settlement`: each outcome, as soon as it exists, is told to the door and the log
   (`Trace`), then to the journal (`OutcomeNotes`).
8. `LateReplies`, in a daemon: a final dot that was not answered in time may still be.
   What comes is noted in the journal, for the next attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Protocol

from mxpolicy.address import AddressError, Mailbox, parse_mailbox, parse_reverse_path
from mxpolicy.delivery import events, journal, own_outcomes, trouble
from mxpolicy.delivery.admission import Stay
from mxpolicy.delivery.claims import Claims
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.entries import Entries
from mxpolicy.delivery.events import Delays
from mxpolicy.delivery.group import Call, Group
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.message import Envelope, Message
from mxpolicy.delivery.outcome_notes import OutcomeNotes
from mxpolicy.delivery.plan import destination
from mxpolicy.delivery.request import Request
from mxpolicy.delivery.settlement import Recipient, RecipientState, Settlement
from mxpolicy.delivery.trace import Trace
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Deferred, Outcome
from mxpolicy.protocol.smtp_states import DOT_TIME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.delivery.attempt_sessions import Begun
    from mxpolicy.delivery.destinations import Destination
    from mxpolicy.delivery.late_reply import LateReply
    from mxpolicy.delivery.session import Session

    _Work = Callable[[asyncio.TaskGroup], Coroutine[None, None, None]]

__all__ = ["Delivery"]


class Fast(Protocol):
    """What a delivery asks of the fast path: `mxpolicy.delivery.fast_path.Shortcut`."""

    def go_on_from_dot(self) -> bool:
        """Call `Delivery.go_on` and return True, where the final dot is out."""

    def drop(self) -> None:
        """Do nothing any more. The session ends without a dot, if that is not out."""


class Delivery:
    """One message on its way: its recipients, grouped by where they go.

    Each outcome is observed, as soon as it exists, as `events.RecipientSettled`.

    Call `start` once, or let the fast path begin it.

    Attributes:
        context: As given.
        trace: Told what happens.
        request: As given.
        mail_data: As given.
        settlement: The state of each recipient.
        claims: Whose each recipient is, by the journal.
        outcome_notes: What is noted there of the outcomes.
        envelope: The whole envelope, once it is understood.
        ended: Done when every recipient is settled, and that is in the journal. Then it
            has the outcomes, or is cancelled.
        fast: The fast path, as long as the message goes by it.
        stay: The place that the fast path has taken; it is left, or used, after that.
    """

    def __init__(self, context: Context, request: Request, mail_data: MailData) -> None:
        self.context = context
        given = request.queue_id, context.clock, request.observe
        self.trace = Trace(*given, heeded=context.heeded)
        self.request = request
        self.mail_data = mail_data
        self.envelope = Envelope(None, {})
        self.settlement = Settlement(request.recipients, self._report)
        self._journal_keys: dict[int, str] = {}
        self._owner = context.calls.begin()
        entries = Entries(
            context, self._journal_keys, self._owner, request.deadline + DOT_TIME
        )
        shared = entries, self.settlement, self.trace.trouble
        self.claims = Claims(*shared)
        self.outcome_notes = OutcomeNotes(*shared)
        # By recipient, once its hosts are dialled: the learners are told, too.
        self._traces: dict[int, Trace] = {}
        self._groups: list[Group] = []
        self._late: list[LateReply] = []
        self._opening: asyncio.Task[None] | None = None
        self._cancelled: Deferred | None = None
        self.fast: Fast | None = None
        self.stay: Stay | None = None
        self._task: asyncio.Task[list[Outcome]] | None = None
        self.ended: asyncio.Future[list[Outcome]]
        self.ended = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Begin, the ordinary way."""
        self.fast = None
        self._begin_to_run(self._open)

    def end(self) -> None:
        """Write what is to be written: all recipients are settled."""
        self.fast = None
        self._begin_to_run(None)

    def end_well(self) -> None:
        """Do the same where all are delivered to, and nothing else is to be written."""
        self.fast = None
        if self.stay is None:
            self.outcome_notes.when_written(self._has_ended_well)
        else:
            self._begin_to_run(None)

    def _has_ended_well(self) -> None:
        self._end()
        outcomes = self.settlement.outcomes()
        assert outcomes is not None, "every recipient has been settled"
        self.ended.set_result(outcomes)

    def go_on(self, begun: Begun, destination: Destination, numbers: list[int]) -> None:
        """Go on, the ordinary way, with what the fast path has *begun*.

        Args:
            begun: The transaction, for all of *numbers*. They are claimed.
            destination: Where they go.
            numbers: Of the recipients.
        """
        self.fast = None
        where = destination.nexthop, destination.domain
        group = Group(self._call(), *where, numbers, begun)
        self._groups.append(group)
        self._begin_to_run(lambda tasks: group.send_begun(destination))

    def _begin_to_run(self, work: _Work | None) -> None:
        self._task = asyncio.create_task(self._run(work))
        # Also where it is cancelled before it has begun to run.
        self._task.add_done_callback(self._has_run)

    def _has_run(self, task: asyncio.Task[list[Outcome]]) -> None:
        self._end()
        if task.cancelled():
            self.ended.cancel()
        elif error := task.exception():
            self.ended.set_exception(error)
        else:
            self.ended.set_result(task.result())

    async def outcomes(self) -> list[Outcome]:
        """Return the outcome of each recipient, in their order, when all are known.

        Nothing that a host, a name server or a strange address does makes this raise. A
        bug of ours becomes a `Deferred`. When the calling task is cancelled, so is the
        delivery: recipients that are not settled yet are deferred at once, and
        `asyncio.CancelledError` goes on.
        """
        try:
            await asyncio.wait([self.ended])
        except asyncio.CancelledError:
            self.abandon()
            await asyncio.wait([self.ended])
            raise
        return self.ended.result()

    def outcome(self, number: int) -> Outcome | None:
        """Return the outcome of the recipient *number*; None while it has none."""
        return self.settlement[number].outcome

    def settled(self) -> list[tuple[str, Outcome]] | None:
        """Return each recipient, printable, and its outcome as the mail server is told of it.

        None until all have one.
        """
        outcomes = self.settlement.outcomes()
        if outcomes is None:
            return None
        texts = (one.text for one in self.settlement)
        return list(zip(texts, map(trouble.told, outcomes), strict=True))

    def cancel(self, why: str) -> None:
        """Leave the message to the mail server, as far as that is still possible.

        No host is dialled and no final dot is sent any more. Recipients whose dot is out
        are settled by its reply, in `DOT_TIME` or less. All others are deferred at once.

        Args:
            why: For the text of those outcomes.
        """
        if self._cancelled is not None:
            return
        self._cancelled = own_outcomes.cancelled(why)
        if self.fast is not None and not self.fast.go_on_from_dot():
            self.fast.drop()
            self.end()
        if not self._groups:
            if self._opening is not None:
                self._opening.cancel()
            self.settlement.settle_all(self._cancelled)
        for group in self._groups:
            group.cancel(self._cancelled)

    def abandon(self) -> None:
        """End at once; a dot without an answer is noted as a doubt."""
        if self.fast is not None:
            self.fast.drop()
            stopped = LocalTrouble("the delivery was cancelled")
            self._cancelled = own_outcomes.own_trouble(stopped)
            self.settlement.stop(self._cancelled)
            self.end()
        elif self._task is not None:
            # Not before its first step: cancelled by then, it would settle no recipient.
            asyncio.get_running_loop().call_soon(self._task.cancel)

    async def _run(self, work: _Work | None) -> list[Outcome]:
        try:
            if work is not None and (self._cancelled is None or self._groups):
                async with asyncio.TaskGroup() as tasks:
                    self._opening = tasks.create_task(work(tasks))
        except asyncio.CancelledError:
            stopped = LocalTrouble("the delivery was cancelled")
            self.settlement.stop(own_outcomes.own_trouble(stopped))
            await self._finish_journal()
            raise
        except Exception as error:
            self.trace.trouble(error)
            self.settlement.stop(own_outcomes.own_trouble(error))
        await self._finish_journal()
        if self.stay is not None:
            await self.stay.leave()
        outcomes = self.settlement.outcomes()
        assert outcomes is not None, "every recipient has been settled"
        return outcomes

    def _end(self) -> None:
        """The mail server has its answer; late replies may follow."""
        for late in self._late:
            late.report_by(self._hear_late(late))
        if not self._late:
            self.context.calls.end(self._owner)

    async def _finish_journal(self) -> None:
        try:
            await self.outcome_notes.finish()
        except Exception as error:
            self.trace.trouble(error)

    async def _open(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to send to each group of recipients, unless the message goes nowhere."""
        try:
            reverse_path = parse_reverse_path(self.request.sender)
        except AddressError as error:
            self.settlement.settle_all(own_outcomes.bad_sender(error))
            return
        try:
            digest = await self.mail_data.digest()
        except LocalTrouble as error:
            self.settlement.settle_all(own_outcomes.own_trouble(error))
            return
        hops = self.mail_data.received_count
        if hops >= self.context.options.limits.hops:
            self.settlement.settle_all(own_outcomes.too_many_hops(hops))
            return
        request = self.request
        self.envelope = Envelope(
            reverse_path, self._mailboxes(), request.dsn, request.recipients_dsn
        )
        self.note_journal_keys(digest)
        call = self._call()
        for (nexthop, domain, _), numbers in self._grouped().items():
            group = Group(call, nexthop, domain, numbers)
            self._begin(tasks, group, self._send_once(tasks, group))

    def _call(self) -> Call:
        message = Message(
            self.trace,
            self.envelope,
            self.mail_data,
            self.settlement,
            self.claims,
            self.request.may_send_dot,
            self.request.deadline,
            self.request.ends,
            self._keep,
            self.request.is_wanted,
        )
        given = self.context, self.request, self.claims, message
        return Call(*given, self._taken_stay, self._traces)

    def _taken_stay(self, aim: str) -> Stay:
        """Return the place that is taken, to one group; to others a new one."""
        stay, self.stay = self.stay or self.new_stay(aim), None
        return stay

    def new_stay(self, aim: str) -> Stay:
        """Return the place of recipients that go to *aim*, which is not taken yet."""
        return Stay(
            self.context.admission,
            self._owner,
            aim,
            self.trace.now,
            self.request.deadline,
            self.trace.trouble,
            needs_place=self.request.has_process,
        )

    def _begin(
        self, tasks: asyncio.TaskGroup, group: Group, work: Coroutine[None, None, None]
    ) -> None:
        group.task = tasks.create_task(work)
        self._groups.append(group)

    async def _send_once(self, tasks: asyncio.TaskGroup, group: Group) -> None:
        """Send to the group, except where the journal has an outcome or another process."""
        others = await group.claim()
        if others is not None:
            self._begin(tasks, others, others.send_after_others())
        if group.numbers:
            await group.send()

    def _mailboxes(self) -> dict[int, Mailbox]:
        """Return the forward-paths; settle those that are no address."""
        mailboxes = {}
        for number, text in enumerate(self.request.recipients):
            try:
                mailboxes[number] = parse_mailbox(text)
            except AddressError as error:
                self.settlement.settle(number, own_outcomes.bad_recipient(error))
        return mailboxes

    def note_journal_keys(self, digest: bytes) -> None:
        """Give each recipient its key in the journal, if the journal is kept.

        It needs the mail server's name for the message, or the field that each mail
        server writes on top. Without both, two equal messages would be taken for one.
        """
        name = self.request.queue_id
        if not self.context.options.journal.keep or not (
            name or self.mail_data.has_received_on_top
        ):
            return
        for number, mailbox in self.envelope.recipients.items():
            nexthop, _ = destination(self.request.nexthop, mailbox.domain)
            aim = journal.aim_of(nexthop, self.context.options.port)
            self._journal_keys[number] = journal.entry_key(
                name, aim, digest, self.envelope.sender, mailbox.wire
            )

    def _grouped(self) -> dict[tuple[str, str, bool], list[int]]:
        """Return {(nexthop, destination domain, needs SMTPUTF8): numbers}.

        Recipients whose address needs SMTPUTF8 go by themselves: a host that does not
        offer it must not keep the message from the others.
        """
        groups: dict[tuple[str, str, bool], list[int]] = {}
        for number, mailbox in self.envelope.recipients.items():
            aim = destination(self.request.nexthop, mailbox.domain)
            groups.setdefault((*aim, mailbox.needs_smtputf8), []).append(number)
        return groups

    def _keep(self, session: Session, numbers: Sequence[int]) -> bool:
        """See `Message.keep`. Without a journal no retry would know of a late reply."""
        late_replies = self.context.late_replies
        known = [number for number in numbers if number in self._journal_keys]
        if late_replies is None or not known:
            return False
        seconds = self.context.options.transaction.late_reply
        give_back = self.context.sessions.give_back
        late = late_replies.keep(session, seconds, give_back)
        if late is None:
            return False
        self._late.append(late)
        self.settlement.may_answer(known, str(session.candidate.key))
        return True

    async def _hear_late(self, late: LateReply) -> None:
        """Note a late reply, or that none will come, for the next attempt."""
        relay = str(late.candidate.key)
        try:
            heard = await late.heard()
            ended = self.settlement.answered_late(relay, heard.reply)
            for number in ended:
                recipient = self.settlement[number]
                self.trace.tell(
                    events.LateReplyEnded,
                    late.candidate,
                    recipient.text,
                    recipient.state is RecipientState.TAKEN_LATE,
                    heard.text,
                )
            await self.outcome_notes.finish_late(ended)
        except Exception as error:
            self.trace.trouble(error)
        finally:
            self._late.remove(late)
            if not self._late:
                self.context.calls.end(self._owner)

    def _report(self, recipient: Recipient) -> None:
        """Tell the door and the log, then the journal, what became of *recipient*."""
        try:
            self._tell_outcome(recipient)
        except Exception as error:  # no second copy for that
            self.trace.trouble(error)
        self.outcome_notes.note(recipient)

    def _tell_outcome(self, recipient: Recipient) -> None:
        assert recipient.outcome is not None
        trace = self._traces.get(recipient.number, self.trace)
        trace.tell(
            events.RecipientSettled,
            recipient=recipient.text,
            outcome=recipient.outcome,
            delays=recipient.delays or Delays(dns=self.trace.now()),
            tried=recipient.tried,
            tls=recipient.tls,
        )
