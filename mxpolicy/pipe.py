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
    of exceptions and `main` call `Door.defer`, which never returns. So nothing has
    to be unwound, and nothing that hangs can prevent the answer. The kernel closes
    the connections; a host that has not seen the final dot drops what it has
    (RFC 5321 §4.1.1.10).

The command line is described in `USAGE`. With ``--exim`` the sender is in the
environment, as ``RETURN_PATH``: since 4.96 Exim allows nothing on the command line
that a stranger wrote, except the recipients. The message's id is there, too, as
``MESSAGE_ID``, and a `mxpolicy.supervisor` stands between Exim and this process.
``--socket`` names the socket of a daemon that will take the message. This version has
no daemon: the option is accepted, and mxpolicy delivers by itself.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from mxpolicy.config import load
from mxpolicy.errors import ConfigError, LocalTrouble, UsageError
from mxpolicy.option_values import ITEMS
from mxpolicy.options import Options, Timeout
from mxpolicy.outcome import (
    EXIT_BOUNCE,
    EXIT_DEFER,
    EXIT_DELIVERED,
    Bounced,
    Deferred,
    Delivered,
    Outcome,
)
from mxpolicy.protocol.smtp_states import State, facts
from mxpolicy.reply import EnhancedStatus, printable
from mxpolicy.supervisor import ENDING, look_at

if TYPE_CHECKING:
    import asyncio
    from types import FrameType
    from typing import Any

__all__ = [
    "ALARM_INTERVAL",
    "ALARM_SLACK",
    "DEFAULT_LIMIT",
    "DOT_TIME",
    "Arguments",
    "answer",
    "answer_line",
    "main",
    "parse_arguments",
    "time_needed",
]

# pipe(8) reads 4096 bytes and closes; a bounce shows it all in one line.
MAX_ANSWER = 4096
MAX_TEXT = MAX_ANSWER - len("5.999.999 \n")
# What a host said is not worth quoting if less than this is left of it.
SHORTEST_TEXT = 25
# RFC 5321 §4.5.3.2.6: the reply to a final dot that leaves at the deadline.
DOT_TIME = facts(State.DOT).timeout
# The kernel's alarm ends a loop that hangs in a system call. It rings so long after the
# last reply, and still in the time that contrib gives us: 2900 + 600 + 15 of 3600 s.
ALARM_SLACK = 15.0
# The second ring ends the delivery; a third one, an answer that hangs.
ALARM_INTERVAL = 5.0
# A mail server that we may not look at has died before stdin ended, or not at all: so
# long after that its death is seen. 17 ms at most were measured on an idle machine.
UNSEEN_DEATH = 0.1

# Postfix's command_time_limit by default. Exim's default is longer.
DEFAULT_LIMIT = 1000.0

USAGE = (
    "usage: mxpolicy pipe {-f SENDER | --exim} [--nexthop HOP] [--queue-id ID] "
    "[--deadline 900s] [--socket PATH] [--config FILE] -- RECIPIENT..."
)

_OPTIONS = ("-f", "--nexthop", "--queue-id", "--deadline", "--socket", "--config")


class Arguments(NamedTuple):
    """The command line, understood.

    Attributes:
        sender: As given; ``""`` is the null reverse-path.
        nexthop: Where to aim; ``""`` means each recipient's own domain.
        queue_id: For the log.
        deadline: Seconds until the final dot must have left, None when the
            configuration decides.
        config: A file, None for the usual places.
        recipients: At least one.
    """

    sender: str
    nexthop: str
    queue_id: str
    deadline: float | None
    config: str | None
    recipients: tuple[str, ...]


# -- the answer -------------------------------------------------------------


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
    have = [who for who, _ in delivered] if decisive is bounced else []
    text = first.text if len(outcomes) == 1 else _for_several(decisive, have)
    status = EXIT_DEFER if deferred else EXIT_BOUNCE if bounced else EXIT_DELIVERED
    return status, f"{first.status} {text}"


