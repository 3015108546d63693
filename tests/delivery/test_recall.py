"""`mxpolicy.delivery.recall`: several messages, one memory, real sockets on loopback."""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine, Request
from mxpolicy.delivery.recall import HOST, TLS, Memory, Visit, host_key, nexthop_key
from mxpolicy.delivery.trace import Trace
from mxpolicy.options import MemoryOptions, Options
from mxpolicy.outcome import Deferred, Delivered, Outcome
from mxpolicy.routing.candidate import Finding, Phase, Verdict
from mxpolicy.routing.host_record import HostRecord, decode, encode
from mxpolicy.state.memory import MemoryStore
from tests.delivery.attempts import mail_data, run
from tests.helpers.scripted_smtp import End, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.delivery.events import Event
    from tests.helpers.scripted_smtp import Answer, Script

START = 1_800_000_000.0


class Utc:
    """UTC that goes on with the loop's clock, and can be moved by the test."""

    def __init__(self) -> None:
        self.offset = START - asyncio.get_running_loop().time()

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.offset


class Sent(NamedTuple):
    """What became of a message."""

    outcome: Outcome
    seconds: float
    events: list[Event]

    @property
    def dialled(self) -> list[str]:
        return [
            one.candidate.address
            for one in self.events
            if isinstance(one, events.CandidateStarted)
        ]


class Site:
    """An engine whose memory outlives a message, and hosts by preference."""

    def __init__(
        self,
        *hosts: ScriptedHost,
        options: MemoryOptions | None = None,
        store: type[MemoryStore] = MemoryStore,
        chance: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.hosts = hosts
        self.utc = Utc()
        self.store = store(self.utc)
        self.options = Options(
            helo="mail.example.com",
            allow_dial=("127.0.0.0/8",),
            memory=options or MemoryOptions(),
        )
        self.happened: list[Event] = []
        self.context = Context(
            self.options,
            store=self.store,
            clock=asyncio.get_running_loop().time,
            utc=self.utc,
            chance=chance,
        )
        self.engine = Engine(self.context)
        self.memory = Memory(self.store, self.options.memory, utc=self.utc)
        self.number = 0

    @property
    def nexthop(self) -> str:
        found = [one.candidate() for one in self.hosts]
        return ", ".join(f"[{one.address}]:{one.port}" for one in found)

    async def send(self, nexthop: str = "") -> Sent:
        self.number += 1
        request = Request(
            "alice@example.net",
            ("bob@example.com",),
            nexthop or self.nexthop,
            f"Q{self.number}",
            900.0,
            observe=self.happened.append,
        )
        began, seen = asyncio.get_running_loop().time(), len(self.happened)
        message = mail_data()
        try:
            (outcome,) = await self.engine.deliver(request, message)
        finally:
            message.close()
        settled = [
            one.at
            for one in self.happened[seen:]
            if isinstance(one, events.RecipientSettled)
        ]
        assert asyncio.get_running_loop().time() - began < settled[-1] + 4
        return Sent(outcome, settled[0], self.happened[seen:])

    def visit(self, nexthop: str, message_id: str) -> Visit:
        trace = Trace("", self.context.clock, self.happened.append)
        return Visit(self.memory, self.context, trace, nexthop, message_id)

    async def record(self, host: ScriptedHost) -> HostRecord:
        return decode(await self.store.get(host_key(host.candidate())))

    def troubles(self) -> Sequence[Event]:
        return [one for one in self.happened if isinstance(one, events.Trouble)]


def test_second_message_does_not_wait_for_a_dropped_first_host() -> None:
    dead, good = ScriptedHost(is_filtered=True), ScriptedHost()

    async def work() -> None:
        site = Site(dead, good)
        first, second = await site.send(), await site.send()
        assert isinstance(first.outcome, Delivered)
        assert 1.4 < first.seconds < 2
        assert isinstance(second.outcome, Delivered)
        assert second.seconds < 0.3
        assert second.dialled == [good.candidate().address]
        record = await site.record(dead)
        assert record.verdict is not None
        assert not record.full
        assert not site.troubles()

    run(dead, good, work=work)


def test_second_message_does_not_wait_for_a_silent_first_host() -> None:
    silent, good = ScriptedHost({"CONNECT": End.SILENT}), ScriptedHost()

    async def work() -> None:
        site = Site(silent, good)
        first, second = await site.send(), await site.send()
        assert 7.5 < first.seconds < 9
        assert second.seconds < 0.3
        assert second.dialled == [good.candidate().address]

    run(silent, good, work=work)


def test_all_dead_hosts_defer_at_once_and_are_asked_again_after_the_pause() -> None:
    dead, refused = ScriptedHost(is_filtered=True), ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site(dead, refused)
        first, second = await site.send(), await site.send()
        assert isinstance(first.outcome, Deferred)
        assert isinstance(second.outcome, Deferred)
        assert second.dialled == []
        assert second.seconds < 0.1
        assert str(second.outcome.status) == "4.4.1"
        assert "filtered" in second.outcome.text
        assert "refused" in second.outcome.text
        assert " ago" in second.outcome.text
        site.utc.offset += 61
        third = await site.send()
        assert len(third.dialled) == 2
        assert (await site.record(refused)).pause == 120
        assert not site.troubles()

    run(dead, refused, work=work)


def test_all_dead_hosts_are_asked_again_where_that_is_wanted() -> None:
    refused = ScriptedHost(is_refused=True)

    async def work() -> None:
        site = Site(refused, options=MemoryOptions(fast_deferral=False))
        await site.send()
        assert len((await site.send()).dialled) == 1

    run(refused, work=work)


def test_doubted_host_alone_is_never_deferred_without_being_asked() -> None:
    slow, good = ScriptedHost({"CONNECT": (9.0, "220 hello")}), ScriptedHost()

    async def work() -> None:
        site = Site(slow, good)
        await site.send()
        assert (await site.record(slow)).verdict is not None
        only = slow.candidate()
        sent = await site.send(f"[{only.address}]:{only.port}")
        assert isinstance(sent.outcome, Delivered)
        record = await site.record(slow)
        assert record.verdict is None
        assert 8.9 < (record.greeting_latency or 0) < 9.1
        # And now it is known how long it takes, and nobody overtakes it.
        third = await site.send()
        assert third.dialled == [only.address]
        assert len(slow.taken) == 2

    run(slow, good, work=work)


def test_recovered_host_is_found_by_a_probe_that_delays_nobody() -> None:
    first, good = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]}), ScriptedHost()

    async def work() -> None:
        site = Site(first, good)
        await site.send()
        assert (await site.record(first)).full
        site.utc.offset += 61
        probing = await site.send()
        assert isinstance(probing.outcome, Delivered)
        assert probing.seconds < 0.3
        assert probing.dialled == [good.candidate().address]
        assert first.visits[1] == ["EHLO mail.example.com", "QUIT"]
        assert (await site.record(first)).verdict is None
        after = await site.send()
        assert after.dialled == [first.candidate().address]

    run(first, good, work=work)


