"""Before an attempt: in which order its hosts are asked, or why none is.

Mail waits here only where no other host is left: for another message's probe, and for
`LONGEST_WAIT` at most. It is deferred only when all hosts failed a moment ago.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery import trouble
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.delivery.passed_over import remembered
from mxpolicy.outcome import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.host_memory import HostMemory
    from mxpolicy.delivery.leases import Leases
    from mxpolicy.delivery.plan import Plan
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.known_hosts import KnownHosts

__all__ = ["Consulted", "consult", "refusal_of"]

# Seconds that a message with no other host waits for another message's probe. Up to a
# fifth is taken off by chance: messages that wait together must not dial together.
LONGEST_WAIT = 15.0
# Seconds between two looks for the result of that probe.
LOOK_AGAIN = 0.25

# Probes beside one message: a domain may have a hundred addresses that are due.
MAX_PROBES = 4


class Consulted(NamedTuple):
    """How a plan is carried out.

    Attributes:
        known: What is remembered, for the attempt. Its order is the one of asking.
        due: Candidates that we hold the lease of, to be probed beside the attempt.
        refusal: The outcome of every recipient. Then no host is dialled.
        tried: With a refusal: one printable text for each candidate.
    """

    known: KnownHosts
    due: tuple[Candidate, ...] = ()
    refusal: Deferred | None = None
    tried: tuple[str, ...] = ()


async def consult(
    memory: HostMemory,
    leases: Leases,
    plan: Plan,
    *,
    now: Callable[[], float],
    chance: float,
    deadline: float,
) -> Consulted:
    """Return in which order the candidates of *plan* are asked, or why none is.

    When all have failed, one message takes their leases, and its own delivery is the
    probe. The others wait for the result, for `LONGEST_WAIT` at most, and end well before
    *deadline*. Then each dials for itself, like a sender without a memory: the message
    that probes may be slow, or dead. A wait ends in a deferral only when every candidate
    has a new full verdict.

    Args:
        memory: What is remembered.
        leases: The message's; the caller gives them back.
        plan: It has candidates.
        now: Seconds, monotonic.
        chance: 0 to 1; shortens the wait.
        deadline: When the final dot must be sent, in seconds as *now*.
    """
    until = min(now() + LONGEST_WAIT * (1 - chance / 5), deadline - LONGEST_WAIT)
    keys = [host_key(one) for one in plan.candidates]
    while True:
        known = await memory.advise(plan.aim, plan.candidates)
        if known.has_other:
            # The attempt begins with the first: it may have no place for a probe, too.
            others = [one for one in known.due if one != known.order[0]]
            due = [
                one for one in others[:MAX_PROBES] if await leases.take(host_key(one))
            ]
            return Consulted(known, tuple(due))
        if not memory.options.fast_deferral:
            return Consulted(known)
        if not known.is_hopeless and await leases.take_all(keys):
            # The last holder of the lease wrote its result before it gave it back.
            known = await memory.advise(plan.aim, plan.candidates)
            if not known.is_hopeless:
                return Consulted(known)
            await leases.release()
        if known.is_hopeless:
            refusal, tried = refusal_of(known)
            return Consulted(known, (), refusal, tried)
        if now() >= until:
            return Consulted(known)
        await asyncio.sleep(LOOK_AGAIN)


def refusal_of(known: KnownHosts) -> tuple[Deferred, tuple[str, ...]]:
    """Return the outcome when all have failed, and a text for each of them."""
    shown = "; ".join(remembered(one, known, str(one)) for one in known.order)
    text = "no host can be reached, as was found before: "
    refusal = Deferred(
        trouble.UNREACHABLE,
        trouble.one_line(text + shown),
        relay=str(known.order[0].key),
    )
    return refusal, tuple(remembered(one, known, str(one.key)) for one in known.order)