def _for_several(told: Sequence[tuple[str, Outcome]], delivered: Sequence[str]) -> str:
    """Return one text for all of *told*, and that *delivered* have the message.

    Where there is no room for all of it, the texts are shortened, not the names: a
    sender who cannot see which recipients have the message sends it to all again.
    """
    last = "; delivered: " + _listed(delivered) if delivered else ""
    text = "; ".join(f"<{who}>: {what.text}" for who, what in told) + last
    if len(text) <= MAX_TEXT:
        return text
    names = sum(len(f"<{who}>: ; ") for who, _ in told)
    share = (MAX_TEXT - names - len(last)) // len(told)
    if share >= SHORTEST_TEXT:
        short = (f"<{who}>: {printable(what.text, share)}" for who, what in told)
        return "; ".join(short) + last
    count = f"{len(told)} of {len(told) + len(delivered)} recipients"
    text = f"{count}: {printable(told[0][1].text, MAX_TEXT // 8)}: "
    return text + _listed([who for who, _ in told]) + last


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"<{who}>" for who in names)


def answer_line(status: int, text: str) -> bytes:
    """Return *text* as the line that leaves, its code made to agree with *status*.

    At most `MAX_ANSWER` bytes, printable ASCII and one line end. To Postfix ``5.x.x``
    is a bounce whatever the status, 75 included, and a code of class 2 is one with
    any status but 0.
    """
    wanted = {EXIT_DEFER: 4, EXIT_BOUNCE: 5}.get(status)
    text = printable(text, MAX_ANSWER)
    found = EnhancedStatus.parse(text)
    if wanted and (found is None or found.class_ != wanted):
        text = f"{wanted}.3.0 mxpolicy: {text}"
    return printable(text, MAX_ANSWER - 1).encode("ascii") + b"\n"


def _deferral(trouble: BaseException) -> str:
    """Return what is answered to the mail server about *trouble*."""
    while isinstance(trouble, BaseExceptionGroup):
        trouble = trouble.exceptions[0]
    match trouble:
        case UsageError() | ConfigError():
            return f"4.3.5 mxpolicy: {trouble}"
        case LocalTrouble():
            return f"4.3.0 mxpolicy: {trouble}"
        case MemoryError():
            return "4.3.0 mxpolicy: out of memory"
        case _:
            where = _raised_at(trouble)
            return f"4.3.0 mxpolicy: {type(trouble).__name__}: {trouble}{where}"


def _raised_at(trouble: BaseException) -> str:
    """Return where *trouble* was raised: a postmaster's report has only this line."""
    traceback = trouble.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    file = os.path.basename(traceback.tb_frame.f_code.co_filename)
    return f" ({file}:{traceback.tb_lineno})"


class Door:
    """The way out, held open from the first moment: the answer goes through here once.

    Descriptors 0, 1 and 2 are made to exist: a warning would be written into a socket
    that became descriptor 1. Then 1 and 2 are led away from the mail server's pipe, so
    that nothing but the answer can come first.

    Args:
        mail_server: Its process id where a supervisor is between it and us.

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
        if self._parent == 1 and not _has_another_end(self._out):
            return False
        if self._mail_server is not None:
            supervisor = look_at(self._parent)
            if supervisor and not supervisor.parent == self._mail_server != 1:
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
                text = why if isinstance(why, str) else _deferral(why)
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

        The alarm's first ring is no reason: after a stop (SIGSTOP, a frozen machine) it
        comes before the event loop has read what the host said meanwhile, and the host
        may have said that it has the message.
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


# -- the command line -------------------------------------------------------


def parse_arguments(argv: Sequence[str], environ: Mapping[str, str]) -> Arguments:
    """Understand what follows ``mxpolicy pipe``, and what Exim says in *environ*.

    By hand: argparse takes 30 million instructions to import, accepts abbreviated
    options, and leaves with status 2, which bounces.

    Raises:
        UsageError: Anything that is not exactly as the usage line says.
    """
    given: dict[str, str] = {}
    rest = list(argv)
    while rest and rest[0] != "--":
        name, value = _next_option(rest)
        if name in given:
            raise UsageError(f"{name} is given twice; {USAGE}")
        given[name] = value
    if not rest:
        raise UsageError(f"no -- before the recipients; {USAGE}")
    recipients = tuple(rest[1:])
    if not recipients or "" in recipients:
        raise UsageError(f"no recipient, or an empty one; {USAGE}")
    if "--exim" in given:
        given = _as_exim_says(given, environ)
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


def _next_option(rest: list[str]) -> tuple[str, str]:
    """Take an option and its value from the front of *rest*."""
    word = rest.pop(0)
    name, inline, value = word.partition("=")
    if word == "--exim":
        return word, ""
    if name not in _OPTIONS or (inline and name == "-f"):
        raise UsageError(f"unknown argument {printable(word, 60)!r}; {USAGE}")
    if not inline:
        if not rest:
            raise UsageError(f"{name} needs a value; {USAGE}")
        value = rest.pop(0)
    return name, value


def _as_exim_says(given: dict[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Add what the environment of Exim's pipe transport holds to the options given."""
    if "-f" in given:
        raise UsageError(f"-f and --exim exclude each other; {USAGE}")
    if "RETURN_PATH" not in environ:
        # SENDER will not do: a router's errors_to does not change it.
        raise UsageError(
            "no sender: the transport needs "
            "environment = RETURN_PATH=${listquote{:}{$return_path}}"
        )
    # Exim makes a blank of an empty item of a list.
    sender = environ["RETURN_PATH"].strip(" ")
    return {"--queue-id": environ.get("MESSAGE_ID", ""), **given, "-f": sender}


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


