"""``mxpolicy ask``: the daemon's answer or its own, and the reasons."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from mxpolicy import ask
from mxpolicy.cli import COMMANDS
from mxpolicy.delivery.host_memory import host_key
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.host_record import HostRecord, encode
from mxpolicy.state.sqlite import SqliteStore
from tests.helpers.dns_server import DnsServer, name_server_in_a_thread
from tests.helpers.serving import Runner, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["serving"]

RECORDS = (
    "good.example. 60 MX 10 mx.good.example.",
    "mx.good.example. 60 A 192.0.2.10",
    "null.example. 60 MX 0 .",
)
NULL_MX = "550 5.1.10 recipient domain null.example does not accept mail (null MX)"


@pytest.fixture
def name_server() -> Iterator[DnsServer]:
    with name_server_in_a_thread(*RECORDS) as server:
        yield server


class Asker:
    """Runs the command.

    Attributes:
        config: Its configuration.
        state: Where it reads what is remembered.
    """

    def __init__(
        self,
        directory: Path,
        server: DnsServer,
        capsys: pytest.CaptureFixture[str],
        environ: pytest.MonkeyPatch,
    ) -> None:
        self.config = directory / "mxpolicy.yaml"
        self.state = directory / "state"
        self.state.mkdir()
        self.run = directory / "run"
        self._server = server
        self._capsys = capsys
        environ.setenv("MXPOLICY_CONFIG", str(self.config))
        environ.setenv("RUNTIME_DIRECTORY", str(self.run))
        self.configure()

    def configure(self, *lines: str) -> None:
        """Write the configuration, with these *lines* more."""
        self.lines = (
            "helo: mail.own.example",
            f"resolver: {{servers: ['{self._server.text}']}}",
            f"state: {self.state}",
            *lines,
        )
        self.config.write_text("\n".join([*self.lines, ""]))

    def __call__(self, *words: str) -> tuple[int, str]:
        """Return the exit status and all that was written."""
        try:
            status = ask.main(words)
        except SystemExit as error:
            status = int(error.code or 0)
        written = self._capsys.readouterr()
        return status, written.out + written.err

    def json(self, *words: str) -> dict[str, Any]:
        """Return what ``--json`` shows."""
        status, text = self(*words, "--json")
        assert status == 0
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.fixture
def asker(
    tmp_path: Path,
    name_server: DnsServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Asker:
    (tmp_path / "asker").mkdir()
    return Asker(tmp_path / "asker", name_server, capsys, monkeypatch)


# -- by itself -------------------------------------------------------------------------


def test_without_a_daemon_it_answers_itself_and_says_why(asker: Asker) -> None:
    status, text = asker("recipient=a@null.example", "sender=b@good.example")
    assert status == 0
    assert text.startswith(f"action={NULL_MX}\n  answered by this process, in ")
    assert (
        "\nrecipient a@null.example\n  found: null_mx\n  rule: RFC 7505: 550\n" in text
    )
    assert "\nsender b@good.example\n  nothing is certain about its domain" in text
    assert "good.example: 1 address to try" in text
    assert "192.0.2.10" in text


def test_rule_of_the_operator_is_named(asker: Asker) -> None:
    asker.configure(
        "policy:",
        "  rules:",
        "  - {finding: [null_mx], client: [198.51.100.0/24], action: DUNNO}",
        "  - {finding: [null_mx], sasl_username: [kim], action: 450 later}",
    )
    status, text = asker("recipient=a@null.example", "client_address=198.51.100.7")
    assert (status, text[:13]) == (0, "action=DUNNO\n")
    assert "  rule: policy.rules[0]: DUNNO\n" in text
    told = asker.json("recipient=a@null.example", "sasl_username=kim")
    assert told["action"] == "450 later"
    assert told["reasons"][0]["rule"] == "policy.rules[1]: 450 later"


async def test_what_is_remembered_is_shown(asker: Asker) -> None:
    asker.configure("policy: {rules: [{finding: [all_paused], action: DEFER}]}")
    record = HostRecord(Verdict.FILTERED, Phase.CONNECT, True, time.time(), 600.0, 6.0)
    store = SqliteStore(str(asker.state / "state.sqlite3"))
    key = host_key(Candidate("mx", "192.0.2.10", 25))
    await store.put(key, encode(record), time.time() + 1e6)
    await store.close()
    told: list[tuple[int, str]] = []
    thread = threading.Thread(
        target=lambda: told.append(asker("recipient=a@good.example"))
    )
    thread.start()
    thread.join()
    [(status, text)] = told
    assert status == 0
    assert text.startswith("action=DEFER 4.4.1 recipient domain good.example has no ")
    assert "  found: all_paused (mx.good.example[192.0.2.10]:25 filtered " in text
    assert "  rule: policy.rules[0]: DEFER\n" in text


@pytest.mark.parametrize("address", ["root", "a@mail.own.example"])
def test_what_is_not_judged_is_said_to_be_so(asker: Asker, address: str) -> None:
    status, text = asker(f"recipient={address}")
    assert (status, text[:13]) == (0, "action=DUNNO\n")
    assert f"\nrecipient {address}\n  not judged: " in text


def test_only_what_the_context_names_is_judged(asker: Asker) -> None:
    told = asker.json(
        "recipient=a@null.example", "sender=b@null.example", "policy_context=sender"
    )
    assert told["action"].startswith("550 5.7.27 sender domain null.example ")
    assert [one["about"] for one in told["reasons"]] == ["sender"]


def test_trouble_is_told(asker: Asker, name_server: DnsServer) -> None:
    asker.configure("policy: {timeout: 1s}")
    name_server.die()
    status, text = asker("recipient=a@null.example")
    assert (status, text[:13]) == (0, "action=DUNNO\n")
    assert "  - no DNS answer for null.example: MX of null.example" in text


def test_json_has_the_plan_as_route_has_it(asker: Asker) -> None:
    told = asker.json("recipient=a@good.example")
    assert told["answered_by"] == "this process"
    [reason] = told["reasons"]
    assert reason["finding"] is None
    [candidate] = reason["plan"]["candidates"]
    assert (candidate["host"], candidate["address"]) == (
        "mx.good.example",
        "192.0.2.10",
    )


def test_wrong_configuration_is_dunno_as_for_the_mail_server(asker: Asker) -> None:
    asker.config.write_text("policy: {rulez: []}\n")
    status, text = asker("recipient=a@null.example")
    assert (status, text[:13]) == (1, "action=DUNNO\n")
    assert "rulez" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "NAME=VALUE"),
        (("--json",), "NAME=VALUE"),
        (("a@null.example",), "'a@null.example' is not NAME=VALUE"),
        (("a@null.example",), "did you mean 'recipient=a@null.example'?"),
        (("recipent=a@null.example",), "did you mean 'recipient='?"),
        (("client_address=192.0.2.1",), "give recipient=ADDRESS or sender=ADDRESS"),
        (("recipient=a@b.example", "recipient=c@b.example"), "given twice"),
        (("recipient=a@b.example\nsender=x@b.example",), "a line end"),
    ],
)
def test_misuse_is_status_2(asker: Asker, words: tuple[str, ...], said: str) -> None:
    status, text = asker(*words)
    assert status == 2
    assert said in text


def test_it_is_in_the_help_text() -> None:
    assert "ask" in COMMANDS


# -- the daemon's answer ---------------------------------------------------------------


def test_daemon_that_runs_is_asked(asker: Asker, serving: Runner) -> None:
    asker.run.symlink_to(serving.run)
    serving.configure(*asker.lines)
    with serving.started():
        told = asker.json("recipient=a@null.example")
        assert told["action"] == told["own_action"] == NULL_MX
        assert told["answered_by"] == f"the daemon at {asker.run}/policy"
        # With a configuration of its own it is asked only where its socket is named.
        told = asker.json("recipient=a@null.example", "--config", str(asker.config))
        assert told["answered_by"] == "this process"
        path = str(serving.run / "policy")
        told = asker.json(
            "recipient=a@null.example", "--config", str(asker.config), "--socket", path
        )
        assert told["answered_by"] == f"the daemon at {path}"
    # It was killed, and its socket is still there.
    assert (serving.run / "policy").exists()
    told = asker.json("recipient=a@null.example")
    assert told["answered_by"] == "this process"


def test_difference_to_the_daemon_is_told(asker: Asker, serving: Runner) -> None:
    asker.run.symlink_to(serving.run)
    serving.configure(
        *asker.lines, "policy: {rules: [{finding: [null_mx], action: 450 later}]}"
    )
    with serving.started():
        status, text = asker("recipient=a@null.example")
    assert status == 0
    assert text.startswith(f"action=450 later\n  answered by the daemon at {asker.run}")
    assert f"  this process would answer: {NULL_MX}\n" in text


def test_daemon_over_tcp_is_asked(asker: Asker, serving: Runner) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    serving.configure(*asker.lines, f"listen: {{policy: {{at: ['{at}']}}}}")
    with serving.started():
        told = asker.json("recipient=a@null.example", "--socket", at)
        assert told["answered_by"] == f"the daemon at {at}"
        # It is found by the configuration, too.
        asker.configure(f"listen: {{policy: {{at: ['{at}']}}}}")
        told = asker.json("recipient=a@null.example")
        assert told["answered_by"] == f"the daemon at {at}"


@contextlib.contextmanager
def somebody(path: Path, does: Callable[[socket.socket], None]) -> Iterator[None]:
    """Listen at *path*, and do that with the first client."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(4096)
                does(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "hung up without an answer"),
        (b"action=DUN", "hung up without an answer"),
        (b"220 mail.example ESMTP\r\n\r\n", "does not speak the protocol"),
        (b"reason=none\n\n", "does not speak the protocol"),
    ],
)
def test_who_is_no_daemon_gives_no_answer(
    asker: Asker, tmp_path: Path, answer: bytes, said: str
) -> None:
    path = tmp_path / "other"
    with somebody(path, lambda client: client.sendall(answer)):
        status, text = asker("recipient=a@null.example", "--socket", str(path))
    assert status == 1
    assert f"mxpolicy ask: {path}: " in text
    assert said in text


@pytest.mark.parametrize("where", ["/nowhere/policy", "127.0.0.1:1", "policy"])
def test_socket_that_is_named_must_answer(asker: Asker, where: str) -> None:
    status, text = asker("recipient=a@null.example", "--socket", where)
    assert status == 1
    assert text.startswith(f"mxpolicy ask: {where}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to every socket")
def test_daemon_that_may_not_be_asked_is_told(asker: Asker) -> None:
    asker.run.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(asker.run / "policy"))
        listening.listen()
        (asker.run / "policy").chmod(0)
        told = asker.json("recipient=a@null.example")
    assert told["answered_by"] == "this process"
    assert "Permission denied" in told["remarks"][0]
