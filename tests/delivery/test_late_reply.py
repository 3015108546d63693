"""A final dot that is answered after its time: what a daemon makes of it, and its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.journal import Entry, EntryState
from mxpolicy.delivery.late_reply import LateReplies
from mxpolicy.delivery.owner import Calls, Owner
from mxpolicy.delivery.request import Request
from mxpolicy.errors import LocalTrouble
from mxpolicy.net.dial import dial
from mxpolicy.options import Options, TransactionOptions
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import JOURNAL
from tests.delivery.attempts import mail_data, run
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import End, Script, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from mxpolicy.delivery.events import Event
    from mxpolicy.net.stream import Stream
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate

START = 1_800_000_000.0
NAMES = ("mx1", "mx2", "mx3")


class Site:
    """Engines over one store, and a domain whose hosts are scripted, by preference."""

    def __init__(self, *hosts: ScriptedHost) -> None:
        loop = asyncio.get_running_loop()
        offset = START - loop.time()
        self.utc: Callable[[], float] = lambda: loop.time() + offset
        self.store = MemoryStore(self.utc)
        self.happened: list[Event] = []
        self.late = LateReplies()
        self.refusals = 0  # of our own kernel, from now on
        self._calls = 0
        self._dead: set[int] = set()
        self._pids = 0
        self._resolver = FakeResolver()
        self._ports = {one.candidate().address: one.port for one in hosts}
        mx = [(10 * place + 10, name) for place, name in enumerate(NAMES[: len(hosts)])]
        self._resolver.mx["example.com"] = [
            (rank, f"{name}.example.com") for rank, name in mx
        ]
        self._resolver.addresses["A"] = {
            f"{name}.example.com": [one.candidate().address]
            for name, one in zip(NAMES, hosts, strict=False)
        }

    def name_host(self, name: str, host: ScriptedHost) -> None:
        """Let *host* be the domain's only one, by that name."""
        self._resolver.mx["example.com"] = [(10, name)]
        self._resolver.addresses["A"][name] = [host.candidate().address]

    def engine(
        self, late: LateReplies | None = None, seconds: float = 3600.0
    ) -> Engine:
        """Return the engine of another process; without *late*, of one that runs alone."""
        self._pids += 1
        process = Owner("machine", "boot", "pids", self._pids, 1, "")
        calls = Calls(
            lambda: process._replace(call=f"{self._new_call()}"),
            lambda owner: owner.pid not in self._dead,
        )
        options = Options(
            helo="mail.example.net",
            allow_dial=("127.0.0.0/8",),
            transaction=TransactionOptions(late_reply=seconds),
        )
        context = Context(
            options,
            store=self.store,
            clock=asyncio.get_running_loop().time,
            utc=self.utc,
            resolver=self._resolver,
            dial=self._dial,
            calls=calls,
            late_replies=late,
        )
        return Engine(context)

    def daemon(self, seconds: float = 3600.0) -> Engine:
        """Return the engine of a daemon."""
        return self.engine(self.late, seconds)

    def kill_all(self) -> None:
        """Let all processes so far be dead, for those that come."""
        self._dead |= set(range(1, self._pids + 1))

    def _new_call(self) -> int:
        self._calls += 1
        return self._calls

    async def _dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        if self.refusals:
            self.refusals -= 1
            raise LocalTrouble("Too many open files")
        there = candidate._replace(port=self._ports[candidate.address])
        return await dial(there, mss=mss)

    async def send(
        self,
        engine: Engine,
        *names: str,
        queue_id: str = "Q",
        after: float = 0.0,
    ) -> list[Outcome]:
        """Deliver to these users of the domain, some seconds from now."""
        await asyncio.sleep(after)
        message = mail_data()
        recipients = tuple(f"{name}@example.com" for name in names or ("bob",))
        request = Request(
            *("alice@example.net", recipients, "", queue_id, 900.0),
            observe=self.happened.append,
        )
        try:
            return await engine.deliver(request, message)
        finally:
            message.close()
            troubles = [one for one in self.happened if isinstance(one, events.Trouble)]
            assert not troubles, troubles[0].text

    def dialled(self) -> list[str]:
        """Return the hosts that were dialled since it was asked last."""
        names = [
            one.candidate.host.partition(".")[0]
            for one in self.happened
            if isinstance(one, events.CandidateStarted)
        ]
        self.happened.clear()
        return names

    def ended(self) -> list[tuple[str, bool, str]]:
        """Return who does not wait any more, has it or not, and why."""
        return [
            (one.recipient.partition("@")[0], one.is_taken, one.text)
            for one in self.happened
            if isinstance(one, events.LateReplyEnded)
        ]