def _deadline(text: str) -> float:
    try:
        seconds = ITEMS[Timeout](text)
    except ValueError as error:
        raise UsageError(f"--deadline: {error}") from error
    assert isinstance(seconds, float)
    return seconds


# -- the work ---------------------------------------------------------------


def main(argv: Sequence[str], mail_server: int | None = None) -> NoReturn:
    """Deliver the message on stdin as *argv* says; leave by `os._exit`.

    Args:
        argv: What follows ``mxpolicy pipe`` on the command line.
        mail_server: Its process id where a supervisor is our parent.

    Raises:
        OSError: There is not even a `Door`; the caller says "try later" on stdout.
    """
    began = time.monotonic()
    door = Door(mail_server)
    try:
        for number in ENDING:
            signal.signal(number, door.on_signal)
        # Exim's children inherit some of them ignored, others may be blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        _work(door, _in_utf8(parse_arguments(argv, os.environ)), began)
    except BaseException as trouble:  # of any kind: the mail server tries again
        door.defer(trouble)


def _work(door: Door, arguments: Arguments, began: float) -> NoReturn:
    options = load(arguments.config, os.environ)
    deadline = arguments.deadline or options.deadline
    ends = time_needed(arguments.deadline, options)
    signal.setitimer(signal.ITIMER_REAL, ends + ALARM_SLACK, ALARM_INTERVAL)
    if door.stdin_was_closed:
        raise LocalTrouble("no message: standard input is closed")

    # Late, so that a wrong command line costs nothing, and inside main's `try`.
    import asyncio

    # Not asyncio.run: its way out waits for tasks, and an exception has told us all.
    asyncio.new_event_loop().run_until_complete(
        _deliver(door, arguments, options, began + deadline, began + ends)
    )
    raise AssertionError("_deliver never returns")


def time_needed(given: float | None, options: Options) -> float:
    """Return the seconds after which nothing is awaited any more.

    By default Postfix kills us, and bounces the message, after `DEFAULT_LIMIT`. An
    operator who sets a deadline sets Postfix's limit, too: ``mxpolicy check`` says when
    the reply to the last dot could come after it.

    Args:
        given: What ``--deadline`` says, None without it.
        options: For the deadline where it does not.
    """
    needed = (given or options.deadline) + DOT_TIME
    if given is None and options.deadline == Options().deadline:
        return min(needed, DEFAULT_LIMIT - 2 * ALARM_SLACK)
    return needed


async def _deliver(
    door: Door,
    arguments: Arguments,
    options: Options,
    deadline: float,
    ends: float,
) -> NoReturn:
    """Deliver until *deadline*, on the monotonic clock, or *ends*; and leave."""
    import asyncio

    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.delivery import Request
    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Trouble
    from mxpolicy.delivery.log import Log
    from mxpolicy.delivery.mail_data import spool
    from mxpolicy.delivery.replay import prevails
    from mxpolicy.state.opening import open_store, state_file

    asyncio.get_running_loop().set_exception_handler(door.on_loop_trouble)
    log = Log(options.log)

    def tell(trouble: str) -> None:
        log.observe(Trouble(0.0, trouble, arguments.queue_id))

    async def is_watched() -> bool:
        return door.is_watched()

    store = open_store(state_file(options.state, os.environ), tell, prevails)
    engine = Engine(Context(options, store=store))
    mail_data = await spool(0, memory_limit=options.limits.message_memory)
    if not mail_data.size:
        raise LocalTrouble("no message: standard input is empty")
    if not door.sees_the_mail_server():
        await asyncio.sleep(UNSEEN_DEATH)
    if not door.is_watched():
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
    door.outcomes = delivery.settled
    await delivery.outcomes()
    door.defer("4.3.0 mxpolicy: a recipient was left without an outcome")
