"""`mxpolicy.delivery.learner`: what the next message knows."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from mxpolicy.delivery import events
from mxpolicy.delivery.host_memory import HOST, TLS, nexthop_key
from mxpolicy.outcome import Deferred, Delivered
from mxpolicy.routing.candidate import Finding, Phase, Verdict
from mxpolicy.routing.host_record import decode
from mxpolicy.state.memory import MemoryStore
from tests.delivery.attempts import run
from tests.delivery.site import Site
from tests.helpers.scripted_smtp import End, ScriptedHost

if TYPE_CHECKING:
    from tests.helpers.scripted_smtp import Answer, Script


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


def test_verdict_of_a_nexthop_holds_for_every_spelling_of_it() -> None:
    hangs = ScriptedHost({"RCPT": [End.CLOSE, "250 ok"]})
    good = ScriptedHost()

    async def work() -> None:
        site = Site(hangs, good)
        await site.send(site.nexthop)
        again = await site.send(site.nexthop.replace("[", "").replace("]", ""))
        assert again.dialled == [good.candidate().address]

    run(hangs, good, work=work)


def test_stalls_of_two_messages_for_one_nexthop_pause_no_other() -> None:
    victim, other = ScriptedHost(), ScriptedHost()

    async def work() -> None:
        site = Site(victim, other)
        stalled = Finding(Verdict.STALLED, Phase.TRANSACTION, 20.0)
        candidate = victim.candidate()
        for message in ("one", "two", "three"):
            learner = site.learner("outsider.example", message)
            learner.learn(events.CandidateFailed(20.0, candidate, stalled))
            await learner.finish()
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
        nexthop = site.aim
        candidate = cuts.candidate()
        doubt = Finding(Verdict.CLOSED, Phase.DOT, 0.1)
        for _ in range(3):
            learner = site.learner(nexthop, "same")
            learner.learn(events.CandidateFailed(0.1, candidate, doubt))
            await learner.finish()
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
        key = nexthop_key(site.aim, host.candidate())
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


class Broken(MemoryStore):
    """A store that breaks its promise where hosts are to be written."""

    async def replace(
        self,
        key: str,
        old: bytes | None,
        new: bytes,
        expires: float,
        weight: int | None = None,
    ) -> bool:
        if key.startswith(HOST):
            raise RuntimeError("a bug of the store's")
        return await super().replace(key, old, new, expires, weight)


def test_bug_in_writing_is_told_and_mail_goes_on() -> None:
    good = ScriptedHost()

    async def work() -> None:
        site = Site(good, store=Broken)
        assert isinstance((await site.send()).outcome, Delivered)
        assert site.troubles()

    run(good, work=work)
