"""The fast path: a small message over a session that waits, without a task of its own.

The shell of `mxpolicy.routing.fast_path`, which decides. A message takes it when

1. all its recipients go to one destination that took mail a moment ago
   (`mxpolicy.delivery.destinations`), and none of them needs more than usual;
2. it is whole, and in memory (`LIMIT`);
3. a session with one of the best hosts waits, and fits;
4. nothing waits for its turn at that host (`Connections.take_idle`).

Then it goes from MAIL to the dot as replies come, in callbacks of the event loop. The
dot is recorded in the journal meanwhile. In all other cases, and whenever anything is
out of the ordinary, `Delivery` does it the ordinary way, or goes on with what is begun.
One alarm serves all messages: it notices a host that has said nothing for a while.

What happens is told when it is known that the message has not left the fast path: the
ordinary way tells the same by itself.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, parse_mailbox, parse_reverse_path
from mxpolicy.delivery import events, trouble
from mxpolicy.delivery.attempt import Begun
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.envelope import Envelope
from mxpolicy.delivery.events import Delays
from mxpolicy.delivery.passed_over import PassedOver
from mxpolicy.delivery.plan import destination
from mxpolicy.delivery.transaction import DOT_TIME
from mxpolicy.errors import LocalProtocolError, LocalTrouble, RemoteProtocolError
from mxpolicy.net.stream import StreamClosed
from mxpolicy.protocol.dot_stuffing import DotStuffer
from mxpolicy.protocol.smtp_events import DataAnswered, DotAnswered
from mxpolicy.routing.candidate import Phase
from mxpolicy.routing.fast_path import TABLE, Action, Input, State
from mxpolicy.routing.reuse import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.delivery.admission import Stay
    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.delivery.destinations import Destination
    from mxpolicy.delivery.session import Session
    from mxpolicy.protocol.smtp_events import Event
    from mxpolicy.reply import Reply

__all__ = ["LIMIT", "LONGEST_SILENCE", "FastPath", "Shortcut"]

# Bytes of a message: it is written to the session in one piece.
LIMIT = 64 * 1024
# Recipients of one: all commands leave together (`smtp_client.MAX_IN_FLIGHT`).
MOST_RECIPIENTS = 50

# Seconds without a reply after which the ordinary way goes on. It waits for long, and
# watches whether what was sent arrives.
LONGEST_SILENCE = 1.0
# Seconds between two looks for that.
LOOK = 0.5

# Seconds between two looks for the acknowledgement of the mail data, at first; and how
# many times more the next time.
FIRST_LOOK, LATER_LOOK = 0.001, 1.25

# What may come in the place of a reply.
_ENDS = (StreamClosed, RemoteProtocolError, LocalTrouble)


class FastPath:
    """The messages of one process that go the fast path.

    Attributes:
        delivered: How many have come to its end.
    """

    def __init__(self) -> None:
        self.delivered = 0
        self._going: set[Shortcut] = set()
        self._alarm: asyncio.TimerHandle | None = None

    def begin(self, delivery: Delivery) -> None:
        """Begin *delivery*, the fast way or the ordinary way."""
        found = _destination_of(delivery)
        if found is None:
            delivery.start()
            return
        shortcut = Shortcut(self, delivery, found)
        delivery.fast = shortcut
        delivery.mail_data.watch(LIMIT, shortcut.mail_data_is_there)

    def going(self, shortcut: Shortcut) -> None:
        """*shortcut* waits for its host from now on."""
        self._going.add(shortcut)
        if self._alarm is None:
            self._ring_later()

    def gone(self, shortcut: Shortcut) -> None:
        """It does so no longer."""
        self._going.discard(shortcut)

    def _ring_later(self) -> None:
        self._alarm = asyncio.get_running_loop().call_later(LOOK, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        for shortcut in [*self._going]:
            shortcut.look_at_clock()
        if self._going:
            self._ring_later()


def _destination_of(delivery: Delivery) -> Destination | None:
    """Return where all recipients go, and note the envelope; None where it is not known."""
    context, request = delivery.context, delivery.request
    if context.destinations is None or len(request.recipients) > MOST_RECIPIENTS:
        return None
    try:
        reverse_path = parse_reverse_path(request.sender)
        recipients = {
            number: parse_mailbox(text)
            for number, text in enumerate(request.recipients)
        }
    except AddressError:
        return None
    aims = {destination(request.nexthop, one.domain) for one in recipients.values()}
    delivery.envelope = Envelope(
        reverse_path, recipients, request.dsn, request.recipients_dsn
    )
    if len(aims) != 1 or delivery.envelope.needs_smtputf8(recipients):
        return None
    return context.destinations.find(*aims.pop(), context.clock())


class Shortcut:
    """One message on the fast path, or waiting for its mail data before it.

    Args:
        path: Of all messages.
        delivery: The message.
        destination: Where all its recipients go.
    """

    def __init__(
        self, path: FastPath, delivery: Delivery, destination: Destination
    ) -> None:
        self._path = path
        self._delivery = delivery
        self._destination = destination
        self._context: Context = delivery.context
        self._numbers = list(delivery.envelope.recipients)
        self._session: Session | None = None
        self._body = b""
        self._state = State.OVER
        self._stage = Stage.NOT_BEGUN
        self._heard_at = 0.0  # on the clock
        self._acknowledging: asyncio.TimerHandle | None = None
        self._next_look = FIRST_LOOK
        # When: began; the opening was answered; 354 came; the dot left. As events have it.
        self._times: list[float] = []
        self._entering: asyncio.Task[None] | None = None  # into the message's place
        self._asking: asyncio.Future[bool] | None = None  # whether the dot may be sent
        self._permitted_at = -inf
        self._is_recorded = False
        self._strays: list[str] = []  # replies that answered no command

    # -- the beginning --------------------------------------------------------

    def mail_data_is_there(self) -> None:
        """All mail data has come, or it is not for the fast path."""
        if self._delivery.fast is not self:
            return  # cancelled
        if self._delivery.request.has_process:
            stay = self._delivery.new_stay(self._destination.plan.aim)
            self._entering = asyncio.create_task(self._enter(stay))
        else:
            self._begin_or_leave()

    async def _enter(self, stay: Stay) -> None:
        """Take the place that the message needs, before a host is asked."""
        delivery = self._delivery
        try:
            refusal = await stay.enter()
        except Exception as error:
            delivery.trace.trouble(error)
            refusal = trouble.own_trouble(error)
        if delivery.fast is not self:
            await stay.leave()
            return
        delivery.stay = stay
        if refusal is None:
            stay.planned()
            self._begin_or_leave()
        else:
            delivery.settlement.settle_all(refusal)
            delivery.end()

    def _begin_or_leave(self) -> None:
        try:
            has_begun = self._begin()
        except Exception as error:
            self._delivery.trace.trouble(error)
            self._end_session()
            has_begun = False
        if not has_begun:
            self._delivery.start()

    def _begin(self) -> bool:
        """Begin, if it is a message for the fast path; return whether it is."""
        mail_data, context = self._delivery.mail_data, self._context
        content = mail_data.content()
        if content is None or mail_data.received_count >= context.options.limits.hops:
            return False
        session = self._take_session()
        if session is None:
            return False
        self._delivery.note_journal_keys(mail_data.digest_so_far())
        is_ours = self._delivery.claims.claim_at_once(self._numbers)
        if not is_ours or not self._fits(session):
            self._give_back(session)
            return False
        self._session = session
        if not self._ask(session):
            self._end_session()
            return False
        stuffer = DotStuffer(context.options.long_lines)
        self._body = stuffer.encode(content) + stuffer.finish()
        self._state = State.ASKING
        self._note_time()
        self._path.going(self)
        session.dialogue.stream.watch(self._hear)
        self._ask_for_dot()
        relay = str(session.candidate.key)
        self._delivery.claims.record_dot(relay, self._numbers, self._recorded)
        return True

    def _ask_for_dot(self) -> None:
        """Ask whether the dot may be sent, where that takes time."""
        request = self._delivery.request
        if request.is_wanted is None:
            self._asking = asyncio.ensure_future(request.may_send_dot())
            self._asking.add_done_callback(self._answered)

    def _answered(self, asking: asyncio.Future[bool]) -> None:
        """It is known whether the dot may be sent. If not, the ordinary way asks again."""
        is_cut = asking.cancelled() or asking.exception() is not None
        if not is_cut and asking.result():
            self._permitted_at = self._context.clock()
        self._asking = None
        self._may_go_on()

    def _is_wanted(self) -> bool:
        """Return whether the dot may be sent, as it was said a moment ago."""
        if (is_wanted := self._delivery.request.is_wanted) is not None:
            return is_wanted()
        return self._context.clock() - self._permitted_at < LONGEST_SILENCE

    def _take_session(self) -> Session | None:
        """Return a session that fits; it counts as a connection of the message."""
        now = self._context.clock()
        if now >= self._destination.until or self._is_late():
            return None
        connections = self._context.connections
        may_wait = not self._delivery.request.has_process
        listener = Listener(ignored=self._ignored)
        for candidate, approach in self._destination.usable:
            if connections is not None and not connections.take_idle(
                candidate, may_wait=may_wait
            ):
                continue
            session = self._context.sessions.take_idle(candidate, approach, listener)
            if session is not None:
                return session
            if connections is not None:
                connections.give_idle(candidate)
        return None

    def _is_late(self) -> bool:
        """Return whether it is too late for a dot."""
        request = self._delivery.request
        last_dot = min(request.deadline, request.ends - DOT_TIME)
        return self._delivery.trace.now() >= last_dot

    def _fits(self, session: Session) -> bool:
        """Return whether all recipients fit into one transaction of *session*."""
        limits, envelope = session.extensions.limits, self._delivery.envelope
        domains = [one.domain for one in envelope.recipients.values()]
        misfit = trouble.misfit(
            session.extensions,
            size=self._delivery.mail_data.size,
            needs_smtputf8=False,
            masked=session.is_masked,
        )
        batch = limits.next_batch(domains, session.domains)
        mailmax = limits.mailmax
        has_room = mailmax is None or session.transactions < mailmax
        return misfit is None and has_room and len(batch) == len(domains)

    def _ask(self, session: Session) -> bool:
        """Send RSET, MAIL, RCPT and DATA; return False where that cannot be.

        To a host that takes one command at a time, DATA is given later.
        """
        envelope, mail_data = self._delivery.envelope, self._delivery.mail_data
        smtp = session.dialogue.smtp
        session.begin_again()
        session.domains.update(one.domain for one in envelope.recipients.values())
        try:
            smtp.mail(
                envelope.sender,
                size=mail_data.size,
                body8bit=mail_data.has_8bit,
                dsn=envelope.dsn,
            )
            for number, mailbox in envelope.recipients.items():
                smtp.rcpt(mailbox.wire, dsn=envelope.recipients_dsn.get(number))
            self._stage = Stage.ASKED
            if smtp.pipelining:
                smtp.data()
                self._stage = Stage.ASKED_ALL
        except LocalProtocolError:  # the ordinary way says what that means
            return False
        try:
            session.dialogue.send_now()
        except _ENDS:
            return False
        return True

    # -- what happens -----------------------------------------------------------

    def _hear(self) -> None:
        """There may be something to read."""
        session = self._session
        assert session is not None, "the stream is watched only then"
        before = len(session.dialogue.heard)
        try:
            session.dialogue.hear_now()
            if self._stage < Stage.DOT:
                session.dialogue.heed_what_is_broken()
            if len(session.dialogue.heard) == before:
                # A part of a reply, a stray one, or an announced acknowledgement.
                if self._acknowledging is not None:
                    self._acknowledging.cancel()
                    self._acknowledged()
                return
            what = self._meaning(session.dialogue.heard)
            if what is None:
                self._heard_at = self._context.clock()
                what = None if self._send(session) else Input.OTHER
        except _ENDS:
            what = Input.OTHER  # the ordinary way meets it again
        except BaseException as error:
            self._fail(error)
            return
        if what is not None:
            self._take(what)

    def _meaning(self, heard: Sequence[Event]) -> Input | None:
        """Return what the replies so far mean; None where others are due."""
        if self._stage < Stage.ACCEPTED:
            due = 2 + len(self._numbers)
            if not all(_is_well(one) for one in heard[:due]):
                return Input.OTHER
            return Input.ACCEPTED if len(heard) >= due else None
        match self._stage, heard:
            case Stage.ACCEPTED, [DataAnswered(reply)] if reply.code == 354:
                return Input.GO_AHEAD
            case Stage.DOT, [DotAnswered(reply)] if reply.code == 250:
                return Input.TAKEN
        return Input.OTHER

    def _recorded(self, is_recorded: bool) -> None:
        """The store has answered."""
        if self._state is State.OVER:
            return  # cancelled
        if not is_recorded:
            self._take(Input.NOT_RECORDED)
            return
        for number in self._numbers:
            self._delivery.settlement.claimed(number)
        self._is_recorded = True
        self._may_go_on()

    def _may_go_on(self) -> None:
        """Go on once the dot is recorded, and it is known whether it may be sent."""
        is_known = self._asking is None
        if self._is_recorded and is_known and self._state is not State.OVER:
            self._take(Input.RECORDED)

    def _acknowledged(self) -> None:
        """Look whether the dot may follow the mail data."""
        self._acknowledging = None
        session = self._session
        assert session is not None, "its mail data is sent"
        if session.dialogue.may_dot_follow():
            self._take(Input.ACKNOWLEDGED)
            return
        loop = asyncio.get_running_loop()
        self._acknowledging = loop.call_later(self._next_look, self._acknowledged)
        self._next_look *= LATER_LOOK

    def look_at_clock(self) -> None:
        """See whether the host has been silent for too long."""
        if self._context.clock() - self._heard_at >= LONGEST_SILENCE:
            self._take(Input.OTHER)

    def _ignored(self, reply: Reply) -> None:
        self._strays.append(reply.text)

    # -- what is done -----------------------------------------------------------

    def _take(self, what: Input) -> None:
        """Do what follows from *what*."""
        try:
            self._state, action = TABLE[self._state][what]
            self._do(action)
        except BaseException as error:
            self._fail(error)

    def _do(self, action: Action) -> None:
        session, delivery = self._session, self._delivery
        assert session is not None, "it has begun"
        match action:
            case Action.WAIT:
                if self._state is State.LEAVING:
                    self._let_go(session)
            case Action.GIVE_DATA:
                self._give_data(session)
            case Action.SEND_BODY:
                self._send_body(session)
            case Action.SEND_DOT:
                self._send_dot(session)
            case Action.SETTLE:
                self._settle(session)
            case Action.HAND_OVER:
                self._let_go(session)
                begun = Begun(session, self._stage, self._strays)
                delivery.go_on(begun, self._destination, self._numbers)
            case Action.BEGIN_ANEW:
                self._end_session()
                delivery.start()

    def _give_data(self, session: Session) -> None:
        """All recipients are accepted: give DATA, if it is not there yet."""
        dialogue = session.dialogue
        dialogue.forget_heard(2 + len(self._numbers))
        session.reset_is_heard()
        is_given = self._stage is Stage.ASKED_ALL
        self._stage = Stage.ACCEPTED
        self._note_time()
        if is_given:
            if dialogue.heard and (what := self._meaning(dialogue.heard)) is not None:
                self._take(what)
            return
        dialogue.smtp.data()
        if not self._send(session):
            self._take(Input.OTHER)

    def _send(self, session: Session) -> bool:
        """Send the commands that are due; return False where the ordinary way must.

        What has come by now is no answer to them.
        """
        dialogue = session.dialogue
        before = len(dialogue.heard)
        try:
            if not dialogue.smtp.is_asking:
                dialogue.hear_now()
                if len(dialogue.heard) > before or dialogue.smtp.is_in_mid_reply:
                    return False
            return dialogue.send_now()
        except _ENDS:
            return False

    def _send_body(self, session: Session) -> None:
        """Send the mail data, and the dot behind it where nothing need be waited for."""
        session.dialogue.forget_heard(1)
        session.heard_data_reply(354)
        self._stage = Stage.GO_AHEAD
        self._note_time()
        if self._is_late() or not self._is_wanted():
            self._take(Input.OTHER)
            return
        self._stage = Stage.BODY
        try:
            is_sent = session.dialogue.give_body(self._body)
        except _ENDS:
            is_sent = False
        if not is_sent:
            self._take(Input.OTHER)
        else:
            self._acknowledged()

    def _send_dot(self, session: Session) -> None:
        dialogue, delivery = session.dialogue, self._delivery
        try:
            dialogue.hear_now()  # what has come by now is no answer to the dot
            is_quiet = not dialogue.heard and not dialogue.smtp.is_in_mid_reply
        except _ENDS:
            is_quiet = False
        if not is_quiet or not self._is_wanted():
            self._take(Input.OTHER)
            return
        delivery.settlement.accepted(self._numbers)
        delivery.settlement.dot_sent(self._numbers, str(session.candidate.key))
        self._stage = Stage.DOT
        self._note_time()
        dialogue.begin_dot(self._context.options.transaction.body_progress)
        try:
            is_sent = dialogue.send_now()
        except _ENDS:
            is_sent = False
        if not is_sent:
            self._take(Input.OTHER)

    # -- the end --------------------------------------------------------------

    def _settle(self, session: Session) -> None:
        """The host has the message for all recipients."""
        delivery, candidate = self._delivery, session.candidate
        (answered,) = session.dialogue.heard
        assert isinstance(answered, DotAnswered), "that is what has come"
        session.dialogue.forget_heard(1)
        session.course = session.course._replace(dot=250)
        session.dialogue.dot_is_answered()
        self._let_go(session)
        delivery.outcome_notes.all_are_taken()
        delivery.settlement.taken(self._numbers, answered.reply)
        self._tell_all(session)
        began, now = self._times[0], delivery.trace.now()
        delays = Delays(dns=began, transfer=now - began)
        passed_over = PassedOver(self._destination.known)
        passed_over.started(candidate, began)
        tried = passed_over.before(str(candidate.key), now)
        for number in self._numbers:
            outcome = delivery.settlement.delivered(number)
            delivery.settlement.settle(number, outcome, delays, tried)
        self._path.delivered += 1
        self._give_back(session)
        delivery.trace.tell(events.CandidateLeft, candidate)
        delivery.end_well()

    def _tell_all(self, session: Session) -> None:
        """Tell what the ordinary way would have told as it happened."""
        trace, stay = self._delivery.trace, self._delivery.stay
        if stay is not None:
            trace = trace.with_learners(stay.learn)
        tell, candidate = trace.tell_of, session.candidate
        plan = self._destination.plan_from(candidate)
        began, asked, go_ahead, dot = self._times
        tell(began, events.Planned, plan.nexthop, plan.candidates, plan.remarks)
        tell(began, events.CandidateStarted, candidate)
        tell(began, events.SessionReused, candidate)
        tell(began, events.PhaseReached, candidate, Phase.READY)
        if session.is_secured:
            tell(began, events.Secured, candidate)
        tell(began, events.CandidateTaken, candidate)
        told = began
        for at in (asked, go_ahead, dot):
            if at >= told + events.PROGRESS_TOLD:
                tell(at, events.Progressed, candidate)
                told = at
        for text in self._strays:
            tell(dot, events.StrayReply, candidate, text)

    def go_on_from_dot(self) -> bool:
        """See `mxpolicy.delivery.delivery.Fast`."""
        if self._state is not State.DOT:
            return False
        self._take(Input.OTHER)
        return True

    def drop(self) -> None:
        """See `mxpolicy.delivery.delivery.Fast`."""
        self._state = State.OVER
        if self._asking is not None:
            self._asking.cancel()
        self._end_session()

    def _fail(self, error: BaseException) -> None:
        """A bug of ours: the session ends, and nothing more is done."""
        self._delivery.trace.trouble(error)
        self._state = State.OVER
        self._delivery.abandon()

    def _let_go(self, session: Session) -> None:
        """Heed the session no longer."""
        session.dialogue.stream.unwatch()
        self._path.gone(self)
        if self._acknowledging is not None:
            self._acknowledging.cancel()

    def _end_session(self) -> None:
        """End the session, if there is one, without a word."""
        session, self._session = self._session, None
        if session is None:
            return
        self._let_go(session)
        session.abort()
        self._give_back(session)

    def _give_back(self, session: Session) -> None:
        """Let the session wait for another message, if it may."""
        self._context.sessions.give_back(session, self._destination.known_until)
        if self._context.connections is not None:
            self._context.connections.give_idle(session.candidate)

    def _note_time(self) -> None:
        self._heard_at = self._context.clock()
        self._times.append(self._delivery.trace.now())


def _is_well(event: Event) -> bool:
    """Return whether *event* is a reply that accepts."""
    reply = getattr(event, "reply", None)
    return reply is not None and reply.is_positive
