"""What is known of a recipient before its mail data comes (`mxpolicy.delivery.inquiry`).

Only what is certain is said. What DNS did not answer in a short time, the delivery may
still find out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, domain_of
from mxpolicy.delivery import own_outcomes
from mxpolicy.delivery.inquiry import Inquiries
from mxpolicy.outcome import Deferred
from mxpolicy.reply import EnhancedStatus

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.kept_findings import Found

    Told = Callable[[Outcome | None], None]

__all__ = ["Recipients"]

# Seconds for the forecast of a recipient's domain, and before that for its place: lmtp(8)
# waits for 300 s only. Where it takes longer, the recipient is accepted, and the delivery
# finds out.
FORECAST_TIME = 5.0
# Seconds for which what was found counts for longer, where nothing is against a domain.
# A refusal is found out anew each time: a host may have come back.
GOOD_FOR = 4.0

# RFC 3463 §3.4: system not accepting network messages.
_STOPPING = Deferred(EnhancedStatus(4, 3, 2), "mxpolicy is stopping")


class Recipients:
    """Looks at recipients, of any number of clients at once.

    Args:
        engine: Returns the engine whose forecasts count.
        trouble: Takes a line for the log.
    """

    def __init__(
        self, engine: Callable[[], Engine], trouble: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._trouble = trouble
        self._is_stopping = False
        self._inquiries: Inquiries | None = None

    def stop(self) -> None:
        """Refuse all recipients for now, from now on."""
        self._is_stopping = True

    def look_at(self, recipient: str, told: Told) -> None:
        """Call *told*, now or later, with the refusal of *recipient*, or None."""
        if self._is_stopping:
            told(_STOPPING)
            return
        try:
            domain = domain_of(recipient)
        except AddressError as error:
            # What is no address is no inquiry either: that would be kept as a domain's.
            told(own_outcomes.bad_recipient(error))
            return
        inquiries = self._of_engine()
        now = inquiries.engine.context.clock()
        found = inquiries.kept.found(domain, now - GOOD_FOR)
        if found is not None and found.refusal is None:
            told(None)
        elif (inquiry := inquiries.join(domain, recipient)) is None:
            told(None)  # there are too many others
        else:
            inquiry.task.add_done_callback(lambda done: told(_refusal(done)))

    def _of_engine(self) -> Inquiries:
        engine = self._engine()
        if self._inquiries is None or engine is not self._inquiries.engine:
            self._inquiries = Inquiries(
                engine,
                FORECAST_TIME,
                lambda text, seconds: self._trouble(text),
                engine.context.clock,
                place_within=FORECAST_TIME,
            )
        return self._inquiries


def _refusal(task: asyncio.Task[Found]) -> Outcome | None:
    return None if task.cancelled() else task.result().refusal