def test_probe_of_a_dead_host_ends_soon_after_the_message() -> None:
    dead, good = ScriptedHost(is_filtered=True), ScriptedHost()

    async def work() -> None:
        site = Site(dead, good)
        await site.send()
        site.utc.offset += 61
        loop = asyncio.get_running_loop()
        began = loop.time()
        sent = await site.send()
        assert sent.seconds < 0.3
        assert 2.9 < loop.time() - began < 3.5
        # No answer to three SYNs: the pause begins anew, and nobody else probes.
        began = loop.time()
        await site.send()
        assert loop.time() - began < 0.3

    run(dead, good, work=work)


def test_one_of_many_probes_and_one_of_many_goes_ahead() -> None:
    back = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        site = Site(back)
        await site.send()
        site.utc.offset += 61
        loop = asyncio.get_running_loop()
        ends: list[float] = []

        async def send() -> None:
            sent = await site.send()
            assert isinstance(sent.outcome, Delivered)
            ends.append(loop.time() - began)

        began = loop.time()
        await asyncio.gather(*(send() for _ in range(12)))
        assert len(back.taken) == 12
        # One went ahead; the others came when it was known that they may.
        assert sum(end < 0.2 for end in ends) == 1
        assert max(ends) < 0.6

    run(back, work=work)


def test_lease_of_a_dead_process_is_waited_for_and_then_the_host_is_dialled() -> None:
    back = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})

    async def work() -> None:
        site = Site(back)
        await site.send()
        site.utc.offset += 61
        await site.memory.lease(host_key(back.candidate()))
        sent = await site.send()
        assert isinstance(sent.outcome, Delivered)
        assert 14.9 < sent.seconds < 15.7

    run(back, work=work)


def test_host_that_another_message_probes_slowly_is_dialled_by_those_who_waited() -> (
    None
):
    slow = ScriptedHost({"CONNECT": [End.CLOSE, (20.0, "220 hello")]})

    async def work() -> None:
        site = Site(slow)
        await site.send()
        site.utc.offset += 61
        sent = await asyncio.gather(*(site.send() for _ in range(8)))
        assert all(isinstance(one.outcome, Delivered) for one in sent)
        assert len(slow.visits) == 1 + 8
        assert not site.troubles()

    run(slow, work=work)


