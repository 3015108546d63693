"""An access policy server whose plans are told to it, on a clock that may jump."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import Trouble
from mxpolicy.delivery.plan import Plan
from mxpolicy.options import AccessPolicyOptions, Options
from mxpolicy.outcome import Bounced
from mxpolicy.protocol.access_policy import answer
from mxpolicy.routing import mx
from mxpolicy.routing.mx import Lookup, LookupStatus
from mxpolicy.server.access_policy import AccessPolicyServer
from tests.helpers.fast_loop import run_fast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mxpolicy.delivery.events import Event

__all__ = ["DUNNO", "NULL_MX", "Foreseeing", "Service", "null_mx", "timed"]

DUNNO = b"action=DUNNO\n\n"


def null_mx(domain: str) -> bytes:
    """Return the answer about a recipient in *domain*, which has a null MX."""
    text = f"recipient domain {domain} does not accept mail (null MX)"
    return answer(f"550 5.1.10 {text}")


NULL_MX = null_mx("null.example")


class Foreseeing(Engine):
    """An engine whose plans are told to it: by default, of a null MX.

    Attributes:
        seconds: The domain asked about -> how long its plan takes.
        ttl: Of the answers from which a plan is made.
        asked: The domains, in the order of asking.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(Context(options))
        self.seconds: dict[str, float] = {}
        self.ttl = 3600.0
        self.asked: list[str] = []

    async def plan(self, *given: object) -> Plan:
        domain = str(given[2]).partition("@")[2]
        self.asked.append(domain)
        await asyncio.sleep(self.seconds.get(domain, 0.0))
        lookup = Lookup(domain, "MX", LookupStatus.FOUND, ttl=self.ttl)
        return Plan(domain, (), refusal=Bounced(mx.NULL_MX, ""), lookups=(lookup,))


class Service:
    """A server of `Foreseeing`, and what it observed."""

    def __init__(
        self, timeout: float = 8.0, engine: type[Foreseeing] = Foreseeing
    ) -> None:
        policy = AccessPolicyOptions(timeout)
        self.engine = engine(Options(helo="mail.own.example", policy=policy))
        self.events: list[Event] = []
        loop = asyncio.get_running_loop()
        self.server = AccessPolicyServer(
            lambda: self.engine, self.events.append, loop.time
        )

    @property
    def trouble(self) -> list[str]:
        """What was said of troubles."""
        return [one.text for one in self.events if isinstance(one, Trouble)]


def timed(play: Callable[[], Coroutine[object, object, None]]) -> float:
    """Play it on a clock that jumps; return the seconds that passed on it."""
    return run_fast(play())[1]
