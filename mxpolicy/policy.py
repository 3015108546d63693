"""``mxpolicy policy``: the access policy server of one client, run by spawn(8).

spawn(8) connects all three standard descriptors to one smtpd(8). Questions come on
stdin, and answers go back over the same connection. Nothing else is written there, nor to
stderr where that is the same (`mxpolicy.policy_fallback.take_stdout`).
`mxpolicy.server.access_policy` has the answers.

`prepare` raises any trouble before the first question is read, and
`mxpolicy.policy_fallback` answers instead. After that, a fault that no question caused
ends the process, and smtpd(8) asks a new one.
"""

from __future__ import annotations

import asyncio
import os
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


def prepare(argv: Sequence[str], out: int) -> Callable[[], int]:
    """Return what serves stdin to its end and returns the exit status.

    Args:
        argv: What follows ``mxpolicy policy`` on the command line.
        out: Where the answers go when stdin is no connection.

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
        with log:
            serving = loop.create_task(server.serve(_connection(out)))
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
        return 1 if faults else 0

    return serve


def _connection(out: int) -> socket.socket:
    """Return the connection of smtpd(8); or one that asks what is in a file, for trying."""
    if stat.S_ISSOCK(os.fstat(STDIN).st_mode):
        return socket.socket(fileno=STDIN)
    ours, theirs = socket.socketpair()
    threading.Thread(target=_send_questions, args=(theirs,), daemon=True).start()
    threading.Thread(target=_write_answers, args=(theirs, out)).start()
    return ours


def _send_questions(connection: socket.socket) -> None:
    with suppress(OSError):
        while data := os.read(STDIN, READ_SIZE):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def _write_answers(connection: socket.socket, out: int) -> None:
    with suppress(OSError):
        while data := connection.recv(READ_SIZE):
            os.write(out, data)
