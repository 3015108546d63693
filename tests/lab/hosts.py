"""Asks the SMTP hosts of the lab what they saw, and puts new ones in place."""

import json
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import trustme

from . import smtp_host
from .smtp_host import Behaviour
from .world import World

_CONTROL = "/run/lab/hosts.socket"
_CERTIFICATE = "/run/lab/hosts.pem"


@dataclass(frozen=True)
class Message:
    """A message that a host received whole, up to and with its final dot.

    `time` is seconds since the epoch; `accepted` is whether the dot got a 2yz answer,
    `refused` whether 4yz or 5yz; where neither is true, none or no reply; `data` is
    without dot-stuffing, lines ending in CRLF, in Latin-1; `bare_cr` and `bare_lf` count
    characters in it that are part of no CRLF; `tls` is whether it came encrypted.
    """

    host: str
    address: str
    time: float
    reverse_path: str
    forward_paths: list[str]
    data: str
    bare_cr: int
    bare_lf: int
    tls: bool
    accepted: bool
    refused: bool


@dataclass(frozen=True)
class Taken:
    """A message that a host received whole, in short.

    `accepted` is whether the dot got a 2yz answer, `body` the SHA-256 of what is behind
    the header, in hexadecimal.
    """

    forward_paths: list[str]
    accepted: bool
    body: str


@dataclass(frozen=True)
class Session:
    """A connection that a host accepted.

    `commands` are (seconds since the epoch, line); `ended` says how it ended, and is
    empty while it goes on; `until` is 0.0 as long.
    """

    host: str
    address: str
    client: str
    begun: float
    commands: list[tuple[float, str]]
    ended: str
    until: float = 0.0


class Hosts:
    """The SMTP hosts of the lab's Internet, one process for all of them."""

    def __init__(self, world: World) -> None:
        self._control = world.path(_CONTROL)
        # Any name will do: whoever looks at names has a certificate of its own made.
        pem = trustme.CA().issue_cert("*.lab.test").private_key_and_cert_chain_pem
        world.path(_CERTIFICATE).write_bytes(pem.bytes())
        self._process = world.start(
            "net",
            [sys.executable, "-I", smtp_host.__file__, _CONTROL, _CERTIFICATE],
            log="/var/log/hosts.log",
        )
        until = time.monotonic() + 15
        while not self._control.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                words = world.path("/var/log/hosts.log").read_text()
                raise RuntimeError(f"the SMTP hosts do not start:\n{words}")
            time.sleep(0.02)

    def place(self, hosts: Iterable[tuple[str, str, Behaviour]]) -> None:
        """Put hosts, as (address, name, behaviour), in place of what is there."""
        rows = [[address, name, how.to_json()] for address, name, how in hosts]
        self._ask("place", hosts=rows)

    def received(self, forward_path: str = "") -> list[Message]:
        """Return the messages that came whole, for one recipient or for all."""
        records = self._ask("messages", forward_path=forward_path)
        return [Message(**record) for record in records]

    def take(self) -> list[Taken]:
        """Return the messages that came whole since the last time, and forget them.

        For many large ones: they stay where they are, and none falls between.
        """
        return [Taken(**record) for record in self._ask("take")]

    def sessions(self, host: str = "") -> list[Session]:
        """Return the sessions with one host, or with all."""
        return [Session(**record) for record in self._ask("sessions", host=host)]

    def forget(self) -> None:
        """Drop what was recorded, but for sessions that go on."""
        self._ask("forget")

    def hold(self) -> None:
        """From now on, steps that are `held` wait for `release`."""
        self._ask("hold")

    def release(self) -> None:
        """Let all go on that are held, and hold none any more."""
        self._ask("release")

    def _ask(self, question: str, **more: object) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self._control))
            connection.sendall(json.dumps({"ask": question, **more}).encode() + b"\n")
            with connection.makefile("rb") as reader:
                answer = json.load(reader)
        if "failed" in answer:
            raise RuntimeError(f"SMTP hosts: {answer['failed']}")
        return answer["is"]
