"""``mxpolicy policy``: the access policy server of one client, run by spawn(8).

spawn(8) connects all three standard descriptors to one smtpd(8). Questions come on
stdin, and answers go back over the same connection; or to stdout, where that is another
descriptor. Nothing else is written there, nor to stderr where that is the same
(`mxpolicy.policy_fallback.take_stdout`). `mxpolicy.server.access_policy` has the answers.

`prepare` raises any trouble before the first question is read, and
`mxpolicy.policy_fallback` answers instead. After that, a fault that no question caused
ends the process, and smtpd(8) asks a new one.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import stat
import threading
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.config import config_option, load
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import Trouble
from mxpolicy.delivery.log import Log
from mxpolicy.server.access_policy import READ_SIZE, AccessPolicyServer
from mxpolicy.state.opening import open_to_read, state_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

__all__ = ["prepare"]

USAGE = "usage: mxpolicy policy [--config FILE]"

STDIN = 0

# Seconds for the last answers after a signal, where a thread has to carry them.
LAST_WORDS = 1.0


def prepare(argv: Sequence[str], out: int) -> Callable[[], int]:
    """Return what serves stdin to its end and returns the exit status.

    Args:
        argv: What follows ``mxpolicy policy`` on the command line.
        out: Where the answers go. It is most often the connection that stdin is, too.

    Raises:
        MxPolicyError, OSError, MemoryError: Nothing has been read yet.
    """
    options = load(config_option(argv, USAGE), os.environ)
    log = Log(options.log)

    def tell(text: str) -> None:
        log.observe(Trouble(0.0, text))

    faults = []  # that have ended the connection

    def tell_of_loop(_: object, context: dict[str, Any]) -> None:
        if "transport" in context:
            faults.append(context)
        trouble = context.get("exception") or context["message"]
        tell(f"{type(trouble).__name__}: {trouble}")

    store = open_to_read(state_file(options.state, os.environ), tell, acts=True)
    engine = Engine(Context(options, store=store))
    server = AccessPolicyServer(lambda: engine, log.observe)
    loop = asyncio.SelectorEventLoop()
    loop.set_exception_handler(tell_of_loop)

    def serve() -> int:
        carried = None if _is_connection(out) else _Carried(out)
        connection = carried.ours if carried else socket.socket(fileno=STDIN)
        with log:
            serving = loop.create_task(server.serve(connection))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.add_signal_handler(number, serving.cancel)
            try:
                loop.run_until_complete(serving)
            except asyncio.CancelledError:
                if carried is not None:
                    carried.finish(within=LAST_WORDS)
                return 0
            except Exception:
                tell(traceback.format_exc())
                return 1
            finally:
                loop.close()
        if carried is not None:
            carried.finish(within=None)
        return 1 if faults else 0

    return serve


def _is_connection(out: int) -> bool:
    """Return whether questions and answers go over one socket, as spawn(8) has it."""
    source = os.fstat(STDIN)
    return stat.S_ISSOCK(source.st_mode) and os.path.samestat(source, os.fstat(out))


class _Carried:
    """A connection that stands for two descriptors: a file of questions, a pipe, a terminal.

    They are for trying. Threads carry the bytes, as epoll takes no file. Where one of
    the two is non-blocking for all who share it, it is waited for.

    Attributes:
        ours: The server's end.
    """

    def __init__(self, out: int) -> None:
        self.ours, self._theirs = socket.socketpair()
        self._out = out
        self._answers = threading.Thread(target=self._carry_answers, daemon=True)
        self._answers.start()
        threading.Thread(target=self._carry_questions, daemon=True).start()

    def finish(self, within: float | None) -> None:
        """Wait for so many seconds until the answers are out; None: as long as it takes."""
        self._answers.join(within)

    def _carry_questions(self) -> None:
        with suppress(OSError):
            while data := _read(STDIN):
                self._theirs.sendall(data)
        with suppress(OSError):
            self._theirs.shutdown(socket.SHUT_WR)

    def _carry_answers(self) -> None:
        with suppress(OSError):
            while data := self._theirs.recv(READ_SIZE):
                _write(self._out, data)
        # Answers that cannot be written end the questions, too.
        with suppress(OSError):
            self._theirs.shutdown(socket.SHUT_RDWR)


def _read(source: int) -> bytes:
    poll = select.poll()
    poll.register(source, select.POLLIN)
    while True:
        poll.poll()
        with suppress(BlockingIOError):
            return os.read(source, READ_SIZE)


def _write(out: int, data: bytes) -> None:
    poll = select.poll()
    poll.register(out, select.POLLOUT)
    while data:
        poll.poll()
        with suppress(BlockingIOError):
            data = data[os.write(out, data) :]
