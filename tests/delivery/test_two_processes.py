"""One message given to two deliveries at once: every order of their steps, every kill.

The mail server believes that its client is gone, and calls again: the daemon and a
process of its own may then have the same message. Each step is a visit to the store or
the final dot. All interleavings are played, and in each of them every step may be the
one before which one of the two is killed.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest

from mxpolicy.delivery import own_outcomes
from mxpolicy.delivery.claims import Claims, TakenOver
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.entries import Entries
from mxpolicy.delivery.outcome_notes import OutcomeNotes
from mxpolicy.delivery.owner import Calls, Owner
from mxpolicy.delivery.settlement import RecipientState, Settlement
from mxpolicy.options import Options
from mxpolicy.outcome import Delivered, Outcome
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.state.memory import MemoryStore
from tests.helpers.fast_loop import run_fast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mxpolicy.delivery.settlement import Recipient
    from mxpolicy.state.store import Operation

T = TypeVar("T")

HOST = "mx.example[192.0.2.1]:25"
NOW = 1_000_000.0
TAKEN = Delivered(EnhancedStatus(2, 0, 0), "250 2.0.0 Ok", Reply(250, ("Ok",)), HOST)


class Machine:
    """What all processes have in common: the file, the host, and who lives."""

    def __init__(self) -> None:
        self.rows = MemoryStore(lambda: NOW).rows
        self.dead: set[Owner] = set()
        self.dots = 0
        self.pids = count(1)

    def process(self, *, keeps_claims: bool) -> Process:
        return Process(self, next(self.pids), keeps_claims)


class Process(MemoryStore):
    """A process, and its way to the file: it goes on only as it is let.

    Attributes:
        at_step: What it waits for, before its next step.
    """

    def __init__(self, machine: Machine, pid: int, keeps_claims: bool) -> None:
        super().__init__(lambda: NOW)
        self.rows = machine.rows
        self.machine = machine
        self.owner = Owner("machine", "boot", "pids", pid, 1, "")
        self._numbers = count(1)
        self.calls = Calls(self._call, self.lives, keeps_claims=keeps_claims)
        self.at_step: list[asyncio.Future[None]] = []

    def _call(self) -> Owner:
        return self.owner._replace(call=f"{next(self._numbers)}")

    def lives(self, owner: Owner) -> bool:
        return owner.process not in self.machine.dead

    async def step(self) -> None:
        if self.owner in self.machine.dead:
            raise asyncio.CancelledError
        self.at_step.append(asyncio.get_running_loop().create_future())
        await self.at_step[-1]

    async def do(self, operation: Operation[T]) -> T:
        await self.step()
        return operation.on(self.rows)


class Delivery:
    """One message to one recipient, by the rules of `mxpolicy.delivery.delivery`.

    Attributes:
        has_sent_dot: And it is not noted yet what came of it.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.has_sent_dot = False
        self._settlement = Settlement(["bob@example.com"], self._note)
        context = Context(
            Options(), store=process, utc=lambda: NOW, calls=process.calls
        )
        self._owner = process.calls.begin()
        entries = Entries(context, {0: "journal/a"}, self._owner, 900.0)
        self._claims = Claims(entries, self._settlement, raise_it)
        self._notes = OutcomeNotes(entries, self._settlement, raise_it)

    def _note(self, recipient: Recipient) -> None:
        self._notes.note(recipient)

    async def run(self) -> Outcome:
        await self.process.step()  # the call may come at any moment
        await self._claims.claim([0])
        if self._settlement.those(RecipientState.OPEN, [0]):
            await self._send()
        if self._settlement[0].outcome is None:
            self._settlement.settle(0, own_outcomes.under_way())
        await self._notes.finish()
        self.has_sent_dot = False
        self.process.calls.end(self._owner)
        outcome = self._settlement[0].outcome
        assert outcome is not None
        return outcome

    async def _send(self) -> None:
        try:
            await self._claims.dot_is_next(HOST, [0])
        except TakenOver as error:
            self._settlement.settle(0, own_outcomes.own_trouble(error))
            return
        await self.process.step()
        self.process.machine.dots += 1
        self.has_sent_dot = True
        self._settlement[0].state = RecipientState.TAKEN
        self._settlement.settle(0, TAKEN)


def raise_it(error: Exception) -> None:
    raise error


