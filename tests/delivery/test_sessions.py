"""`mxpolicy.delivery.sessions`: what a user of a session is given, and gives back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mxpolicy.delivery.approach import SMALL_SEGMENT, Approach
from mxpolicy.delivery.connect import Egress
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.delivery.sessions import Sessions
from mxpolicy.net.dial import dial as dial_directly
from mxpolicy.options import TlsLevel
from mxpolicy.routing.candidate import DIRECT, Phase
from mxpolicy.routing.tls_requirement import tls_requirement
from tests.delivery.attempts import HELO, run
from tests.helpers.scripted_smtp import End, ScriptedHost

if TYPE_CHECKING:
    from mxpolicy.net.stream import Stream
    from mxpolicy.routing.candidate import Candidate

MAY = Approach(tls_requirement(TlsLevel.MAY))
OFFER = "250-mx.example.com\n250 STARTTLS"


class Dialled:
    """A supplier, and the segment sizes that it has dialled with."""

    def __init__(self, egress: str = DIRECT) -> None:
        self.segment_sizes: list[int | None] = []
        clock = asyncio.get_running_loop().time
        direct = Egress(self._dial, HELO, lambda name: False, clock)
        self.sessions = Sessions({egress: direct})

    async def _dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        self.segment_sizes.append(mss)
        return await dial_directly(candidate, mss=mss)


@pytest.mark.parametrize("is_broken", [False, True])
def test_session_is_ready_and_quits_when_it_is_given_back(is_broken: bool) -> None:
    host = ScriptedHost()

    async def work() -> None:
        sessions = Dialled().sessions
        phases: list[Phase] = []
        session = await sessions.open(host.candidate(), MAY, Listener(phases.append))
        assert phases[-1] is Phase.READY
        assert session.candidate == host.candidate()
        if is_broken:
            session.abort()
        sessions.give_back(session)

    run(host, work=work)
    assert host.visits == [[f"EHLO {HELO}", *([] if is_broken else ["QUIT"])]]


def test_candidate_is_reached_by_its_own_egress() -> None:
    host = ScriptedHost()

    async def work() -> None:
        sessions = Dialled("other").sessions
        with pytest.raises(KeyError):
            await sessions.open(host.candidate(), MAY, Listener())
        candidate = host.candidate()._replace(egress="other")
        sessions.give_back(await sessions.open(candidate, MAY, Listener()))

    run(host, work=work)
    assert len(host.visits) == 1


@pytest.mark.parametrize(
    ("starttls", "segment_sizes"),
    [
        (("220 go ahead", End.SILENT), [None, SMALL_SEGMENT, None]),
        (End.CLOSE, [None, None]),
        (End.SILENT, [None, None]),
    ],
    ids=["ClientHello unanswered", "closed", "STARTTLS unanswered"],
)
def test_session_says_how_it_was_reached(
    starttls: object, segment_sizes: list[int | None]
) -> None:
    host = ScriptedHost({"EHLO": OFFER, "STARTTLS": starttls})  # type: ignore[dict-item]

    async def work() -> None:
        dialled = Dialled()
        session = await dialled.sessions.open(host.candidate(), MAY, Listener())
        assert session.approach == MAY.in_clear()
        assert session.might_have_tls
        assert dialled.segment_sizes == segment_sizes
        dialled.sessions.give_back(session)

    run(host, work=work)


def test_first_failure_is_the_one_that_counts_and_the_others_are_told() -> None:
    silent = ("220 go ahead", End.SILENT)
    host = ScriptedHost(
        {
            "CONNECT": ["220 a", "220 b", "421 enough"],
            "EHLO": OFFER,
            "STARTTLS": [silent, End.CLOSE],
        }
    )

    async def work() -> None:
        with pytest.raises(SessionFailed) as caught:
            await Dialled().sessions.open(host.candidate(), MAY, Listener())
        assert str(caught.value) == (
            "tls_silent in the TLS handshake; then with small segments: "
            "tls_failed connection closed by the host; then in clear: "
            "greeting_4xx 421 enough"
        )

    run(host, work=work)


def test_session_counts_its_transactions_and_knows_its_age() -> None:
    host = ScriptedHost(extensions=["LIMITS MAILMAX=2"])

    async def work() -> None:
        loop = asyncio.get_running_loop()
        sessions = Dialled().sessions
        session = await sessions.open(host.candidate(), MAY, Listener())
        began = session.began
        assert (session.transactions, session.last_used) == (0, began)
        for done in (1, 2):
            await asyncio.sleep(5)
            await session.make_ready(300)
            assert session.transactions == done
            assert session.last_used == loop.time()
        with pytest.raises(SessionFailed, match="takes 2 messages a session"):
            await session.make_ready(300)
        assert session.began == began
        sessions.give_back(session)

    run(host, work=work)
