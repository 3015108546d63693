"""The pipe door: a message on stdin, an exit status and one line on stdout.

What Postfix's pipe(8) and Exim's pipe transport have in common is little, and
this module keeps to it:

- 0 is delivered, 75 is "try later", 69 is "never". No other status leaves this
  process, whatever happens to it.
- stdout and stderr are one pipe, and the first bytes on it are the whole
  answer: ``4.x.x text`` or ``5.x.x text`` in one line and one write. Postfix
  lets it beat the exit status.
- Then `os._exit`, because the interpreter's own way out may fail to flush and
  make 120 of it, which bounces.

The process leads three lives. Until the engine has answered, anything that goes
wrong is 75. When every recipient has its outcome, that is the answer, also if a
signal arrives while it is being written. Nothing can happen after the answer.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from mxpolicy.config import load
from mxpolicy.errors import ConfigError, LocalTrouble, UsageError
from mxpolicy.option_values import parse_duration
from mxpolicy.outcome import (
    EXIT_BOUNCE,
    EXIT_DEFER,
    EXIT_DELIVERED,
    Bounced,
    Deferred,
    Delivered,
    Outcome,
)
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from types import FrameType

    from mxpolicy.delivery.events import Event
    from mxpolicy.options import Options

__all__ = ["Arguments", "main", "parse_arguments"]

# pipe(8) reads 4096 bytes and closes; a bounce shows it all in one line.
MAX_ANSWER = 4096
# A loop that hangs in a system call is ended by the kernel's alarm this long
# after the deadline, still inside what contrib gives us (3600 s to our 3500 s).
ALARM_SLACK = 15.0

USAGE = (
    "usage: mxpolicy pipe -f SENDER [--nexthop HOP] [--queue-id ID] "
    "[--deadline 900s] [--config FILE] -- RECIPIENT..."
)


_OPTIONS = ("-f", "--nexthop", "--queue-id", "--deadline", "--socket", "--config")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)


class Arguments(NamedTuple):
    """The command line, understood.

    Attributes:
        sender: As given; ``""`` is the null reverse-path.
        nexthop: Where to aim; ``""`` means each recipient's own domain.
        queue_id: For the log.
        deadline: Seconds, None when the configuration decides.
        config: A file, None for the usual places.
        recipients: At least one.
    """

    sender: str
    nexthop: str
    queue_id: str
    deadline: float | None
    config: str | None
    recipients: tuple[str, ...]


class Door:
    """The way out, held open from the first moment: the answer goes through here once.

    Descriptors 0, 1 and 2 are made to exist (a socket that became descriptor 1
    would be written into by any warning), and 1 and 2 are led away from the
    mail server's pipe, so that nothing but the answer can come first.
    """

    def __init__(self) -> None:
        self._outcomes: list[tuple[str, Outcome]] = []
        self._expected: int | None = None
        self.stdin_was_closed = not _is_open(0)
        null = os.open(os.devnull, os.O_RDWR)
        while null < 3:  # 0, 1 or 2 was closed: this is the new one
            null = os.dup(null)
        self._out = os.dup(1)
        os.dup2(null, 1)
        os.dup2(null, 2)

    def expect(self, recipients: int) -> None:
        """From now on *recipients* outcomes make the answer complete."""
        self._expected = recipients

    def settled(self, recipient: str, outcome: Outcome) -> None:
        """Keep an outcome as soon as it exists: no later trouble may undo it."""
        self._outcomes.append((recipient, outcome))

    def leave(self, status: int, text: str) -> NoReturn:
        """Answer once and end the process; never returns, never raises."""
        line = printable(text, MAX_ANSWER - 1).encode("ascii", "replace") + b"\n"
        try:
            os.write(self._out, line)
        except OSError:
            pass  # nobody reads: the status alone is the answer
        finally:
            os._exit(status)

    def defer(self, text: str) -> NoReturn:
        """Leave with 75, unless every recipient already has its outcome."""
        if self._expected is not None and len(self._outcomes) == self._expected:
            self.leave(*answer(self._outcomes))
        self.leave(EXIT_DEFER, text)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Being asked to stop, and running into our own alarm, are "try later"."""
        if number == signal.SIGALRM:
            self.defer("4.3.0 mxpolicy: out of time: its own deadline passed")
        self.defer(f"4.3.0 mxpolicy: ended by {signal.Signals(number).name}")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def answer(outcomes: Sequence[tuple[str, Outcome]]) -> tuple[int, str]:
    """Return exit status and text for the outcomes of all recipients.

    pipe(8) and Exim take one answer for all. While any recipient is deferred it
    is "try later"; when all are settled and some were refused it is "never",
    naming each refused one and saying which were delivered, since the bounce
    will name them all.
    """
    deferred = [(who, what) for who, what in outcomes if isinstance(what, Deferred)]
    bounced = [(who, what) for who, what in outcomes if isinstance(what, Bounced)]
    delivered = [(who, what) for who, what in outcomes if isinstance(what, Delivered)]
    decisive = deferred or bounced or delivered
    first = decisive[0][1]
    text = f"{first.status} {first.text}"
    if len(outcomes) > 1:
        text = f"{first.status} " + "; ".join(
            f"<{who}>: {what.text}" for who, what in decisive
        )
        if bounced and not deferred and delivered:
            text += "; delivered: " + ", ".join(f"<{who}>" for who, _ in delivered)
    if deferred:
        return EXIT_DEFER, text
    return (EXIT_BOUNCE if bounced else EXIT_DELIVERED), text


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Understand what follows ``mxpolicy pipe``.

    By hand, because argparse takes 30 million instructions to import, abbreviates
    options on its own account and leaves with status 2, which bounces.

    Raises:
        UsageError: Anything that is not exactly as the usage line says.
    """
    given: dict[str, str] = {}
    rest = list(argv)
    while rest and rest[0] != "--":
        name, inline, value = rest.pop(0).partition("=")
        if name not in _OPTIONS:
            raise UsageError(f"unknown argument {printable(name, 60)!r}; {USAGE}")
        if name in given:
            raise UsageError(f"{name} is given twice; {USAGE}")
        if not inline:
            if not rest:
                raise UsageError(f"{name} needs a value; {USAGE}")
            value = rest.pop(0)
        given[name] = value
    recipients = tuple(rest[1:])
    if not rest:
        raise UsageError(f"no -- before the recipients; {USAGE}")
    if not recipients:
        raise UsageError(f"no recipient; {USAGE}")
    if "-f" not in given:
        raise UsageError(f"no sender: give -f (an empty one is <>); {USAGE}")
    return Arguments(
        sender=given["-f"],
        nexthop=given.get("--nexthop", ""),
        queue_id=given.get("--queue-id", ""),
        deadline=_deadline(given["--deadline"]) if "--deadline" in given else None,
        config=given.get("--config"),
        recipients=recipients,
    )


def _deadline(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--deadline: {error}") from error
    if not seconds:
        raise UsageError("--deadline: must be more than nothing")
    return seconds


def main(argv: Sequence[str]) -> NoReturn:
    """Deliver the message on stdin as *argv* says; never returns, never raises.

    Args:
        argv: What follows ``mxpolicy pipe`` on the command line.
    """
    parent = os.getppid()
    door = None
    try:
        door = Door()
        for number in _SIGNALS:
            signal.signal(number, door.on_signal)
        # Exim's children inherit some of them ignored, others may be blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _work(door, argv, parent)
    except (UsageError, ConfigError) as exc:
        text = f"4.3.5 mxpolicy: {exc}"
    except LocalTrouble as exc:
        text = f"4.3.0 mxpolicy: {exc}"
    except MemoryError:
        text = "4.3.0 mxpolicy: out of memory"
    except BaseException as exc:  # whatever it is, the mail server shall try again
        text = f"4.3.0 mxpolicy: {type(exc).__name__}: {exc}"
    if door is not None:
        door.defer(text)
    os._exit(EXIT_DEFER)


def _work(door: Door, argv: Sequence[str], parent: int) -> NoReturn:
    arguments = parse_arguments(argv)
    options = load(arguments.config, os.environ)
    deadline = arguments.deadline or options.deadline
    signal.setitimer(signal.ITIMER_REAL, deadline + ALARM_SLACK)
    if door.stdin_was_closed:
        raise LocalTrouble("no message: standard input is closed")
    door.expect(len(arguments.recipients))

    # Late, so that a wrong command line costs nothing, and inside main's `try`.
    import asyncio

    asyncio.run(_deliver(door, arguments, options, deadline, parent))
    door.defer("4.3.0 mxpolicy: a recipient was left without an outcome")


async def _deliver(
    door: Door, arguments: Arguments, options: Options, deadline: float, parent: int
) -> None:
    from mxpolicy.delivery.engine import Engine, Request
    from mxpolicy.delivery.events import RecipientSettled
    from mxpolicy.delivery.log import Log
    from mxpolicy.delivery.mail_data import spool

    def input_is_complete() -> bool:
        # EOF on stdin looks the same when the mail server was killed in
        # mid-message and will send all of it again. No mail server runs us as
        # a child of process 1.
        return os.getppid() == parent != 1

    request = Request(
        sender=arguments.sender,
        recipients=arguments.recipients,
        nexthop=arguments.nexthop,
        queue_id=arguments.queue_id,
        deadline=deadline,
    )
    log = Log(options.log, arguments.queue_id)

    def observe(event: Event) -> None:
        if isinstance(event, RecipientSettled):
            door.settled(event.recipient, event.outcome)
        log.observe(event)

    engine = Engine(options, observe, input_is_complete)
    mail_data = await spool(0)
    if not mail_data.size:
        raise LocalTrouble("no message: standard input is empty")
    await engine.deliver(request, mail_data)
