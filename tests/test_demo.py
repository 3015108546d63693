"""The demo: its name server, its hosts and its screen, and the whole of it as a command."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import get_args

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.delivery import events
from mxpolicy.delivery.log_line import json_line
from mxpolicy.demo import main, names, stage
from mxpolicy.demo.hosts import Hosts, Receiver, Taken, address_of, open_hosts
from mxpolicy.demo.logfile import LogFile, step_of
from mxpolicy.demo.screen import Paint, Screen
from mxpolicy.demo.stories import STORIES, Behaviour, Story
from mxpolicy.demo.timeline import Ending, Step, StepKind, Timeline, narrate
from mxpolicy.outcome import Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict

STORY = {story.name: story for story in STORIES}
ids = pytest.mark.parametrize("story", [pytest.param(s, id=s.name) for s in STORIES])


# --- the name server


def zone_of(story: Story) -> names.Zone:
    places = range(len(story.hosts))
    return names.Zone(
        story.domain, [(story.host_name(n), address_of(n)) for n in places]
    )


def ask(zone: names.Zone, name: str, rdtype: str) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, want_dnssec=True)
    wire = zone.answer(query.to_wire())
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    return response


def records(response: dns.message.Message) -> list[str]:
    return [str(rdata) for rrset in response.answer for rdata in rrset]


def test_mx_hosts_get_rising_preferences_and_their_addresses() -> None:
    zone = zone_of(STORY["dropped"])
    assert sorted(records(ask(zone, "dropped.example", "MX"))) == [
        "10 mx1.dropped.example.",
        "20 mx2.dropped.example.",
    ]
    assert records(ask(zone, "MX2.dropped.EXAMPLE", "A")) == ["127.0.0.12"]


def test_story_without_hosts_has_a_null_mx() -> None:
    assert records(ask(zone_of(STORY["nullmx"]), "nullmx.example", "MX")) == ["0 ."]


@pytest.mark.parametrize(
    ("name", "rdtype", "rcode"),
    [
        pytest.param("mx1.dropped.example", "AAAA", dns.rcode.NOERROR, id="nodata"),
        pytest.param("mx3.dropped.example", "A", dns.rcode.NXDOMAIN, id="nxdomain"),
    ],
)
def test_negative_answer_carries_the_soa(
    name: str, rdtype: str, rcode: dns.rcode.Rcode
) -> None:
    response = ask(zone_of(STORY["dropped"]), name, rdtype)
    assert response.rcode() == rcode
    assert not response.answer
    assert [rrset.rdtype for rrset in response.authority] == [dns.rdatatype.SOA]
    assert response.flags & dns.flags.AA


def test_question_outside_the_zone_is_refused() -> None:
    assert (
        ask(zone_of(STORY["dropped"]), "example.com", "MX").rcode() == dns.rcode.REFUSED
    )


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 11, id="short"),
        pytest.param(b"\xff" * 40, id="garbage"),
        pytest.param(
            dns.message.make_response(
                dns.message.make_query("dropped.example", "MX")
            ).to_wire(),
            id="a_response",
        ),
    ],
)
def test_what_is_no_query_gets_no_answer(wire: bytes) -> None:
    assert zone_of(STORY["dropped"]).answer(wire) is None


@ids
def test_mx_answer_fits_a_datagram_without_edns(story: Story) -> None:
    query = dns.message.make_query(story.domain, "MX")
    wire = zone_of(story).answer(query.to_wire())
    assert wire is not None
    assert len(wire) <= 512


# --- the hosts


@contextlib.asynccontextmanager
async def serving(*behaviours: Behaviour) -> AsyncIterator[tuple[Hosts, list[str]]]:
    named = [(f"mx{n}.test.example", how) for n, how in enumerate(behaviours, 1)]
    with open_hosts(named) as (hosts, addresses):
        started = asyncio.Event()
        task = asyncio.create_task(hosts.serve(started))
        await started.wait()
        try:
            yield hosts, addresses
        finally:
            task.cancel()
            await asyncio.wait([task])


async def first_words(address: str, port: int) -> bytes:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(address, port)
        try:
            return await reader.readline()
        finally:
            writer.close()


async def test_dropped_host_leaves_a_syn_without_answer() -> None:
    async with serving(Behaviour.DROPPED) as (hosts, [address]):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.open_connection(address, hosts.port)


async def test_refusing_host_answers_with_a_reset() -> None:
    async with serving(Behaviour.REFUSES, Behaviour.GOOD) as (hosts, [address, _]):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address, hosts.port)


@pytest.mark.parametrize(
    ("behaviour", "line"),
    [
        pytest.param(Behaviour.GOOD, b"220 mx1.test.example ESMTP demo\r\n", id="good"),
        pytest.param(Behaviour.CLOSES, b"", id="closes"),
        pytest.param(
            Behaviour.REJECTS, b"554 5.7.1 No SMTP service here\r\n", id="rejects"
        ),
    ],
)
async def test_host_begins_as_its_behaviour_says(
    behaviour: Behaviour, line: bytes
) -> None:
    async with serving(behaviour) as (hosts, [address]):
        assert await first_words(address, hosts.port) == line


async def test_silent_host_accepts_and_says_nothing() -> None:
    async with serving(Behaviour.SILENT) as (hosts, [address]):
        reader, writer = await asyncio.open_connection(address, hosts.port)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        writer.close()


async def test_nothing_listens_when_the_hosts_are_closed() -> None:
    async with serving(*Behaviour) as (hosts, addresses):
        assert len(set(addresses)) == len(Behaviour)
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address, hosts.port)


DIALOG = (
    b"EHLO gate.sender.example\r\n"
    b"MAIL FROM:<a@sender.example> SIZE=20\r\n"
    b"RCPT TO:<nobody@test.example>\r\n"
    b"RCPT TO:<you@test.example>\r\n"
    b"DATA\r\n"
    b"a: b\r\n\r\n..\r\n...dots\r\nbare\nLF\r\n\r\n.\r\n"
    b"QUIT\r\n"
)
CODES = ["220", "250", "250", "550", "250", "354", "250", "221"]


@given(cuts=st.lists(st.integers(0, len(DIALOG)), max_size=6).map(sorted))
@settings(max_examples=50)
def test_receiver_takes_the_same_message_however_it_is_cut(cuts: Sequence[int]) -> None:
    taken: list[Taken] = []
    receiver = Receiver("mx1.test.example", 3, taken)
    edges = [0, *cuts, len(DIALOG)]
    said = receiver.greeting() + b"".join(
        receiver.receive_data(DIALOG[a:b]) for a, b in itertools.pairwise(edges)
    )
    assert re.findall(r"^(\d{3}) ", said.decode(), re.MULTILINE) == CODES
    assert receiver.closed
    assert taken == [
        Taken(
            3,
            "a@sender.example",
            ("you@test.example",),
            b"a: b\r\n\r\n.\r\n..dots\r\nbare\nLF\r\n\r\n",
        )
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        pytest.param(b"RCPT TO:<you@test.example>", b"503", id="rcpt_before_mail"),
        pytest.param(b"DATA", b"554", id="data_without_recipient"),
        pytest.param(b"\xff\xfe", b"502", id="garbage"),
    ],
)
def test_receiver_refuses_what_is_out_of_order(line: bytes, code: bytes) -> None:
    taken: list[Taken] = []
    assert Receiver("mx1", 0, taken).receive_data(line + b"\r\n").startswith(code)
    assert not taken


def test_receiver_hangs_up_on_an_endless_line() -> None:
    receiver = Receiver("mx1", 0, [])
    receiver.receive_data(b"x" * 70_000)
    assert receiver.closed


# --- the judgement


def judged(
    story: Story,
    *,
    status: int | None = None,
    seconds: float = 0.3,
    output: bytes = b"",
    change: Callable[[bytes], bytes] = lambda data: data,
    places: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """Return the faults found when *story* ends as it must, but for what is given."""
    message = stage.message_of(story)
    wanted = [] if story.delivered_to is None else [story.delivered_to]
    taken = [
        Taken(
            place,
            stage.SENDER,
            (story.recipient,),
            change(message.replace(b"\n", b"\r\n")),
        )
        for place in (wanted if places is None else places)
    ]
    return stage.judge(
        story,
        story.exit_status if status is None else status,
        seconds,
        output,
        message,
        taken,
    ).faults


@ids
def test_story_that_ends_as_it_must_has_no_fault(story: Story) -> None:
    assert judged(story) == ()


def test_every_way_to_end_wrongly_is_a_fault() -> None:
    story = STORY["dropped"]
    assert judged(story, status=75) == ("exit 75 instead of 0",)
    assert judged(story, places=[]) == ("taken by nobody instead of mx2",)
    assert judged(story, places=[1, 1]) == ("taken by mx2, mx2 instead of mx2",)
    assert judged(story, places=[0]) == ("taken by mx1 instead of mx2",)
    assert judged(story, change=lambda data: data.replace(b"\r\n..", b"\r\n.")) == (
        "the message arrived changed at mx2",
    )
    assert judged(story, seconds=story.within + 1) == (
        f"took more than {story.within:.0f} s",
    )


def test_message_has_what_a_careless_relay_breaks() -> None:
    lines = stage.message_of(STORY["healthy"]).split(b"\n")
    assert b"." in lines
    assert any(line.startswith(b"..") for line in lines)
    assert any(line.endswith(b" ") for line in lines)
    assert any(byte > 127 for line in lines for byte in line)
    assert lines[-2:] == [b"", b""]


# --- the log

MX1 = Candidate("mx1.dropped.example", "127.0.0.11", 2525, 10)
MX2 = Candidate("mx2.dropped.example", "127.0.0.12", 2525, 20)
FILTERED = Finding(Verdict.FILTERED, Phase.CONNECT, 1.5, text="no SYN-ACK")
ACCEPTED = Reply(250, ("2.0.0 Ok",))

# What the engine tells, and the step the demo makes of it.
TOLD: list[tuple[events.Event, Step]] = [
    (
        events.Planned(0.0, "dropped.example", (MX1, MX2), ("a remark",)),
        Step(0.0, StepKind.PLANNED, text="mx1 (10), mx2 (20)"),
    ),
    (
        events.Planned(0.0, "nullmx.example", (), ()),
        Step(0.0, StepKind.PLANNED, text="nobody to ask"),
    ),
    (events.CandidateStarted(0.1, MX1), Step(0.1, StepKind.STARTED, "mx1")),
    (
        events.PhaseReached(1.6, MX2, Phase.GREETING),
        Step(1.6, StepKind.REACHED, "mx2", Phase.GREETING),
    ),
    (
        events.CandidateFailed(1.61, MX1, FILTERED),
        Step(1.61, StepKind.FAILED, "mx1", Phase.CONNECT, "filtered", "no SYN-ACK"),
    ),
    (
        events.CandidateDropped(1.62, MX1, Phase.CONNECT),
        Step(1.62, StepKind.DROPPED, "mx1", Phase.CONNECT),
    ),
    (events.CandidateTaken(1.63, MX2), Step(1.63, StepKind.TAKEN, "mx2")),
    (
        events.RecipientSettled(
            1.7,
            "you@dropped.example",
            Delivered(EnhancedStatus(2, 0, 0), "2.0.0 Ok", ACCEPTED, str(MX2)),
            events.Delays(),
            "direct",
            (),
        ),
        Step(1.7, StepKind.SETTLED, word="sent", text="2.0.0 Ok"),
    ),
    (events.Trouble(2.0, "no space"), Step(2.0, StepKind.TROUBLE, text="no space")),
]


# The log's own clock: one line a second, the first 0.25 s after the start.
BEGAN = 1_700_000_000.0


def logged() -> list[bytes]:
    return [
        json_line(event, "DEMO", f"2023-11-14T22:13:2{second}.250Z").encode() + b"\n"
        for second, (event, _) in enumerate(TOLD)
    ]


@pytest.mark.parametrize("number", range(len(TOLD)))
def test_log_line_of_the_engine_becomes_a_step(number: int) -> None:
    step = step_of(logged()[number], BEGAN)
    assert step == TOLD[number][1]._replace(at=number + 0.25)


def test_every_event_has_a_step() -> None:
    # Judgements are no part of a delivery; what is doubted, worked around or ignored
    # goes on, and the demo has no TLS.
    untold = {events.AccessJudged, events.CandidateDoubted, events.WorkedAround}
    untold |= {events.Secured, events.TlsWanted}
    untold |= {events.Progressed, events.StrayReply}
    of_deliveries = set(get_args(events.Event)) - untold
    assert {type(event) for event, _ in TOLD} == of_deliveries
    assert {step.kind for _, step in TOLD} == set(StepKind)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no JSON",
        b"[]",
        b'"planned"',
        b'{"event": "planned"}',
        b'{"event": "planned", "time": "2023-11-14T22:13:20Z"}',
        b'{"event": "reached", "time": "2023-11-14T22:13:20Z", "host": "mx1", "phase": "unheard of"}',
        b'{"event": "started", "time": "soon", "host": "mx1"}',
        b'{"event": "started", "time": "2023-11-14T22:13:20Z", "host": 1}',
        b'{"event": "something new", "time": "2023-11-14T22:13:20Z"}',
        b"\xff",
    ],
)
def test_line_that_is_not_understood_is_skipped(line: bytes) -> None:
    assert step_of(line, BEGAN) is None


def test_log_is_read_line_by_line_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(path, BEGAN)
    assert log.new_steps() == []
    whole = b"".join(logged())
    seen: list[tuple[int, Step]] = []
    for size in range(1, len(whole) + 1):
        path.write_bytes(whole[:size])
        seen += [(size, step) for step in log.new_steps()]
    assert [size for size, _ in seen] == list(itertools.accumulate(map(len, logged())))
    assert [step.kind for _, step in seen] == [step.kind for _, step in TOLD]


# --- timeline and screen

K = StepKind
PAST_A_DROPPED = (
    Step(0.2, K.PLANNED, text="mx1 10, mx2 20"),
    Step(0.2, K.STARTED, "mx1"),
    Step(1.7, K.STARTED, "mx2"),
    Step(1.71, K.REACHED, "mx2", Phase.GREETING),
    Step(1.72, K.REACHED, "mx2", Phase.EHLO),
    Step(1.73, K.REACHED, "mx2", Phase.READY),
    Step(1.73, K.TAKEN, "mx2"),
    Step(1.74, K.DROPPED, "mx1", Phase.CONNECT),
    Step(1.76, K.SETTLED, word="sent", text="250 2.0.0 Ok"),
)


def test_timeline_says_what_each_host_did_and_when() -> None:
    timeline = Timeline([("mx1", "127.0.0.11"), ("mx2", "127.0.0.12")])
    first, second = timeline.tracks
    for step in PAST_A_DROPPED[:4]:
        timeline.note(step)
    assert first.says(1.71) == "no SYN-ACK (1.5 s)"
    assert second.says(1.71) == "no greeting (0.0 s)"
    for step in PAST_A_DROPPED[4:]:
        timeline.note(step)
    assert (first.ending, second.ending) == (Ending.LET_GO, Ending.TOOK_IT)
    assert first.says(9) == "no SYN-ACK: let go at 1.74 s"
    assert second.says(9) == "took the message at 1.76 s"
    assert second.phase_at(1.715) is Phase.GREETING
    assert first.phase_at(0.1) is None
    assert first.phase_at(1.0) is Phase.CONNECT
    assert first.phase_at(1.8) is None


@pytest.mark.parametrize("kind", list(StepKind))
@pytest.mark.parametrize("phase", [None, *Phase])
def test_any_step_can_be_noted_and_narrated(
    kind: StepKind, phase: Phase | None
) -> None:
    step = Step(1.0, kind, "mx1", phase, "filtered", "text")
    timeline = Timeline([("mx1", "127.0.0.11")])
    timeline.note(step)
    timeline.note(step._replace(host="mx99.elsewhere"))
    assert narrate(step)
    assert "\n" not in narrate(step)


class Terminal(io.StringIO):
    """A text stream that is a terminal, of what size the environment says."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, paint: Paint) -> str:
    """Play a story that came out well, and one that did not, and return what was written."""
    screen = Screen(stream, paint)
    story = STORY["dropped"]
    screen.begin(story, [("mx1", "127.0.0.11"), ("mx2", "127.0.0.12")])
    for step in PAST_A_DROPPED:
        screen.step(step)
        screen.tick(step.at)
    result = stage.Result(story, 0, 1.8, "", (1,), ())
    screen.end(result)
    wrong = stage.Result(
        STORY["unknown"], 75, 3.0, "4.4.2 " + "no " * 99, (), ("exit 75",)
    )
    screen.begin(wrong.story, [("mx1", "127.0.0.11"), ("mx2", "127.0.0.12")])
    screen.end(wrong)
    screen.table([result, wrong])
    return stream.getvalue()


