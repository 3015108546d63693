"""The pipe door: a message on stdin, an exit status and one line on stdout.

What Postfix's pipe(8) and Exim's pipe transport have in common is little, and
this module keeps to it:

- 0 is delivered, 75 is "try later", 69 is "never". No other status leaves this
  process, whatever happens to it.
- stdout and stderr are one pipe, and the first bytes on it are the whole
  answer: ``4.x.x text`` or ``5.x.x text`` in one line and one write. Postfix
  lets it beat the exit status, so the two are made to agree here.
- Then `os._exit`, because the interpreter's own way out may fail to flush and
  make 120 of it, which bounces.

The process has three phases. Until the engine has answered, anything that goes
wrong is 75. When every recipient has its outcome, that is the answer, also if a
signal arrives while it is being written. Nothing can happen after the answer.

Theory of operation
    Trouble is answered where it is noticed: a signal's handler, the loop's handler
    of exceptions and `main` call `WayOut.defer`, which never returns. So nothing has
    to be unwound, and nothing that hangs can prevent the answer. The kernel closes
    the connections; a host that has not seen the final dot drops what it has
    (RFC 5321 §4.1.1.10).

`mxpolicy.pipe_command` has the command line, `mxpolicy.protocol.pipe_answer` the answer.
Where a daemon runs, `mxpolicy.handover` gives it the message, and this module is not
needed. The shell script that has started us (`command.sh`) stands between the mail server
and this process, and answers when a signal has killed it. Nothing does so when it was
started without the script (``python3 -m mxpolicy``).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from mxpolicy.config import load
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import EXIT_DEFER, Outcome
from mxpolicy.pipe_command import (
    ALARM_SLACK,
    Arguments,
    parse_arguments,
    time_needed,
)
from mxpolicy.processes import ENDING, look_at
from mxpolicy.protocol.pipe_answer import answer, answer_line, deferral

if TYPE_CHECKING:
    import asyncio
    from types import FrameType
    from typing import Any

    from mxpolicy.options import Options

__all__ = ["ALARM_INTERVAL", "main"]

# The second ring ends the delivery; a third one, an answer that hangs.
ALARM_INTERVAL = 5.0
# A mail server that we may not look at has died before stdin ended, or not at all: so
# long after that its death is seen. 17 ms at most were measured on an idle machine.
UNSEEN_DEATH = 0.1


class WayOut:
    """The way out, held open from the first moment: the answer goes through here once.

    Descriptors 0, 1 and 2 are made to exist: a warning would be written into a socket
    that became descriptor 1. Then 1 and 2 are led away from the mail server's pipe, so
    that nothing but the answer can come first.

    Args:
        mail_server: Its process id where the script is between it and us.

    Attributes:
        outcomes: Returns each recipient with its outcome, None until all have one.
            Asked at any moment, by signal handlers, too.
        stdin_was_closed: There was no descriptor 0 to read a message from.
    """

    def __init__(self, mail_server: int | None = None) -> None:
        self._leaving: int | None = None
        self._has_rung = False
        self._parent = os.getppid()
        self._mail_server = mail_server
        self.outcomes: Callable[[], Sequence[tuple[str, Outcome]] | None] = lambda: None
        self.stdin_was_closed = False
        try:
            os.fstat(0)
        except OSError:
            self.stdin_was_closed = True
        null = os.open(os.devnull, os.O_RDWR)
        while null < 3:  # 0, 1 or 2 was closed: this is the new one
            null = os.dup(null)
        self._out = os.dup(1)
        os.dup2(null, 1)
        os.dup2(null, 2)

    def is_watched(self) -> bool:
        """Return whether the mail server that started us is still there.

        When it was killed in mid-message, stdin ends as it always does, and the mail
        server will send the whole message again. Its death is seen in three ways:

        - The kernel says that it is about to end. That is so already at the end of our
          stdin; our parent may stay the same for 17 ms more (measured).
        - We have another parent.
        - Our stdout has no reader any more. That alone shows it where a shell is between
          us, or where it died before our first line.

        Process 1 may have been our parent from the beginning (in a container), or may
        have become it before our first line. Then stdout alone can tell. A stdout
        without another end (a file, /dev/null) tells nothing.
        """
        # In this order: a parent that is gone cannot be looked at, but we have another.
        if _is_ending(self._parent) or os.getppid() != self._parent:
            return False
        if 1 in (self._parent, self._mail_server) and not _has_another_end(self._out):
            return False
        if self._mail_server is not None:
            script = look_at(self._parent)
            if script and script.parent != self._mail_server:
                return False
            if _is_ending(self._mail_server):
                return False
        poll = select.poll()
        poll.register(self._out, 0)  # POLLERR and POLLHUP are always told
        return not poll.poll(0)

    def sees_the_mail_server(self) -> bool:
        """Return whether `is_watched` is right from the very end of stdin on.

        Where other users' processes are hidden (proc(5), ``hidepid``), it is right only
        once the mail server's death has given us another parent.
        """
        return look_at(self._mail_server or self._parent) is not None

    def defer(self, why: str | BaseException) -> NoReturn:
        """Leave with 75, unless every recipient already has its outcome.

        It never returns and never raises. When no memory is left, the status alone is
        the answer.
        """
        status, text = EXIT_DEFER, ""
        try:
            if outcomes := self.outcomes():
                status, text = answer(outcomes)
            else:
                text = why if isinstance(why, str) else deferral(why)
        finally:
            self._leave(status, text)

    def _leave(self, status: int, text: str) -> NoReturn:
        self._leaving = status
        try:
            os.write(self._out, answer_line(status, text))
        finally:  # no reader, or no memory: the status alone is the answer
            os._exit(status)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Answer "try later" to a signal that ends us, and to our own alarm's second ring.

        The alarm's first ring is no reason. After a stop (SIGSTOP, a frozen machine) it
        comes before the event loop has read what the host said meanwhile. The host may
        have said that it has the message.
        """
        if self._leaving is not None:
            # The answer is being written; only a write that hangs is cut short.
            if number == signal.SIGALRM:
                os._exit(self._leaving)
            return
        if number == signal.SIGALRM:
            if not self._has_rung:
                self._has_rung = True
                signal.setitimer(signal.ITIMER_REAL, ALARM_INTERVAL, ALARM_INTERVAL)
                return
            self.defer("4.3.0 mxpolicy: out of time: its own deadline has passed")
        self.defer(f"4.3.0 mxpolicy: ended by {signal.Signals(number).name}")

    def on_loop_trouble(
        self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
    ) -> None:
        """Leave for an exception that the event loop caught from a callback.

        What the callback should have done (no memory, or a bug of ours) would be waited
        for for ever. Without a "handle" the exception is one of a finished task that was
        never asked for its result, and nothing waits.
        """
        trouble = context.get("exception")
        if "handle" in context or isinstance(trouble, MemoryError):
            self.defer(trouble or context["message"])


