"""The policy door, run as spawn(8) runs it: one socket for all three descriptors.

What goes wrong inside is provoked by code that runs in the process before mxpolicy
does (`before`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import sqlite3
import sys
import textwrap
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from mxpolicy.delivery.host_memory import host_key
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.host_record import HostRecord, encode
from mxpolicy.state.sqlite import SqliteStore
from tests.bench import policy as bench
from tests.helpers.dns_server import DnsServer, dns_server, faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

ZONE = (
    "good.example. 60 MX 10 mx.good.example.",
    "mx.good.example. 60 A 192.0.2.10",
    "null.example. 60 MX 0 .",
    *(f"good{n}.example. 60 MX 10 mx.good.example." for n in range(10)),
)

NULL_MX = (
    b"action=550 5.1.10 recipient domain null.example does not accept mail"
    b" (null MX)\n\n"
)
DUNNO = b"action=DUNNO\n\n"

TIMEOUT = 30


def question(recipient: str, **more: str) -> bytes:
    """Return a request as smtpd(8) sends it."""
    attributes = {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "client_address": "192.0.2.99",
        "sender": "kim@good.example",
        "recipient": recipient,
        "queue_id": "",
        "from_another_version": "x",
        **more,
    }
    return (
        "".join(f"{name}={one}\n" for name, one in attributes.items()).encode() + b"\n"
    )


TO_NULL = question("a@null.example")
TO_GOOD = question("a@good.example")


class Door(NamedTuple):
    """A running ``mxpolicy policy`` and the mail server's end of its connection."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, data: bytes) -> bytes:
        """Send *data* and return one answer."""
        self.writer.write(data)
        return await self.answer()

    async def answer(self) -> bytes:
        """Return the next answer."""
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.readuntil(b"\n\n")

    async def hang_up(self) -> int:
        """Close the sending side, see that nothing more was said, return the status."""
        self.writer.write_eof()
        return await self.ended()

    async def ended(self) -> int:
        """See that nothing more was said, and return the exit status."""
        async with asyncio.timeout(TIMEOUT):
            assert await self.reader.read() == b""
            return await self.process.wait()


