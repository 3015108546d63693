"""`mxpolicy.delivery.offer`: how long a host is waited for, and when no dot is sent.

What a host may do in a transaction is in `tests.delivery.test_attempt`.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import pytest

from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.message import Message
from mxpolicy.delivery.offer import (
    RETRY_TIME,
    SHORTEST_PATIENCE,
    Offer,
    OutOfTime,
)
from mxpolicy.delivery.settlement import Settlement
from mxpolicy.delivery.trace import Trace
from mxpolicy.net.dial import dial
from mxpolicy.options import Options, TlsLevel
from mxpolicy.protocol.smtp_states import DOT_TIME, State
from mxpolicy.routing.candidate import Verdict
from mxpolicy.routing.tls_requirement import tls_requirement
from tests.delivery.attempts import Journal, envelope, mail_data, run
from tests.delivery.conversations import Told, session_over
from tests.helpers.scripted_smtp import Script, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from mxpolicy.delivery.session import Session
    from mxpolicy.outcome import Outcome
    from mxpolicy.reply import Reply
    from mxpolicy.routing.candidate import Candidate, Finding

TO = "bob@example.com"
TLS = tls_requirement(TlsLevel.MAY)


class Attempt:
    """Stands for the attempt that has made the offer."""

    def __init__(self, others: int = 0, *, is_last: bool = False) -> None:
        self.others = others
        self.is_last = is_last
        self.recorded: list[Finding] = []

    def record(
        self, candidate: Candidate, finding: Finding, reply: Reply | None = None
    ) -> None:
        self.recorded.append(finding)

    def others_left(self) -> int:
        return self.others

    def is_last_chance(self) -> bool:
        return self.is_last

    def recipients_answered(self) -> None: ...

    def settle(self, number: int, outcome: Outcome) -> None:
        raise AssertionError


class Sessions:
    """Supplies no session."""

    async def open(self, candidate: Candidate, approach: Approach) -> Session:
        await asyncio.sleep(inf)
        raise AssertionError

    def give_back(self, session: Session) -> None: ...


class Stage(NamedTuple):
    """An offer over a session that is connected, and what it was made from."""

    offer: Offer
    attempt: Attempt
    journal: Journal


def play(
    work: Callable[[Stage], Coroutine[Any, Any, None]],
    *,
    attempt: Attempt | None = None,
    deadline: float = 900.0,
    ends: float = inf,
    answer: Callable[[], bool] = lambda: True,
    seconds: float = 0.0,
    script: Script | None = None,
) -> None:
    """Run *work* with an offer; the mail server gives *answer* after *seconds*."""
    host = ScriptedHost(script)

    async def may_send_dot() -> bool:
        await asyncio.sleep(seconds)
        return answer()

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        journal, owner = Journal(), attempt or Attempt()
        settlement = Settlement([TO], lambda recipient: None)
        journal.claim(settlement)
        message = Message(
            Trace("Q", clock, lambda event: None),
            envelope(TO),
            mail_data(),
            settlement,
            journal,
            may_send_dot,
            deadline,
            ends,
        )
        session = session_over(await dial(host.candidate()), host.candidate(), Told())
        options = Options(helo="mail.example.com")
        try:
            offer = Offer(options, message, owner, Sessions(), session, TLS, [0])
            await work(Stage(offer, owner, journal))
        finally:
            message.mail_data.close()
            session.abort()

    run(host, work=main)


@pytest.mark.parametrize(
    ("others", "is_last", "deadline", "expected"),
    [
        pytest.param(0, False, 900.0, 300.0, id="no other: the RFC's time"),
        pytest.param(0, False, 100.0, 100.0, id="no other: until the deadline"),
        pytest.param(1, False, 900.0, 60.0, id="another: the configured silence"),
        pytest.param(4, False, 100.0, 25.0, id="four: a share of what is left"),
        pytest.param(
            50, False, 100.0, SHORTEST_PATIENCE, id="many: call-outs take time"
        ),
        pytest.param(50, False, 6.0, 6.0, id="many: never past the deadline"),
        pytest.param(4, True, 900.0, 300.0, id="the last chance: all its time"),
    ],
)
def test_host_is_waited_for_less_where_others_wait(
    others: int, is_last: bool, deadline: float, expected: float
) -> None:
    async def work(stage: Stage) -> None:
        assert stage.offer.patience(State.MAIL) == pytest.approx(expected, abs=0.1)

    play(work, attempt=Attempt(others, is_last=is_last), deadline=deadline)


@pytest.mark.parametrize(
    ("deadline", "ends", "expected"),
    [
        (900.0, inf, 900.0),
        (900.0, DOT_TIME + 50.0, 50.0),
        (30.0, DOT_TIME + 50.0, 30.0),
    ],
)
def test_dot_leaves_while_its_reply_is_still_listened_to(
    deadline: float, ends: float, expected: float
) -> None:
    async def work(stage: Stage) -> None:
        assert stage.offer.patience(State.BODY) == pytest.approx(expected, abs=0.1)

    play(work, deadline=deadline, ends=ends)


def test_dot_whose_reply_would_come_too_late_is_not_sent() -> None:
    async def work(stage: Stage) -> None:
        with pytest.raises(OutOfTime):
            stage.offer.patience(State.BODY)

    play(work, ends=DOT_TIME)


def test_dot_is_noted_before_the_mail_server_is_asked_for_the_last_time() -> None:
    async def work(stage: Stage) -> None:
        with pytest.raises(Exception, match="has gone away"):
            await stage.offer.is_next(State.DOT, [0])
        assert [numbers for _, numbers in stage.journal.dots] == [[0]]

    play(work, answer=lambda: False)


def test_mail_server_is_asked_before_the_mail_data_too_and_no_dot_is_noted() -> None:
    async def work(stage: Stage) -> None:
        with pytest.raises(Exception, match="has gone away"):
            await stage.offer.is_next(State.BODY, [0])
        assert not stage.journal.dots

    play(work, answer=lambda: False)


def test_mail_server_that_does_not_answer_in_time_is_out_of_time() -> None:
    async def work(stage: Stage) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(OutOfTime):
            await stage.offer.is_next(State.DOT, [0])
        assert asyncio.get_running_loop().time() - began == pytest.approx(20.0, abs=0.5)

    play(work, deadline=20.0, seconds=3600.0)


@pytest.mark.parametrize(("deadline", "seconds"), [(900.0, RETRY_TIME), (20.0, 20.0)])
def test_second_session_has_a_time_of_its_own_and_none_past_the_deadline(
    deadline: float, seconds: float
) -> None:
    # It offers STARTTLS, puts it off, and then wants it.
    script: Script = {
        "EHLO": "250-mx.example.com\n250 STARTTLS",
        "STARTTLS": "454 4.7.0 not now",
        "MAIL": "530 5.7.0 Must issue a STARTTLS command first",
    }

    async def work(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        await stage.offer.session.open()
        began = loop.time()
        await stage.offer.run()
        assert loop.time() - began == pytest.approx(seconds, abs=0.5)
        # Our patience has ended: nothing is proven against the host.
        (finding,) = stage.attempt.recorded
        assert finding == stage.offer.ending
        assert (finding.verdict, finding.full) == (Verdict.TLS_SILENT, False)

    play(work, deadline=deadline, script=script)
