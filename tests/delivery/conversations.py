"""One session each with a scripted host, and what came of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mxpolicy.delivery.answers import Answers
from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.session import Session
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.delivery.settlement import RecipientState, Settlement
from mxpolicy.delivery.transaction import Transaction
from mxpolicy.net.dial import dial
from mxpolicy.options import LongLines, TlsLevel
from mxpolicy.protocol.smtp_states import State, facts
from mxpolicy.routing.tls_requirement import tls_requirement
from tests.delivery.attempts import HELO, MESSAGE, envelope, mail_data, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mxpolicy.delivery.mail_data import MailData
    from mxpolicy.delivery.message import Envelope
    from mxpolicy.net.stream import Stream
    from mxpolicy.protocol.smtp_states import Verb
    from mxpolicy.routing.candidate import Candidate, Phase
    from tests.helpers.scripted_smtp import ScriptedHost

__all__ = [
    "BIG",
    "FIVE",
    "Owner",
    "Result",
    "Told",
    "converse",
    "offered",
    "opened",
    "session_over",
    "transaction",
]

FIVE = tuple(f"{name}@example.com" for name in "abcde")
BIG = b"Subject: big\r\n\r\n" + (b"0123456789abcdef" * 60 + b"\r\n") * 8192


class Result:
    """What came of an offer to a few recipients, all of them ours."""

    def __init__(self) -> None:
        self.answers = Answers()
        self.settlement = Settlement(FIVE, lambda recipient: None)
        for number in range(len(FIVE)):
            self.settlement.claimed(number)

    @property
    def delivered(self) -> set[int]:
        """Whose message the host has taken."""
        return {
            one.number
            for one in self.settlement
            if one.state is RecipientState.DELIVERED
        }

    @property
    def in_doubt(self) -> set[int]:
        """Whose dot may be out and was not answered."""
        numbers = range(len(FIVE))
        return set(self.settlement.those(RecipientState.DOT_SENT, numbers))


class Owner:
    """Of a message: all the time of the RFC, unless said otherwise.

    Args:
        before_dot: Seconds for what comes before the dot.
        at_dot: Done right before it, and when the time for it is up.
        journal: Seconds that its journal takes to note the dot.
    """

    def __init__(
        self,
        before_dot: float = 1000.0,
        at_dot: Callable[[], None] = lambda: None,
        journal: float = 0.0,
    ) -> None:
        self.accepted: list[set[int]] = []
        self.result = Result()
        self._before_dot = before_dot
        self._at_dot = at_dot
        self._journal = journal
        self._until = 0.0

    def patience(self, state: State) -> float:
        if state is not State.BODY:
            return facts(state).timeout
        now = asyncio.get_running_loop().time()
        self._until = self._until or now + self._before_dot
        if now >= self._until:
            self._at_dot()
        return self._before_dot

    async def is_next(self, what: State, recipients: Sequence[int]) -> None:
        if what is State.BODY:
            before = self.accepted[-1] if self.accepted else set()
            self.accepted.append(before.union(recipients))
            return
        await asyncio.sleep(self._journal)
        self._at_dot()

    def taken(self, recipients: Sequence[int]) -> None:
        for number in recipients:
            settlement = self.result.settlement
            settlement.settle(number, settlement.delivered(number))


class Told:
    """What a session came to.

    Attributes:
        failure: How it failed, None if it did not.
        phases: The phases it entered on its way to ready.
        result: Of its transactions.
        accepted: Who was accepted so far, each time that mail data was next.
        strays: The replies that answered nothing.
        seconds: How long all took.
    """

    def __init__(self) -> None:
        self.failure: SessionFailed | None = None
        self.phases: list[Phase] = []
        self.result = Result()
        self.accepted: list[set[int]] = []
        self.strays: list[str] = []
        self.seconds = 0.0

    @property
    def failed(self) -> tuple[str, str]:
        """Verdict and phase."""
        assert self.failure is not None
        return self.failure.finding.verdict.value, self.failure.finding.phase.word

    @property
    def refused(self) -> dict[int, tuple[Verb, int]]:
        """Verb and code by recipient."""
        return {
            index: (verb, reply.code)
            for index, (verb, reply) in self.result.answers.refused.items()
        }


def session_over(
    stream: Stream,
    candidate: Candidate,
    told: Told,
    *,
    tls: TlsLevel = TlsLevel.MAY,
    waits_for_body: bool = True,
    is_myself: Callable[[str], bool] = lambda name: False,
) -> Session:
    """Make a session over *stream*."""
    return Session(
        stream,
        candidate,
        Approach(tls_requirement(tls), waits_for_body=waits_for_body),
        Listener(
            entered=told.phases.append,
            ignored=lambda reply: told.strays.append(reply.text),
        ),
        helo=HELO,
        is_myself=is_myself,
        clock=asyncio.get_running_loop().time,
    )


def transaction(
    session: Session,
    to: Envelope,
    recipients: Iterable[int],
    spooled: MailData,
    owner: Owner,
    result: Result,
    *,
    long_lines: LongLines = LongLines.FOLD,
    progress: float = 60.0,
) -> Transaction:
    """Make a transaction over *session*."""
    owner.result = result
    return Transaction(
        session,
        to,
        recipients,
        spooled,
        owner,
        result.settlement,
        result.answers,
        long_lines=long_lines,
        progress=progress,
    )


async def converse(
    host: ScriptedHost,
    told: Told,
    *,
    message: bytes = MESSAGE,
    to: Envelope | None = None,
    owner: Owner | None = None,
    port: int | None = None,
    is_myself: Callable[[str], bool] = lambda name: False,
) -> None:
    """Open a session with *host*, and offer a message if there are recipients."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    candidate = host.candidate()
    session = session_over(
        await dial(candidate),
        candidate._replace(port=port or candidate.port),
        told,
        is_myself=is_myself,
    )
    owner = owner or Owner()
    told.accepted = owner.accepted
    spooled = mail_data(message)
    try:
        await session.open()
        if to is not None:
            everyone = range(len(to.recipients))
            await transaction(
                session, to, everyone, spooled, owner, told.result, progress=5.0
            ).run()
        session.quit()
    except SessionFailed as failure:
        told.failure = failure
        session.abort()
    except BaseException:
        session.abort()
        raise
    finally:
        spooled.close()
        told.seconds = loop.time() - began


def opened(host: ScriptedHost, **more: object) -> Told:
    """Open a session with *host*."""
    told = Told()
    run(host, work=lambda: converse(host, told, **more))  # type: ignore[arg-type]
    return told


def offered(host: ScriptedHost, *recipients: str, **more: object) -> Told:
    """Offer *host* a message for *recipients*, one if none are given."""
    to = envelope(*(recipients or FIVE[:1]))
    return opened(host, to=to, **more)
