"""What a message on the fast path tells, all at once in the end.

The ordinary way tells each thing as it happens. On the fast path it is told when it is
known that the message does not go on the ordinary way, which would tell it again. Log and
learners hear the same from both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery import events
from mxpolicy.delivery.events import Delays
from mxpolicy.delivery.passed_over import PassedOver
from mxpolicy.routing.candidate import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.delivery.destinations import Destination
    from mxpolicy.delivery.session import Session

__all__ = ["settle_all", "tell_course"]


def tell_course(
    delivery: Delivery,
    found: Destination,
    session: Session,
    times: Sequence[float],
    strays: Sequence[str],
) -> None:
    """Tell what the ordinary way would have told up to the dot.

    Args:
        delivery: The message.
        found: Where it went.
        session: Over which.
        times: When it began, when the recipients were accepted, when 354 came, and when
            the dot left; as events have it.
        strays: Replies that answered no command.
    """
    trace, stay = delivery.trace, delivery.stay
    if stay is not None:
        trace = trace.with_learners(stay.learn)
    tell, candidate = trace.tell_of, session.candidate
    plan = found.plan_from(candidate)
    began, asked, go_ahead, dot = times
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
    for text in strays:
        tell(dot, events.StrayReply, candidate, text)


def settle_all(
    delivery: Delivery, found: Destination, session: Session, began: float
) -> None:
    """Give each recipient its outcome: the host has the message.

    Args:
        delivery: The message.
        found: Where it went.
        session: Over which.
        began: When, in seconds since the delivery began.
    """
    now = delivery.trace.now()
    delays = Delays(dns=began, transfer=now - began)
    passed_over = PassedOver(found.known)
    passed_over.started(session.candidate, began)
    tried = passed_over.before(str(session.candidate.key), now)
    for number in delivery.envelope.recipients:
        outcome = delivery.settlement.delivered(number)
        delivery.settlement.settle(number, outcome, delays, tried, session.tls)