def test_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = show(io.StringIO(), Paint.of(io.StringIO(), {"TERM": "xterm"}))
    assert "\x1b" not in text
    assert "    1.74 s  mx1 is let go: no SYN-ACK\n" in text
    assert "Not as it must be: unknown." in text


@pytest.mark.parametrize("columns", [70, 80, 200])
def test_terminal_lines_never_wrap(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    stream = Terminal()
    text = show(stream, Paint.of(stream, {"TERM": "xterm"}))
    assert "\x1b[4F" in text
    assert "\x1b[32m" in text
    bare = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    if columns >= 80:
        assert max(map(len, bare.splitlines())) < columns
    rows = bare.splitlines()
    assert max(len(row) for row in rows if row.startswith("mx")) < columns


def test_no_color_keeps_the_rows_and_drops_the_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    stream = Terminal()
    text = show(stream, Paint.of(stream, {"TERM": "xterm", "NO_COLOR": "1"}))
    assert not re.search(r"\x1b\[[0-9;]*m", text)
    assert "\x1b[4F" in text


@pytest.mark.parametrize(
    ("columns", "lines"),
    [pytest.param(69, 24, id="narrow"), pytest.param(80, 8, id="low")],
)
def test_terminal_without_room_gets_lines(
    columns: int, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    stream = Terminal()
    text = show(stream, Paint.of(stream, {"TERM": "xterm"}))
    assert not re.search(r"\x1b\[\d*[FJ]", text)
    assert "mx1 is let go: no SYN-ACK" in text


# --- the command line


def test_list_names_every_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [story.name for story in STORIES]


def test_unknown_story_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["helathy"])
    assert left.value.code == 2
    assert "helathy" in capsys.readouterr().err


# --- the whole of it, as a command

DEMO = [sys.executable, "-m", "mxpolicy", "demo"]


def run_demo(*arguments: str, tmp: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        env={**os.environ, "TMPDIR": str(tmp), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_demo_plays_its_quick_stories_as_they_must_be(tmp_path: Path) -> None:
    quick = [story.name for story in STORIES if story.expected < 3]
    done = run_demo(*quick, tmp=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert (
        f"{len(quick)} of {len(quick)} came out as they must; 3 delivered"
        in done.stdout
    )
    assert "mx2 is tried: SYN sent" in done.stdout
    assert "mx1 is let go: no SYN-ACK" in done.stdout
    assert re.search(
        r"^dropped +mx2\.dropped\.example +[1-6]\.", done.stdout, re.MULTILINE
    )
    assert re.search(r"^nullmx +\(bounce\) .* 69 ", done.stdout, re.MULTILINE)
    assert re.search(r"^refused +\(try later\) .* 75 ", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_demo_that_does_not_come_out_as_it_must_says_so_by_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = STORY["healthy"]._replace(delivered_to=1)
    monkeypatch.setattr("mxpolicy.demo.STORIES", (wrong,))
    assert main([]) == 1
    shown = capsys.readouterr().out
    assert "FAULT: taken by mx1 instead of mx2" in shown
    assert "Not as it must be: healthy." in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_demo_leaves_nothing_behind(
    number: signal.Signals, tmp_path: Path
) -> None:
    demo = subprocess.Popen(
        [*DEMO, "silent"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "mx1 answered the SYN" in line:
            break
    [directory] = tmp_path.iterdir()
    children = children_of(demo.pid)
    assert len(children) == 1
    demo.send_signal(number)
    rest, _ = demo.communicate(timeout=20)
    assert demo.returncode == 128 + number
    assert "everything is taken down" in rest
    assert not directory.exists()
    assert not any(Path("/proc", child).exists() for child in children)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_demo_whose_watcher_leaves_ends_without_a_traceback(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*DEMO, "healthy", "closed"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert demo.stdout is not None
    assert demo.stderr is not None
    demo.stdout.readline()
    demo.stdout.close()
    assert demo.stderr.read() == b""
    assert demo.wait(timeout=20) == 1
    demo.stderr.close()
    assert list(tmp_path.iterdir()) == []
