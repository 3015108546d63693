"""The hand-over, as it is: the script, the client, and a daemon that runs."""

from __future__ import annotations

from collections.abc import Callable

from tests.helpers.handing_over import Command, command
from tests.helpers.piping import MESSAGE, Host, assert_answer, host
from tests.helpers.serving import Runner, serving

__all__ = ["command", "host", "serving"]


def test_daemon_delivers_and_the_command_answers(
    command: Command, serving: Runner, host: Callable[..., Host]
) -> None:
    there = host()
    with serving.started() as daemon:
        ended = command.run(command.argv(daemon.run / "pipe", there.nexthop))
        print(daemon.log())
    assert_answer(ended, 0, r"2\.0\.0 250 2\.0\.0 Ok: taken")
    assert there.messages == [MESSAGE.replace(b"\n", b"\r\n")]
    assert there.commands[0] == "EHLO mail.example.com"


def test_without_a_daemon_the_command_delivers(
    command: Command, host: Callable[..., Host]
) -> None:
    there = host()
    ended = command.run(command.argv("/nowhere", there.nexthop))
    assert_answer(ended, 0, r"2\.0\.0 250 2\.0\.0 Ok: taken")
    assert there.commands[0] == "EHLO alone.example.com"
