"""What may meet a session of an earlier message comes out the same both ways.

Each case is played twice, by the fast path and by the ordinary way: a message that goes
well, then one that meets the case, then a third one.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from mxpolicy.delivery import events
from mxpolicy.delivery.journal import Entry
from mxpolicy.routing.host_record import decode
from mxpolicy.state.store import JOURNAL
from tests.delivery.attempts import run
from tests.delivery.site import Sent, Site
from tests.helpers.scripted_smtp import EXTENSIONS, End, ScriptedHost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.helpers.scripted_smtp import Answer

TWO = ("bob@example.com", "eve@example.com")
NO_USER = "550 5.1.1 no such user"


def once(answer: Answer, good: Answer) -> list[Answer]:
    return [answer, good]


CASES: dict[str, dict[str, Any]] = {
    "well": {},
    **{
        f"{verb} {name}": {verb: once(answer, good)}
        for verb, good in (
            ("RSET", "250 ok"),
            ("MAIL", "250 ok"),
            ("RCPT", "250 ok"),
            ("DATA", "354 go"),
            (".", "250 queued"),
        )
        for name, answer in (
            ("421", "421 4.7.0 enough"),
            ("451", "451 4.3.0 later"),
            ("554", "554 5.5.0 no"),
            ("closed", End.CLOSE),
            ("reset", End.RESET),
            ("silent", End.SILENT),
            ("slow", (3.0, good)),
            ("very slow", (200.0, good)),
            ("nonsense", b"\xff\r\n"),
            ("twice", f"{good}\n{good}"),
            ("two lines", f"{good[:3]}-first\n{good}"),
            (
                "bytewise",
                tuple(
                    part
                    for one in good.encode() + b"\r\n"
                    for part in (bytes([one]), 0.01)
                ),
            ),
        )
    },
    "RCPT of one is refused": {"RCPT eve@example.com": once(NO_USER, "250 ok")},
    "RCPT of one is greylisted": {
        "RCPT bob@example.com": once("450 4.7.1 wait", "250")
    },
    "RCPT is refused and DATA is not": {
        "RCPT": ["550 5.1.1 no such user"] * 2 + ["250 ok"],
        "DATA": "354 go",
    },
    "RCPT over the limit": {
        "RCPT eve@example.com": once("452 4.5.3 too many", "250 ok")
    },
    "RCPT wants TLS": {"RCPT": once("530 5.7.0 STARTTLS first", "250 ok")},
    "dot 252": {".": once("252 2.0.0 perhaps", "250 queued")},
    "dot in some seconds": {".": once((8.0, "250 queued"), "250 queued")},
    "dot after its time": {".": once((700.0, "250 queued"), "250 queued")},
    "mail data is refused": {"BODY": once("552 5.3.4 too large", b"")},
    "mail data is cut": {"BODY": once(End.RESET, b"")},
    "354 and more": {"DATA": once("354 go\n250 hello", "354 go")},
}


def _seen(hosts: Sequence[ScriptedHost], site: Site, sent: Sequence[Sent]) -> list[Any]:
    """Return all that the two ways must have in common, without times and ports."""
    told = [
        [
            type(event).__name__
            for event in one.events
            if not isinstance(event, events.Progressed)
        ]
        for one in sent
    ]
    ends = [[(type(one).__name__, one.text) for one in each.outcomes] for each in sent]
    logged = [
        (event.tried, event.tls)
        for each in sent
        for event in each.events
        if isinstance(event, events.RecipientSettled)
    ]
    # On the fast path DATA leaves behind RCPT; a host that refuses all recipients and
    # says 354 all the same gets no QUIT.
    verbs = [
        [[line.split(" ")[0] for line in visit] for visit in host.visits]
        for host in hosts
    ]
    said = [
        [[verb for verb in visit if verb not in ("DATA", "QUIT")] for visit in visits]
        for visits in verbs
    ]
    taken = [
        [(one.forward_paths, one.answered) for one in host.messages] for host in hosts
    ]
    return [told, ends, logged, said, taken]


async def _kept(site: Site) -> list[Any]:
    rows = await site.store.scan(JOURNAL)
    journal = [
        (one.state, one.past, one.text)
        for row in rows
        if (one := Entry.decode(row.value))
    ]
    records = [
        (row.key, one.verdict, one.phase, one.full, one.said)
        for row in await site.store.scan("")
        if row.key.startswith(("host ", "nexthop "))
        for one in [decode(row.value)]
    ]
    return [sorted(map(str, journal)), records]


def _without_times(seen: object) -> str:
    """Return *seen* as text, without what each play has of its own: times and ports."""
    return re.sub(r"\b\d+\.\d+s?\b|\b\d{4,5}\b|\b\d+s ago", "...", str(seen))


def _play(
    case: str, is_fast: bool, others: int, recipients: Sequence[str], **more: Any
) -> tuple[Any, int]:
    hosts = [ScriptedHost(**more) for _ in range(1 + others)]
    found: list[Any] = []
    count = 0

    async def work() -> None:
        nonlocal count
        site = Site(*hosts, keeps_sessions=True, is_fast=is_fast, is_by_lmtp=True)
        try:
            sent = [await site.send()]
            hosts[0].will(CASES[case])
            sent.append(await site.send(recipients=recipients))
            await asyncio.sleep(1)
            sent.append(await site.send(recipients=recipients))
            await asyncio.sleep(1)
            found.extend([*_seen(hosts, site, sent), *await _kept(site)])
        finally:
            await site.engine.stop("the test is over")
        assert not site.troubles()
        if site.engine.fast_path is not None:
            count = site.engine.fast_path.delivered

    run(*hosts, work=work)
    return found, count


def _compare(case: str, others: int, recipients: Sequence[str], **more: Any) -> int:
    ours, count = _play(case, True, others, recipients, **more)
    ordinary, _ = _play(case, False, others, recipients, **more)
    for one, other in zip(ours, ordinary, strict=True):
        assert _without_times(one) == _without_times(other)
    return count


@pytest.mark.parametrize("case", CASES)
def test_case_comes_out_as_on_the_ordinary_way(case: str) -> None:
    count = _compare(case, 1, TWO)
    if case == "well":
        assert count == 2


@pytest.mark.parametrize(
    "case", ["RCPT 554", "MAIL 451", "DATA closed", ". 554", ". reset"]
)
def test_case_comes_out_the_same_without_pipelining(case: str) -> None:
    _compare(case, 0, TWO[:1], extensions=EXTENSIONS[1:])


@pytest.mark.parametrize(
    "case", ["well", "RSET closed", "RCPT 554", "DATA reset", ". 451", ". closed"]
)
def test_case_comes_out_the_same_under_tls(case: str) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.11").configure_cert(context)
    count = _compare(case, 0, TWO[:1], context=context)
    if case == "well":
        assert count == 2