def test_those_who_waited_do_not_dial_all_at_once() -> None:
    slow = ScriptedHost({"CONNECT": [End.CLOSE, (20.0, "220 hello")]})

    async def work() -> None:
        site = Site(slow, chance=random.Random(1).random)
        await site.send()
        site.utc.offset += 61
        seen = len(site.happened)
        await asyncio.gather(*(site.send() for _ in range(8)))
        dialled = [
            one.at
            for one in site.happened[seen:]
            if isinstance(one, events.CandidateStarted)
        ]
        first, *others = dialled
        assert first < 0.2
        assert len(others) == 7
        assert 11.9 < min(others) < max(others) < 15.7
        assert len({round(one) for one in others}) > 2

    run(slow, work=work)


def test_those_who_wait_are_deferred_when_the_probe_has_failed_meanwhile() -> None:
    dead = ScriptedHost({"CONNECT": [End.CLOSE, (5.0, End.CLOSE), "220 hello"]})

    async def work() -> None:
        site = Site(dead)
        await site.send()
        site.utc.offset += 61
        sent = await asyncio.gather(*(site.send() for _ in range(8)))
        assert all(isinstance(one.outcome, Deferred) for one in sent)
        assert len(dead.visits) == 2
        assert max(one.seconds for one in sent) < 5.7

    run(dead, work=work)


def test_lease_taken_before_the_clock_was_set_back_is_none() -> None:
    async def work() -> None:
        site = Site()
        memory = Memory(site.store, MemoryOptions(), utc=site.utc)
        assert await memory.lease("host x")
        site.utc.offset -= 86400
        assert await memory.lease("host x")
        assert not await memory.lease("host x")

    run(work=work)


def test_verdict_of_a_transaction_is_kept_for_its_nexthop_only() -> None:
    hangs = ScriptedHost({"RCPT": [End.CLOSE, "250 ok"]})
    good = ScriptedHost()

    async def work() -> None:
        site = Site(hangs, good)
        await site.send()
        assert (await site.record(hangs)).verdict is None
        again = await site.send()
        assert again.dialled == [good.candidate().address]
        # Another nexthop with the same host.
        only = hangs.candidate()
        elsewhere = await site.send(f"[{only.address}]:{only.port}")
        assert elsewhere.dialled == [only.address]

    run(hangs, good, work=work)


def test_stalls_of_two_messages_for_one_nexthop_pause_no_other() -> None:
    victim, other = ScriptedHost(), ScriptedHost()

    async def work() -> None:
        site = Site(victim, other)
        stalled = Finding(Verdict.STALLED, Phase.TRANSACTION, 20.0)
        candidate = victim.candidate()
        for message in ("one", "two", "three"):
            visit = site.visit("outsider.example", message)
            visit.learn(events.CandidateFailed(20.0, candidate, stalled))
            await visit.finish(0.0)
        known = await site.memory.advise("outsider.example", [candidate])
        assert not known.is_hopeless
        row = decode(await site.store.get(nexthop_key("outsider.example", candidate)))
        assert row.verdict is Verdict.STALLED
        assert (await site.record(victim)).verdict is None
        assert (await site.send()).dialled == [candidate.address]

    run(victim, other, work=work)


def test_host_that_cuts_at_the_dot_is_passed_by_the_third_message() -> None:
    cuts, good = ScriptedHost({".": End.CLOSE}), ScriptedHost()

    async def work() -> None:
        site = Site(cuts, good)
        for _ in range(2):
            assert isinstance((await site.send()).outcome, Deferred)
            site.utc.offset += 1
        third = await site.send()
        assert isinstance(third.outcome, Delivered)
        assert third.dialled == [good.candidate().address]
        # For mail to another nexthop it is where preference puts it.
        only = cuts.candidate()
        elsewhere = await site.send(f"[{only.address}]:{only.port}")
        assert elsewhere.dialled == [only.address]

    run(cuts, good, work=work)


def test_retries_of_one_message_that_is_cut_at_the_dot_reorder_nothing() -> None:
    cuts, good = ScriptedHost({".": End.CLOSE}), ScriptedHost()

    async def work() -> None:
        site = Site(cuts, good)
        nexthop = site.nexthop
        candidate = cuts.candidate()
        doubt = Finding(Verdict.CLOSED, Phase.DOT, 0.1)
        for _ in range(3):
            visit = site.visit(nexthop, "same")
            visit.learn(events.CandidateFailed(0.1, candidate, doubt))
            await visit.finish(0.0)
        assert (await site.send()).dialled == [candidate.address]

    run(cuts, good, work=work)


