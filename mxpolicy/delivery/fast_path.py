"""The fast path: a small message over a session that waits, without a task of its own.

1. `fast_start`: the message is small and for one destination that took mail a moment ago,
   a session with one of the best hosts waits, and nothing waits for its turn there.
2. RSET, MAIL, RCPT and DATA leave together. Meanwhile the dot is recorded in the journal.
3. The replies come, in callbacks of the event loop. `mxpolicy.routing.fast_path` says what
   follows from each. This module does it: the mail data, and the dot.
4. `fast_report`: the host has the message. Now all is told, and each recipient settled.

In all other cases, and whenever anything is out of the ordinary, `Delivery` does it the
ordinary way, or goes on with the session as it is. One alarm serves all messages: it
notices a host that has said nothing for a while.
"""

from __future__ import annotations

import asyncio
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.delivery import events, fast_report, fast_start, own_outcomes
from mxpolicy.delivery.attempt_sessions import Begun
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.errors import LocalTrouble, RemoteProtocolError
from mxpolicy.net.channel import StreamClosed
from mxpolicy.protocol.dot_stuffing import DotStuffer
from mxpolicy.protocol.smtp_events import DataAnswered, DotAnswered
from mxpolicy.routing.fast_path import TABLE, Action, Input, State
from mxpolicy.routing.reuse import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.delivery.admission import Stay
    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.delivery.destinations import Destination
    from mxpolicy.delivery.session import Session
    from mxpolicy.protocol.smtp_events import Event
    from mxpolicy.reply import Reply

__all__ = ["LONGEST_SILENCE", "FastPath", "Shortcut"]

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
        found = fast_start.destination_of(delivery)
        if found is None:
            delivery.start()
            return
        shortcut = Shortcut(self, delivery, found)
        delivery.fast = shortcut
        delivery.mail_data.watch(fast_start.LIMIT, shortcut.mail_data_is_there)

    def going(self, shortcut: Shortcut) -> None:
        """Watch from now on whether the host of *shortcut* is silent for too long."""
        self._going.add(shortcut)
        if self._alarm is None:
            self._ring_later()

    def gone(self, shortcut: Shortcut) -> None:
        """Watch it no longer."""
        self._going.discard(shortcut)

    def _ring_later(self) -> None:
        self._alarm = asyncio.get_running_loop().call_later(LOOK, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        for shortcut in [*self._going]:
            shortcut.look_at_clock()
        if self._going:
            self._ring_later()


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
        # When it began, the recipients were accepted, 354 came, the dot left.
        self._times: list[float] = []
        self._entering: asyncio.Task[None] | None = None  # into the message's place
        self._asking: asyncio.Future[bool] | None = None  # whether the dot may be sent
        self._permitted_at = -inf
        self._is_recorded = False
        self._strays: list[str] = []  # replies that answered no command

    # -- the beginning --------------------------------------------------------

    def mail_data_is_there(self) -> None:
        """All mail data has come, or more than `fast_start.LIMIT`: begin, or leave."""
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
            refusal = own_outcomes.own_trouble(error)
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
        delivery, found = self._delivery, self._destination
        content = fast_start.content_of(delivery)
        if content is None:
            return False
        listener = Listener(ignored=self._ignored)
        session = fast_start.take_session(delivery, found, listener)
        if session is None:
            return False
        delivery.note_journal_keys(delivery.mail_data.digest_so_far())
        is_ours = delivery.claims.claim_at_once(self._numbers)
        if not is_ours or not fast_start.fits(delivery, session):
            fast_start.give_back(delivery, found, session)
            return False
        self._session = session
        if not self._ask(session):
            self._end_session()
            return False
        stuffer = DotStuffer(self._context.options.long_lines)
        self._body = stuffer.encode(content) + stuffer.finish()
        self._state = State.ASKING
        self._note_time()
        self._path.going(self)
        session.dialogue.stream.watch(self._hear)
        self._ask_for_dot()
        relay = str(session.candidate.key)
        delivery.claims.record_dot(relay, self._numbers, self._recorded)
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

    def _ask(self, session: Session) -> bool:
        """Send what can be sent before a reply; return False where that cannot be."""
        stage = fast_start.give_commands(self._delivery, session)
        if stage is None:
            return False
        self._stage = stage
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
        if session.body.may_dot_follow():
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
        is_due = dialogue.smtp.is_asking or self._is_quiet(session)
        return is_due and _works(dialogue.send_now)

    def _is_quiet(self, session: Session) -> bool:
        """Return whether nothing comes now: it would be no answer to what follows."""
        dialogue = session.dialogue
        before = len(dialogue.heard)
        return (
            _works(dialogue.hear_now)
            and len(dialogue.heard) == before
            and not dialogue.smtp.is_in_mid_reply
        )

    def _send_body(self, session: Session) -> None:
        """Send the mail data; and the dot, if it need not wait for acknowledgements."""
        session.dialogue.forget_heard(1)
        session.heard_data_reply(354)
        self._stage = Stage.GO_AHEAD
        self._note_time()
        if fast_start.is_late(self._delivery) or not self._is_wanted():
            self._take(Input.OTHER)
            return
        self._stage = Stage.BODY
        if _works(partial(session.body.give, self._body)):
            self._acknowledged()
        else:
            self._take(Input.OTHER)

    def _send_dot(self, session: Session) -> None:
        dialogue, delivery = session.dialogue, self._delivery
        is_quiet = not dialogue.heard and self._is_quiet(session)
        if not is_quiet or not self._is_wanted():
            self._take(Input.OTHER)
            return
        delivery.settlement.accepted(self._numbers)
        delivery.settlement.dot_sent(self._numbers, str(session.candidate.key))
        self._stage = Stage.DOT
        self._note_time()
        session.body.begin_dot(self._context.options.transaction.body_progress)
        if not _works(dialogue.send_now):
            self._take(Input.OTHER)

    # -- the end --------------------------------------------------------------

    def _settle(self, session: Session) -> None:
        """The host has the message for all recipients."""
        delivery = self._delivery
        (answered,) = session.dialogue.heard
        assert isinstance(answered, DotAnswered), "that is what has come"
        session.dialogue.forget_heard(1)
        session.course = session.course._replace(dot=250)
        session.body.dot_is_answered()
        self._let_go(session)
        # A process waits for the end, and a door with a reply per recipient does not.
        may_wait = not delivery.request.has_process
        delivery.outcome_notes.all_are_taken(may_wait=may_wait)
        delivery.settlement.taken(self._numbers, answered.reply)
        found, times = self._destination, self._times
        fast_report.tell_course(delivery, found, session, times, self._strays)
        fast_report.settle_all(delivery, found, session, times[0])
        self._path.delivered += 1
        fast_start.give_back(delivery, found, session)
        delivery.trace.tell(events.CandidateLeft, session.candidate)
        delivery.end_well()

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
        fast_start.give_back(self._delivery, self._destination, session)

    def _note_time(self) -> None:
        self._heard_at = self._context.clock()
        self._times.append(self._delivery.trace.now())


def _works(do: Callable[[], bool | None]) -> bool:
    """Return whether *do* meets no end of the session, and does not return False."""
    try:
        return do() is not False
    except _ENDS:
        return False


def _is_well(event: Event) -> bool:
    """Return whether *event* is a reply that accepts."""
    reply = getattr(event, "reply", None)
    return reply is not None and reply.is_positive
