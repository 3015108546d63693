"""The manual pages, made from the sources, as the tables of the manual are.

mxpolicy(8) and mxpolicy-pipe(8) have the command lines from their parsers,
mxpolicy.yaml(5) has the options. ``python -m tests.reference`` writes them all, in the
macros of man(7).
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from mxpolicy import __version__, cli, command_help
from mxpolicy.delivery.trouble import VERDICTS
from mxpolicy.routing.candidate import Verdict
from tests.options_table import Option, all_options

__all__ = ["NOT_BUILT", "PAGES", "page", "parser_of"]

CONTRIB = Path(__file__).parents[1] / "contrib"

# Of a proxy and of TLS policies, which there are not yet.
NOT_BUILT = {Verdict.PROXY_FAILED, Verdict.CERTIFICATE_REJECTED}

ABOUT = (
    "Hands each message that Postfix or Exim gives it to the first MX host that can be"
    " reached through the firewall."
)

FILES = {
    "/etc/mxpolicy/mxpolicy.yaml": "The configuration; see mxpolicy.yaml(5). None is"
    " needed.",
    "/var/lib/mxpolicy/": "What is remembered of hosts, and the journal of which recipient"
    " has which message. In $STATE_DIRECTORY where that is set.",
    "/run/mxpolicy/pipe, lmtp, policy": "The sockets of the daemon. In $RUNTIME_DIRECTORY"
    " where that is set.",
}

ENVIRONMENT = {
    "MXPOLICY_CONFIG": "The configuration file, where --config names none.",
    "MAIL_CONFIG": "The directory of the Postfix instance that mxpolicy check looks at.",
    "STATE_DIRECTORY, RUNTIME_DIRECTORY": "Set by systemd(1): where state and sockets are.",
    "NO_COLOR": "Set: no colours on a terminal.",
    "TMPDIR": "Where large messages are kept while they are sent; default: /var/tmp.",
}

PIPE_ENVIRONMENT = {
    "RETURN_PATH": "With --exim: the sender. The transport sets it, as"
    " ${listquote{:}{$return_path}}.",
    "MESSAGE_ID": "With --exim: the message's id. Exim sets it.",
    "MXPOLICY_CONFIG": "The configuration file, where --config names none. Postfix passes"
    " it on only where export_environment has it.",
}

STATUS = {
    "0": "Delivered. The line begins with 2.0.0 and has the host's own reply.",
    "75": "Try later: a deferral by the host or because of the network, and every trouble"
    " of our own (a mistake in the configuration, no memory, a full disk).",
    "69": "Bounce: refused by the host that counts, or an address to which there is no"
    " way.",
}

YAML_NOTES = (
    "All mistakes in the file are reported at once, with line and column, and mail is"
    " deferred until they are mended. mxpolicy check shows the file as understood.",
    "Durations are written 250ms, 30s, 5m, 2h or 1d, sizes 512KiB or 10MiB, lists"
    " [one, two].",
)

YAML_EXAMPLE = (
    "helo: mail.example.net",
    "own_addresses: [192.0.2.25]",
    "log: {to: syslog}",
)


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of *command*."""
    if command in {"pipe", "policy", "serve"}:
        return command_help.parser(command)
    made = import_module(f"mxpolicy.{command}").parser()
    assert isinstance(made, argparse.ArgumentParser)
    return made


def page(name: str) -> str:
    """Return the manual page *name*, as ``mxpolicy.8``."""
    title, section = name.rsplit(".", 1)
    head = f'.TH "{title.upper()}" "{section}" "" "mxpolicy {__version__}"'
    return "\n".join([head, ".nh", ".ad l", *PAGES[name]()]) + "\n"


def _mxpolicy() -> Iterator[str]:
    yield from _name("mxpolicy", "mail to the first MX host that can be reached")
    yield from (".SH SYNOPSIS", ".B mxpolicy", r".RI [ \-h ]", r".RI [ \-V ]")
    yield from (".I COMMAND", r"[\fIARGUMENT\fR...]")
    yield from (".SH DESCRIPTION", _text(ABOUT))
    yield from (
        ".PP",
        _text(
            "Set up is described in README.md, the rest of a postmaster's work in OPERATING.md, each rule in full in REFERENCE.md."
        ),
    )
    yield ".SH COMMANDS"
    for command in cli.COMMANDS:
        yield from _command(command)
    yield from _list("EXIT STATUS", _exit_statuses())
    yield from _list("ENVIRONMENT", ENVIRONMENT.items())
    yield from _list("FILES", FILES.items())
    yield from _see("mxpolicy-pipe(8)", "mxpolicy.yaml(5)", "pipe(8postfix)", "exim(8)")


def _exit_statuses() -> Iterator[tuple[str, str]]:
    yield "pipe", "0 delivered, 75 try later, 69 bounce, never another one."
    yield "route", "The same where there is no host to dial, else 0."
    yield (
        "policy",
        "0 when the mail server has hung up, 1 when it ended by its own fault.",
    )
    yield "the others", "0 well, 1 not well, 2 misused."


