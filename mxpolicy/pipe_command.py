"""The command line of ``mxpolicy pipe``, and how much time it has.

The command line is described in `USAGE`. With ``--exim`` the sender is in the
environment, as ``RETURN_PATH``: since 4.96 Exim allows nothing on the command line
that a stranger wrote, except the recipients. The message's id is there, too, as
``MESSAGE_ID``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mxpolicy.errors import UsageError
from mxpolicy.option_values import ITEMS
from mxpolicy.options import Options, Timeout
from mxpolicy.protocol.smtp_states import DOT_TIME
from mxpolicy.reply import printable

__all__ = [
    "ALARM_SLACK",
    "DEFAULT_LIMIT",
    "Arguments",
    "parse_arguments",
    "time_needed",
]

# The kernel's alarm ends a loop that hangs in a system call. It rings so long after the
# last reply, and still in the time that contrib gives us: 2900 + 600 + 15 of 3600 s.
ALARM_SLACK = 15.0
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


def _deadline(text: str) -> float:
    try:
        seconds = ITEMS[Timeout](text)
    except ValueError as error:
        raise UsageError(f"--deadline: {error}") from error
    assert isinstance(seconds, float)
    return seconds


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
