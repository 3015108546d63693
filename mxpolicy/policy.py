"""The policy door, run by the mail server: questions on stdin, answers on stdout.

Postfix's spawn(8) connects all three standard descriptors to one smtpd(8), which
asks about each recipient and waits. It asks again over the same connection for as
long as it lives, and takes whatever arrives without having been asked for a broken
connection. So:

- Nothing but answers is written to stdout, and to stderr where that is the same.
- Questions are answered in the order in which they came, each once. They are judged
  at the same time, so that each has its answer in time also when many came at once.
- None of our troubles is ever answered with anything but DUNNO; the log tells. An
  idle connection is never closed: that is the mail server's to do.

Whatever goes wrong before the first question is read is `prepare`'s to raise, and
`mxpolicy.policy_fallback` answers in its stead. After that, a fault that no question caused
ends the process; smtpd(8) then asks a new one.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import signal
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mxpolicy.config import load
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import DUNNO, Trouble
from mxpolicy.delivery.judge import Judge
from mxpolicy.delivery.log import Log
from mxpolicy.errors import UsageError
from mxpolicy.protocol.access_policy import RequestError, answer, parse_request
from mxpolicy.protocol.attributes import AttributeReader, Malformed
from mxpolicy.reply import printable
from mxpolicy.state.opening import open_to_read, state_file

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from typing import Any

    from mxpolicy.delivery.events import Observe
    from mxpolicy.protocol.access_policy import AccessRequest
    from mxpolicy.protocol.attributes import Attributes

    Ask = Callable[[AccessRequest], Coroutine[Any, Any, str]]

__all__ = ["Connection", "prepare"]

USAGE = "usage: mxpolicy policy [--config FILE]"

STDIN = 0

# Questions read and not yet answered; while there are so many, nothing is read.
MAX_WAITING = 1000

READ_SIZE = 65536
# A pipe or socket that polls writable takes so much without making us wait.
WRITE_SIZE = select.PIPE_BUF


def prepare(argv: Sequence[str], out: int) -> Callable[[], int]:
    """Return what serves stdin to its end and returns the exit status.

    Args:
        argv: What follows ``mxpolicy policy`` on the command line.
        out: Where the answers go.

    Raises:
        MxPolicyError, OSError, MemoryError: Nothing has been read yet.
    """
    options = load(_config(argv), os.environ)
    log = Log(options.log, "")
    store = open_to_read(
        state_file(options.state, os.environ),
        lambda text: log.observe(Trouble(0.0, text)),
        acts=True,
    )
    engine = Engine(options, log.observe, store=store)
    judge = Judge(engine, options, log.observe)
    # Any descriptor will do: epoll would not take a file, which is how one tries it.
    loop = asyncio.SelectorEventLoop(selectors.PollSelector())
    loop.set_exception_handler(_tell(log.observe))

    def serve() -> int:
        with log:
            connection = Connection(STDIN, out, judge.judge, log.observe)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.add_signal_handler(number, connection.stop)
            try:
                loop.run_until_complete(connection.serve())
            except Exception:
                log.observe(Trouble(0.0, traceback.format_exc()))
                return 1
            finally:
                loop.close()
        return 0

    return serve


def _config(argv: Sequence[str]) -> str | None:
    if not argv:
        return None
    name, equals, value = argv[0].partition("=")
    if name == "--config" and len(argv) == (1 if equals else 2):
        return value if equals else argv[1]
    raise UsageError(f"cannot be run with {printable(' '.join(argv), 60)!r}; {USAGE}")


def _tell(
    observe: Observe,
) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return what the event loop calls for an exception that reaches nobody."""

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        trouble = context.get("exception") or context["message"]
        observe(Trouble(0.0, f"{type(trouble).__name__}: {trouble}"))

    return handler