class Runner:
    """Runs ``mxpolicy policy`` with a configuration of its own."""

    def __init__(self, directory: Path, server: DnsServer) -> None:
        self.server = server
        self.log = directory / "log"
        self.config = directory / "mxpolicy.yaml"
        self.state = directory / "state"
        self.state.mkdir()
        self.file = self.state / "state.sqlite3"
        self.configure()

    def configure(self, text: str = "", timeout: str = "8s") -> None:
        """Write the configuration, with *text* in its section ``policy``."""
        self.config.write_text(
            f"resolver: {{servers: ['{self.server.text}']}}\n"
            f"log: {{to: {self.log}}}\n"
            f"state: {self.state}\n"
            f"policy:\n  timeout: {timeout}\n{textwrap.indent(text, '  ')}"
        )

    async def remember(self, **record: object) -> None:
        """Write, as a delivery does, that mx.good.example has failed 30 s ago."""
        failed = HostRecord(
            Verdict.FILTERED, Phase.CONNECT, True, time.time() - 30, 600.0, 6.0
        )
        known = failed._replace(**record)  # type: ignore[arg-type]
        store = SqliteStore(str(self.file))
        key = host_key(Candidate("mx", "192.0.2.10", 25))
        await store.put(key, encode(known), time.time() + 1e6)
        await store.close()

    def forget(self) -> None:
        """Delete the state file and what belongs to it."""
        for one in self.state.iterdir():
            one.unlink()

    def lines(self) -> list[str]:
        """Return what was logged, without the times and tags."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines()
        return [re.sub(r"^\S+ mxpolicy\[\d+\]: ", "", line) for line in lines]

    @contextlib.asynccontextmanager
    async def run(
        self,
        *argv: str,
        before: str = "",
        stderr: int | None = None,
    ) -> AsyncIterator[Door]:
        """Run it on one end of a socket pair until the block ends."""
        ours, theirs = socket.socketpair()
        code = f"import sys\n{before}\nfrom mxpolicy.cli import main\nsys.exit(main())"
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", code),
                *(argv or ("policy",)),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=theirs.fileno() if stderr is None else stderr,
                env={"MXPOLICY_CONFIG": str(self.config), "PATH": "/usr/bin:/bin"},
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            yield Door(process, reader, writer)
        finally:
            writer.close()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Runner]:
    """A runner, and the name server that it asks."""
    async with dns_server(*ZONE) as server:
        yield Runner(tmp_path, server)


# -- one mail server ----------------------------------------------------------


async def test_questions_are_answered_over_one_connection(door: Runner) -> None:
    async with door.run() as one:
        assert await one.ask(TO_NULL) == NULL_MX
        assert await one.ask(TO_GOOD) == DUNNO
        assert await one.ask(question("a@good.example", sender="b@null.example")) == (
            b"action=550 5.7.27 sender domain null.example does not accept mail"
            b" (null MX)\n\n"
        )
        assert await one.ask(question("", sender="", protocol_state="CONNECT")) == DUNNO
        assert await one.hang_up() == 0
    lines = [re.sub(r"delay=[\d.]+", "delay=*", line) for line in door.lines()]
    assert lines == [
        "NOQUEUE: access, delay=*, state=RCPT, client=192.0.2.99,"
        " from=<kim@good.example>, to=<a@null.example>,"
        " found=recipient null.example null_mx, action=550 5.1.10 recipient domain"
        " null.example does not accept mail (null MX)",
        "NOQUEUE: access, delay=*, state=RCPT, client=192.0.2.99,"
        " from=<b@null.example>, to=<a@good.example>,"
        " found=sender null.example null_mx, action=550 5.7.27 sender domain"
        " null.example does not accept mail (null MX)",
    ]


async def test_rules_are_those_of_the_configuration(door: Runner) -> None:
    door.configure(
        "rules:\n"
        "- {finding: [null_mx], client: [192.0.2.0/24], action: 'FILTER mxpolicy:'}\n"
    )
    async with door.run() as one:
        assert await one.ask(TO_NULL) == b"action=FILTER mxpolicy:\n\n"
        elsewhere = question("a@null.example", client_address="2001:db8::1")
        assert await one.ask(elsewhere) == NULL_MX


async def test_many_questions_at_once_are_answered_in_their_order(
    door: Runner,
) -> None:
    # The first answer comes last from DNS.
    door.server.delay = 0.05
    door.configure(
        "rules:\n"
        + "".join(
            f"- {{finding: [no_such_domain], domain: [d{n}.example], action: WARN {n}}}\n"
            for n in range(100)
        )
    )
    questions = [question(f"a@d{n}.example") for n in reversed(range(100))]
    async with door.run() as one:
        one.writer.write(TO_NULL + b"".join(questions) + TO_GOOD)
        answers = [await one.answer() for _ in range(102)]
        assert await one.hang_up() == 0
    expected = [b"action=WARN %d\n\n" % n for n in reversed(range(100))]
    assert answers == [NULL_MX, *expected, DUNNO]


async def test_question_that_comes_byte_by_byte_is_answered(door: Runner) -> None:
    async with door.run() as one:
        for at in range(len(TO_NULL)):
            one.writer.write(TO_NULL[at : at + 1])
            await one.writer.drain()
        assert await one.answer() == NULL_MX


async def test_hundreds_of_questions_are_answered_in_time_when_dns_is_dead(
    door: Runner,
) -> None:
    door.server.die()
    door.configure(timeout="1s")
    async with door.run() as one:
        assert await one.ask(question("a@first.example")) == DUNNO
        many = b"".join(question(f"a@d{n}.example") for n in range(500))
        one.writer.write(many)
        async with asyncio.timeout(8):
            assert await one.reader.readexactly(500 * len(DUNNO)) == 500 * DUNNO
        door.server.revive()
        assert await one.ask(TO_NULL) == NULL_MX
    assert any("no DNS answer for first.example" in line for line in door.lines())


async def test_mail_server_that_does_not_read_its_answers_gets_them_later(
    door: Runner,
) -> None:
    # More than the socket holds in either direction.
    count = 20_000
    async with door.run() as one:
        sending = asyncio.create_task(_send(one, count * question("")))
        assert await one.answer() == DUNNO
        left = count - 1
        async with asyncio.timeout(TIMEOUT):
            assert await one.reader.readexactly(left * len(DUNNO)) == left * DUNNO
            await sending
        assert await one.hang_up() == 0


async def _send(one: Door, data: bytes) -> None:
    one.writer.write(data)
    await one.writer.drain()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"request=greylisting\n\n", "expected request=smtpd_access_policy"),
        (b"protocol_state=RCPT\n\n", "expected request=smtpd_access_policy, not ''"),
        (b"\n", "expected name=value"),
        (b"\x16\x03\x01\n\n", "expected name=value"),
        (b"a=1\na=2\n\n", "attribute given twice"),
        (b"a=" + b"x" * 100_000 + b"\n\n", "over 65536 bytes"),
        (b"x=y\n" * 300 + b"\n", "over 200 attributes"),
    ],
)
async def test_what_is_no_question_is_dunno_and_spoils_nothing(
    door: Runner, data: bytes, said: str
) -> None:
    async with door.run() as one:
        assert await one.ask(data) == DUNNO
        assert await one.ask(TO_NULL) == NULL_MX
        assert await one.hang_up() == 0
    assert "not a request: " + said in door.lines()[0]


@pytest.mark.parametrize("recipient", ["a@\xff", "\udcff@x", "x" * 5000, '"\0"@x', "="])
async def test_recipient_that_is_none_is_dunno(door: Runner, recipient: str) -> None:
    data = TO_NULL.replace(
        b"a@null.example", recipient.encode("utf-8", "surrogateescape")
    )
    async with door.run() as one:
        assert await one.ask(data) == DUNNO
        assert await one.ask(TO_NULL) == NULL_MX


# -- what is remembered -------------------------------------------------------

ALL_PAUSED = "rules: [{finding: [all_paused], action: DEFER}]\n"
PAUSED = (
    b"action=DEFER 4.4.1 recipient domain good.example has no mail server that could be"
    b" reached: mx.good.example[192.0.2.10]:25 filtered *s ago\n\n"
)


def without_age(answer: bytes) -> bytes:
    """Return *answer* as if it were about good.example."""
    answer = re.sub(rb"\bgood\d", b"good", answer)
    return re.sub(rb"\b\d+s ago", b"*s ago", answer)


def to_others() -> Iterator[bytes]:
    """Yield questions about domains that have the host of good.example.

    What memory says of one domain is kept for a second.
    """
    for number in range(10):
        domain = f"good{number}.example"
        yield question(f"a@{domain}", sender=f"kim@{domain}")


async def test_what_deliveries_find_out_is_seen_while_it_lives(door: Runner) -> None:
    door.configure(ALL_PAUSED)
    about = to_others()
    async with door.run() as one:
        assert await one.ask(next(about)) == DUNNO
        assert not list(door.state.iterdir())  # it makes no file
        await door.remember()
        assert without_age(await one.ask(next(about))) == PAUSED
        await door.remember(verdict=None)
        assert await one.ask(next(about)) == DUNNO
        await door.remember()
        assert without_age(await one.ask(next(about))) == PAUSED
        door.forget()
        assert await one.ask(next(about)) == DUNNO
        assert not list(door.state.iterdir())
        await door.remember()
        assert without_age(await one.ask(next(about))) == PAUSED
        assert await one.hang_up() == 0
    [*found] = (line for line in door.lines() if "found=" in line)
    assert len(found) == len(door.lines()) == 3
    assert "found=recipient good1.example all_paused" in found[0]


async def test_state_file_that_is_spoilt_is_logged_once_and_harms_nobody(
    door: Runner,
) -> None:
    door.configure(ALL_PAUSED)
    about = to_others()
    async with door.run() as one:
        for spoilt in (os.urandom(9000), b"", b"SQLite format 3\0" + bytes(9000)):
            await door.remember()
            assert without_age(await one.ask(next(about))) == PAUSED
            door.forget()
            door.file.write_bytes(spoilt)
            assert await one.ask(next(about)) == DUNNO
            assert await one.ask(TO_NULL) == NULL_MX
            door.forget()
        assert await one.hang_up() == 0
    lines = [line for line in door.lines() if "found=" not in line]
    assert len(lines) == 1
    assert "what is remembered cannot be read" in lines[0]


async def test_state_file_that_is_locked_costs_little(door: Runner) -> None:
    door.configure(ALL_PAUSED)
    await door.remember()
    async with door.run() as one:
        with contextlib.closing(
            sqlite3.connect(door.file, isolation_level=None)
        ) as other:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            async with asyncio.timeout(4):
                one.writer.write(50 * TO_GOOD)
                for _ in range(50):
                    assert await one.answer() == DUNNO
                assert await one.ask(TO_NULL) == NULL_MX
        await asyncio.sleep(1)
        assert without_age(await one.ask(TO_GOOD)) == PAUSED


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("sys.modules['sqlite3'] = None", id="without_sqlite"),
        pytest.param(
            "import _thread\n"
            "def start(*_): raise RuntimeError('no thread')\n"
            "_thread.start_new_thread = start",
            id="without_threads",
        ),
    ],
)
async def test_without_what_reads_it_nothing_is_remembered(
    door: Runner, before: str
) -> None:
    door.configure(ALL_PAUSED)
    await door.remember()
    async with door.run(before=before) as one:
        assert await one.ask(TO_GOOD) == DUNNO
        assert await one.ask(TO_GOOD) == DUNNO
        assert await one.ask(TO_NULL) == NULL_MX
        assert await one.hang_up() == 0
    lines = [line for line in door.lines() if "found=" not in line]
    assert len(lines) == 1
    assert "what is remembered cannot be read" in lines[0]


# -- the end ------------------------------------------------------------------


async def test_mail_server_that_hangs_up_ends_it(door: Runner) -> None:
    async with door.run() as one:
        assert await one.hang_up() == 0
    assert door.lines() == []


async def test_mail_server_that_dies_ends_it(door: Runner) -> None:
    door.server.delay = 0.2
    async with door.run() as one:
        one.writer.write(TO_NULL + TO_NULL)
        async with asyncio.timeout(TIMEOUT):
            await door.server.was_asked.wait()
            one.writer.transport.abort()
            assert await one.process.wait() == 0


async def test_end_in_the_middle_of_a_question_is_logged(door: Runner) -> None:
    async with door.run() as one:
        one.writer.write(TO_NULL[:-1])
        assert await one.hang_up() == 0
    assert "ended in the middle of a request" in door.lines()[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signal_ends_it_and_who_waits_is_answered(
    door: Runner, number: signal.Signals
) -> None:
    async with door.run() as one:
        assert await one.ask(TO_NULL) == NULL_MX
        door.server.fault = faults.silent
        door.server.was_asked.clear()
        one.writer.write(question("a@slow.example") + question("b@slow.example"))
        await door.server.was_asked.wait()
        one.process.send_signal(number)
        assert await one.answer() + await one.answer() == 2 * DUNNO
        assert await one.ended() == 0


async def test_signal_ends_it_when_it_is_idle(door: Runner) -> None:
    async with door.run() as one:
        assert await one.ask(TO_NULL) == NULL_MX
        one.process.terminate()
        assert await one.ended() == 0


async def test_signal_ends_it_when_nobody_reads(door: Runner) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "mxpolicy", "policy"),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={"MXPOLICY_CONFIG": str(door.config)},
            )
        ours.sendall(question(""))
        first = await asyncio.to_thread(ours.recv, 100)
        assert first == DUNNO  # so it is past its start, and hears signals
        # Until neither side takes any more.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                ours.settimeout(2)
                await asyncio.to_thread(ours.sendall, 100_000 * question(""))
        process.terminate()
        async with asyncio.timeout(TIMEOUT):
            assert await process.wait() == 0


# -- our troubles -------------------------------------------------------------


async def assert_dunno(one: Door) -> None:
    """See that it answers everything, however it is cut, and ends well."""
    assert await one.ask(TO_NULL) == DUNNO
    one.writer.write(TO_NULL + TO_GOOD + b"junk\n\n" + TO_NULL[:50])
    assert [await one.answer() for _ in range(3)] == [DUNNO] * 3
    for at in range(50, len(TO_NULL)):
        one.writer.write(TO_NULL[at : at + 1])
        await one.writer.drain()
    assert await one.answer() == DUNNO
    assert await one.hang_up() == 0


@pytest.mark.parametrize(
    "text", ["rules: [{finding: [null_mx], action: OK}]", "rulez: []", "\t", "rules: ]"]
)
async def test_wrong_configuration_is_dunno(door: Runner, text: str) -> None:
    door.configure(text)
    async with door.run() as one:
        await assert_dunno(one)


@pytest.mark.parametrize(
    "argv",
    [
        ("policy", "--config", "/nowhere.yaml"),
        ("policy", "--config=/nowhere.yaml"),
        ("policy", "--config"),
        ("policy", "--confg", "x"),
        ("policy", "x"),
        ("polcy",),
        ("policyd",),
    ],
)
async def test_wrong_command_line_is_dunno(door: Runner, argv: tuple[str, ...]) -> None:
    async with door.run(*argv) as one:
        await assert_dunno(one)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("sys.modules['yaml'] = None", id="module_missing"),
        pytest.param("sys.modules['asyncio'] = None", id="part_of_python_missing"),
        pytest.param("sys.modules['syslog'] = None; sys.argv += ['x']", id="no_syslog"),
        pytest.param(
            "import resource; import mxpolicy.policy;"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))",
            id="no_descriptors",
        ),
        pytest.param(
            "import mxpolicy.config as c\n"
            "def load(*_): raise MemoryError\n"
            "c.load = load",
            id="no_memory",
        ),
    ],
)
async def test_what_cannot_begin_is_dunno(door: Runner, before: str) -> None:
    async with door.run(before=before) as one:
        await assert_dunno(one)


@pytest.mark.parametrize("spare", [4, 6, 8, 10, 12, 14, 16, 20, 28, 40])
async def test_with_however_little_memory_each_question_is_answered(
    door: Runner, spare: int
) -> None:
    # MiB more than Python itself has then: for all there is, for a part of it, for all.
    before = (
        "import resource\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        f"size = pages * resource.getpagesize() + ({spare} << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))"
    )
    door.configure(ALL_PAUSED)
    await door.remember()
    async with door.run(before=before) as one:
        try:
            assert await one.ask(TO_NULL) in {NULL_MX, DUNNO}
        except (asyncio.IncompleteReadError, ConnectionError):
            # Python itself may go round in circles.
            assert await one.process.wait() == -signal.SIGALRM
            return
        assert without_age(await one.ask(TO_GOOD)) in {PAUSED, DUNNO}
        one.writer.write(TO_NULL + b"junk\n\n")
        assert await one.answer() in {NULL_MX, DUNNO}
        assert await one.answer() == DUNNO
        assert await one.hang_up() == 0


async def test_floods_of_what_is_no_question_are_answered_in_bounded_memory(
    door: Runner,
) -> None:
    def resident() -> int:
        with open(f"/proc/{one.process.pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    async with door.run() as one:
        assert await one.ask(TO_NULL) == NULL_MX
        before = resident()
        # One line, then one request, of 20 MB each.
        for flood, end in ((b"x" * 100_000, b"\n\n"), (b"a=1\n" * 25_000, b"\n")):
            sending = asyncio.create_task(_send(one, flood * 200 + end))
            assert await one.answer() == DUNNO
            await sending
        sending = asyncio.create_task(_send(one, b"\xff\0=x\n\n" * 5000))
        for _ in range(5000):
            assert await one.answer() == DUNNO
        await sending
        assert await one.ask(TO_NULL) == NULL_MX
        assert resident() - before < 8 * 1024 * 1024
        assert await one.hang_up() == 0


async def test_signal_in_the_middle_of_a_question_ends_it(door: Runner) -> None:
    async with door.run() as one:
        one.writer.write(TO_NULL + TO_NULL[:40])
        assert await one.answer() == NULL_MX
        one.process.terminate()
        assert await one.ended() == 0


async def test_bug_is_dunno_and_a_line_in_the_log(door: Runner) -> None:
    before = (
        "from mxpolicy.delivery.engine import Engine\n"
        "def plan(*_): raise ZeroDivisionError('a bug')\n"
        "Engine.plan = plan"
    )
    async with door.run(before=before) as one:
        assert await one.ask(TO_NULL) == DUNNO
        assert await one.ask(TO_GOOD) == DUNNO
        assert await one.hang_up() == 0
    assert all("ZeroDivisionError: a bug" in line for line in door.lines())
    # About the recipient, the sender, and the one domain of both.
    assert len(door.lines()) == 3


async def test_no_descriptors_left_is_dunno_until_there_are(door: Runner) -> None:
    async with door.run() as one:
        assert await one.ask(question("")) == DUNNO
        limit = resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (3, limit[1]))
        assert await one.ask(TO_NULL) == DUNNO
        resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, limit)
        assert await one.ask(TO_NULL) == NULL_MX
        assert await one.hang_up() == 0
    # Without a descriptor the log's file cannot be opened, either.
    assert "log lines lost: " in door.lines()[0]


async def test_nothing_but_answers_reaches_the_mail_server(door: Runner) -> None:
    before = (
        "import importlib.abc, os, warnings\n"
        "class Chatty(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'mxpolicy.policy':\n"
        "            warnings.warn('look')\n"
        "            print('hello', flush=True)\n"
        "            print('hello', file=sys.stderr)\n"
        "            os.write(2, b'hello'); os.write(1, b'hello')\n"
        "sys.meta_path.insert(0, Chatty())"
    )
    async with door.run(before=before) as one:
        assert await one.ask(TO_NULL) == NULL_MX
        assert await one.hang_up() == 0


async def test_stderr_of_its_own_stays(door: Runner) -> None:
    door.config.write_text(door.config.read_text().replace(str(door.log), "stderr"))
    reading, writing = os.pipe()
    try:
        async with door.run(stderr=writing) as one:
            assert await one.ask(TO_NULL) == NULL_MX
            assert await one.hang_up() == 0
        assert b"found=recipient null.example null_mx" in os.read(reading, 5000)
    finally:
        os.close(reading)
        os.close(writing)


async def test_file_of_questions_is_answered(door: Runner, tmp_path: Path) -> None:
    (tmp_path / "questions").write_bytes(TO_NULL + TO_GOOD)
    with (tmp_path / "questions").open("rb") as questions:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mxpolicy", "policy"),
            stdin=questions,
            stdout=asyncio.subprocess.PIPE,
            env={"MXPOLICY_CONFIG": str(door.config)},
        )
        async with asyncio.timeout(TIMEOUT):
            out, _ = await process.communicate()
    assert (out, process.returncode) == (NULL_MX + DUNNO, 0)


@pytest.mark.parametrize("is_blocking", [True, False])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_questions_and_answers_over_two_descriptors(
    door: Runner, kind: str, is_blocking: bool
) -> None:
    # asyncio and Node.js connect stdin by a socket and stdout by something else.
    if kind == "socket":
        ends = [socket.socketpair(), socket.socketpair()[::-1]]
        (ask, stdin), (stdout, hear) = [[a.detach(), b.detach()] for a, b in ends]
    else:
        (stdin, ask), (hear, stdout) = os.pipe(), os.pipe()
    for one in (stdin, stdout):
        os.set_blocking(one, is_blocking)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mxpolicy", "policy"),
        stdin=stdin,
        stdout=stdout,
        env={"MXPOLICY_CONFIG": str(door.config)},
    )
    os.close(stdin)
    os.close(stdout)
    for asked, answer in ((TO_NULL, NULL_MX), (TO_GOOD, DUNNO)):
        os.write(ask, asked)
        async with asyncio.timeout(TIMEOUT):
            assert await asyncio.to_thread(os.read, hear, 4096) == answer
    os.close(ask)
    async with asyncio.timeout(TIMEOUT):
        assert await process.wait() == 0
    os.close(hear)


@pytest.mark.parametrize("ends", ["reader", "signal"])
async def test_answers_that_nobody_takes_any_more_end_it(
    door: Runner, tmp_path: Path, ends: str
) -> None:
    (tmp_path / "questions").write_bytes(TO_GOOD * 40_000)
    with (tmp_path / "questions").open("rb") as questions:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mxpolicy", "policy"),
            stdin=questions,
            stdout=asyncio.subprocess.PIPE,
            env={"MXPOLICY_CONFIG": str(door.config)},
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT):
            assert await process.stdout.readexactly(len(DUNNO)) == DUNNO
            if ends == "signal":
                process.terminate()
            else:
                process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize(
    ("closed", "answers"),
    [("<&-", b""), (">&-", b""), ("2>&-", NULL_MX), ("<&- >&- 2>&-", b"")],
)
async def test_descriptors_that_are_closed_are_no_trouble(
    door: Runner, tmp_path: Path, closed: str, answers: bytes
) -> None:
    (tmp_path / "questions").write_bytes(TO_NULL)
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f'"$0" -m mxpolicy policy <"$1" {closed}'),
        *(sys.executable, str(tmp_path / "questions")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"MXPOLICY_CONFIG": str(door.config)},
    )
    async with asyncio.timeout(TIMEOUT):
        out, err = await process.communicate()
    assert (out, err, process.returncode) == (answers, b"", 0)


def test_measurement_still_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["20", "--checkout"]) == 0
    assert re.search(r"^\| serve, asyncio +\| +\d+/s ", capsys.readouterr().out, re.M)