def play(
    *hosts: ScriptedHost, story: Callable[[Site], Coroutine[Any, Any, None]]
) -> None:
    """Let *story* happen; all late replies have ended, or are ended, after it."""

    async def work() -> None:
        site = Site(*hosts)
        await story(site)
        await site.late.stop()
        assert not len(site.late)

    run(*hosts, work=work)


def late(seconds: float, reply: str | End = "250 2.0.0 Ok") -> Script:
    """Return the script of a host that answers each dot so late."""
    return {".": (seconds, reply)}


def is_unanswered(outcome: Outcome, host: str = "mx1") -> bool:
    """Whether *host* did not answer the dot of this attempt."""
    return (
        isinstance(outcome, Deferred)
        and str(outcome.status) == "4.4.2"
        and outcome.text.startswith(f"{host}.example.com[")
        and "message may be sent more than once" in outcome.text
    )


def is_awaited(outcome: Outcome, host: str = "mx1") -> bool:
    """Whether the dot of an earlier attempt may still be answered by *host*."""
    return (
        isinstance(outcome, Deferred)
        and outcome.may_have_arrived
        and str(outcome.status) == "4.4.2"
        and outcome.text.startswith(f"waits for the reply of {host}.example.com[")
        and "to the final dot since 2027-01-15T08:" in outcome.text
    )


# --- a late 250


@pytest.mark.parametrize("seconds", [601.0, 1200.0, 3000.0, 4190.0])
def test_retry_after_a_late_250_ends_as_delivered_without_a_copy(
    seconds: float,
) -> None:
    host = ScriptedHost(late(seconds))

    async def story(site: Site) -> None:
        loop, daemon = asyncio.get_running_loop(), site.daemon()
        began = loop.time()
        (outcome,) = await site.send(daemon)
        assert is_unanswered(outcome)
        assert 600 <= loop.time() - began < 601
        await asyncio.sleep(seconds - (loop.time() - began) + 1)
        assert site.ended() == [("bob", True, "250 2.0.0 Ok")]
        site.dialled()
        (outcome,) = await site.send(daemon, after=3 * 86400.0)
        assert isinstance(outcome, Delivered)
        assert outcome.text == "250 2.0.0 Ok (delivered earlier)"
        assert not site.dialled()
        assert len(host.messages) == 1
        assert host.commands[-1] == "QUIT"

    play(host, story=story)


def test_retry_that_comes_while_it_waits_is_answered_at_once_whoever_runs_it() -> None:
    host = ScriptedHost(late(1800.0))

    async def story(site: Site) -> None:
        loop, daemon, alone = asyncio.get_running_loop(), site.daemon(), site.engine()
        await site.send(daemon)
        site.dialled()
        for engine in (daemon, alone, daemon, alone):
            began = loop.time() + 200
            (outcome,) = await site.send(engine, after=200)
            assert is_awaited(outcome), outcome.text
            assert loop.time() - began < 1
        assert not site.dialled()
        await asyncio.sleep(600)
        for engine in (alone, daemon):
            assert isinstance((await site.send(engine))[0], Delivered)
        assert len(host.messages) == 1

    play(host, story=story)


def test_second_delivery_of_the_same_message_learns_when_the_first_begins_to_wait() -> (
    None
):
    host = ScriptedHost(late(1200.0))

    async def story(site: Site) -> None:
        daemon = site.daemon()
        first = asyncio.create_task(site.send(daemon))
        (outcome,) = await site.send(daemon, after=300)
        assert isinstance(outcome, Deferred)
        assert str(outcome.status) == "4.3.0"  # after journal.wait
        assert not outcome.may_have_arrived
        second = asyncio.create_task(site.send(daemon, after=260))
        assert is_unanswered((await first)[0])
        assert is_awaited((await second)[0])
        assert len(host.messages) == 1

    play(host, story=story)


