"""The hand-over server, where the machine has no more; `tests.test_handover` has the rest."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import Event
from mxpolicy.delivery.request import Request
from mxpolicy.errors import LocalTrouble
from mxpolicy.options import Options
from mxpolicy.server.handover import HandoverServer
from mxpolicy.server.handover.client import Client
from mxpolicy.server.handover.message import Message

REQUEST = b"A-f\0A\0A--\0Ab@b.example\0"
ASKED = b"mxpolicy pipe 1 %d\n%b" % (len(REQUEST), REQUEST)
REQUESTED = Request("", ("b@b.example",), "", "", 60.0, 60.0, print)


def engine() -> Engine:
    return Engine(Context(Options(helo="mail.example.com")))


async def test_no_place_is_left_to_the_client() -> None:
    told: list[Event] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        ours.sendall(ASKED)
        await HandoverServer(engine, told.append, places=0).serve(theirs)
        assert ours.recv(100) == b"-full\n"
    assert told == []


class Exhausted(HandoverServer):
    """The client commits at once, and the process has no descriptor left for it."""

    async def _descriptor(self, client: Any) -> int | None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return await super()._descriptor(client)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_message_without_a_descriptor_left_for_it_is_not_taken() -> None:
    told: list[Event] = []
    ours, theirs = socket.socketpair()
    reads, writes = os.pipe()
    with ours, theirs:
        theirs.setblocking(False)
        ours.sendall(ASKED)
        serving = asyncio.create_task(Exhausted(engine, told.append).serve(theirs))
        assert (await asyncio.to_thread(ours.recv, 100)).startswith(b"+")
        socket.send_fds(ours, [b"@"], [reads])
        async with asyncio.timeout(5):  # it does not wait for another one
            await serving
        theirs.close()
        assert ours.recv(100) == b""
    os.close(reads)
    os.close(writes)
    assert told == []


async def test_bug_in_reading_is_not_taken_for_the_end_of_the_mail_server() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        nothing: dict[str, bytes] = {}
        yield nothing["a bug"]

    heard: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        message = Message(Client(theirs), engine(), REQUESTED)
        with pytest.raises(LocalTrouble, match="KeyError: 'a bug'"):
            await message.deliver(chunks())
        del message
        gc.collect()
    assert [type(one) for one in heard] == [KeyError]
