"""The hand-over server, where the machine has no more; `tests.test_handover` has the rest."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from typing import Any

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import Event
from mxpolicy.options import Options
from mxpolicy.server.handover import HandoverServer

REQUEST = b"A-f\0A\0A--\0Ab@b.example\0"
ASKED = b"mxpolicy pipe 1 %d\n%b" % (len(REQUEST), REQUEST)


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
