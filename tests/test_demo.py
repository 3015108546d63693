"""The demo: its name server, its hosts, its judgement, and the whole of it as a command."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from mxpolicy.demo import main, stage
from mxpolicy.demo.hosts import Taken, Zone, address_of, open_hosts
from mxpolicy.demo.stories import STORIES, Behaviour, Ending, Story

STORY = {story.name: story for story in STORIES}
ids = pytest.mark.parametrize("story", [pytest.param(s, id=s.name) for s in STORIES])


# --- the name server


def zone_of(story: Story) -> Zone:
    places = range(len(story.hosts))
    return Zone(story.domain, [(story.host_name(n), address_of(n)) for n in places])


def ask(zone: Zone, name: str, rdtype: str) -> dns.message.Message:
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


async def first_words(address: str, port: int) -> bytes:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(address, port)
        try:
            return await reader.readline()
        finally:
            writer.close()


async def test_dropped_host_leaves_a_syn_without_answer() -> None:
    async with open_hosts([Behaviour.DROPPED]) as hosts:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.open_connection(address_of(0), hosts.port)


async def test_refusing_host_answers_with_a_reset() -> None:
    async with open_hosts([Behaviour.REFUSES, Behaviour.GOOD]) as hosts:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address_of(0), hosts.port)


@pytest.mark.parametrize(
    ("behaviour", "line"),
    [
        pytest.param(Behaviour.GOOD, b"220 demo ESMTP\r\n", id="good"),
        pytest.param(Behaviour.CLOSES, b"", id="closes"),
        pytest.param(
            Behaviour.REJECTS, b"554 5.7.1 No SMTP service here\r\n", id="rejects"
        ),
    ],
)
async def test_host_begins_as_its_behaviour_says(
    behaviour: Behaviour, line: bytes
) -> None:
    async with open_hosts([behaviour]) as hosts:
        assert await first_words(address_of(0), hosts.port) == line


async def test_silent_host_accepts_and_says_nothing() -> None:
    async with open_hosts([Behaviour.SILENT]) as hosts:
        reader, writer = await asyncio.open_connection(address_of(0), hosts.port)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        writer.close()


async def test_nothing_listens_when_the_hosts_are_closed() -> None:
    async with open_hosts(list(Behaviour)) as hosts:
        pass
    for place in range(len(Behaviour)):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address_of(place), hosts.port)


DIALOG = (
    b"EHLO gate.sender.example\r\n"
    b"MAIL FROM:<a@sender.example> SIZE=20\r\n"
    b"RCPT TO:<you@test.example>\r\n"
    b"DATA\r\n"
    b"a: b\r\n\r\n..\r\n...dots\r\nbare\nLF\r\n\r\n.\r\n"
    b"QUIT\r\n"
)
PATHS = ("a@sender.example", "you@test.example")
MAIL_DATA = b"a: b\r\n\r\n.\r\n..dots\r\nbare\nLF\r\n\r\n"


async def codes(address: str, port: int, dialog: bytes) -> list[str]:
    """Say *dialog* in one go and return the codes of the replies."""
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(dialog)
        writer.write_eof()
        said = await reader.read()
        writer.close()
    return re.findall(r"^(\d{3}) ", said.decode(), re.MULTILINE)


async def test_good_host_takes_the_message_as_it_was_sent() -> None:
    async with open_hosts([Behaviour.SILENT, Behaviour.GOOD]) as hosts:
        said = await codes(address_of(1), hosts.port, DIALOG)
    assert said == ["220", "250", "250", "250", "354", "250", "221"]
    assert hosts.taken == [Taken(1, PATHS, MAIL_DATA)]


async def test_greylisting_host_takes_the_message_the_second_time() -> None:
    async with open_hosts([Behaviour.GREYLISTS]) as hosts:
        once = DIALOG.partition(b"a: b")[0] + b"QUIT\r\n"
        first = await codes(address_of(0), hosts.port, once)
        assert first == ["220", "250", "250", "450", "554", "221"]
        await codes(address_of(0), hosts.port, DIALOG)
    assert hosts.taken == [Taken(0, PATHS, MAIL_DATA)]


@pytest.mark.parametrize(
    ("behaviour", "codes_said"),
    [
        pytest.param(Behaviour.EMPTY, ["220", "250", "250", "550", "554"], id="empty"),
        pytest.param(Behaviour.BREAKS, ["220", "250", "250", "250"], id="breaks"),
    ],
)
async def test_host_that_takes_no_message_ends_as_its_behaviour_says(
    behaviour: Behaviour, codes_said: list[str]
) -> None:
    dialog = DIALOG.partition(b"a: b")[0]
    async with open_hosts([behaviour]) as hosts:
        assert await codes(address_of(0), hosts.port, dialog) == codes_said
    assert not hosts.taken


# --- the judgement


def judged(
    story: Story,
    number: int = 0,
    *,
    status: int | None = None,
    seconds: float = 0.3,
    reach: float = 0.0,
    change: Callable[[bytes], bytes] = lambda data: data,
    places: Sequence[int] | None = None,
    paths: tuple[str, ...] | None = None,
) -> tuple[str, ...]:
    """Return the faults when a message ends as it must, but for what is given."""
    message = stage.message_of(story)
    ending = story.ends[number]
    wanted = [] if ending.taken_by is None else [ending.taken_by]
    paths = paths or (stage.SENDER, story.recipient)
    taken = [
        Taken(place, paths, change(message.replace(b"\n", b"\r\n")))
        for place in (wanted if places is None else places)
    ]
    result = stage.Result(
        ending.exit_status if status is None else status,
        seconds,
        f"DEMO1: to=<you>, delay=1, delays=0.02/{reach}/0/0.05, dsn=2.0.0",
        (),
    )
    return stage.judge(story, number, result, message, taken)


@pytest.mark.parametrize("number", [0, 1])
@ids
def test_message_that_ends_as_it_must_has_no_fault(story: Story, number: int) -> None:
    reach = 0 if number else story.wait
    assert judged(story, number, seconds=reach + 0.3, reach=reach) == ()


def test_every_way_to_end_wrongly_is_a_fault() -> None:
    story = STORY["dropped"]
    assert judged(story, status=75) == ("exit 75 instead of 0",)
    assert judged(story, places=[]) == ("taken by no host instead of mx2",)
    assert judged(story, places=[1, 1]) == ("taken by mx2, mx2 instead of mx2",)
    assert judged(story, places=[0]) == ("taken by mx1 instead of mx2",)
    assert judged(story, change=lambda data: data.replace(b"\r\n..", b"\r\n.")) == (
        "the message arrived changed at mx2",
    )
    assert judged(story, paths=(stage.SENDER, "me@else.example")) == (
        "the envelope arrived changed at mx2",
    )
    assert judged(story, seconds=9.4) == ("took 9 s",)
    assert judged(story, 1, reach=1.5) == ("the second message waited 1.5 s too",)


def test_message_without_a_log_line_is_a_fault() -> None:
    story = STORY["nullmx"]
    result = stage.Result(69, 0.3, "5.1.10 domain nullmx.example", ())
    assert stage.judge(story, 0, result, b"", []) == ("nothing was logged",)


def test_message_has_what_a_careless_relay_breaks() -> None:
    lines = stage.message_of(STORY["healthy"]).split(b"\n")
    assert b"." in lines
    assert any(line.startswith(b"..") for line in lines)
    assert any(line.endswith(b" ") for line in lines)
    assert any(byte > 127 for line in lines for byte in line)
    assert lines[-2:] == [b"", b""]


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
    quick = [story.name for story in STORIES if story.wait < 2]
    done = run_demo(*quick, tmp=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "As it must be: all 14 messages." in done.stdout
    [dropped] = re.findall(r"^dropped: .*\n((?: .*\n)+)", done.stdout, re.MULTILINE)
    assert re.fullmatch(
        r"  first message: delivered after [1-6]\.\d\d s \(exit 0\)\n"
        r"    DEMO1: to=<you@dropped\.example>, relay=mx2\..* status=sent .*\n"
        r"  second message: delivered after \S+ s \(exit 0\)\n"
        r"    DEMO2: to=<you@dropped\.example>, relay=mx2\..* status=sent .*\n",
        dropped,
    )
    summary = done.stdout.partition("Until the mail server had its answer:")[2]
    assert re.search(
        r"^  dropped +[1-6]\.\d\d s +\S+ s +30 s +133 s$", summary, re.MULTILINE
    )
    assert re.search(r"bounced after \S+ s \(exit 69\)", done.stdout)
    assert re.search(r"deferred after \S+ s \(exit 75\)", done.stdout)
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_demo_that_does_not_end_as_it_must_says_so_by_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = STORY["healthy"]._replace(ends=(Ending(0, 0), Ending(0, 1)))
    monkeypatch.setattr("mxpolicy.demo.STORIES", (wrong,))
    assert main([]) == 1
    shown = capsys.readouterr().out
    assert "FAULT: taken by mx1 instead of mx2" in shown
    assert "Not as it must be: healthy." in shown


def test_demo_that_cannot_be_shown_here_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "NAME_SERVER", "192.0.2.1")
    assert main(["nullmx"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mxpolicy demo: cannot use 192.0.2.1: ")


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
        if line.startswith("silent: "):
            break
    wait_for_child(demo.pid)
    [directory] = tmp_path.iterdir()
    children = children_of(demo.pid)
    assert len(children) == 1
    demo.send_signal(number)
    rest, _ = demo.communicate(timeout=20)
    assert demo.returncode == 128 + number
    assert "everything is taken down" in rest
    assert not directory.exists()
    assert not any(Path("/proc", child).exists() for child in children)


def wait_for_child(pid: int) -> None:
    while not children_of(pid):
        time.sleep(0.01)


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