def test_one_message_taken_clears_the_doubt_at_the_dot() -> None:
    cuts = ScriptedHost({".": [End.CLOSE, "250 ok", End.CLOSE, "250 ok"]})
    good = ScriptedHost()

    async def work() -> None:
        site = Site(cuts, good)
        for expected in (Deferred, Delivered, Deferred, Delivered):
            sent = await site.send()
            assert isinstance(sent.outcome, expected)
            assert sent.dialled == [cuts.candidate().address]

    run(cuts, good, work=work)


@pytest.mark.parametrize("asked", ["CONNECT", "EHLO"])
def test_too_many_connections_put_off_no_message_unasked(asked: str) -> None:
    good = "220 hello" if asked == "CONNECT" else "250 hello"
    busy = ScriptedHost({asked: [good, *["421 4.7.0 too many"] * 19, good]})

    async def work() -> None:
        site = Site(busy)
        assert isinstance((await site.send()).outcome, Delivered)
        for _ in range(19):
            site.utc.offset += 2
            sent = await site.send()
            assert isinstance(sent.outcome, Deferred)
            assert sent.dialled == [busy.candidate().address]
        assert isinstance((await site.send()).outcome, Delivered)

    run(busy, work=work)


def test_too_many_connections_of_a_cold_slow_greeter_put_off_no_message_unasked() -> (
    None
):
    busy = ScriptedHost(
        {"CONNECT": [*[(6.0, "220 hello")] * 5, *["421 4.7.0 too many"] * 15]}
    )

    async def work() -> None:
        site = Site(busy)

        async def send(after: float) -> Sent:
            await asyncio.sleep(after)
            return await site.send()

        sent = await asyncio.gather(*(send(number / 4) for number in range(20)))
        assert sum(isinstance(one.outcome, Delivered) for one in sent) == 5
        assert len(busy.visits) == 20

    run(busy, work=work)


NO_CERTIFICATE = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
"""Every handshake fails."""

WANTS_TLS = "530 5.7.0 Must issue a STARTTLS command first"


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example.com").configure_cert(made)
    return made


def starttls_in(host: ScriptedHost) -> list[int]:
    """Return how often STARTTLS was said in each visit."""
    return [visit.count("STARTTLS") for visit in host.visits]


def test_starttls_that_failed_for_two_messages_is_left_out_for_an_hour() -> None:
    broken = ScriptedHost(context=NO_CERTIFICATE)

    async def work() -> None:
        site = Site(broken)
        for _ in range(4):
            assert isinstance((await site.send()).outcome, Delivered)
        assert starttls_in(broken) == [1, 0, 1, 0, 0, 0]
        site.utc.offset += 3601
        # It is tried again, and that it fails once more renews it.
        for _ in range(2):
            assert isinstance((await site.send()).outcome, Delivered)
        assert starttls_in(broken)[6:] == [1, 0, 0]

    run(broken, work=work)


def test_one_lost_handshake_is_no_broken_starttls(context: ssl.SSLContext) -> None:
    host = ScriptedHost({"STARTTLS": [End.CLOSE, "220 go"]}, context=context)

    async def work() -> None:
        site = Site(host)
        for _ in range(3):
            assert isinstance((await site.send()).outcome, Delivered)
        assert starttls_in(host) == [1, 0, 1, 1]
        # Nor is one more: there was a session under TLS between them.
        assert not await site.store.scan(TLS)

    run(host, work=work)


def test_handshakes_lost_by_one_message_are_no_broken_starttls() -> None:
    broken = ScriptedHost(context=NO_CERTIFICATE)

    async def work() -> None:
        site = Site(broken)
        for _ in range(3):
            site.number = 0
            await site.send()
            for row in await site.store.scan("journal"):
                await site.store.delete(row.key)
        assert len(broken.taken) == 3
        assert starttls_in(broken) == [1, 0] * 3

    run(broken, work=work)


def test_broken_starttls_under_one_name_says_nothing_of_another() -> None:
    host = ScriptedHost(context=NO_CERTIFICATE)

    async def work() -> None:
        site = Site(host)
        ours = host.candidate()
        theirs = ours._replace(host="unknown.evil.example.net")
        memory = site.memory
        for message in ("one", "two"):
            await memory.note_broken_tls(theirs, message)
        known = await memory.advise("example.com", [ours, theirs])
        broken = [known.is_tls_broken(one) for one in (ours, theirs)]
        assert broken == [False, True]

    run(host, work=work)


