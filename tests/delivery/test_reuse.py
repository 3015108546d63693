"""Several messages over one session, with real sockets and a clock that jumps."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, TypeVar

import pytest
import trustme

from mxpolicy.delivery import events
from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.host_memory import nexthop_key
from mxpolicy.delivery.idle_sessions import MOST_AT_ADDRESS, UNUSED_FOR
from mxpolicy.delivery.plan import Planner
from mxpolicy.delivery.probe import Probes
from mxpolicy.delivery.trace import Trace
from mxpolicy.options import LimitOptions, TlsLevel, TransactionOptions
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.routing.candidate import Finding, Phase, Verdict
from mxpolicy.routing.host_record import decode
from mxpolicy.routing.mx import Lookup, LookupStatus
from mxpolicy.routing.tls_requirement import tls_requirement
from tests.delivery.attempts import MESSAGE, run
from tests.delivery.site import Sent, Site
from tests.helpers.scripted_smtp import End, ScriptedHost
from tests.helpers.socket_loop import let_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from mxpolicy.delivery.events import Event
    from tests.helpers.scripted_smtp import Script

E = TypeVar("E", bound="Event")

TWO = ("bob@example.com", "eve@example.com")


IS_FAST = [True]


@pytest.fixture(autouse=True, params=[True, False], ids=["fast", "ordinary"])
def way(request: pytest.FixtureRequest) -> None:
    """Let the messages after the first go the fast path, or the ordinary way."""
    IS_FAST[0] = request.param


def play(
    *hosts: ScriptedHost,
    work: Callable[[Site], Coroutine[Any, Any, None]],
    limits: LimitOptions | None = None,
    transaction: TransactionOptions | None = None,
) -> None:
    """Run *work* with a site that keeps sessions; no message meets trouble of ours."""

    async def main() -> None:
        site = Site(
            *hosts,
            keeps_sessions=True,
            limits=limits,
            transaction=transaction,
            is_fast=IS_FAST[0],
            is_by_lmtp=True,
        )
        try:
            await work(site)
        finally:
            await site.engine.stop("the test is over")
        assert not site.troubles()

    run(*hosts, work=main)


def told(sent: Sent, kind: type[E]) -> list[E]:
    return [one for one in sent.events if isinstance(one, kind)]


def was_reused(sent: Sent) -> bool:
    return bool(told(sent, events.SessionReused))


def was_replaced(sent: Sent) -> str:
    """Return why a session was replaced; empty when it was not."""
    return "".join(one.text for one in told(sent, events.SessionReplaced))


def verbs(host: ScriptedHost) -> list[list[str]]:
    return [[line.partition(" ")[0] for line in visit] for visit in host.visits]


FIRST = ["EHLO", "MAIL", "RCPT", "DATA"]
LATER = ["RSET", "MAIL", "RCPT", "DATA"]


def test_second_message_goes_over_the_session_of_the_first() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        first = await site.send()
        await asyncio.sleep(3)
        second = await site.send()
        assert isinstance(first.outcome, Delivered)
        assert isinstance(second.outcome, Delivered)
        assert (was_reused(first), was_reused(second)) == (False, True)
        phases = [one.phase for one in told(second, events.PhaseReached)]
        assert phases == [Phase.READY]

    play(host, work=work)
    assert verbs(host) == [[*FIRST, *LATER, "QUIT"]]
    assert len(host.taken) == 2


def test_no_delay_of_a_reused_session_is_negative() -> None:
    host = ScriptedHost({"CONNECT": (2.0, "220 hi")})

    async def work(site: Site) -> None:
        await site.send()
        (settled,) = told(await site.send(), events.RecipientSettled)
        assert min(settled.delays) >= 0
        assert settled.delays.reach < 1

    play(host, work=work)


def test_session_waits_five_seconds_and_quits() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        await asyncio.sleep(4.9)
        assert "QUIT" not in host.commands
        await asyncio.sleep(0.2)
        assert "QUIT" in host.commands
        assert not was_reused(await site.send())

    play(host, work=work)
    assert len(host.visits) == 2


def test_session_is_closed_at_five_minutes_however_busy() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        for _ in range(80):
            await site.send()
            await asyncio.sleep(4)

    play(host, work=work)
    assert len(host.visits) == 2


def test_session_that_the_host_closes_while_it_waits_is_not_used() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.hang_up()
        await asyncio.sleep(0.01)
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert not was_reused(second)

    play(host, work=work)
    assert len(host.visits) == 2


@pytest.mark.parametrize(
    "last_words", [b"421 4.4.2 idle\r\n", b"250 2.0.0 queued\r\n", b"2", b"550 no\r\n"]
)
def test_session_ends_when_the_host_says_anything_while_it_waits(
    last_words: bytes,
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2)
        writer.write(last_words)

    host = ScriptedHost({".": [("250 queued", say), "250 queued"]})

    async def work(site: Site) -> None:
        await site.send()
        await asyncio.sleep(2.1)
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert not was_reused(second)

    play(host, work=work)
    assert len(host.visits) == 2


STALE: dict[str, Script] = {
    "RSET 421": {"RSET": "421 4.4.2 idle for too long"},
    "RSET 5yz": {"RSET": "502 5.5.1 no such command"},
    "RSET 4yz": {"RSET": "450 4.5.1 hm"},
    "RSET closed": {"RSET": End.CLOSE},
    "RSET reset": {"RSET": End.RESET},
    "RSET silent": {"RSET": End.SILENT},
    "RSET twice": {"RSET": "250 ok\n250 ok"},
    "MAIL 421": {"MAIL": ["250 ok", "421 4.7.0 too many messages", "250 ok"]},
    "MAIL 451": {"MAIL": ["250 ok", "451 4.7.0 one message a session", "250 ok"]},
    "MAIL 503": {"MAIL": ["250 ok", "503 5.5.1 sender already given", "250 ok"]},
    "MAIL 550": {"MAIL": ["250 ok", "550 5.7.1 reconnect", "250 ok"]},
    "MAIL closed": {"MAIL": ["250 ok", End.CLOSE, "250 ok"]},
    "MAIL reset": {"MAIL": ["250 ok", End.RESET, "250 ok"]},
    "MAIL silent": {"MAIL": ["250 ok", End.SILENT, "250 ok"]},
    "MAIL nonsense": {"MAIL": ["250 ok", "354 go ahead", "250 ok"]},
    "RCPT 421": {"RCPT": ["250 ok", "421 4.7.0 enough", "250 ok"]},
    "RCPT closed": {"RCPT": ["250 ok", End.CLOSE, "250 ok"]},
    "RCPT silent": {"RCPT": ["250 ok", End.SILENT, "250 ok"]},
    "DATA 421": {"DATA": ["354 go", "421 4.7.0 enough", "354 go"]},
    "DATA reset": {"DATA": ["354 go", End.RESET, "354 go"]},
    "DATA silent": {"DATA": ["354 go", End.SILENT, "354 go"]},
    "DATA nonsense": {"DATA": ["354 go", "250 ok", "354 go"]},
}


@pytest.mark.parametrize("case", STALE)
def test_end_of_an_old_session_before_354_is_replaced_and_is_no_finding(
    case: str,
) -> None:
    host = ScriptedHost(STALE[case])

    async def work(site: Site) -> None:
        await site.send()
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert was_reused(second)
        assert was_replaced(second)
        assert not told(second, events.CandidateFailed)
        assert not told(second, events.CandidateDoubted)
        (settled,) = told(second, events.RecipientSettled)
        assert settled.tried == ()
        assert second.seconds < 12
        record = await site.record(host)
        assert record.verdict is None

    play(host, work=work)
    assert len(host.visits) == 2
    assert len(host.taken) == 2


@pytest.mark.parametrize("how", [End.SILENT, End.CLOSE, "421 4.7.0 one message"])
def test_host_that_never_takes_a_second_message_is_soon_left_alone(
    how: str | End,
) -> None:
    host = ScriptedHost({"RSET": how})

    async def work(site: Site) -> None:
        sent = [await site.send() for _ in range(8)]
        assert all(isinstance(one.outcome, Delivered) for one in sent)
        assert [bool(was_replaced(one)) for one in sent].count(True) == 2
        assert [was_reused(one) for one in sent[4:]] == [False] * 4
        await asyncio.sleep(UNUSED_FOR)
        sent = [await site.send() for _ in range(4)]
        assert [was_reused(one) for one in sent] == [False, True, False, False]
        host.will({"RSET": "250 ok"})
        await asyncio.sleep(UNUSED_FOR)
        sent = [await site.send() for _ in range(4)]
        assert [was_reused(one) for one in sent] == [False, True, True, True]

    play(host, work=work)


def test_host_that_ends_each_session_after_some_messages_goes_on_to_have_them() -> None:
    host = ScriptedHost({"RSET": ["250 ok", "421 4.7.0 enough"] * 20})

    async def work(site: Site) -> None:
        sent = [await site.send() for _ in range(20)]
        assert all(isinstance(one.outcome, Delivered) for one in sent)
        assert sum(map(was_reused, sent)) == 19

    play(host, work=work)


# Replies out of step. The host says one reply too many, and says it late.

EXTRA: Script = {"RSET": ("250 2.0.0 Ok", 0.5, "250 2.0.0 Ok")}
REFUSED = "550 5.1.1 no such user"


@pytest.mark.parametrize("extensions", [["PIPELINING"], []], ids=["pipelined", ""])
@pytest.mark.parametrize(
    ("script", "recipients", "delivered"),
    [
        pytest.param({}, TWO, [True, True], id="both are taken"),
        pytest.param(
            {"RCPT eve@example.com": REFUSED}, TWO, [True, False], id="last is refused"
        ),
        pytest.param(
            {"RCPT bob@example.com": REFUSED}, TWO, [False, True], id="first is refused"
        ),
        pytest.param(
            {"RCPT eve@example.com": REFUSED}, TWO[1:], [False], id="only one, refused"
        ),
        pytest.param(
            {"RCPT bob@example.com": REFUSED, "RCPT eve@example.com": REFUSED},
            TWO,
            [False, False],
            id="both are refused",
        ),
        pytest.param(
            {"RCPT bob@example.com": REFUSED},
            [*TWO, "kim@example.com"],
            [False, True, True],
            id="first of three",
        ),
    ],
)
def test_reply_too_many_refuses_no_other_recipient(
    script: Script,
    recipients: Sequence[str],
    delivered: list[bool],
    extensions: list[str],
) -> None:
    host = ScriptedHost(EXTRA, extensions=extensions)

    async def work(site: Site) -> None:
        await site.send()
        host.will(script)
        second = await site.send(recipients=recipients)
        assert was_reused(second)
        assert was_replaced(second)
        kinds = [Delivered if one else Bounced for one in delivered]
        assert [type(one) for one in second.outcomes] == kinds

    play(host, work=work)
    taken = [one for message in host.taken[1:] for one in message.forward_paths]
    expected = zip(recipients, delivered, strict=True)
    assert taken == [one for one, is_taken in expected if is_taken]


@pytest.mark.parametrize(
    ("script", "is_bounced"),
    [
        ({"RCPT": REFUSED}, True),
        ({"RCPT": "450 4.7.1 greylisted"}, False),
        ({"DATA": "554 5.5.0 no"}, True),
        ({"DATA": "451 4.3.0 later"}, False),
    ],
)
def test_refusal_in_step_counts_and_costs_no_second_connection(
    script: Script, is_bounced: bool
) -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will(script)
        second = await site.send()
        assert isinstance(second.outcome, Bounced if is_bounced else Deferred)
        assert was_reused(second)
        assert not was_replaced(second)

    play(host, work=work)
    assert len(host.visits) == 1
    assert host.commands[-1] == "QUIT"


@pytest.mark.parametrize("goodbye", ["250 2.0.0 Bye", "421 4.0.0 Bye", End.CLOSE])
def test_refusal_is_asked_for_again_where_quit_shows_no_step(
    goodbye: str | End,
) -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({"RCPT": [REFUSED, "250 ok"], "QUIT": [goodbye, "221 bye"]})
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert was_replaced(second).startswith("refused: 550")

    play(host, work=work)
    assert len(host.visits) == 2


def test_one_recipient_of_two_is_refused_in_step() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({"RCPT eve@example.com": REFUSED})
        second = await site.send(recipients=TWO)
        assert [type(one) for one in second.outcomes] == [Delivered, Bounced]
        assert not was_replaced(second)
        assert not was_reused(await site.send())

    play(host, work=work)
    assert len(host.visits) == 2


# After 354.


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, "421 4.4.2 too long a session"])
def test_session_closed_in_the_mail_data_is_told_and_the_host_dialled_anew(
    end: str | End,
) -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({"BODY": [end, 0.0]})
        second = await site.send(data=MESSAGE + b"long\r\n" * 1_000_000)
        assert isinstance(second.outcome, Delivered)
        assert was_replaced(second)
        (failed,) = told(second, events.CandidateFailed)
        assert failed.finding.phase is Phase.TRANSACTION

    play(host, work=work)
    assert len(host.visits) == 2


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, "421 4.4.2 too long a session"])
def test_session_closed_right_before_the_dot_leaves_is_replaced(
    end: str | End,
) -> None:
    host = ScriptedHost()

    async def slowly() -> bool:
        await asyncio.sleep(1)
        return True

    async def work(site: Site) -> None:
        await site.send()
        host.will({"BODY": [(0.5, end), 0.0]})
        second = await site.send(may_send_dot=slowly)
        assert isinstance(second.outcome, Delivered)
        assert was_replaced(second)

    play(host, work=work)
    assert len(host.visits) == 2
    assert len(host.messages) == 2


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, "421 4.4.2 too long a session"])
def test_dot_over_an_old_session_is_in_doubt_as_any_other(end: str | End) -> None:
    host = ScriptedHost({".": ["250 ok", end]})

    async def work(site: Site) -> None:
        await site.send()
        second = await site.send()
        assert isinstance(second.outcome, Deferred)
        assert not was_replaced(second)

    play(host, work=work)
    assert len(host.visits) == 1


def test_time_that_is_over_makes_no_refusal_of_an_old_session_final() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({"RCPT bob@example.com": REFUSED, "DATA": End.SILENT})
        second = await site.send(recipients=TWO)
        assert [type(one) for one in second.outcomes] == [Bounced, Deferred]
        assert was_replaced(second)

    play(host, work=work)
    assert len(host.visits) == 2


# What fits, and what is kept.


def test_two_messages_at_once_have_two_sessions_and_then_both_are_used() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        sent = await asyncio.gather(site.send(), site.send())
        assert len(host.visits) == 2
        assert all(isinstance(one.outcome, Delivered) for one in sent)
        await asyncio.gather(site.send(), site.send())

    play(host, work=work)
    assert len(host.visits) == 2
    assert len(host.taken) == 5


@pytest.mark.parametrize(
    "script",
    [
        {"DATA": "355 go ahead"},
        {".": "251 2.0.0 will do"},
        {"MAIL": (3.0, "250 ok"), "RCPT": (3.0, "250 ok")},
        {"DATA": "354 go ahead\n250 hm"},
    ],
    ids=["355", "251", "slow", "stray"],
)
def test_session_that_was_out_of_the_ordinary_is_not_kept(script: Script) -> None:
    host = ScriptedHost(script)

    async def work(site: Site) -> None:
        assert isinstance((await site.send()).outcome, Delivered)
        assert not was_reused(await site.send())

    play(host, work=work)


def test_session_is_too_old_after_the_process_was_stopped_for_long() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        candidate = host.candidate()
        approach = Approach(tls_requirement(TlsLevel.MAY))
        let_pass(60)  # and no timer has rung
        sessions = site.context.sessions
        named = candidate._replace(host=candidate.address)
        assert sessions.take_idle(named, approach, Listener()) is None

    play(host, work=work)
    assert host.commands[-1] == "QUIT"


def test_sessions_of_another_name_or_egress_do_not_fit() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        sessions = site.context.sessions
        candidate = host.candidate()
        # In the nexthop the host is named by its address.
        named = candidate._replace(host=candidate.address)
        approach = Approach(tls_requirement(TlsLevel.MAY))
        for other in (candidate, named._replace(egress="socks")):
            assert sessions.take_idle(other, approach, Listener()) is None
        for unlike in (approach.in_clear(), approach.with_small_segments()):
            assert sessions.take_idle(named, unlike, Listener()) is None
        session = sessions.take_idle(named, approach, Listener())
        assert session is not None
        sessions.give_back(session)

    play(host, work=work)


# Limits of a session (RFC 9422).

SEVERAL = ("a@one.example", "b@two.example", "c@one.example", "d@three.example")


def limited(*limits: str, script: Script | None = None) -> ScriptedHost:
    return ScriptedHost(script, extensions=["PIPELINING", f"LIMITS {' '.join(limits)}"])


def test_mailmax_is_counted_over_all_messages_of_a_session() -> None:
    host = limited("MAILMAX=3")

    async def work(site: Site) -> None:
        sent = [await site.send() for _ in range(7)]
        reused = [was_reused(one) for one in sent]
        assert reused == [False, True, True, False, True, True, False]
        assert not any(map(was_replaced, sent))

    play(host, work=work)
    assert [visit.count("DATA") for visit in verbs(host)] == [3, 3, 1]


@pytest.mark.parametrize(
    ("limits", "messages"),
    [
        (["RCPTMAX=1", "MAILMAX=2"], [[1, 1], [1, 1], [1]]),
        (["RCPTMAX=2", "MAILMAX=1"], [[1], [2], [2]]),
        (["RCPTDOMAINMAX=1"], [[1], [2], [1], [1]]),
        (["RCPTDOMAINMAX=2"], [[1, 2], [2]]),
        (["RCPTDOMAINMAX=2", "RCPTMAX=1"], [[1, 1, 1], [1, 1]]),
    ],
)
def test_message_that_is_too_much_for_one_session_has_another(
    limits: list[str], messages: list[list[int]]
) -> None:
    host = limited(*limits)

    async def work(site: Site) -> None:
        await site.send()
        second = await site.send(recipients=SEVERAL)
        assert all(isinstance(one, Delivered) for one in second.outcomes)
        assert not told(second, events.CandidateFailed)

    play(host, work=work)
    sizes = [len(one.forward_paths) for one in host.taken]
    assert sizes == [size for visit in messages for size in visit]
    assert [visit.count("DATA") for visit in verbs(host)] == [*map(len, messages)]


def test_session_that_is_full_in_the_middle_of_a_message_keeps_its_refusals() -> None:
    host = limited("MAILMAX=1", "RCPTMAX=1", script={"RCPT b@two.example": REFUSED})

    async def work(site: Site) -> None:
        sent = await site.send(recipients=SEVERAL)
        kinds = [Delivered, Bounced, Delivered, Delivered]
        assert [type(one) for one in sent.outcomes] == kinds

    play(host, work=work)
    assert len(host.visits) == 4


def test_what_was_taken_before_an_old_session_broke_stays_taken() -> None:
    host = limited("RCPTMAX=1")

    async def work(site: Site) -> None:
        await site.send()
        host.will({"MAIL": ["250 ok", "250 ok", End.CLOSE, "250 ok"]})
        host.will({"RCPT c@one.example": REFUSED})
        second = await site.send(recipients=SEVERAL)
        kinds = [Delivered, Delivered, Bounced, Delivered]
        assert [type(one) for one in second.outcomes] == kinds
        assert was_replaced(second)

    play(host, work=work)
    paths = [one.forward_paths[0] for one in host.taken[1:]]
    assert sorted(paths) == [SEVERAL[0], SEVERAL[1], SEVERAL[3]]


# The second transaction of one message.

SECOND = {name: script for name, script in STALE.items() if not name.startswith("RSET")}
BYE = "421 4.7.0 one message"


@pytest.mark.parametrize("case", SECOND)
def test_end_of_a_session_in_the_second_transaction_of_a_message_is_no_finding(
    case: str,
) -> None:
    host = limited("RCPTMAX=1", script=SECOND[case])

    async def work(site: Site) -> None:
        sent = await site.send(recipients=TWO)
        assert all(isinstance(one, Delivered) for one in sent.outcomes)
        assert was_replaced(sent)
        assert not told(sent, events.CandidateFailed)

    play(host, work=work)
    assert [visit.count("MAIL") for visit in verbs(host)] == [2, 1]


@pytest.mark.parametrize(
    "script", [{".": f"250 ok\n{BYE}"}, {".": ("250 ok", 0.0, BYE)}]
)
def test_goodbye_right_after_a_250_keeps_no_other_recipient_waiting(
    script: Script,
) -> None:
    host = limited("RCPTMAX=1", script=script)

    async def work(site: Site) -> None:
        sent = await site.send(recipients=TWO)
        assert all(isinstance(one, Delivered) for one in sent.outcomes)
        assert not told(sent, events.CandidateFailed)

    play(host, work=work)
    assert len(host.visits) == 2


@pytest.mark.parametrize("end", [BYE, End.CLOSE, "503 5.5.1 no"])
def test_refusals_of_a_new_session_stand_when_it_takes_no_second_message(
    end: str | End,
) -> None:
    script: Script = {f"RCPT {TWO[0]}": REFUSED, "MAIL": ["250 ok", end] * 9}
    host = limited("RCPTMAX=1", script=script)

    async def work(site: Site) -> None:
        sent = await site.send(recipients=[*TWO, "ann@example.com"])
        kinds = [Bounced, Delivered, Delivered]
        assert [type(one) for one in sent.outcomes] == kinds

    play(host, work=work)
    assert len(host.visits) == 3


@pytest.mark.parametrize("extensions", [["PIPELINING"], []], ids=["pipelined", ""])
@pytest.mark.parametrize("late", [0.1, 0.5])
def test_dot_answered_twice_does_not_shift_the_next_replies_of_its_message(
    extensions: list[str], late: float
) -> None:
    said = ("250 queued", late, "250 queued")
    # All refused recipients, and none else, are bounced.
    script: Script = {".": said, "MAIL": ["250 ok", (1.0, "250 ok")]}
    script["RCPT c@one.example"] = REFUSED
    host = ScriptedHost(script, extensions=[*extensions, "LIMITS RCPTMAX=2"])

    async def work(site: Site) -> None:
        sent = await site.send(recipients=SEVERAL)
        kinds = [Delivered, Delivered, Bounced, Delivered]
        assert [type(one) for one in sent.outcomes] == kinds

    play(host, work=work)
    taken = [path for one in host.taken for path in one.forward_paths]
    assert sorted(taken) == [SEVERAL[0], SEVERAL[1], SEVERAL[3]]


# What is remembered of the host.


def test_reused_session_teaches_no_latencies_but_that_the_host_is_there() -> None:
    host = ScriptedHost({"CONNECT": (2.0, "220 hi")})

    async def work(site: Site) -> None:
        await site.send()
        before = await site.record(host)
        assert before.greeting_latency == pytest.approx(2.0, abs=0.1)
        for _ in range(20):
            await asyncio.sleep(3)
            await site.send()
        after = await site.record(host)
        assert after.greeting_latency == before.greeting_latency
        assert after.connect_time == before.connect_time
        assert after.last_ready is not None
        assert after.last_ready > site.utc() - 40

    play(host, work=work)
    assert len(host.visits) == 1


def test_busy_host_that_takes_mail_over_an_old_session_defers_no_other() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        # One that does not fit ends no session that is in use.
        host.will({"CONNECT": "421 4.7.0 too many", "RCPT": (3.0, "250 ok")})
        first = asyncio.create_task(site.send())
        await asyncio.sleep(0.1)
        assert isinstance((await site.send()).outcome, Deferred)
        assert (await site.record(host)).verdict is Verdict.GREETING_4XX
        assert was_reused(await first)
        record = await site.record(host)
        assert record.verdict is Verdict.GREETING_4XX
        assert not record.full
        host.will({"CONNECT": "220 hi", "RCPT": "250 ok"})
        third = await site.send()
        assert isinstance(third.outcome, Delivered)

    play(host, work=work)


def test_stall_is_forgotten_when_an_old_session_takes_mail() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        learner = site.learner(site.aim, "another")
        candidate = host.candidate()._replace(host=host.candidate().address)
        stalled = Finding(Verdict.STALLED, Phase.TRANSACTION, 20.0)
        learner.learn(events.CandidateFailed(20.0, candidate, stalled))
        await learner.finish()
        key = nexthop_key(site.aim, candidate)
        assert decode(await site.store.get(key)).verdict is Verdict.STALLED
        assert was_reused(await site.send())
        assert decode(await site.store.get(key)).verdict is None

    play(host, work=work)


def test_replaced_session_teaches_what_the_new_one_is_like() -> None:
    host = ScriptedHost({"CONNECT": ["220 hi", (5.0, "220 hi")], "RSET": End.CLOSE})

    async def work(site: Site) -> None:
        await site.send()
        second = await site.send()
        phases = [one.phase for one in told(second, events.PhaseReached)]
        assert phases == [Phase.READY, Phase.GREETING, Phase.EHLO, Phase.READY]
        record = await site.record(host)
        assert record.greeting_latency == pytest.approx(5.0, abs=0.1)

    play(host, work=work)


def test_better_host_is_asked_first_though_an_idle_session_with_another_waits() -> None:
    best, other = ScriptedHost({"CONNECT": ["421 no", "220 hi"]}), ScriptedHost()

    async def work(site: Site) -> None:
        first = await site.send()
        assert first.outcome.relay.startswith(f"{other.candidate().address}[")
        # The pause of the better one is over: it is probed, and then used.
        await asyncio.sleep(1)
        site.utc.offset += 61
        await site.send()
        third = await site.send()
        assert third.outcome.relay.startswith(f"{best.candidate().address}[")

    play(best, other, work=work)


def test_probe_takes_no_idle_session() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        trace = Trace("", site.context.clock, site.happened.append)
        probes = Probes(site.context, trace, site.learner(site.aim, "another"))
        probes.begin(host.candidate()._replace(host=host.candidate().address))
        await probes.finish(3.0)
        assert len(host.visits) == 2
        assert was_reused(await site.send())

    play(host, work=work)
    assert verbs(host)[1] == ["EHLO", "QUIT"]


# How many wait, and until when.


def test_so_many_wait_at_one_address_and_the_oldest_goes_first() -> None:
    host = ScriptedHost({"RCPT": (1.0, "250 ok")})
    count = MOST_AT_ADDRESS + 3

    async def work(site: Site) -> None:
        await send_at_once(site)
        assert len(host.visits) == count
        await asyncio.sleep(0.1)
        assert host.commands.count("QUIT") == 3
        await send_at_once(site)

    async def send_at_once(site: Site) -> None:
        sending = []
        for number in range(count):
            sending.append(asyncio.create_task(site.send()))
            await asyncio.sleep(0.1 if number % 10 == 9 else 0)
        await asyncio.gather(*sending)

    play(host, work=work, limits=LimitOptions(connections_per_host=0))
    assert len(host.visits) == count + 3


def test_new_configuration_ends_sessions_that_wait_and_those_in_use_are_not_kept() -> (
    None
):
    host = ScriptedHost({"RCPT": ["250 ok", (2.0, "250 ok"), "250 ok"]})

    async def work(site: Site) -> None:
        await site.send()
        under_way = asyncio.create_task(site.send())
        await asyncio.sleep(1)
        site.engine = site.engine.renewed(site.options._replace(helo="new.example.com"))
        await under_way
        assert not was_reused(await site.send())

    play(host, work=work)
    assert [visit[0] for visit in host.visits] == [
        "EHLO mail.example.com",
        "EHLO new.example.com",
    ]


def test_stop_ends_sessions_that_wait_and_one_given_back_after_it() -> None:
    host = ScriptedHost(
        {"RCPT": ["250 ok", "250 ok"], ".": ["250 ok", (9.0, "250 ok")]}
    )

    async def work(site: Site) -> None:
        sent = await asyncio.gather(site.send(), site.send())
        assert all(isinstance(one.outcome, Delivered) for one in sent)

    async def main(site: Site) -> None:
        under_way = asyncio.create_task(work(site))
        await asyncio.sleep(1)
        assert "QUIT" not in host.commands
        await site.engine.stop("enough")
        await under_way

    play(host, work=main)
    assert host.commands.count("QUIT") == 2


def test_nothing_waits_where_the_process_has_one_message() -> None:
    host = ScriptedHost()

    async def main() -> None:
        site = Site(host)
        await site.send()
        await asyncio.sleep(0.01)
        assert host.commands[-1] == "QUIT"
        await site.send()

    run(host, work=main)
    assert len(host.visits) == 2


@pytest.mark.parametrize(
    ("option", "visits"),
    [
        (TransactionOptions(session_idle=0.0), 4),
        (TransactionOptions(session_idle=1.0), 2),
        (TransactionOptions(session_messages=1), 4),
        (TransactionOptions(session_messages=2), 2),
        (TransactionOptions(session_messages=3), 2),
        (TransactionOptions(session_messages=0), 1),
    ],
    ids=str,
)
def test_options_say_how_long_and_for_how_many_messages(
    option: TransactionOptions, visits: int
) -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        for gap in (0.5, 2.0, 0.5, 0.0):
            assert isinstance((await site.send()).outcome, Delivered)
            await asyncio.sleep(gap)

    play(host, work=work, transaction=option)
    assert len(host.visits) == visits


def test_other_options_count_from_the_next_session_on() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        once = TransactionOptions(session_messages=1)
        site.engine = site.engine.renewed(site.options._replace(transaction=once))
        await site.send()
        await site.send()

    play(host, work=work)
    assert len(host.visits) == 3


# Other hosts in the race.


def test_stale_session_costs_a_better_host_nothing() -> None:
    """The first host is slow to connect, and ready while the old session is tried."""
    best, other = ScriptedHost({"CONNECT": [End.CLOSE, "220 hi"]}), ScriptedHost()

    async def work(site: Site) -> None:
        first = await site.send()
        assert first.outcome.relay.startswith(other.candidate().address)
        other.will({"RSET": End.CLOSE})
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert was_replaced(second)
        # As with a fresh session: the paused one is asked last, the stale one first.
        assert second.outcome.relay.startswith(other.candidate().address)

    play(best, other, work=work)
    assert len(other.visits) == 2


@pytest.mark.parametrize(
    ("connect", "seconds"),
    [(End.CLOSE, 0.1), (End.SILENT, 9.0), ("421 busy", 0.1), (20.0, 9.0)],
)
def test_next_host_is_asked_when_a_stale_session_has_no_successor(
    connect: str | float | End, seconds: float
) -> None:
    host, backup = ScriptedHost(), ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({"RSET": End.CLOSE, "CONNECT": connect})
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert second.outcome.relay.startswith(backup.candidate().address)
        assert second.seconds < seconds

    play(host, backup, work=work)


def test_sole_host_that_is_gone_after_a_stale_session_defers() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({"RSET": End.CLOSE, "CONNECT": "421 4.3.2 closed"})
        second = await site.send()
        assert isinstance(second.outcome, Deferred)
        assert "421 4.3.2 closed" in second.outcome.text

    play(host, work=work)
    assert len(host.visits) == 2


def test_delivery_is_cancelled_while_an_old_session_is_tried() -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({"RSET": End.SILENT})
        second = asyncio.create_task(site.send())
        await asyncio.sleep(1)
        await site.engine.stop("enough")
        assert isinstance((await second).outcome, Deferred)

    play(host, work=work)
    assert len(host.visits) == 1


# Under TLS.


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example.com").configure_cert(made)
    return made


def test_session_under_tls_is_used_again_under_tls(context: ssl.SSLContext) -> None:
    host = ScriptedHost(context=context)

    async def work(site: Site) -> None:
        first = await site.send()
        (settled,) = told(first, events.RecipientSettled)
        second = await site.send()
        assert was_reused(second)
        assert told(second, events.Secured)
        (settled,) = told(second, events.RecipientSettled)
        assert settled.delays.tls == 0

    play(host, work=work)
    hello = ["EHLO", "STARTTLS"]
    assert verbs(host) == [[*hello, *FIRST, *LATER, "QUIT"]]


def test_host_that_closes_tls_while_the_session_waits(context: ssl.SSLContext) -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1)
        writer.close()

    host = ScriptedHost({".": [("250 ok", close), "250 ok"]}, context=context)

    async def work(site: Site) -> None:
        await site.send()
        await asyncio.sleep(1.1)
        second = await site.send()
        assert isinstance(second.outcome, Delivered)
        assert not was_reused(second)

    play(host, work=work)


@pytest.mark.parametrize(
    "starttls", ["454 4.7.0 not now", End.CLOSE], ids=["put off", "broken"]
)
def test_session_in_clear_that_might_have_tls_is_not_kept(
    context: ssl.SSLContext, starttls: str | End
) -> None:
    host = ScriptedHost({"STARTTLS": [starttls, "220 go ahead"]}, context=context)

    async def work(site: Site) -> None:
        first = await site.send()
        assert not told(first, events.Secured)
        second = await site.send()
        assert not was_reused(second)
        assert told(second, events.Secured)

    play(host, work=work)


@pytest.mark.parametrize(
    "reply",
    [
        "530 5.7.0 Must issue a STARTTLS command first",
        "550 5.7.10 encryption needed",
        "503 5.5.1 bad sequence of commands",
    ],
)
@pytest.mark.parametrize("path", ["bob@example.com", "eve@example.com"])
def test_refusal_about_an_old_session_is_asked_for_again_in_a_new_one(
    reply: str, path: str
) -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will({f"RCPT {path}": [reply, "250 ok"]})
        second = await site.send(recipients=TWO)
        assert all(isinstance(one, Delivered) for one in second.outcomes)
        assert was_replaced(second) == f"refused: {reply}"

    play(host, work=work)
    assert len(host.visits) == 2
    assert len(host.taken) == 3


@pytest.mark.parametrize(
    ("script", "steps"),
    [
        ({"RSET": End.CLOSE}, ["Started", "Taken", "Started", "Taken", "Left"]),
        (
            {"RSET": End.CLOSE, "CONNECT": End.CLOSE},
            ["Started", "Taken", "Started", "Failed"],
        ),
        ({}, ["Started", "Taken", "Left"]),
    ],
    ids=["replaced", "gone", "used"],
)
def test_place_at_the_host_is_kept_for_the_new_session(
    script: Script, steps: list[str]
) -> None:
    """The place of a message at a host is free for others when it has left it."""
    host = ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        host.will(script)
        second = await site.send()
        names = [type(one).__name__ for one in second.events]
        prefix = "Candidate"
        found = [one[len(prefix) :] for one in names if one.startswith(prefix)]
        assert found == steps

    play(host, work=work)


# What has led to the host.


def test_session_ends_when_the_pause_of_a_better_host_does() -> None:
    best, other = ScriptedHost({"CONNECT": "421 no"}), ScriptedHost()

    async def work(site: Site) -> None:
        await site.send()
        assert (await site.record(best)).pause == 60
        site.utc.offset += 57
        assert was_reused(await site.send())
        await asyncio.sleep(2)
        assert "QUIT" not in other.commands
        await asyncio.sleep(1.1)
        assert other.commands[-1] == "QUIT"

    play(best, other, work=work)


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(3600.0, 5.0), (3.0, 3.0), (0.0, 0.0)], ids=str
)
def test_session_ends_when_dns_may_say_otherwise(ttl: float, seconds: float) -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        found = Lookup("mx", "A", LookupStatus.FOUND, ("127.0.0.11",), ttl=ttl)
        name, port = "mx.example.com", host.candidate().port

        class Resolver:
            async def lookup(
                self, name: str, rdtype: str, within: float | None = None
            ) -> Lookup:
                if rdtype == "A":
                    return found
                return Lookup(name, rdtype, LookupStatus.NODATA)

        planner = Planner(
            Resolver(), site.options, site.context.identity, site.context.utc
        )
        site.context.planner = planner
        await site.send(f"[{name}]:{port}")
        await asyncio.sleep(seconds - 0.1 if seconds else 0)
        assert ("QUIT" in host.commands) is (not seconds)
        await asyncio.sleep(0.2)
        assert "QUIT" in host.commands

    play(host, work=work)