def _command(command: str) -> Iterator[str]:
    yield f'.SS "mxpolicy {command}"'
    if command == "pipe":
        yield from (
            _text(f"{cli.COMMANDS[command]}; see mxpolicy-pipe(8)".capitalize()),
        )
        return
    yield from _parser(parser_of(command))


def _parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    yield from (".B " + _literal(usage), ".PP", _text(parser.description or ""))
    yield from _options(parser)
    if parser.epilog:
        yield from (".PP", _text(parser.epilog))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        shown = _shown(action)
        if action.dest != "help" and (action.help or action.option_strings):
            yield from (".TP", f".B {_literal(shown)}", _text(action.help or ""))


def _shown(action: argparse.Action) -> str:
    """Return ``--config FILE``."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    return ", ".join(
        f"{flag} {value}".strip() for flag in action.option_strings
    ) or str(value)


def _pipe() -> Iterator[str]:
    parser = parser_of("pipe")
    yield from _name("mxpolicy-pipe", "deliver one message, for a mail server")
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    yield from (".SH SYNOPSIS", ".B " + _literal(usage))
    yield from (".SH DESCRIPTION", _text(parser.description or ""))
    yield from (".PP", _text("Without the daemon this process does all of it itself."))
    yield from (".SH OPTIONS", *_options(parser))
    yield from _list("EXIT STATUS", STATUS.items())
    hosts = (
        (verdict.value, f"It {words}.")
        for verdict, (_, words) in VERDICTS.items()
        if verdict not in NOT_BUILT
    )
    yield from _list(
        "WORDS FOR A HOST THAT FAILED",
        hosts,
        "In the log, behind tried=, and in what the other commands show.",
    )
    yield from _list("ENVIRONMENT", PIPE_ENVIRONMENT.items())
    yield ".SH EXAMPLES"
    yield from _example("For Postfix, in master.cf:", CONTRIB / "postfix" / "master.cf")
    yield from _example(
        "For Exim, among its transports:", CONTRIB / "exim" / "transport"
    )
    yield from _see("mxpolicy(8)", "mxpolicy.yaml(5)", "pipe(8postfix)", "exim(8)")


def _yaml() -> Iterator[str]:
    yield from _name("mxpolicy.yaml", "the configuration of mxpolicy")
    yield from (".SH SYNOPSIS", ".B /etc/mxpolicy/mxpolicy.yaml")
    yield ".SH DESCRIPTION"
    for note in YAML_NOTES:
        yield from (_text(note), ".PP")
    yield ".SH OPTIONS"
    for option in all_options():
        yield from _section(option) if option.default is None else _option(option)
    yield from (".SH EXAMPLES", ".nf", *map(_literal, YAML_EXAMPLE), ".fi")
    yield from _see("mxpolicy(8)", "mxpolicy-pipe(8)")


def _section(option: Option) -> Iterator[str]:
    yield from (f'.SS "{_literal(option.path)}:"', _text(option.text))


def _option(option: Option) -> Iterator[str]:
    yield from (
        ".TP",
        rf"\fB{_literal(option.path)}:\fR {_literal(option.default or '')}",
    )
    yield _text(option.text)
    for key in option.keys:
        word = key.path.rpartition(".")[2]
        yield from (".RS", ".TP", f".B {_literal(word)}", _text(key.text), ".RE")


PAGES = {
    "mxpolicy.8": _mxpolicy,
    "mxpolicy-pipe.8": _pipe,
    "mxpolicy.yaml.5": _yaml,
}
"""File name -> what makes its text, without the first lines."""


def _name(name: str, what: str) -> Iterator[str]:
    yield from (".SH NAME", rf"{_literal(name)} \- {what}")


def _list(
    title: str, rows: Iterable[tuple[str, str]], before: str = ""
) -> Iterator[str]:
    yield f'.SH "{title}"'
    if before:
        yield _text(before)
    for word, text in rows:
        yield from (".TP", f".B {_literal(word)}", _text(text))


def _example(before: str, path: Path) -> Iterator[str]:
    """Yield what *path* has beside its comments."""
    lines = [one for one in path.read_text().splitlines() if one[:1] not in {"#", ""}]
    yield from (".PP", _text(before), ".PP", ".nf", *map(_literal, lines), ".fi")


def _see(*pages: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    split = [re.fullmatch(r"(.+)(\(.+\))", one) for one in pages]
    shown = [rf"\fB{_literal(one[1])}\fR{one[2]}" for one in split if one]
    yield ",\n".join(shown)


def _literal(text: str) -> str:
    """Return what stands for *text* as it is: no hyphen, no command, no escape."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq")
    return re.sub(r"^(?=[.'])", r"\\&", text)


def _text(text: str) -> str:
    """Return running text; what stands between backquotes is bold."""
    words = re.split(r"``?(.+?)``?", text.replace("\\", r"\e"))
    shown = [
        rf"\fB{word.replace('-', chr(92) + '-')}\fR" if place % 2 else word
        for place, word in enumerate(words)
    ]
    joined = re.sub(r"(?<![\w\\])--(?=\w)", r"\\-\\-", "".join(shown))
    return re.sub(r"^(?=[.'])", r"\\&", joined)
