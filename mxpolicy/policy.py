"""``mxpolicy policy``: the access policy server of one client, run by spawn(8).

spawn(8) connects all three standard descriptors to one smtpd(8). Questions come on
stdin, answers go to stdout, and nothing else is written there, nor to stderr where that
is the same (`mxpolicy.policy_fallback.take_stdout`). `mxpolicy.server.access_policy` has
the answers.

`prepare` raises any trouble before the first question is read, and
`mxpolicy.policy_fallback` answers instead. After that, a fault that no question caused
ends the process, and smtpd(8) asks a new one.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import signal
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.config import config_option, load
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import Trouble
from mxpolicy.delivery.log import Log
from mxpolicy.server.access_policy import AccessPolicyServer
from mxpolicy.state.opening import open_to_read, state_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

__all__ = ["Descriptors", "prepare"]

USAGE = "usage: mxpolicy policy [--config FILE]"

STDIN = 0

# A pipe or socket that polls writable takes so many bytes at once.
WRITE_SIZE = select.PIPE_BUF


def prepare(argv: Sequence[str], out: int) -> Callable[[], int]:
    """Return what serves stdin to its end and returns the exit status.

    Args:
        argv: What follows ``mxpolicy policy`` on the command line.
        out: Where the answers go.

    Raises:
        MxPolicyError, OSError, MemoryError: Nothing has been read yet.
    """
    options = load(config_option(argv, USAGE), os.environ)
    log = Log(options.log)

    def tell(text: str) -> None:
        log.observe(Trouble(0.0, text))

    def tell_of_loop(_: object, context: dict[str, Any]) -> None:
        trouble = context.get("exception") or context["message"]
        tell(f"{type(trouble).__name__}: {trouble}")

    store = open_to_read(state_file(options.state, os.environ), tell, acts=True)
    engine = Engine(Context(options, store=store))
    server = AccessPolicyServer(lambda: engine, log.observe)
    # Takes any descriptor. epoll takes no file, and questions in a file are for trying.
    loop = asyncio.SelectorEventLoop(selectors.PollSelector())
    loop.set_exception_handler(tell_of_loop)

    def serve() -> int:
        with log:
            stream = Descriptors(STDIN, out)
            serving = loop.create_task(server.converse(stream, stream))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.add_signal_handler(number, serving.cancel)
            try:
                loop.run_until_complete(serving)
            except asyncio.CancelledError:
                return 0
            except Exception:
                tell(traceback.format_exc())
                return 1
            finally:
                loop.close()
        return 0

    return serve


class Descriptors:
    """Two descriptors of any kind as one stream, both `Reader` and `Writer`.

    asyncio's own streams take no file. They also make the descriptor non-blocking, for
    the other processes that share it, too.
    """

    def __init__(self, source: int, out: int) -> None:
        self._source = source
        self._out = out
        self._unsent = b""

    async def read(self, n: int, /) -> bytes:
        """See `mxpolicy.server.access_policy.Reader`."""
        loop = asyncio.get_running_loop()
        while True:
            ready = loop.create_future()
            loop.add_reader(self._source, _wake, ready)
            try:
                await ready
                return os.read(self._source, n)
            except BlockingIOError:
                continue
            finally:
                loop.remove_reader(self._source)

    def write(self, data: bytes, /) -> None:
        """See `mxpolicy.server.access_policy.Writer`."""
        self._unsent += data
        poll = select.poll()
        poll.register(self._out, select.POLLOUT)
        with suppress(BlockingIOError):
            while self._unsent and poll.poll(0):
                sent = os.write(self._out, self._unsent[:WRITE_SIZE])
                self._unsent = self._unsent[sent:]

    async def drain(self) -> None:
        """See `mxpolicy.server.access_policy.Writer`."""
        loop = asyncio.get_running_loop()
        while self._unsent:
            ready = loop.create_future()
            loop.add_writer(self._out, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_writer(self._out)
            self.write(b"")


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
