"""One message through the engine again and again, as a mail server asks for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mxpolicy.delivery import events
from mxpolicy.delivery.engine import Engine, Request
from mxpolicy.net.dial import dial
from mxpolicy.options import Options
from mxpolicy.state.memory import MemoryStore
from tests.delivery.attempts import mail_data, run
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import Answer, Script, ScriptedHost

if TYPE_CHECKING:
    from mxpolicy.delivery.events import Event
    from mxpolicy.net.stream import Stream
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate

START = 1_800_000_000.0

# What a host says to one recipient.
LATER = "450 4.2.0 Greylisted"


class Site:
    """An engine, its store, and a domain whose hosts are scripted.

    Args:
        mx: Name, preference and host; a name that comes twice has two addresses.
    """

    def __init__(self, *mx: tuple[str, int, ScriptedHost]) -> None:
        self.now = START
        self.happened: list[Event] = []
        self._ports: dict[str, int] = {}
        addresses: dict[str, list[str]] = {}
        for name, _, host in mx:
            candidate = host.candidate()
            self._ports[candidate.address] = candidate.port
            addresses.setdefault(f"{name}.example.com", []).append(candidate.address)
        records = dict.fromkeys(
            (preference, f"{name}.example.com") for name, preference, _ in mx
        )
        resolver = FakeResolver(mx={"example.com": list(records)}, a=addresses)
        self.engine = Engine(
            Options(helo="mail.example.net", allow_dial=("127.0.0.0/8",)),
            self.happened.append,
            store=MemoryStore(lambda: self.now),
            clock=asyncio.get_running_loop().time,
            utc=lambda: self.now,
            lookups=resolver,
            dial=self._dial,
        )

    async def _dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        there = candidate._replace(port=self._ports[candidate.address])
        return await dial(there, mss=mss)

    async def send(
        self, *names: str, sender: str = "alice@example.net", queue_id: str = "Q"
    ) -> list[Outcome]:
        """Deliver to these users, an hour after the call before."""
        self.now += 3600
        recipients = tuple(f"{name}@example.com" for name in names)
        message = mail_data()
        try:
            request = Request(sender, recipients, "", queue_id, 900.0)
            return await self.engine.deliver(request, message)
        finally:
            message.close()

    def dialled(self) -> list[str]:
        """Return the hosts that were dialled since it was asked last."""
        names = [
            one.candidate.host.partition(".")[0]
            for one in self.happened
            if isinstance(one, events.CandidateStarted)
        ]
        self.happened.clear()
        return names


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [f"{type(one).__name__} {one.status}" for one in outcomes]


def rcpt(**replies: Answer | list[Answer]) -> Script:
    """Return the script of a host that answers these users so."""
    return {f"RCPT {name}@example.com": reply for name, reply in replies.items()}


# -- the order of equal hosts --------------------------------------------------------


def test_equal_hosts_keep_their_order_when_a_recipient_is_settled() -> None:
    hosts = [ScriptedHost(rcpt(bob=LATER, carol=LATER)) for _ in range(4)]

    async def work() -> None:
        site = Site(*((f"mx{place}", 10, host) for place, host in enumerate(hosts)))
        firsts = set()
        for number in range(8):
            message = {"sender": f"s{number}@example.net", "queue_id": f"Q{number}"}
            orders = []
            for _ in range(3):
                await site.send("alice", "bob", "carol", **message)
                orders.append(site.dialled()[:1])
            assert orders[0] == orders[1] == orders[2]
            firsts.add(orders[0][0])
        assert len(firsts) > 1, "the order is not the same for all messages"

    run(*hosts, work=work)