def test_each_recipient_of_the_dot_waits_and_others_go_on_elsewhere() -> None:
    slow = ScriptedHost({"RCPT carol@example.com": "450 4.2.0 Later"} | late(900.0))
    good = ScriptedHost()

    async def story(site: Site) -> None:
        daemon = site.daemon()
        bob, carol, dave = await site.send(daemon, "bob", "carol", "dave")
        assert is_unanswered(bob)
        assert isinstance(carol, Delivered)
        assert is_unanswered(dave)
        bob, carol, dave = await site.send(daemon, "bob", "carol", "dave")
        assert is_awaited(bob)
        assert isinstance(carol, Delivered)
        assert is_awaited(dave)
        await asyncio.sleep(301)
        assert [who for who, is_taken, _ in site.ended() if is_taken] == ["bob", "dave"]
        outcomes = await site.send(daemon, "bob", "carol", "dave", after=6 * 86400.0)
        assert all(isinstance(one, Delivered) for one in outcomes)
        assert len(slow.messages) == len(good.messages) == 1

    play(slow, good, story=story)


def test_reply_that_comes_while_the_message_goes_on_elsewhere_counts() -> None:
    # Carol's host takes its time, so the delivery lasts longer than Bob's wait.
    slow = ScriptedHost({"RCPT carol@example.com": "450 4.2.0 Later"} | late(650.0))
    slower = ScriptedHost({"RCPT": (200.0, "250 2.1.5 Ok")})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        bob, carol = await site.send(daemon, "bob", "carol")
        assert is_unanswered(bob)
        assert isinstance(carol, Delivered)
        bob, _ = await site.send(daemon, "bob", "carol", after=1)
        assert isinstance(bob, Delivered)
        assert len(slow.messages) == 1

    play(slow, slower, story=story)


