"""Every event as a line, in Postfix's form and as JSON."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.delivery.events import (
    AccessJudged,
    CandidateDoubted,
    CandidateDropped,
    CandidateFailed,
    CandidateStarted,
    CandidateTaken,
    Delays,
    Event,
    LateReplyEnded,
    Notice,
    PhaseReached,
    Planned,
    Progressed,
    RecipientSettled,
    Secured,
    StrayReply,
    TlsWanted,
    Trouble,
    WorkedAround,
)
from mxpolicy.delivery.log_line import MAX_LINE, json_line, text_line
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict

CHECKOUT = Path(__file__).parents[2]

FIRST = Candidate("mx1.example.com", "192.0.2.1", 25, preference=10)
SECOND = Candidate("mx2.example.com", "2001:db8::2", 25, preference=20)


def named(event: Event) -> Event:
    return event._replace(queue_id="4bXyz1")


TIME = "2026-11-23T23:10:00.123Z"

OK = Reply(250, ("2.0.0 Ok: queued as 4bXzA",))
DELIVERED = Delivered(EnhancedStatus(2, 0, 0), OK.text, OK, str(SECOND))
DEFERRED = Deferred(EnhancedStatus(4, 4, 1), "no host of example.com can be reached")
BOUNCED = Bounced(
    EnhancedStatus(5, 1, 1),
    "host mx1.example.com[192.0.2.1]:25 said: 550 5.1.1 no such user",
    Reply(550, ("5.1.1 no such user",)),
    str(FIRST),
)
TRIED = ("mx1.example.com[192.0.2.1]:25 filtered 1.5s",)


def settled(
    outcome: Outcome, *, tried: tuple[str, ...] = (), tls: str = ""
) -> RecipientSettled:
    delays = Delays(0.02, 1.504, 0.08, 0.1)
    return RecipientSettled(
        1.704, "kim@example.com", outcome, delays, tried, tls=tls
    )  # fmt: skip


JUDGED = AccessJudged(
    0.0312,
    "4bOwn",
    "RCPT",
    "192.0.2.9",
    "kim@example.com",
    "pat@example.net",
    ("recipient example.net null_mx", "sender example.com no_address"),
    "550 5.1.10 no",
)

FILTERED = Finding(Verdict.FILTERED, Phase.CONNECT, 1.5, full=False)
NOT_SMTP = Finding(Verdict.NOT_SMTP, Phase.GREETING, 0.01, text="HTTP/1.1 400")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        pytest.param(
            settled(DELIVERED, tried=TRIED, tls="TLSv1.3/TLS_AES_256_GCM_SHA384"),
            "4bXyz1: to=<kim@example.com>, relay=mx2.example.com[2001:db8::2]:25,"
            " egress=direct, tls=TLSv1.3/TLS_AES_256_GCM_SHA384, delay=1.7, delays=0.02/1.5/0.08/0.1, dsn=2.0.0,"
            " status=sent (250 2.0.0 Ok: queued as 4bXzA),"
            " tried=mx1.example.com[192.0.2.1]:25 filtered 1.5s",
            id="sent",
        ),
        pytest.param(
            settled(DEFERRED, tried=(*TRIED, "mx2.example.com[2001:db8::2]:25 refused 0.0s")),
            "4bXyz1: to=<kim@example.com>, relay=none, egress=direct, delay=1.7,"
            " delays=0.02/1.5/0.08/0.1, dsn=4.4.1, status=deferred"
            " (no host of example.com can be reached),"
            " tried=mx1.example.com[192.0.2.1]:25 filtered 1.5s;"
            " mx2.example.com[2001:db8::2]:25 refused 0.0s",
            id="deferred",
        ),
        pytest.param(
            settled(BOUNCED),
            "4bXyz1: to=<kim@example.com>, relay=mx1.example.com[192.0.2.1]:25,"
            " egress=direct, delay=1.7, delays=0.02/1.5/0.08/0.1, dsn=5.1.1,"
            " status=bounced (host mx1.example.com[192.0.2.1]:25 said: 550 5.1.1"
            " no such user)",
            id="bounced",
        ),
        pytest.param(
            Planned(0.02, "example.com", (FIRST, SECOND), ("skipped a null MX",)),
            "4bXyz1: planned, at=0.02, nexthop=example.com,"
            " candidates=mx1.example.com[192.0.2.1]:25"
            " mx2.example.com[2001:db8::2]:25, remarks=skipped a null MX",
            id="planned",
        ),
        pytest.param(
            Planned(0.0, "example.com", (), ()),
            "4bXyz1: planned, at=0, nexthop=example.com, candidates=none",
            id="planned_nothing",
        ),
        pytest.param(
            CandidateStarted(0.02, FIRST),
            "4bXyz1: started, at=0.02, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct",
            id="started",
        ),
        pytest.param(
            PhaseReached(300.0, FIRST, Phase.GREETING),
            "4bXyz1: reached, at=300, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct, phase=greeting",
            id="reached",
        ),
        pytest.param(
            Progressed(7.0, FIRST),
            "4bXyz1: progressed, at=7, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct",
            id="progressed",
        ),
        pytest.param(
            CandidateFailed(1.5, FIRST, FILTERED),
            "4bXyz1: failed, at=1.5, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct, phase=connect, verdict=filtered, waited=1.5, provisional",
            id="failed_in_part",
        ),
        pytest.param(
            CandidateFailed(1.5, FIRST, NOT_SMTP),
            "4bXyz1: failed, at=1.5, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct, phase=greeting, verdict=not_smtp, waited=0.01"
            " (HTTP/1.1 400)",
            id="failed",
        ),
        pytest.param(
            CandidateDoubted(1.5, FIRST, FILTERED._replace(waited=1.5, full=False)),
            "4bXyz1: doubted, at=1.5, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct, phase=connect, waited=1.5",
            id="doubted",
        ),
        pytest.param(
            WorkedAround(1.6, FIRST, True, True),
            "4bXyz1: worked around, at=1.6, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct, by=small segments and clear text",
            id="worked around",
        ),
        pytest.param(
            Secured(1.6, FIRST),
            "4bXyz1: secured, at=1.6, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct",
            id="secured",
        ),
        pytest.param(
            TlsWanted(1.6, FIRST, "530 5.7.0 Must issue a STARTTLS command first"),
            "4bXyz1: TLS wanted, at=1.6, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct (530 5.7.0 Must issue a STARTTLS command first)",
            id="TLS wanted",
        ),
        pytest.param(
            StrayReply(1.6, FIRST, "250 ok"),
            "4bXyz1: stray reply, at=1.6, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct (250 ok)",
            id="stray reply",
        ),
        pytest.param(
            LateReplyEnded(1200.4, FIRST, "kim@example.com", True, "250 2.0.0 Ok"),
            "4bXyz1: late reply, at=1200.4, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct, to=<kim@example.com>, taken=yes (250 2.0.0 Ok)",
            id="late reply",
        ),
        pytest.param(
            CandidateDropped(1.6, FIRST, Phase.CONNECT),
            "4bXyz1: dropped, at=1.6, candidate=mx1.example.com[192.0.2.1]:25,"
            " egress=direct, phase=connect",
            id="dropped",
        ),
        pytest.param(
            CandidateTaken(1.6, SECOND),
            "4bXyz1: taken, at=1.6, candidate=mx2.example.com[2001:db8::2]:25,"
            " egress=direct",
            id="taken",
        ),
        pytest.param(
            Trouble(0.5, "no descriptors left"),
            "4bXyz1: trouble, at=0.5 (no descriptors left)",
            id="trouble",
        ),
        pytest.param(
            Notice(0.5, "configuration read again"),
            "4bXyz1: notice, at=0.5 (configuration read again)",
            id="notice",
        ),
    ],
)  # fmt: skip
def test_event_as_text(event: Event, line: str) -> None:
    assert text_line(named(event)) == line


MX1 = {
    "egress": "direct",
    "host": "mx1.example.com",
    "preference": 10,
    "address": "192.0.2.1",
    "port": 25,
}
MX2 = {
    "egress": "direct",
    "host": "mx2.example.com",
    "preference": 20,
    "address": "2001:db8::2",
    "port": 25,
}


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        pytest.param(
            settled(DELIVERED, tried=TRIED),
            {
                "event": "settled",
                "at": 1.704,
                "to": "kim@example.com",
                "relay": "mx2.example.com[2001:db8::2]:25",
                "egress": "direct",
                "tls": "",
                "delay": 1.704,
                "delays": {"dns": 0.02, "reach": 1.504, "tls": 0.08, "transfer": 0.1},
                "dsn": "2.0.0",
                "status": "sent",
                "text": "250 2.0.0 Ok: queued as 4bXzA",
                "tried": list(TRIED),
            },
            id="settled",
        ),
        pytest.param(
            Planned(0.02, "example.com", (FIRST, SECOND), ("skipped a null MX",)),
            {
                "event": "planned",
                "at": 0.02,
                "nexthop": "example.com",
                "candidates": [MX1, MX2],
                "remarks": ["skipped a null MX"],
            },
            id="planned",
        ),
        pytest.param(
            CandidateStarted(0.02, FIRST),
            {"event": "started", "at": 0.02, **MX1},
            id="started",
        ),
        pytest.param(
            PhaseReached(0.1, FIRST, Phase.TLS),
            {"event": "reached", "at": 0.1, **MX1, "phase": "tls"},
            id="reached",
        ),
        pytest.param(
            Progressed(7.0, FIRST),
            {"event": "progressed", "at": 7.0, **MX1},
            id="progressed",
        ),
        pytest.param(
            CandidateFailed(1.5, FIRST, FILTERED),
            {
                "event": "failed",
                "at": 1.5,
                **MX1,
                "phase": "connect",
                "verdict": "filtered",
                "waited": 1.5,
                "full": False,
                "text": "",
            },
            id="failed",
        ),
        pytest.param(
            CandidateDoubted(1.5, FIRST, FILTERED._replace(waited=1.5, full=False)),
            {"event": "doubted", "at": 1.5, **MX1, "phase": "connect", "waited": 1.5},
            id="doubted",
        ),
        pytest.param(
            WorkedAround(1.6, FIRST, False, True),
            {"event": "worked around", "at": 1.6, **MX1, "by": "clear text"},
            id="worked around",
        ),
        pytest.param(
            Secured(1.6, FIRST),
            {"event": "secured", "at": 1.6, **MX1},
            id="secured",
        ),
        pytest.param(
            TlsWanted(1.6, FIRST, "530 no"),
            {"event": "TLS wanted", "at": 1.6, **MX1, "text": "530 no"},
            id="TLS wanted",
        ),
        pytest.param(
            StrayReply(1.6, FIRST, "250 ok"),
            {"event": "stray reply", "at": 1.6, **MX1, "text": "250 ok"},
            id="stray reply",
        ),
        pytest.param(
            LateReplyEnded(1200.4, FIRST, "kim@example.com", False, "554 no"),
            {
                "event": "late reply",
                "at": 1200.4,
                **MX1,
                "to": "kim@example.com",
                "taken": "no",
                "text": "554 no",
            },
            id="late reply",
        ),
        pytest.param(
            CandidateDropped(1.6, FIRST, Phase.CONNECT),
            {"event": "dropped", "at": 1.6, **MX1, "phase": "connect"},
            id="dropped",
        ),
        pytest.param(
            CandidateTaken(1.6, SECOND),
            {"event": "taken", "at": 1.6, **MX2},
            id="taken",
        ),
        pytest.param(
            Trouble(0.5, "no descriptors left"),
            {"event": "trouble", "at": 0.5, "text": "no descriptors left"},
            id="trouble",
        ),
        pytest.param(
            Notice(0.5, "configuration read again"),
            {"event": "notice", "at": 0.5, "text": "configuration read again"},
            id="notice",
        ),
    ],
)
def test_event_as_json(event: Event, facts: dict[str, object]) -> None:
    said = json.loads(json_line(named(event), TIME))
    assert said == {"time": TIME, "id": "4bXyz1", **facts}


@pytest.mark.parametrize("outcome", [DEFERRED, BOUNCED])
def test_json_has_the_status_of_the_text(outcome: Outcome) -> None:
    line = text_line(settled(outcome))
    status = json.loads(json_line(settled(outcome), TIME))["status"]
    assert f" status={status} (" in line


def test_judgement_has_the_id_of_its_own_message() -> None:
    assert text_line(JUDGED) == (
        "4bOwn: access, delay=0.03, state=RCPT, client=192.0.2.9,"
        " from=<kim@example.com>, to=<pat@example.net>, found=recipient example.net"
        " null_mx; sender example.com no_address, action=550 5.1.10 no"
    )
    assert json.loads(json_line(JUDGED, TIME)) == {
        "time": TIME,
        "id": "4bOwn",
        "event": "access",
        "delay": 0.0312,
        "state": "RCPT",
        "client": "192.0.2.9",
        "from": "kim@example.com",
        "to": "pat@example.net",
        "found": list(JUDGED.found),
        "action": "550 5.1.10 no",
    }
    nothing = JUDGED._replace(queue_id="", found=())
    assert text_line(nothing).startswith("NOQUEUE: access, ")
    assert ", found=nothing, action=" in text_line(nothing)


def test_message_without_a_queue_id_is_noqueue() -> None:
    assert text_line(Trouble(0.0, "x")).startswith("NOQUEUE: ")
    assert json.loads(json_line(Trouble(0.0, "x"), TIME))["id"] == "NOQUEUE"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0"), (0.004, "0"), (0.02, "0.02"), (1.5, "1.5"), (100.0, "100"), (1e6, "1000000")],
)  # fmt: skip
def test_seconds_have_the_places_that_matter(seconds: float, shown: str) -> None:
    assert text_line(Trouble(seconds, "x", "i")) == f"i: trouble, at={shown} (x)"


MANY = tuple(
    Candidate(f"mx{number}." + "a" * 200 + ".example", "192.0.2.1", 25)
    for number in range(100)
)


def test_long_text_is_cut_at_its_end() -> None:
    event = settled(BOUNCED, tried=tuple(f"{one} filtered 1.5s" for one in MANY))
    line = text_line(named(event))
    assert len(line) == MAX_LINE
    assert line.endswith("...")
    assert " status=bounced (host mx1.example.com[192.0.2.1]:25 said: 550" in line


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (Planned(0.0, "example.com", MANY, ("r" * 500,)), "candidates"),
        (Planned(0.0, "example.com", MANY, ("r" * 500,) * 50), "remarks"),
        (settled(BOUNCED, tried=("t" * 1000,) * 50), "tried"),
    ],
)
def test_long_json_stays_json_and_says_what_is_left_out(
    event: Event, name: str
) -> None:
    line = json_line(named(event), TIME)
    assert len(line) <= MAX_LINE
    said = json.loads(line)
    whole = sum(len(part) for part in event if type(part) is tuple)
    kept = sum(len(part) for part in said.values() if isinstance(part, list))
    assert said["left_out"] == whole - kept
    assert 0 < len(said[name]) < whole or name == "remarks"


def test_recipient_too_long_for_json_is_cut() -> None:
    recipient = "\N{MAHJONG TILE RED DRAGON}" * 320  # twelve characters each
    event = settled(BOUNCED)._replace(recipient=recipient)
    line = json_line(named(event), TIME)
    assert len(line) <= MAX_LINE
    said = json.loads(line)
    assert recipient.startswith(said["to"])
    assert said["status"] == "bounced"


TEXTS = st.text(max_size=2000)


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS, TEXTS, st.lists(TEXTS, max_size=10).map(tuple))
def test_no_text_of_a_stranger_breaks_a_line(
    queue_id: str, recipient: str, text: str, tried: tuple[str, ...]
) -> None:
    outcome = Deferred(EnhancedStatus(4, 0, 0), text)
    event = RecipientSettled(0.0, recipient, outcome, Delays(), tried, queue_id)
    for line in (text_line(event), json_line(event, TIME)):
        assert re.fullmatch(f"[ -~]{{1,{MAX_LINE}}}", line)
    said = json.loads(json_line(event, TIME))["to"]
    assert recipient.startswith(said)
    assert len(said) >= min(len(recipient), 160)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_no_text_of_a_question_breaks_a_line(
    queue_id: str, state: str, sender: str, recipient: str
) -> None:
    event = AccessJudged(
        0.0, queue_id, state, "192.0.2.1", sender, recipient, (), "DEFER"
    )
    for line in (text_line(event), json_line(event, TIME)):
        assert re.fullmatch(f"[ -~]{{1,{MAX_LINE}}}", line)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS)
def test_no_text_of_our_own_breaks_a_line(nexthop: str, text: str) -> None:
    finding = Finding(Verdict.CLOSED, Phase.EHLO, 0.0, text=text)
    candidate = Candidate(nexthop, "192.0.2.1", 25)
    events: list[Event] = [
        Planned(0.0, nexthop, (candidate,), (text,)),
        Trouble(0.0, text),
        CandidateFailed(0.0, candidate, finding),
    ]
    for event in events:
        for line in (text_line(named(event)), json_line(named(event), TIME)):
            assert re.fullmatch(f"[ -~]{{1,{MAX_LINE}}}", line)


def test_readme_and_reference_show_what_is_written() -> None:
    relay = str(SECOND._replace(address="192.0.2.2"))
    outcome = Delivered(EnhancedStatus(2, 0, 0), "250 2.0.0 Ok", OK, relay)
    tried = ("mx1.example.com[192.0.2.1]:25 filtered 1.6s",)
    event = RecipientSettled(
        *(1.77, "you@example.com", outcome, Delays(0.02, 1.6, 0.08, 0.07)),
        *(tried, "4ZbX3k0Qz", "TLSv1.3/TLS_AES_256_GCM_SHA384"),
    )
    shown = {"README.md": text_line(event), "REFERENCE.md": json_line(event, TIME)}
    for name, line in shown.items():
        text = "".join((CHECKOUT / name).read_text().split())
        assert "".join(line.split()) in text, line


def test_lines_of_our_own_trouble_stand_behind_each_other() -> None:
    event = Trouble(0.0, "one mistake\n  another\n\n")
    assert text_line(event).endswith("one mistake; another)")
    assert json.loads(json_line(event, ""))["text"] == "one mistake; another"