class Connection:
    """One mail server's process: its questions and our answers.

    Args:
        source: Descriptor to read from, of any kind.
        out: Descriptor to write to; may be the same file.
        ask: Judges one request, in bounded time.
        observe: Told every trouble.
    """

    def __init__(self, source: int, out: int, ask: Ask, observe: Observe) -> None:
        self._source = source
        self._out = out
        self._ask = ask
        self._observe = observe
        self._is_stopping = False
        self._polling: set[asyncio.Future[None]] = set()
        self._under_way: set[asyncio.Task[str]] = set()
        self._waiting: asyncio.Queue[asyncio.Task[str] | None] = asyncio.Queue(
            MAX_WAITING
        )

    def stop(self) -> None:
        """Read no more; whoever waits for a judgement is answered DUNNO at once."""
        self._is_stopping = True
        for future in self._polling:
            _wake(future)
        for task in self._under_way:
            task.cancel()

    async def serve(self) -> None:
        """Answer until the mail server closes the connection, or `stop`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            await self._read()

    # -- in -----------------------------------------------------------------

    async def _read(self) -> None:
        reader = AttributeReader()
        while data := await self._receive():
            for one in reader.receive_data(data):
                task = asyncio.create_task(self._judged(one))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                await self._waiting.put(task)
        if reader and not self._is_stopping:
            self._trouble("the connection ended in the middle of a request")
        await self._waiting.put(None)

    async def _receive(self) -> bytes:
        """Return some bytes, none at the end or when it is time to stop."""
        while not self._is_stopping:
            await self._wait_readable()
            if self._is_stopping:
                break
            try:
                return os.read(self._source, READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:  # reset: there is nobody to answer
                break
        return b""

    async def _wait_readable(self) -> None:
        loop = asyncio.get_running_loop()
        with self._woken() as future:
            loop.add_reader(self._source, _wake, future)
            try:
                await future
            finally:
                loop.remove_reader(self._source)

    @contextmanager
    def _woken(self) -> Iterator[asyncio.Future[None]]:
        """Yield a future that `stop` wakes, too."""
        future = asyncio.get_running_loop().create_future()
        self._polling.add(future)
        try:
            yield future
        finally:
            self._polling.discard(future)

    # -- in between ---------------------------------------------------------

    async def _judged(self, one: Attributes | Malformed) -> str:
        """Return the action; never raises."""
        try:
            return await self._action(one)
        except asyncio.CancelledError:
            return DUNNO  # by `stop`: the answer is still owed
        except Exception:
            self._trouble(traceback.format_exc())
            return DUNNO

    async def _action(self, one: Attributes | Malformed) -> str:
        if isinstance(one, Malformed):
            self._trouble(f"not a request: {one.reason}")
            return DUNNO
        try:
            request = parse_request(one.values)
        except RequestError as error:
            self._trouble(f"not a request: {error}")
            return DUNNO
        return await self._ask(request)

    def _trouble(self, text: str) -> None:
        self._observe(Trouble(0.0, f"{text}; answered {DUNNO}"))

    # -- out ----------------------------------------------------------------

    async def _write(self) -> None:
        while (task := await self._waiting.get()) is not None:
            # A task that was cancelled before it began has not even answered.
            await asyncio.wait([task])
            action = DUNNO if task.cancelled() else task.result()
            try:
                await self._send(answer(action))
            except OSError:  # nobody reads; what is left is thrown away
                self.stop()

    async def _send(self, data: bytes) -> None:
        while data:
            while not self._is_writable():
                await self._wait_writable()
            with suppress(BlockingIOError):
                data = data[os.write(self._out, data[:WRITE_SIZE]) :]

    def _is_writable(self) -> bool:
        poll = select.poll()
        poll.register(self._out, select.POLLOUT)
        return bool(poll.poll(0))

    async def _wait_writable(self) -> None:
        if self._is_stopping:
            raise BrokenPipeError("nobody reads the answers")
        loop = asyncio.get_running_loop()
        with self._woken() as future:
            loop.add_writer(self._out, _wake, future)
            try:
                await future
            finally:
                loop.remove_writer(self._out)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
