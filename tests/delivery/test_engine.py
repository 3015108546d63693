"""`mxpolicy.delivery.engine`: messages from the mail server's call to their outcomes.

Real hosts on loopback, a table in place of DNS, a clock that jumps. What a host or a
journal may do in detail is in the modules' own tests; here is what joins them.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import pytest

from mxpolicy.delivery import events
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.log import Log
from mxpolicy.delivery.mail_data import MailData
from mxpolicy.delivery.owner import Calls, Owner
from mxpolicy.delivery.request import Request
from mxpolicy.errors import StoreError
from mxpolicy.net.dial import dial
from mxpolicy.options import JournalOptions, LogOptions, Options
from mxpolicy.outcome import Deferred
from mxpolicy.protocol.smtp_states import DOT_TIME
from mxpolicy.state.fallback import FallbackStore
from mxpolicy.state.memory import MemoryStore
from mxpolicy.state.store import JOURNAL, Store, is_of_journal
from tests.delivery.attempts import mail_data, run
from tests.helpers.failing_store import FailingStore
from tests.helpers.fake_resolver import FakeResolver
from tests.helpers.scripted_smtp import End, Script, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path
    from typing import Any, TypeVar

    from mxpolicy.net.stream import Stream
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate

    T = TypeVar("T")

START = 1_800_000_000.0
WHY = "the client has gone"
PROCESSES = ("us", "them")


class Site:
    """An engine, and domains whose hosts are scripted.

    Args:
        domains: Domain -> its hosts, the best first.
        store: By default one that never fails.
        owner: Which process the engine believes to be.

    Attributes:
        happened: What every request's observer was told.
    """

    def __init__(
        self,
        domains: Mapping[str, Sequence[ScriptedHost]],
        *,
        store: Store | None = None,
        owner: str = "us",
        alive: Sequence[str] = ("us",),
    ) -> None:
        self.resolver = FakeResolver()
        self.happened: list[events.Event] = []
        self.now = START
        self.store = store or MemoryStore(lambda: self.now)
        self.alive = list(alive)
        self._numbers = count(1)
        pid = PROCESSES.index(owner)
        self._ports: dict[str, int] = {}
        for domain, hosts in domains.items():
            names = [f"mx{place}.{domain}" for place in range(1, len(hosts) + 1)]
            self.resolver.mx[domain] = [
                (10 * place, name) for place, name in enumerate(names, 1)
            ]
            for name, host in zip(names, hosts, strict=True):
                candidate = host.candidate()
                self._ports[candidate.address] = candidate.port
                addresses = {name: [candidate.address]}
                self.resolver.addresses["A"] |= addresses
        self.context = Context(
            Options(
                helo="us.example.net",
                allow_dial=("127.0.0.0/8",),
                journal=JournalOptions(wait=3.0),
            ),
            store=self.store,
            resolver=self.resolver,
            dial=self._dial,
            clock=asyncio.get_running_loop().time,
            utc=lambda: self.now,
            chance=lambda: 0.0,
            calls=Calls(
                lambda: Owner("m", "b", "n", pid, 1, str(next(self._numbers))),
                lambda other: PROCESSES[other.pid] in self.alive,
            ),
        )
        self.engine = Engine(self.context)

    async def _dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        there = candidate._replace(port=self._ports[candidate.address])
        return await dial(there, mss=mss)

    def request(self, *recipients: str, **more: Any) -> Request:
        """Return a request, told to `happened`."""
        usual = Request(
            "alice@example.net",
            recipients or ("bob@one.example",),
            "",
            "4bXyz1",
            900.0,
            observe=self.happened.append,
        )
        return usual._replace(**more)

    async def send(self, *recipients: str, **more: Any) -> list[Outcome]:
        """Deliver, and return the outcomes."""
        with closing(mail_data()) as message:
            return await self.engine.deliver(self.request(*recipients, **more), message)

    def all(self, kind: type[T]) -> list[T]:
        """The events of one kind."""
        return [event for event in self.happened if isinstance(event, kind)]

    def settled(self) -> list[tuple[str, str]]:
        """Return (recipient, outcome) as observed."""
        return [
            (one.recipient, status(one.outcome))
            for one in self.all(events.RecipientSettled)
        ]

    async def journal(self) -> list[str]:
        """Return the state of every entry of the journal."""
        rows = await self.store.scan(JOURNAL)
        return sorted(row.value.decode().split("\t")[1] for row in rows)


def status(outcome: Outcome) -> str:
    return f"{type(outcome).__name__} {outcome.status}"


def play(
    work: Callable[[Site], Coroutine[Any, Any, T]],
    domains: Mapping[str, Sequence[ScriptedHost]] | None = None,
    **more: Any,
) -> T:
    """Run *work* with a site; its hosts may be named by *domains*."""
    domains = {"one.example": [ScriptedHost()]} if domains is None else domains
    hosts = [host for some in domains.values() for host in some]

    async def main() -> T:
        return await work(Site(domains, **more))

    return run(*hosts, work=main)


# -- what would become of a message -----------------------------------------------------


def test_plan_has_the_hosts_in_order_and_dials_none() -> None:
    hosts = [ScriptedHost(), ScriptedHost()]

    async def work(site: Site) -> None:
        plan = await site.engine.plan("", "", "bob@one.example")
        names = [one.host for one in plan.candidates]
        assert names == ["mx1.one.example", "mx2.one.example"]
        assert plan.refusal is None
        assert not await site.store.scan("")

    play(work, {"one.example": hosts})
    assert not any(host.visits for host in hosts)


@pytest.mark.parametrize(
    ("nexthop", "sender", "recipient", "expected"),
    [
        pytest.param("", "a@b\r\n", "bob@one.example", "Bounced 5.1.7", id="sender"),
        pytest.param("", "", "@@", "Bounced 5.1.3", id="recipient"),
        pytest.param("[one", "", "bob@one.example", "Deferred 4.3.5", id="nexthop"),
        pytest.param("", "", "bob@no.example", "Bounced 5.1.2", id="no_domain"),
        pytest.param("no.example", "", "bob@x.example", "Deferred 4.3.5", id="operators"),
    ],
)  # fmt: skip
def test_plan_and_forecast_and_delivery_refuse_alike(
    nexthop: str, sender: str, recipient: str, expected: str
) -> None:
    async def work(site: Site) -> None:
        plan = await site.engine.plan(nexthop, sender, recipient)
        forecast = await site.engine.forecast(nexthop, sender, recipient)
        (outcome,) = await site.send(recipient, nexthop=nexthop, sender=sender)
        for refusal in (plan.refusal, forecast.plan.refusal, outcome):
            assert refusal is not None
            assert status(refusal) == expected

    play(work)


def test_forecast_says_what_the_memory_makes_of_a_message_and_writes_nothing() -> None:
    host = ScriptedHost(is_refused=True)

    async def work(site: Site) -> None:
        await site.send(queue_id="other")
        rows = await site.store.scan("")
        forecast = await site.engine.forecast("", "", "bob@one.example")
        assert forecast.plan.refusal is not None
        assert "no host can be reached" in forecast.plan.refusal.text
        assert await site.store.scan("") == rows
        (outcome,) = await site.send()
        assert outcome.text.startswith("no host can be reached, as was found before")
        assert len(site.all(events.CandidateStarted)) == 1

    play(work, {"one.example": [host]})


# -- one message -----------------------------------------------------------------------


def test_message_is_delivered_and_each_event_carries_its_queue_id() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        (outcome,) = await site.send()
        assert status(outcome) == "Delivered 2.0.0"
        assert site.settled() == [("bob@one.example", "Delivered 2.0.0")]
        assert {type(one) for one in site.happened} >= {
            events.Planned,
            events.CandidateStarted,
            events.PhaseReached,
            events.CandidateTaken,
            events.RecipientSettled,
        }
        assert {one.queue_id for one in site.happened} == {"4bXyz1"}
        times = [one.at for one in site.happened]
        assert times == sorted(times)

    play(work, {"one.example": [host]})
    assert host.taken[0].forward_paths == ("bob@one.example",)


def test_recipients_of_one_domain_go_in_one_transaction() -> None:
    host = ScriptedHost({"RCPT carol@one.example": "550 5.1.1 who?"})
    to = ("bob@one.example", "carol@one.example", "dave@one.example", "bob@one.example")
    outcomes = play(lambda site: site.send(*to), {"one.example": [host]})
    assert [status(one) for one in outcomes] == [
        "Delivered 2.0.0",
        "Bounced 5.1.1",
        "Delivered 2.0.0",
        "Delivered 2.0.0",
    ]
    assert [one.forward_paths for one in host.taken] == [(to[0], to[2], to[3])]


def test_each_domain_goes_to_its_own_hosts_and_bad_news_of_one_holds_for_no_other() -> (
    None
):
    first, silent = ScriptedHost(), ScriptedHost({"CONNECT": End.SILENT})
    other = ScriptedHost({"MAIL": "451 4.3.0 later"})
    domains = {"one.example": [first], "two.example": [other], "six.example": [silent]}
    to = ("x@six.example", "x@two.example", "x@no.example", "x@one.example", "@@")
    outcomes = play(lambda site: site.send(*to), domains)
    assert [status(one) for one in outcomes] == [
        "Deferred 4.4.2",
        "Deferred 4.3.0",
        "Bounced 5.1.2",
        "Delivered 2.0.0",
        "Bounced 5.1.3",
    ]
    assert [one.forward_paths for one in first.taken] == [("x@one.example",)]


def test_recipient_that_needs_smtputf8_goes_by_itself() -> None:
    host = ScriptedHost()  # offers no SMTPUTF8
    outcomes = play(
        lambda site: site.send("bob@one.example", "j\u00f8rn@one.example"),
        {"one.example": [host]},
    )
    assert [status(one) for one in outcomes] == ["Delivered 2.0.0", "Bounced 5.6.7"]


def test_message_that_goes_in_circles_is_bounced_before_any_lookup() -> None:
    async def work(site: Site) -> Outcome:
        with closing(mail_data(b"Received: x\r\n" * 60 + b"\r\n")) as message:
            (outcome,) = await site.engine.deliver(site.request(), message)
        assert not site.resolver.asked
        return outcome

    assert status(play(work)) == "Bounced 5.4.6"


def test_nexthop_of_the_operator_takes_all_recipients() -> None:
    relay = ScriptedHost()
    to = ("x@somewhere.example", "y@elsewhere.example")
    outcomes = play(
        lambda site: site.send(*to, nexthop="one.example"), {"one.example": [relay]}
    )
    assert [status(one) for one in outcomes] == ["Delivered 2.0.0"] * 2
    assert [one.forward_paths for one in relay.taken] == [to]


# -- the same message again, and at the same time ----------------------------------------


def test_earlier_outcome_is_told_again_and_nothing_is_dialled() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        site.happened.clear()
        (outcome,) = await site.send()
        assert outcome.text.endswith("(delivered earlier)")
        assert site.settled() == [("bob@one.example", "Delivered 2.0.0")]
        assert not site.all(events.CandidateStarted)

    play(work, {"one.example": [host]})
    assert len(host.taken) == 1


@pytest.mark.parametrize("ends", [True, False])
def test_recipient_that_another_process_delivers_to_is_waited_for(ends: bool) -> None:
    # The other one is in its transaction for ever, or dies in it before the dot.
    host = ScriptedHost({"RCPT": [(2.0, "250 ok"), "250 ok"]})
    domains = {"one.example": [host], "two.example": [ScriptedHost()]}

    async def main() -> list[Outcome]:
        theirs = Site(domains, owner="them", alive=("us", "them"))
        site = Site(domains, store=theirs.store, alive=("us", "them"))
        task = asyncio.create_task(theirs.send())
        await asyncio.sleep(0.1)
        if ends:
            site.alive.remove("them")
            task.cancel()
        outcomes = await site.send("bob@one.example", "carol@two.example")
        assert ends or site.all(events.RecipientSettled)[0].recipient[:5] == "carol"
        await asyncio.gather(task, return_exceptions=True)
        return outcomes

    hosts = [host for some in domains.values() for host in some]
    outcomes = run(*hosts, work=main)
    assert [status(one) for one in outcomes] == ["Delivered 2.0.0"] * 2
    assert outcomes[0].text.endswith("(delivered earlier)") is not ends
    assert len(host.taken) == 1


def test_recipient_that_stays_with_another_process_is_deferred() -> None:
    host = ScriptedHost({"RCPT": End.SILENT})

    async def main() -> None:
        theirs = Site({"one.example": [host]}, owner="them", alive=("us", "them"))
        site = Site({"one.example": [host]}, store=theirs.store, alive=("us", "them"))
        task = asyncio.create_task(theirs.send())
        await asyncio.sleep(0.1)
        (outcome,) = await site.send()
        assert status(outcome) == "Deferred 4.3.0"
        assert "another delivery of this message is under way" in outcome.text
        assert site.all(events.RecipientSettled)[0].at >= 3
        assert await site.journal() == ["claimed"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(host, work=main)
    assert len(host.visits) == 1


def test_two_messages_at_once_have_a_log_line_each_with_their_own_queue_id(
    tmp_path: Path,
) -> None:
    hosts = [ScriptedHost({"RCPT": (2.0, "250 ok")}), ScriptedHost({"RCPT": "450 no"})]
    domains = {"one.example": hosts[:1], "two.example": hosts[1:]}
    path = tmp_path / "log"

    async def work(site: Site) -> None:
        with Log(LogOptions(to=str(path))) as log:
            await asyncio.gather(
                site.send("b@one.example", queue_id="FIRST", observe=log.observe),
                site.send("b@two.example", queue_id="SECOND", observe=log.observe),
            )

    play(work, domains)
    lines = [line.split("]: ", 1)[1] for line in path.read_text().splitlines()]
    assert [line.partition(", ")[0] for line in lines] == [
        "SECOND: to=<b@two.example>",
        "FIRST: to=<b@one.example>",
    ]


def test_every_step_of_two_messages_at_once_is_told_to_its_own_observer(
    tmp_path: Path,
) -> None:
    hosts = [ScriptedHost(), ScriptedHost()]
    domains = {"one.example": hosts[:1], "two.example": hosts[1:]}
    told: dict[str, list[events.Event]] = {"1": [], "2": []}

    async def work(site: Site) -> None:
        await asyncio.gather(
            site.send("b@one.example", queue_id="1", observe=told["1"].append),
            site.send("b@two.example", queue_id="2", observe=told["2"].append),
        )

    play(work, domains)
    for queue_id, of_message in told.items():
        assert {one.queue_id for one in of_message} == {queue_id}
        hosts_seen = {
            one.candidate.host
            for one in of_message
            if isinstance(one, events.PhaseReached)
        }
        assert len(hosts_seen) == 1


# -- before the dot ---------------------------------------------------------------------


@pytest.mark.parametrize("answers", [[False], [True, False]])
def test_no_dot_is_sent_that_may_not_be(answers: list[bool]) -> None:
    first, second = ScriptedHost(), ScriptedHost()
    asked = iter(answers)

    async def may_send_dot() -> bool:
        return next(asked)

    async def work(site: Site) -> None:
        (outcome,) = await site.send(may_send_dot=may_send_dot)
        assert status(outcome) == "Deferred 4.3.0"
        assert await site.journal() == []

    play(work, {"one.example": [first, second]})
    assert not first.messages
    assert not second.visits


def test_question_before_the_dot_that_fails_is_our_trouble_and_no_dot() -> None:
    host = ScriptedHost()

    async def may_send_dot() -> bool:
        raise ConnectionError("the client's socket")

    async def work(site: Site) -> None:
        (outcome,) = await site.send(may_send_dot=may_send_dot)
        assert status(outcome) == "Deferred 4.3.0"
        (trouble,) = site.all(events.Trouble)
        assert "ConnectionError: the client's socket" in trouble.text
        assert trouble.queue_id == "4bXyz1"

    play(work, {"one.example": [host]})
    assert not host.messages


@pytest.mark.parametrize(
    ("seconds", "expected"), [(100.0, "Delivered 2.0.0"), (1000.0, "Deferred 4.4.2")]
)
def test_question_before_the_dot_is_waited_for_until_the_deadline(
    seconds: float, expected: str
) -> None:
    host = ScriptedHost()

    async def may_send_dot() -> bool:
        await asyncio.sleep(seconds)
        return True

    async def work(site: Site) -> None:
        (outcome,) = await site.send(may_send_dot=may_send_dot)
        assert status(outcome) == expected
        assert site.all(events.RecipientSettled)[0].at < 901

    play(work, {"one.example": [host]})
    assert len(host.taken) == (seconds < 900)


# -- cancelled by the verb ----------------------------------------------------------------


class Cancelled(NamedTuple):
    """What came of a delivery that was cancelled.

    Attributes:
        outcomes: As returned.
        at_once: (recipient, outcome) of those settled before ``cancel`` returned.
        seconds: From then to the return of the outcomes.
    """

    outcomes: list[Outcome]
    at_once: list[tuple[str, str]]
    seconds: float


async def cancelled(
    site: Site, *recipients: str, after: float = 1.0, **more: Any
) -> Cancelled:
    """Begin a delivery and cancel it some seconds later."""
    loop = asyncio.get_running_loop()
    with closing(mail_data()) as message:
        delivery = site.engine.begin(site.request(*recipients, **more), message)
        if after:
            await asyncio.sleep(after)
        already = len(site.settled())
        delivery.cancel(WHY)
        at_once, began = site.settled()[already:], loop.time()
        outcomes = await delivery.outcomes()
    troubles = site.all(events.Trouble)
    assert not troubles, troubles[0].text
    told = [status(one.outcome) for one in site.all(events.RecipientSettled)]
    assert sorted(told) == sorted(map(status, outcomes)), "each is settled once"
    return Cancelled(outcomes, at_once, loop.time() - began)


def assert_cancelled(outcome: Outcome) -> None:
    assert status(outcome) == "Deferred 4.3.2"
    assert outcome.text == f"the delivery was cancelled: {WHY}"


@pytest.mark.parametrize(
    "script",
    [
        {"CONNECT": End.SILENT},
        {"EHLO": End.SILENT},
        {"MAIL": End.SILENT},
        {"RCPT": End.SILENT},
        {"DATA": End.SILENT},
    ],
    ids=str,
)
def test_cancelled_before_the_dot_is_deferred_at_once_and_nothing_more_is_dialled(
    script: Script,
) -> None:
    first, second = ScriptedHost(script), ScriptedHost()

    async def work(site: Site) -> None:
        outcomes, at_once, seconds = await cancelled(site)
        assert at_once == [("bob@one.example", "Deferred 4.3.2")]
        assert_cancelled(outcomes[0])
        assert seconds < 4
        assert await site.journal() in ([], ["deferred"])
        # And the next time it goes out, by whichever host.
        site.happened.clear()
        (again,) = await site.send()
        assert status(again) == "Delivered 2.0.0"

    play(work, {"one.example": [first, second]})
    assert len(first.visits) + len(second.visits) >= 2
    assert len(first.messages) + len(second.messages) == 1


def test_cancelled_before_it_has_begun_does_nothing() -> None:
    async def work(site: Site) -> None:
        outcomes, _, _ = await cancelled(site, "a@one.example", "@@", after=0)
        for outcome in outcomes:
            assert_cancelled(outcome)
        assert not site.resolver.asked

    play(work)


def test_cancelled_while_the_mail_data_still_comes_in() -> None:
    async def work(site: Site) -> None:
        with closing(MailData()) as message:
            message.append(b"Subject: half of it")
            delivery = site.engine.begin(site.request(), message)
            await asyncio.sleep(1)
            delivery.cancel(WHY)
            assert site.settled() == [("bob@one.example", "Deferred 4.3.2")]
            assert_cancelled((await delivery.outcomes())[0])
        assert not site.resolver.asked
        assert not site.all(events.Trouble)

    play(work)


def test_host_with_a_limit_hears_of_no_message_that_turns_out_too_large() -> None:
    first, second = ScriptedHost(extensions=["SIZE 70000"]), ScriptedHost()

    async def work(site: Site) -> None:
        with closing(MailData()) as message:
            message.append(b"Subject: large\n\n" + b"0123456\n" * 8192)
            delivery = site.engine.begin(site.request(), message)
            await asyncio.sleep(1)
            message.append(b"0123456\n" * 8192)
            message.finish()
            (outcome,) = await delivery.outcomes()
        assert status(outcome) == "Delivered 2.0.0"

    play(work, {"one.example": [first, second]})
    assert not first.messages
    assert len(second.messages) == 1


def test_cancelled_while_names_are_looked_up() -> None:
    async def work(site: Site) -> None:
        site.resolver.slow["MX one.example"] = 20.0
        outcomes, at_once, seconds = await cancelled(site)
        assert at_once
        assert_cancelled(outcomes[0])
        assert seconds < 0.1
        assert not site.all(events.Planned)
        assert await site.journal() == []

    play(work)


def test_cancelled_while_another_process_is_waited_for() -> None:
    host = ScriptedHost({"RCPT": End.SILENT})

    async def main() -> None:
        theirs = Site({"one.example": [host]}, owner="them", alive=("us", "them"))
        site = Site({"one.example": [host]}, store=theirs.store, alive=("us", "them"))
        task = asyncio.create_task(theirs.send())
        await asyncio.sleep(0.1)
        outcomes, at_once, seconds = await cancelled(site)
        assert at_once
        assert_cancelled(outcomes[0])
        assert seconds < 0.1
        assert await site.journal() == ["claimed"], "theirs is not touched"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(host, work=main)


def test_cancelled_while_the_question_before_the_dot_is_open() -> None:
    host = ScriptedHost()

    async def may_send_dot() -> bool:
        await asyncio.sleep(100)
        return True

    async def work(site: Site) -> None:
        outcomes, at_once, _ = await cancelled(site, may_send_dot=may_send_dot)
        assert at_once
        assert_cancelled(outcomes[0])
        assert await site.journal() == []

    play(work, {"one.example": [host]})
    assert not host.messages


@pytest.mark.parametrize(
    ("answer", "expected", "left"),
    [
        pytest.param((60.0, "250 2.0.0 ok"), "Delivered 2.0.0", "delivered", id="250"),
        pytest.param((60.0, "550 5.7.1 no"), "Bounced 5.7.1", None, id="550"),
        pytest.param((60.0, End.CLOSE), "Deferred 4.4.2", "deferred", id="closes"),
    ],
)
def test_cancelled_after_the_dot_is_settled_by_the_host(
    answer: Any, expected: str, left: str | None
) -> None:
    first, second = ScriptedHost({".": answer}), ScriptedHost()

    async def work(site: Site) -> None:
        outcomes, at_once, seconds = await cancelled(site)
        assert not at_once
        assert status(outcomes[0]) == expected
        assert 58 < seconds < 64
        assert await site.journal() == [left] * bool(left)

    play(work, {"one.example": [first, second]})
    assert not second.visits


def test_cancelled_after_the_dot_waits_as_long_as_the_dot_may_take() -> None:
    first, second = ScriptedHost({".": End.SILENT}), ScriptedHost()

    async def work(site: Site) -> None:
        outcomes, _, seconds = await cancelled(site)
        (outcome,) = outcomes
        assert isinstance(outcome, Deferred)
        assert outcome.may_have_arrived
        assert DOT_TIME - 2 < seconds < DOT_TIME + 4

    play(work, {"one.example": [first, second]})
    assert not second.visits


def test_cancelled_with_the_dot_out_for_some_defers_the_others() -> None:
    slow = ScriptedHost({".": (60.0, "250 2.0.0 ok")})
    silent = ScriptedHost({"RCPT": End.SILENT})
    gone = ScriptedHost({"RCPT": "550 5.1.1 who?"})
    domains = {"one.example": [slow], "two.example": [silent], "six.example": [gone]}

    async def work(site: Site) -> None:
        to = ("x@two.example", "x@one.example", "x@six.example")
        outcomes, at_once, seconds = await cancelled(site, *to)
        assert at_once == [("x@two.example", "Deferred 4.3.2")]
        assert [status(one) for one in outcomes] == [
            "Deferred 4.3.2",
            "Delivered 2.0.0",
            "Bounced 5.1.1",
        ]
        assert 58 < seconds < 64
        # What is refused is kept while another is deferred.
        assert await site.journal() == ["delivered", "refused"]

    play(work, domains)


def test_cancelled_between_two_transactions_of_a_session_sends_no_second_dot() -> None:
    host = ScriptedHost(
        {"RCPT b@one.example": ["452 4.5.3 too many", "250 ok"], ".": (60.0, "250 ok")}
    )

    async def work(site: Site) -> None:
        outcomes, at_once, _ = await cancelled(site, "a@one.example", "b@one.example")
        assert at_once == [("b@one.example", "Deferred 4.3.2")]
        assert [status(one) for one in outcomes] == [
            "Delivered 2.0.0",
            "Deferred 4.3.2",
        ]

    play(work, {"one.example": [host]})
    assert [one.forward_paths for one in host.messages] == [("a@one.example",)]


def test_cancelled_while_others_are_asked_after_a_doubt_tells_the_doubt() -> None:
    # The second final dot that a host cuts does not end the attempt.
    first = ScriptedHost({".": End.CLOSE})
    second = ScriptedHost({".": End.CLOSE, "RCPT": ["250 ok", End.SILENT]})

    async def work(site: Site) -> None:
        for _ in range(2):
            await site.send()
        site.happened.clear()
        (outcome,), at_once, _ = await cancelled(site)
        assert at_once == [("bob@one.example", "Deferred 4.4.2")]
        assert isinstance(outcome, Deferred)
        assert outcome.may_have_arrived
        assert await site.journal() == ["deferred"]

    play(work, {"one.example": [first, second]})
    assert [len(first.messages), len(second.messages)] == [2, 1]


def test_cancelled_twice_and_after_the_end_changes_nothing() -> None:
    host = ScriptedHost({".": (60.0, "250 ok")})

    async def work(site: Site) -> None:
        with closing(mail_data()) as message:
            delivery = site.engine.begin(site.request(), message)
            await asyncio.sleep(1)
            delivery.cancel("once")
            await asyncio.sleep(1)
            delivery.cancel("again")
            assert status((await delivery.outcomes())[0]) == "Delivered 2.0.0"
            delivery.cancel("too late")
            assert status((await delivery.outcomes())[0]) == "Delivered 2.0.0"
        assert len(site.settled()) == 1

    play(work, {"one.example": [host]})


def test_cancelled_message_leaves_another_one_of_the_engine_alone() -> None:
    host = ScriptedHost({"RCPT": (5.0, "250 ok")})

    async def work(site: Site) -> None:
        other = asyncio.create_task(site.send(queue_id="other", observe=print))
        outcomes, _, _ = await cancelled(site)
        assert_cancelled(outcomes[0])
        assert status((await other)[0]) == "Delivered 2.0.0"

    play(work, {"one.example": [host]})
    assert len(host.taken) == 1


# -- cancelled with its task ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "expected"),
    [({"RCPT": End.SILENT}, "Deferred 4.3.0"), ({".": End.SILENT}, "Deferred 4.4.2")],
)
def test_task_that_is_cancelled_ends_at_once_with_every_recipient_settled(
    script: Script, expected: str
) -> None:
    host = ScriptedHost(script)

    async def work(site: Site) -> None:
        task = asyncio.create_task(site.send())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert site.settled() == [("bob@one.example", expected)]
        assert await site.journal() == ["deferred"] * ("." in script)

    play(work, {"one.example": [host]})


# -- our own trouble ------------------------------------------------------------------------


def test_observer_that_raises_costs_no_mail() -> None:
    host = ScriptedHost()

    def observe(event: events.Event) -> None:
        raise RuntimeError("a full disk")

    outcomes = play(lambda site: site.send(observe=observe), {"one.example": [host]})
    assert status(outcomes[0]) == "Delivered 2.0.0"
    assert len(host.taken) == 1


@pytest.mark.parametrize("look", [1, 2, 3, 4])
def test_clock_that_fails_after_the_hosts_250_costs_no_outcome(look: int) -> None:
    host, to = ScriptedHost(), ("a@one.example", "b@one.example")
    looks: list[int] = []

    async def work(site: Site) -> None:
        def clock() -> float:
            if site.settled():  # the first of the two
                looks.append(1)
                if len(looks) == look:
                    raise MemoryError
            return asyncio.get_running_loop().time()

        site.context.clock = clock
        outcomes = await site.send(*to)
        assert [status(one) for one in outcomes] == ["Delivered 2.0.0"] * 2
        assert await site.journal() == ["delivered"] * 2

    play(work, {"one.example": [host]})
    assert len(host.taken) == 1
    assert len(looks) >= look


def test_store_that_fails_costs_no_mail() -> None:
    host = ScriptedHost()
    store = FallbackStore(FailingStore(StoreError("disk I/O error")), print)
    outcomes = play(lambda site: site.send(), {"one.example": [host]}, store=store)
    assert status(outcomes[0]) == "Delivered 2.0.0"


@pytest.mark.parametrize("broken", ["hosts", "journal"])
def test_dot_in_doubt_ends_the_attempt_wherever_the_journal_is_kept(
    broken: str,
) -> None:
    first, second = ScriptedHost({".": End.CLOSE}), ScriptedHost()
    store = FallbackStore(
        FailingStore(
            fails=lambda _, operation: (
                is_of_journal(operation.key) is (broken == "journal")
            ),
            clock=lambda: START,
        ),
        print,
    )
    (outcome,) = play(
        lambda site: site.send(), {"one.example": [first, second]}, store=store
    )
    is_asked = broken == "journal"  # each time would be the first
    assert status(outcome) == ("Delivered 2.0.0" if is_asked else "Deferred 4.4.2")
    assert len(second.messages) == is_asked


def test_store_that_breaks_its_promise_defers_and_is_told() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        to = ("bob@one.example", "@@")
        outcomes = await site.send(*to)
        assert [status(one) for one in outcomes] == ["Deferred 4.3.0", "Bounced 5.1.3"]
        assert "ZeroDivisionError" in site.all(events.Trouble)[0].text

    play(work, {"one.example": [host]}, store=FailingStore(ZeroDivisionError("a bug")))
    assert not host.messages


def test_resolver_with_a_bug_defers_its_group_and_no_other() -> None:
    hosts = [ScriptedHost(), ScriptedHost()]
    domains = {"one.example": hosts[:1], "two.example": hosts[1:]}

    async def work(site: Site) -> None:
        lookup = site.resolver.lookup

        async def broken(name: str, rdtype: str, within: float | None = None) -> Any:
            if name == "one.example":
                raise ZeroDivisionError("a bug")
            return await lookup(name, rdtype, within)

        site.resolver.lookup = broken  # type: ignore[method-assign]
        outcomes = await site.send("x@one.example", "x@two.example")
        assert [status(one) for one in outcomes] == [
            "Deferred 4.3.0",
            "Delivered 2.0.0",
        ]
        assert "ZeroDivisionError" in site.all(events.Trouble)[0].text
        assert await site.journal() == ["delivered"]

    play(work, domains)
