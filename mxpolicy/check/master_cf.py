"""What a line of Postfix's master.cf says; master(5), pipe(8). Pure.

The lines are those that ``postconf -M`` prints: one for each service, comments and
continuation lines already gone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Service", "parse_services", "substitute", "words"]

FIELDS = 8  # service type private unpriv chroot wakeup maxproc command

PROGRAM = "mxpolicy"

# pipe(8); envid came with 3.9. Another name makes Postfix defer the mail (4.3.5).
MACROS = frozenset(
    (
        *("client_address", "client_helo", "client_hostname", "client_port"),
        *("client_protocol", "domain", "envid", "extension", "mailbox", "nexthop"),
        *("original_recipient", "queue_id", "recipient", "sasl_method"),
        *("sasl_sender", "sasl_username", "sender", "size", "user"),
    )
)

_MACRO = re.compile(r"\$(?:\{(\w+)\}|\((\w+)\)|(\w+))")


class Service(NamedTuple):
    """A service; attributes and argv are those of pipe(8) and spawn(8).

    Attributes:
        name: Of the transport.
        kind: ``unix``, or what else the second column says.
        unprivileged, chroot, process_limit: As written; ``-`` is the default.
        command: The last column as it is, from ``pipe`` or ``spawn`` on.
        overrides: The ``-o name=value`` of the line.
        attributes: ``flags``, ``user``, ``null_sender`` and so on.
        argv: The command that is run, macros and all.
    """

    name: str
    kind: str
    unprivileged: str
    chroot: str
    process_limit: str
    command: str
    overrides: dict[str, str]
    attributes: dict[str, str]
    argv: tuple[str, ...]

    @property
    def place(self) -> str:
        """As ``postconf -F`` and ``-P`` want it."""
        return f"{self.name}/{self.kind}"

    def settings(self, main: Mapping[str, str]) -> Mapping[str, str]:
        """Return the settings that hold for its process: *main* but for each ``-o``.

        Those that the queue manager reads (``NAME_destination_...``) are main.cf's.
        """
        of_queue = f"{self.name}_destination_"
        own = {
            name: value
            for name, value in self.overrides.items()
            if not name.startswith(of_queue)
        }
        return defaultdict(str, {**main, **own})

    def filled(self, fill: Callable[[str], str]) -> Service:
        """Return it with *fill* made of the value of each ``-o``."""
        own = {name: fill(value) for name, value in self.overrides.items()}
        return self._replace(overrides=own)

    def set_command(self, name: str, value: str) -> str:
        """Return the command that gives *name* another value where it has its own."""
        if name in self.overrides:
            return f"postconf -P {self.place}/{name}={value}"
        return f"postconf -e {name}={value}"

    @property
    def user(self) -> str:
        """The account that runs the command, without its group; empty where none is."""
        return self.attributes.get("user", "").partition(":")[0]

    def is_user_refused(self, settings: Mapping[str, str]) -> bool:
        """Return whether pipe(8) and spawn(8) do not run a command as `user`."""
        return self.user in {"", "root", settings["mail_owner"] or "postfix"}

    def is_chrooted(self, settings: Mapping[str, str]) -> bool:
        """Return whether it runs in a chroot; once that was the default."""
        level = re.match(r"\d+", settings["compatibility_level"] or "0")
        is_old = level is not None and level[0] == "0"
        return self.chroot == "y" or (self.chroot == "-" and is_old)

    def most(self, settings: Mapping[str, str]) -> int:
        """Return how many processes it may have at once; 0 is any number."""
        limit = self.process_limit
        if limit == "-":
            limit = settings["default_process_limit"] or "100"
        return int(limit) if limit.isdigit() else 0

    @property
    def arguments(self) -> tuple[str, ...] | None:
        """What follows our program in `argv`; None when it is not in there."""
        for place, word in enumerate(self.argv):
            if word.rpartition("/")[2] == PROGRAM:
                return self.argv[place + 1 :]
        return None


def parse_services(text: str, agent: str = "pipe") -> list[Service]:
    """Return the services of *agent* in the output of ``postconf -M``.

    Args:
        text: What it printed.
        agent: ``pipe``, ``spawn``, ``smtpd``: its program, without a directory.
    """
    found = []
    for line in text.splitlines():
        columns = line.split(None, FIELDS - 1)
        if len(columns) < FIELDS:
            continue
        name, kind, _, unprivileged, chroot, _, process_limit, command = columns
        program, *rest = words(command)
        if program.rpartition("/")[2] != agent:
            continue
        overrides, rest = _overrides(rest)
        attributes, argv = _attributes(rest)
        found.append(
            Service(
                name,
                kind,
                unprivileged,
                chroot,
                process_limit,
                command.strip(),
                overrides,
                attributes,
                argv,
            )
        )
    return found


def words(text: str, separators: str = " \t") -> list[str]:
    """Return the words of *text*; what is in braces is not taken apart (postconf(5))."""
    found: list[str] = []
    depth, word = 0, ""
    for char in text:
        depth += (char == "{") - (char == "}")
        if char in separators and depth <= 0:
            found.append(word)
            word = ""
        else:
            word += char
    found.append(word)
    return [one for one in found if one]


def _overrides(rest: list[str]) -> tuple[dict[str, str], list[str]]:
    found: dict[str, str] = {}
    while rest and rest[0].startswith("-"):
        option, *rest = rest
        text = option[2:]
        if not text and rest:
            text, *rest = rest
        if option.startswith("-o"):
            name, _, value = _unbraced(text).partition("=")
            found[name.strip()] = value.strip()
    return found, rest


def _attributes(rest: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    found: dict[str, str] = {}
    for place, word in enumerate(rest):
        name, _, value = _unbraced(word).partition("=")
        if name == "argv":
            argv = [value, *rest[place + 1 :]]
            return found, tuple(_unbraced(one) for one in argv)
        found[name] = value
    return found, ()


def _unbraced(word: str) -> str:
    if word.startswith("{") and word.endswith("}"):
        return word[1:-1].strip()
    return word


def substitute(argv: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Return *argv* with some value for each macro, and the macros that do not exist."""
    unknown: list[str] = []

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2] or found[3]
        if name not in MACROS:
            unknown.append(name)
        if name in {"recipient", "sender", "original_recipient"}:
            return "user@example.com"
        return "1" if name == "size" else "example.com"

    return tuple(_MACRO.sub(value, word) for word in argv), unknown