def test_host_that_is_late_again_is_listened_to_again() -> None:
    # A second doubt at the only host: no other is left, and the wait begins anew.
    host = ScriptedHost({".": [End.CLOSE, (1200.0, "250 2.0.0 Ok")]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        for _ in range(2):
            assert is_unanswered((await site.send(daemon))[0])
        assert isinstance((await site.send(daemon, after=601))[0], Delivered)
        assert len(host.messages) == 2

    play(host, story=story)


def test_of_two_hosts_in_doubt_either_may_answer() -> None:
    first = ScriptedHost({".": [End.CLOSE, (900.0, "250 2.0.0 First")]})
    other = ScriptedHost({".": [End.CLOSE, (1600.0, "250 2.0.0 Other")]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        assert is_unanswered((await site.send(daemon))[0], "mx1")
        assert is_unanswered((await site.send(daemon))[0], "mx2")
        # Now both are asked, one after the other, and both are late.
        assert is_unanswered((await site.send(daemon))[0], "mx2")
        (outcome,) = await site.send(daemon)
        assert isinstance(outcome, Delivered)
        assert outcome.text.startswith("250 2.0.0 First")
        await asyncio.sleep(2000)
        (outcome,) = await site.send(daemon)
        assert isinstance(outcome, Delivered)
        assert outcome.text.startswith("250 2.0.0 First")
        assert (len(first.messages), len(other.messages)) == (2, 2)

    play(first, other, story=story)


# --- anything else that comes late


@pytest.mark.parametrize(
    "reply", ["451 4.3.0 Later", "554 5.7.1 Spam", "421 4.3.2 Bye"]
)
def test_late_refusal_ends_the_doubt_and_the_next_attempt_asks_others_first(
    reply: str,
) -> None:
    host, other = ScriptedHost(late(900.0, reply)), ScriptedHost()
    other.will({"RCPT": ["450 4.2.0 Later", "550 5.1.1 Who?"]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        await site.send(daemon)
        await asyncio.sleep(301)
        assert site.ended() == [("bob", False, reply)]
        site.dialled()
        host.will({".": "250 2.0.0 Ok"})
        assert isinstance((await site.send(daemon))[0], Delivered)
        assert site.dialled() == ["mx2", "mx1"]

    play(host, other, story=story)


def test_host_that_refuses_late_each_time_does_not_keep_it_from_the_next() -> None:
    host, other = ScriptedHost(late(1200.0, "554 5.7.1 Spam")), ScriptedHost()

    async def story(site: Site) -> None:
        daemon = site.daemon()
        assert is_unanswered((await site.send(daemon))[0])
        assert isinstance((await site.send(daemon, after=700))[0], Delivered)
        assert (len(host.messages), len(other.taken)) == (1, 1)

    play(host, other, story=story)


def test_deferrals_after_a_late_refusal_tell_what_the_host_said() -> None:
    host = ScriptedHost({".": [(1200.0, "554 5.7.1 Spam"), End.CLOSE]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        await site.send(daemon)
        said = "; mx1.example.com[127.0.0.11]:25 said too late: 554 5.7.1 Spam"
        for engine in (daemon, site.engine(), daemon):
            (outcome,) = await site.send(engine, after=1000)
            assert is_unanswered(outcome)
            assert outcome.text.endswith(said), outcome.text

    play(host, story=story)


def test_bounce_does_not_name_a_host_that_has_refused_it_late() -> None:
    host = ScriptedHost(late(900.0, "451 4.3.0 Later"))
    host.will({"RCPT": ["250 2.1.5 Ok", "550 5.1.1 Who?"]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        await site.send(daemon)
        (outcome,) = await site.send(daemon, after=400)
        assert isinstance(outcome, Bounced)
        assert "may have been delivered" not in outcome.text

    play(host, story=story)


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, End.SILENT])
def test_wait_in_vain_ends_in_the_doubt(end: End) -> None:
    host, other = ScriptedHost(late(900.0, end)), ScriptedHost()

    async def story(site: Site) -> None:
        daemon = site.daemon()
        await site.send(daemon)
        # The hour begins when the mail server was told.
        assert is_awaited((await site.send(daemon, after=250))[0])
        await asyncio.sleep(51 if end is not End.SILENT else 3351)
        ((who, is_taken, why),) = site.ended()
        assert (who, is_taken) == ("bob", False)
        assert why
        site.dialled()
        assert isinstance((await site.send(daemon))[0], Delivered)
        assert site.dialled() == ["mx2"]

    play(host, other, story=story)
    assert host.was_reset[0] is (end is End.SILENT)


# --- who does not wait


def test_process_that_runs_alone_asks_again_as_it_always_did() -> None:
    host = ScriptedHost(late(1200.0))

    async def story(site: Site) -> None:
        alone = site.engine()
        for count in (1, 2):
            assert is_unanswered((await site.send(alone, after=1000))[0])
            assert len(host.messages) == count

    play(host, story=story)


def test_option_of_no_time_switches_it_off() -> None:
    host = ScriptedHost(late(601.0))

    async def story(site: Site) -> None:
        daemon = site.daemon(seconds=0.0)
        assert is_unanswered((await site.send(daemon))[0])
        assert not len(site.late)
        assert is_unanswered((await site.send(daemon, after=1000))[0])

    play(host, story=story)


def test_message_that_the_journal_does_not_know_again_is_not_waited_for() -> None:
    host = ScriptedHost(late(601.0))

    async def story(site: Site) -> None:
        assert is_unanswered((await site.send(site.daemon(), queue_id=""))[0])
        assert not len(site.late)

    play(host, story=story)


def test_as_many_wait_as_there_is_room_for() -> None:
    hosts = [ScriptedHost(late(1200.0)) for _ in range(2)]

    async def story(site: Site) -> None:
        site.late = LateReplies(most=3, most_per_host=2)
        daemon = site.daemon()
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                work = site.send(daemon, queue_id=f"Q{number}", after=number)
                group.create_task(work)
        assert len(site.late) == 2
        waits = [
            is_awaited((await site.send(daemon, queue_id=f"Q{number}"))[0])
            for number in range(2)
        ]
        assert waits == [True, True]
        await asyncio.sleep(1000)
        assert not len(site.late)

    play(*hosts, story=story)


def test_one_address_is_one_host_by_whatever_name() -> None:
    host = ScriptedHost(late(1200.0))

    async def story(site: Site) -> None:
        site.late = LateReplies(most_per_host=2)
        daemon = site.daemon()

        async def send_to(number: int) -> None:
            await asyncio.sleep(number)
            site.name_host(f"mx.customer{number}.example", host)
            await site.send(daemon, queue_id=f"Q{number}")

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(send_to(number))
        assert len(site.late) == 2

    play(host, story=story)


# --- the end of the process


def test_kill_while_it_waits_leaves_a_doubt() -> None:
    host, other = ScriptedHost(late(1200.0)), ScriptedHost()

    async def story(site: Site) -> None:
        await site.send(site.daemon())
        site.kill_all()
        site.dialled()
        assert isinstance((await site.send(site.engine()))[0], Delivered)
        assert site.dialled() == ["mx2"]

    play(host, other, story=story)


def test_stop_notes_the_doubt_and_resets_the_connection() -> None:
    host, other = ScriptedHost({".": End.SILENT}), ScriptedHost()

    async def story(site: Site) -> None:
        daemon = site.daemon()
        await site.send(daemon)
        assert len(site.late) == 1
        await site.late.stop()
        assert not len(site.late)
        assert site.ended() == [("bob", False, "stopped by ourselves")]
        site.dialled()
        assert isinstance((await site.send(daemon))[0], Delivered)
        assert site.dialled() == ["mx2"]

    play(host, other, story=story)
    assert host.was_reset[0]


def test_stop_of_the_engine_waits_for_its_deliveries_and_then_for_no_reply() -> None:
    host = ScriptedHost({".": End.SILENT})

    async def story(site: Site) -> None:
        loop, daemon = asyncio.get_running_loop(), site.daemon()
        await site.send(daemon)
        began = loop.time()
        second = asyncio.create_task(site.send(daemon, queue_id="NEXT"))
        await asyncio.sleep(300)
        await daemon.stop("for the test")
        assert 600 <= loop.time() - began < 601
        assert is_unanswered((await second)[0])
        assert not len(site.late)
        assert site.ended() == [("bob", False, "stopped by ourselves")] * 2
        entries = [journal_entry(one.value) for one in await site.store.scan(JOURNAL)]
        assert [one.state for one in entries] == [EntryState.DEFERRED] * 2
        assert all(sum(one.past.doubts.values()) == 1 for one in entries)

    play(host, story=story)


def journal_entry(value: bytes) -> Entry:
    """Decode what must be an entry of the journal."""
    entry = Entry.decode(value)
    assert entry is not None
    return entry


def test_stop_hears_what_has_come_by_then() -> None:
    host = ScriptedHost()

    async def story(site: Site) -> None:
        daemon = site.daemon()
        stopped: list[asyncio.Task[None]] = []

        async def say_it_and_stop(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await asyncio.sleep(900)
            writer.write(b"250 2.0.0 Ok\r\n")
            stopped.append(asyncio.create_task(site.late.stop()))

        host.will({".": (say_it_and_stop,)})
        await site.send(daemon)
        await asyncio.sleep(301)
        await asyncio.gather(*stopped)
        assert site.ended() == [("bob", True, "250 2.0.0 Ok")]

    play(host, story=story)


@pytest.mark.parametrize("steps", range(5))
def test_wait_may_be_ended_twice_at_any_time(steps: int) -> None:
    host = ScriptedHost({".": End.SILENT})

    async def story(site: Site) -> None:
        await site.send(site.daemon())
        first = asyncio.create_task(site.late.stop())
        for _ in range(steps):
            await asyncio.sleep(0)
        await site.late.stop()
        await first
        assert site.ended() == [("bob", False, "stopped by ourselves")]

    play(host, story=story)


def test_stopped_daemon_begins_no_wait() -> None:
    host = ScriptedHost({".": End.SILENT})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        sending = asyncio.create_task(site.send(daemon))
        await asyncio.sleep(300)
        await site.late.stop()
        assert is_unanswered((await sending)[0])
        assert not len(site.late)

    play(host, story=story)
    assert host.was_reset[0]


def test_delivery_is_under_way_until_its_last_wait_has_ended() -> None:
    host = ScriptedHost(late(900.0))

    async def story(site: Site) -> None:
        daemon = site.daemon()
        calls = daemon.context.calls
        owners: list[Owner] = []
        begin = calls.begin

        def noting() -> Owner:
            owners.append(begin())
            return owners[-1]

        calls.begin = noting  # type: ignore[method-assign]
        await site.send(daemon)
        (owner,) = owners
        assert calls.lives(owner)
        await asyncio.sleep(301)
        assert not calls.lives(owner)

    play(host, story=story)


# --- new mail for the same host


@pytest.mark.parametrize(
    "greeting", ["421 4.7.0 Too many", "554 5.7.0 Too many", End.CLOSE]
)
def test_wait_gives_way_to_a_message_that_the_host_has_no_room_for(
    greeting: str | End,
) -> None:
    host = ScriptedHost({".": [(3000.0, "250 2.0.0 Ok"), "250 2.0.0 Ok"]})
    host.will({"CONNECT": ["220 first", greeting, "220 second"]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        await site.send(daemon, queue_id="SLOW")
        (outcome,) = await site.send(daemon, queue_id="NEXT")
        assert isinstance(outcome, Delivered)
        assert [is_taken for _, is_taken, _ in site.ended()] == [False]
        assert len(host.visits) == 3

    play(host, story=story)


def test_wait_gives_way_where_a_host_without_a_place_says_nothing() -> None:
    """Its kernel accepts what nobody serves (tcpserver -c, a limit of master.cf)."""
    places = asyncio.Semaphore(1)

    async def takes_a_place(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await places.acquire()
        writer.write(b"220 at last\r\n")

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)  # to the end of the connection
        finally:
            places.release()

    host = ScriptedHost({"CONNECT": takes_a_place, ".": [waits, "250 2.0.0 Ok"]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        assert is_unanswered((await site.send(daemon, queue_id="SLOW"))[0])
        began = asyncio.get_running_loop().time()
        (outcome,) = await site.send(daemon, queue_id="NEXT")
        assert isinstance(outcome, Delivered)
        assert 19 < asyncio.get_running_loop().time() - began < 22
        assert [is_taken for _, is_taken, _ in site.ended()] == [False]

    play(host, story=story)


def test_wait_does_not_give_way_to_a_host_that_has_greeted() -> None:
    host = ScriptedHost({".": [(3000.0, "250 2.0.0 Ok"), "250 2.0.0 Ok"]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        await site.send(daemon, queue_id="SLOW")
        host.will({"EHLO": (60.0, "250 mx.example.com")})
        (outcome,) = await site.send(daemon, queue_id="NEXT")
        assert isinstance(outcome, Delivered)
        assert not site.ended()

    play(host, story=story)


def test_wait_gives_way_where_we_have_no_descriptor_left() -> None:
    late_one = ScriptedHost({".": [(3000.0, "250 2.0.0 Ok"), "250 2.0.0 Ok"]})

    async def story(site: Site) -> None:
        daemon = site.daemon()
        await site.send(daemon, queue_id="SLOW")
        site.refusals = 1
        (outcome,) = await site.send(daemon, queue_id="NEXT")
        assert isinstance(outcome, Delivered)
        ((_, is_taken, why),) = site.ended()
        assert not is_taken
        assert why == "ended to make room for another session"

    play(late_one, story=story)


def test_host_that_turns_all_away_is_asked_once_where_no_wait_can_give_way() -> None:
    host = ScriptedHost({"CONNECT": "421 4.7.0 Too many"})

    async def story(site: Site) -> None:
        assert isinstance((await site.send(site.daemon()))[0], Deferred)
        assert len(host.visits) == 1

    play(host, story=story)