class Played(NamedTuple):
    """How one order of steps ended.

    Attributes:
        choices: What was chosen at each step, and of how many.
        told: Each outcome that the mail server has heard.
        in_doubt: Deliveries that were killed between their dot and its note.
        killed: All that were killed.
    """

    choices: list[tuple[int, int]]
    told: list[Outcome]
    in_doubt: int
    killed: int


async def play(deliveries: list[Delivery], given: list[int], kills: int) -> Played:
    """Let *deliveries* go on in the order *given*, and then always the first one."""
    tasks = {one: asyncio.ensure_future(one.run()) for one in deliveries}
    choices: list[tuple[int, int]] = []
    in_doubt, killed = 0, set[Delivery]()
    while True:
        for _ in range(12):
            await asyncio.sleep(0)
        waiting = [
            (one.process, step)
            for one in {delivery.process: delivery for delivery in deliveries}.values()
            for step in one.process.at_step
        ]
        if not waiting:
            if all(task.done() for one, task in tasks.items() if one not in killed):
                break
            await asyncio.sleep(0.05)  # one of them tries again in a moment
            continue
        may_kill = len(killed) < kills
        number = len(waiting) * (1 + may_kill)
        choice = given[len(choices)] if len(choices) < len(given) else 0
        choices.append((choice, number))
        process, step = waiting[choice % len(waiting)]
        if choice < len(waiting):
            process.at_step.remove(step)
            step.set_result(None)
            continue
        process.machine.dead.add(process.owner)
        process.at_step.clear()
        its = [one for one in deliveries if one.process is process]
        in_doubt += sum(one.has_sent_dot for one in its)
        killed.update(one for one in its if not tasks[one].done())
    told = [task.result() for one, task in tasks.items() if one not in killed]
    for one in killed:
        tasks[one].cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    return Played(choices, told, in_doubt, len(killed))


def orders(kills: int, keep: tuple[bool, ...], *, one_process: bool) -> Iterator[None]:
    """Play every order, and yield after each; what must hold is asserted."""
    given: list[int] = []
    while True:
        played = run_fast(one_order(given, kills, keep, one_process))[0]
        yield
        given = [choice for choice, _ in played.choices]
        while given and given[-1] + 1 == played.choices[len(given) - 1][1]:
            given.pop()
        if not given:
            return
        given[-1] += 1


async def one_order(
    given: list[int], kills: int, keep: tuple[bool, ...], one_process: bool
) -> Played:
    machine = Machine()
    processes = [machine.process(keeps_claims=one) for one in keep]
    if one_process:
        processes = [processes[0]] * len(processes)
    deliveries = [Delivery(process) for process in processes]
    played = await play(deliveries, given, kills)
    dots = machine.dots
    assert dots <= 1 + played.in_doubt, "a copy without a kill after the dot"
    if any(isinstance(one, Delivered) for one in played.told):
        assert dots >= 1, "told as delivered, and no host has it"
    # The mail server calls again, unless it has heard that all is well.
    last = Delivery(machine.process(keeps_claims=keep[0]))
    again = await play([last], [], 0)
    assert isinstance(again.told[0], Delivered)
    assert 1 <= machine.dots <= 1 + played.in_doubt
    if not played.killed:
        assert machine.dots == 1
    return played


DAEMON_AND_PIPE, TWO_DAEMONS, TWO_PIPES = (True, False), (True, True), (False, False)


@pytest.mark.parametrize(
    ("keep", "one_process", "kills"),
    [
        pytest.param(DAEMON_AND_PIPE, False, 0, id="daemon_and_pipe"),
        pytest.param(DAEMON_AND_PIPE, False, 1, id="daemon_and_pipe_and_a_kill"),
        pytest.param(TWO_DAEMONS, False, 0, id="two_daemons"),
        pytest.param(TWO_DAEMONS, True, 0, id="one_daemon"),
        pytest.param(TWO_DAEMONS, True, 1, id="one_daemon_and_a_kill"),
        pytest.param(TWO_PIPES, False, 0, id="two_pipes"),
    ],
)
def test_no_order_of_steps_makes_a_copy_or_loses_the_message(
    keep: tuple[bool, ...], one_process: bool, kills: int
) -> None:
    assert sum(1 for _ in orders(kills, keep, one_process=one_process)) > 5