def _has_another_end(descriptor: int) -> bool:
    """Return whether poll(2) tells when nothing can read from *descriptor* any more."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def _is_ending(pid: int) -> bool:
    """Return whether *pid* can be seen to be about to end."""
    seen = look_at(pid)
    return seen is not None and seen.is_ending


def _in_utf8(arguments: Arguments) -> Arguments:
    """Return *arguments* read as UTF-8, which a mail server writes (RFC 6531).

    Python has read them by the locale, which Postfix hands on as ``LANG``: by Latin-1
    the mail would go to another address, or to another domain.
    """
    return arguments._replace(
        sender=_utf8(arguments.sender),
        nexthop=_utf8(arguments.nexthop),
        queue_id=_utf8(arguments.queue_id),
        recipients=tuple(map(_utf8, arguments.recipients)),
    )


def _utf8(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "surrogateescape")


def main(argv: Sequence[str], mail_server: int | None = None) -> NoReturn:
    """Deliver the message on stdin as *argv* says; leave by `os._exit`.

    Args:
        argv: What follows ``mxpolicy pipe`` on the command line.
        mail_server: Its process id where the script is our parent.

    Raises:
        OSError: There is not even a `WayOut`; the caller says "try later" on stdout.
    """
    began = time.monotonic()
    way_out = WayOut(mail_server)
    try:
        for number in ENDING:
            signal.signal(number, way_out.on_signal)
        # Exim's children inherit some of them ignored, others may be blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        _work(way_out, _in_utf8(parse_arguments(argv, os.environ)), began)
    except BaseException as trouble:  # of any kind: the mail server tries again
        way_out.defer(trouble)


def _work(way_out: WayOut, arguments: Arguments, began: float) -> NoReturn:
    options = load(arguments.config, os.environ)
    deadline = arguments.deadline or options.deadline
    ends = time_needed(arguments.deadline, options)
    signal.setitimer(signal.ITIMER_REAL, ends + ALARM_SLACK, ALARM_INTERVAL)
    if way_out.stdin_was_closed:
        raise LocalTrouble("no message: standard input is closed")

    # Late, so that a wrong command line costs nothing, and inside main's `try`.
    import asyncio

    # Not asyncio.run: its way out waits for tasks, and an exception has told us all.
    asyncio.new_event_loop().run_until_complete(
        _deliver(way_out, arguments, options, began + deadline, began + ends)
    )
    raise AssertionError("_deliver never returns")


async def _deliver(
    way_out: WayOut,
    arguments: Arguments,
    options: Options,
    deadline: float,
    ends: float,
) -> NoReturn:
    """Deliver until *deadline*, on the monotonic clock, or *ends*; and leave."""
    import asyncio

    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Trouble
    from mxpolicy.delivery.log import Log
    from mxpolicy.delivery.mail_data import spool
    from mxpolicy.delivery.replay import prevails
    from mxpolicy.delivery.request import Request
    from mxpolicy.state.opening import open_store, state_file

    # What there is by now is never searched: the message and its delivery are.
    gc.freeze()
    gc.enable()
    asyncio.get_running_loop().set_exception_handler(way_out.on_loop_trouble)
    log = Log(options.log)

    def tell(trouble: str) -> None:
        log.observe(Trouble(0.0, trouble, arguments.queue_id))

    async def is_watched() -> bool:
        return way_out.is_watched()

    store = open_store(state_file(options.state, os.environ), tell, prevails)
    engine = Engine(Context(options, store=store))
    mail_data = await spool(0, memory_limit=options.limits.message_memory)
    if not mail_data.size:
        raise LocalTrouble("no message: standard input is empty")
    if not way_out.sees_the_mail_server():
        await asyncio.sleep(UNSEEN_DEATH)
    if not way_out.is_watched():
        raise LocalTrouble("the mail server that started us has gone away")
    request = Request(
        sender=arguments.sender,
        recipients=arguments.recipients,
        nexthop=arguments.nexthop,
        queue_id=arguments.queue_id,
        deadline=max(0.0, deadline - time.monotonic()),
        ends=max(0.0, ends - time.monotonic()),
        observe=log.observe,
        may_send_dot=is_watched,
    )
    delivery = engine.begin(request, mail_data)
    way_out.outcomes = delivery.settled
    await delivery.outcomes()
    way_out.defer("4.3.0 mxpolicy: a recipient was left without an outcome")
