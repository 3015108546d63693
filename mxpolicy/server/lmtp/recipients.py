"""What is known of a recipient before its mail data comes, by the engine's forecast.

Only what is certain is said. What DNS did not answer in a short time, the delivery may
still find out.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, domain_of
from mxpolicy.outcome import Deferred
from mxpolicy.reply import EnhancedStatus
from mxpolicy.routing.mx import DIRECTORY_FAILURE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.engine import Engine
    from mxpolicy.outcome import Outcome

    Told = Callable[[Outcome | None], None]

__all__ = ["Recipients"]

# Seconds for the forecast of a recipient's domain. Where it takes longer, the recipient is
# accepted, and the delivery finds out.
FORECAST_TIME = 5.0
# Forecasts under way at once, as in the access policy: each may have descriptors open.
# The next one waits for a place for `FORECAST_TIME`, since lmtp(8) waits for 300 s only.
MAX_FORECASTS = 100
# Seconds for which a domain that nothing was against is not looked at again. A refusal is
# never kept: a host may have come back.
FORECAST_KEPT = 5.0
MAX_KEPT = 10_000

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
        self._places = asyncio.Semaphore(MAX_FORECASTS)
        self._under_way: dict[str, asyncio.Task[Outcome | None]] = {}
        self._kept: dict[str, float] = {}  # domain -> until when nothing is against it

    def stop(self) -> None:
        """Refuse all recipients for now, from now on."""
        self._is_stopping = True

    def look_at(self, recipient: str, told: Told) -> None:
        """Call *told*, now or later, with the refusal of *recipient*, or None."""
        if self._is_stopping:
            told(_STOPPING)
            return
        try:
            key = domain_of(recipient)
        except AddressError:
            key = recipient  # and its forecast says what is wrong
        if self._kept.get(key, 0.0) > asyncio.get_running_loop().time():
            told(None)
            return
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._refusal(key, recipient))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        task.add_done_callback(lambda done: told(_result(done)))

    async def _refusal(self, key: str, recipient: str) -> Outcome | None:
        try:
            # Where all places are taken, there is no time for more than this.
            async with asyncio.timeout(FORECAST_TIME):
                await self._places.acquire()
        except TimeoutError:
            return None
        try:
            forecast = await self._engine().forecast("", "", recipient, FORECAST_TIME)
        except Exception:
            self._trouble(traceback.format_exc())
            return None
        finally:
            self._places.release()
        plan = forecast.plan
        if plan.refusal is None:
            self._keep(key)
            return None
        # A host that could not be looked up in so short a time may take the mail.
        is_certain = plan.refusal.status != DIRECTORY_FAILURE and not plan.unresolved
        return plan.refusal if is_certain else None

    def _keep(self, key: str) -> None:
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[key] = asyncio.get_running_loop().time() + FORECAST_KEPT


def _result(task: asyncio.Task[Outcome | None]) -> Outcome | None:
    return None if task.cancelled() else task.result()
