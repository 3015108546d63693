"""The sessions of one attempt: from a candidate that is started to one that is ready.

`mxpolicy.delivery.attempt` says which candidate is reached, and when its session is let go.
Here is how: over what the fast path has begun, over a session that waits since an earlier
message, or over a new one; with how much TLS; and what is told of it on the way.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

from mxpolicy.delivery import events
from mxpolicy.delivery.approach import SMALL_SEGMENT, Approach
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.offer import tell_of_detour
from mxpolicy.routing.candidate import Phase
from mxpolicy.routing.reuse import Stage
from mxpolicy.routing.tls_requirement import tls_requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.delivery.attempt_recipients import AttemptRecipients
    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.message import Message
    from mxpolicy.delivery.offer import Offer
    from mxpolicy.delivery.plan import Plan
    from mxpolicy.delivery.session import Session
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.known_hosts import KnownHosts
    from mxpolicy.routing.tls_requirement import TlsRequirement

__all__ = ["AttemptSessions", "Begun"]


class Begun:
    """A transaction that the fast path has begun, for all recipients.

    Attributes:
        session: In use.
        stage: How far it has come.
        strays: Replies that answered no command; see `events.StrayReply`.
    """

    __slots__ = ("session", "stage", "strays")

    def __init__(
        self, session: Session, stage: Stage, strays: Sequence[str] = ()
    ) -> None:
        self.session = session
        self.stage = stage
        self.strays = strays


class AttemptSessions:
    """Supplies an attempt with sessions, and takes them back.

    Args:
        context: What all messages share.
        message: What is delivered.
        plan: By which it is.
        known: What is remembered of the candidates.
        recipients: Told of each session, for the log.
        entered: Told when a candidate enters a phase before *ready*, once for each.
        begun: What the fast path has begun, with the first candidate.
    """

    def __init__(
        self,
        context: Context,
        message: Message,
        plan: Plan,
        known: KnownHosts,
        recipients: AttemptRecipients,
        entered: Callable[[Candidate, Phase], None],
        begun: Begun | None,
    ) -> None:
        self._context = context
        self._message = message
        self._tell = message.trace.tell
        self._now = message.trace.now
        self._known = known
        self._known_until = self._now() + plan.ttl
        self._recipients = recipients
        self._passed_over = recipients.passed_over
        self._told = entered
        self._begun = begun
        self._phase: dict[Candidate, Phase] = {}
        # Of candidates that the message was offered to.
        self._tls: dict[Candidate, TlsRequirement] = {}
        # Whose session of an earlier message was over.
        self._dialled_anew: set[Candidate] = set()
        self._progress_told = 0.0

    # -- to ready ---------------------------------------------------------

    def start(self, candidate: Candidate) -> None:
        """*candidate* is to be reached now."""
        self._phase[candidate] = Phase.CONNECT
        self._passed_over.started(candidate, self._now())
        self._tell(events.CandidateStarted, candidate)

    def drop(self, candidate: Candidate) -> None:
        """*candidate* is not waited for any more."""
        self._passed_over.dropped(candidate, self._now())
        self._tell(events.CandidateDropped, candidate, self._phase[candidate])

    def phase(self, candidate: Candidate) -> Phase:
        """Return how far *candidate* has come."""
        return self._phase[candidate]

    async def reach(self, candidate: Candidate) -> Session:
        """Return a session with *candidate* that is ready; raises as `open` does."""
        is_small = self._known.needs_small_segments(candidate)
        approach = Approach(self.tls(candidate), SMALL_SEGMENT if is_small else None)
        session = self._take_idle(candidate, approach)
        if session is None:
            session = await self.open(candidate, approach)
            tell_of_detour(self._message.trace, session)
        return session

    async def open(self, candidate: Candidate, approach: Approach) -> Session:
        """Return a new session that is ready; raises as `Sessions.open` does."""
        listener = self._listener(candidate)
        session = await self._context.sessions.open(candidate, approach, listener)
        self._note_tls(session)
        return session

    def _take_idle(self, candidate: Candidate, approach: Approach) -> Session | None:
        """Return the session of an earlier message, if one fits."""
        if candidate in self._dialled_anew:
            return None
        listener = self._listener(candidate)
        session: Session | None
        if self._begun is not None:
            session = self._begun.session
            session.listener = listener
        else:
            sessions = self._context.sessions
            session = sessions.take_idle(candidate, approach, listener)
        if session is not None:
            self._tell(events.SessionReused, candidate)
            self._entered(candidate, Phase.READY)
            self._note_tls(session)
        return session

    def tls(self, candidate: Candidate) -> TlsRequirement:
        """Return the TLS that is asked of *candidate*."""
        if candidate in self._tls:
            return self._tls[candidate]
        is_broken = self._known.is_tls_broken(candidate)
        return tls_requirement(self._context.options.tls.default, is_broken=is_broken)

    def _note_tls(self, session: Session) -> None:
        self._recipients.reached(session.candidate, session.tls)
        if session.is_secured:
            self._tell(events.Secured, session.candidate)

    # -- what is told on the way ------------------------------------------

    def _listener(self, candidate: Candidate) -> Listener:
        return Listener(
            entered=partial(self._entered, candidate),
            progressed=partial(self._progressed, candidate),
            ignored=lambda reply: self._tell(events.StrayReply, candidate, reply.text),
        )

    def _entered(self, candidate: Candidate, phase: Phase) -> None:
        """Tell of a phase once, also when the candidate is dialled a second time."""
        if phase <= self._phase[candidate]:
            return
        self._phase[candidate] = phase
        self._passed_over.entered(candidate, phase, self._now())
        self._tell(events.PhaseReached, candidate, phase)
        if phase is not Phase.READY:  # the race is told when we have the session
            self._told(candidate, phase)

    def _progressed(self, candidate: Candidate) -> None:
        """Tell that the host goes on; not each of its quick answers."""
        now = self._now()
        if now >= self._progress_told + events.PROGRESS_TOLD:
            self._progress_told = now
            self._tell(events.Progressed, candidate)

    # -- its use ----------------------------------------------------------

    def take(self, candidate: Candidate) -> Stage:
        """The message is offered to *candidate* now; return how far that has come."""
        self._progress_told = self._now()
        begun, self._begun = self._begun, None
        if begun is None:
            return Stage.NOT_BEGUN
        for text in begun.strays:
            self._tell(events.StrayReply, candidate, text)
        return begun.stage

    def leave(self, offer: Offer) -> None:
        """Give back what *offer* has used, unless a reply to the dot may still come."""
        self._tls[offer.candidate] = offer.tls
        if offer.is_unanswered:
            if self._message.keep(offer.session, offer.in_doubt()):
                return
            offer.session.abort()
        known_until = -inf
        try:
            if offer.void_because is not None and offer.session.is_reused:
                self._context.sessions.was_over(offer.session)
            known_until = self._until(offer.candidate)
        finally:
            self._context.sessions.give_back(offer.session, known_until)

    def _until(self, candidate: Candidate) -> float:
        """Return until when such mail goes to *candidate*, on the clock."""
        context, left = self._context, self._known_until - self._now()
        due = self._known.better_is_due(candidate) - context.utc()
        return context.clock() + min(left, due)

    def dial_anew(self, candidate: Candidate) -> None:
        """Use no session of an earlier message with *candidate* any more."""
        self._dialled_anew.add(candidate)

    def give_back(self, session: Session) -> None:
        """Take back a session that is not to be used any more."""
        self._context.sessions.give_back(session)

    def end(self) -> None:
        """Give back what was begun, where it was not gone on with."""
        if self._begun is not None:
            self._begun.session.abort()
            self.give_back(self._begun.session)