@pytest.mark.parametrize(
    "second", ["421 4.7.0 too fast", "554 no", End.CLOSE, End.RESET]
)
@pytest.mark.parametrize("when", ["in clear", "small segments", "TLS wanted"])
def test_connection_refused_after_broken_starttls_is_not_kept_for_all_mail(
    when: str, second: str | End
) -> None:
    greetings: list[Answer] = ["220 hi", second]
    script: Script = {"STARTTLS": End.CLOSE}
    if when == "small segments":
        script = {"STARTTLS": ("220 go", End.SILENT)}
        # Its handshake had our patience only, so it is asked once more in the end.
        greetings += [second, "220 hi", second]
    elif when == "TLS wanted":
        script |= {"MAIL": WANTS_TLS}
        greetings.insert(0, "220 hi")
    host = ScriptedHost({**script, "CONNECT": greetings}, context=NO_CERTIFICATE)

    async def work() -> None:
        site = Site(host)
        assert isinstance((await site.send()).outcome, Deferred)
        assert (await site.record(host)).verdict is None
        key = nexthop_key(site.nexthop, host.candidate())
        assert decode(await site.store.get(key)).phase is Phase.TLS
        seen = len(host.visits)
        await site.send()
        assert len(host.visits) > seen

    run(host, work=work)


@pytest.mark.parametrize("asked", ["MAIL", "RCPT", "DATA", "."])
def test_starttls_that_failed_is_not_remembered_unless_the_message_was_taken(
    asked: str,
) -> None:
    broken = ScriptedHost({asked: "450 4.2.0 not now"}, context=NO_CERTIFICATE)

    async def work() -> None:
        site = Site(broken)
        for _ in range(3):
            assert isinstance((await site.send()).outcome, Deferred)
            assert not await site.store.scan(TLS)
        assert starttls_in(broken) == [1, 0] * 3

    run(broken, work=work)


def test_host_that_comes_to_want_tls_gets_it_in_the_same_attempt(
    context: ssl.SSLContext,
) -> None:
    host = ScriptedHost(
        {
            "STARTTLS": [End.CLOSE, End.CLOSE, "220 go"],
            "MAIL": ["250 ok", "250 ok", WANTS_TLS, "250 ok"],
        },
        context=context,
    )

    async def work() -> None:
        site = Site(host)
        for _ in range(4):
            assert isinstance((await site.send()).outcome, Delivered)
        # The third is in clear by memory, refused, and goes under TLS at once.
        assert starttls_in(host) == [1, 0, 1, 0, 0, 1, 1]
        assert not await site.store.scan(TLS)
        assert not site.troubles()

    run(host, work=work)


def test_host_that_wants_tls_and_breaks_it_is_dialled_by_each_message() -> None:
    host = ScriptedHost({"MAIL": WANTS_TLS}, context=NO_CERTIFICATE)

    async def work() -> None:
        site = Site(host)
        for number in range(1, 4):
            sent = await site.send()
            assert isinstance(sent.outcome, Deferred)
            assert str(sent.outcome.status) == "4.7.5"
            assert starttls_in(host) == [1, 0, 1] * number

    run(host, work=work)


def test_refusal_of_a_backup_does_not_bounce_while_the_better_one_is_paused() -> None:
    primary = ScriptedHost({"CONNECT": [End.CLOSE, "220 hello"]})
    backup = ScriptedHost({"RCPT": ["250 ok", "550 5.1.1 stale list of users"]})

    async def work() -> None:
        site = Site(primary, backup)
        assert isinstance((await site.send()).outcome, Delivered)
        second = await site.send()
        assert isinstance(second.outcome, Delivered), second
        assert len(primary.taken) == 1

    run(primary, backup, work=work)


class Broken(MemoryStore):
    """A store that breaks its promise where hosts are to be written."""

    async def add(
        self, key: str, value: bytes, expires: float, *, weight: int | None = None
    ) -> bool:
        if key.startswith(HOST):
            raise RuntimeError("a bug of the store's")
        return await super().add(key, value, expires, weight=weight)


def test_bug_in_writing_is_told_and_mail_goes_on() -> None:
    good = ScriptedHost()

    async def work() -> None:
        site = Site(good, store=Broken)
        assert isinstance((await site.send()).outcome, Delivered)
        assert site.troubles()

    run(good, work=work)


def test_cancelled_delivery_leaves_no_probe_behind() -> None:
    dead, hangs = ScriptedHost(is_filtered=True), ScriptedHost({"MAIL": End.SILENT})

    async def work() -> None:
        site = Site(dead, hangs)
        value = encode(HostRecord(Verdict.FILTERED, since=site.utc() - 61, pause=60))
        await site.store.put(host_key(dead.candidate()), value, START * 2)
        task = asyncio.create_task(site.send())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(dead, hangs, work=work)
