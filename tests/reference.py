"""The sample configuration, README's tables and CONTRACT.md, made from the sources.

``python -m tests.reference`` writes them; `test_reference` compares. The text of an
option is the docstring under its field, found in the source because Python itself does
not keep it. When an event is told, is the first sentence of its class's docstring.
"""

import ast
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_args

from mxpolicy import options
from mxpolicy.delivery import events
from mxpolicy.delivery.log import is_always_logged
from mxpolicy.delivery.log_line import json_line
from mxpolicy.delivery.trouble import VERDICTS
from mxpolicy.option_values import parse_duration
from mxpolicy.options import Options
from mxpolicy.outcome import Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict
from tests.lab.provocations import KINDS

CHECKOUT = Path(__file__).parents[1]
SAMPLE = CHECKOUT / "contrib" / "postfix" / "mxpolicy.yaml"
README = CHECKOUT / "README.md"
CONTRACT = CHECKOUT / "tests" / "lab" / "CONTRACT.md"

WIDTH = 80

_MISSING = object()

HEAD = """\
# /etc/mxpolicy/mxpolicy.yaml: every option of mxpolicy with its default.
#
# All of it is commented out, and without any file all is as it is here. To
# change an option, take away the # in front of it and of its section.
#
# Durations are written 250ms, 30s, 5m, 2h or 1d, sizes 512KiB or 10MiB, lists
# [one, two]. A mistake in this file defers all mail, and the mail server's log
# names its line.
"""

CONTRACT_HEAD = """\
# What can happen to mxpolicy, and what the mail server makes of it

Each row is provoked under a real Postfix and a real Exim. `provocations.py` has the
command of each, `test_contract.py` runs it and looks. The status is Postfix's; Exim logs
none. *The log has* is a regular expression. *Copies* are those that the host has then,
and after another try with nothing in its way.

`python -m tests.reference` writes this file."""

# Of a daemon and of TLS policies, which there are not yet.
NOT_BUILT = {Verdict.PROXY_FAILED, Verdict.CERTIFICATE_REJECTED}

_CANDIDATE = Candidate("mx.example.com", "192.0.2.1", 25, 10)

# A value for each field that an event may have.
EXAMPLE: dict[str, Any] = {
    "at": 0.0,
    "queue_id": "",
    "nexthop": "",
    "candidates": (_CANDIDATE,),
    "remarks": (),
    "messages": 0,
    "candidate": _CANDIDATE,
    "phase": Phase.CONNECT,
    "finding": Finding(Verdict.FILTERED, Phase.CONNECT, 0.0),
    "small_segments": True,
    "in_clear": True,
    "text": "",
    "recipient": "",
    "outcome": Delivered(EnhancedStatus(2, 0, 0), "", Reply(250, ("Ok",)), ""),
    "delays": events.Delays(),
    "egress": "",
    "tried": (),
    "is_taken": True,
    "protocol_state": "",
    "client": "",
    "sender": "",
    "found": (),
    "action": "REJECT",
}
COMMON_MEMBERS = {"time", "id", "event", "at"}
CANDIDATE_MEMBERS = _CANDIDATE.facts().keys()


class Option(NamedTuple):
    """One option, or the head of a section.

    Attributes:
        path: ``resolver.timeout``.
        default: As it is written in YAML; None for a section.
        text: The docstring, in one line.
        keys: Where it is a list of sections, the options of each.
    """

    path: str
    default: str | None
    text: str
    keys: tuple["Option", ...] = ()

    @property
    def depth(self) -> int:
        """How many sections it is in."""
        return self.path.count(".")


def all_options(record: Any = Options, path: str = "") -> Iterator[Option]:
    """Yield every option and section in the order of `options.py`."""
    texts = _docstrings(record.__name__)
    for name, kind in record.__annotations__.items():
        if options.is_record(kind):
            yield Option(path + name, None, _one_line(kind.__doc__ or ""))
            yield from all_options(kind, f"{path}{name}.")
        else:
            default = record._field_defaults.get(name, _MISSING)
            yield Option(
                path + name,
                as_yaml(default, kind),
                texts[name],
                _keys(kind, f"{path}{name}[]."),
            )


def _keys(kind: object, path: str) -> tuple[Option, ...]:
    first, *_ = get_args(kind) or (None,)
    return tuple(all_options(first, path)) if options.is_record(first) else ()


def as_yaml(value: object, kind: object) -> str:
    """Return the default *value* of an option of *kind* as one would write it."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is _MISSING:
        return ""
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "auto"}[value]
    if isinstance(value, tuple):
        # A plain word cannot begin with a colon (YAML 1.1 §5.3).
        words = (f'"{one}"' if one.startswith(":") else one for one in value)
        return f"[{', '.join(words)}]"
    if kind in (options.Delay, options.Timeout):
        return _duration(value)
    if kind == options.Size:
        assert isinstance(value, int)
        return f"{value // options.MIB}MiB"
    return str(value) if value != "" else '""'


def _duration(seconds: object) -> str:
    """Return *seconds* in the largest unit that leaves a whole number, else as ``1.5s``."""
    for unit in ("h", "m", "s"):
        count, rest = divmod(float(str(seconds)), parse_duration(f"1{unit}"))
        if count and not rest:
            return f"{count:.0f}{unit}"
    assert isinstance(seconds, float)
    return f"{seconds:g}s" if seconds > 1 else f"{seconds * 1000:.0f}ms"


def _docstrings(record: str) -> dict[str, str]:
    """Return field -> docstring for the class *record* of `options.py`."""
    tree = ast.parse(Path(options.__file__).read_text())
    found = [one for one in tree.body if isinstance(one, ast.ClassDef)]
    body = next(one.body for one in found if one.name == record)
    texts: dict[str, str] = {}
    for statement, after in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign):
            continue
        assert isinstance(statement.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[statement.target.id] = _one_line(str(after.value.value))
    return texts


def _one_line(text: str) -> str:
    return " ".join(text.split())


def sample() -> str:
    """Return the sample file: comments are ``# words``, options ``#key: value``."""
    lines = [HEAD]
    for one in all_options():
        indent = "  " * one.depth
        text = one.text.replace("``", "")
        if not one.depth:
            lines.append("")
        lines += _comment(text, f"{indent}# ")
        for key in one.keys:
            word = key.path.rpartition(".")[2]
            said = key.text.replace("``", "")
            lines += _comment(f"{word}: {said}", f"{indent}#   ", hanging="  ")
        name = one.path.rpartition(".")[2]
        lines.append(f"#{indent}{name}:{' ' + one.default if one.default else ''}")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _comment(text: str, margin: str, hanging: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=margin,
        subsequent_indent=margin + hanging,
        break_on_hyphens=False,
    )


def switched_on(text: str) -> str:
    """Return the sample with every commented option switched on."""
    return re.sub("^#(?=[a-z]|  )", "", text, flags=re.MULTILINE)


def table() -> str:
    """Return README's table of options."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for one in all_options():
        if one.default is not None:
            rows += [_row(one), *map(_row, one.keys)]
    return "\n".join(rows)


def _row(one: Option) -> str:
    text = one.text.replace("``", "`").replace("|", "\\|")
    default = f"`{one.default}`" if one.default else ""
    return f"| `{one.path}` | {default} | {text} |"


def kinds_of_failure() -> str:
    """Return README's short table of what is provoked: a row for each kind."""
    lines = [
        "| provoked | cases | the mail server logs | copies | after the next try |"
    ]
    lines.append("|---|---:|---|---:|---:|")
    for kind, rows in KINDS.items():
        logged = _each(f"{row.status} {row.dsn}" for row in rows)
        copies = _each(row.copies for row in rows)
        last = _each(row.copies_in_the_end for row in rows)
        lines.append(f"| {kind} | {len(rows)} | {logged} | {copies} | {last} |")
    return "\n".join(lines)


def _each(values: Iterable[object]) -> str:
    """Return the different ones of *values*, in their order; None is nothing."""
    return ", ".join(dict.fromkeys(str(one) for one in values if one is not None))


def contract() -> str:
    """Return CONTRACT.md: everything that is provoked, and what comes of it."""
    lines = [CONTRACT_HEAD]
    for kind, rows in KINDS.items():
        lines += [f"\n## {kind[0].upper()}{kind[1:]}\n"]
        lines += ["| provoked | status | the log has | copies | after the next try |"]
        lines += ["|---|---|---|---:|---:|"]
        for row in rows:
            text = row.text.replace("|", "\\|")
            shown = f"`{text}`" if text else ""
            end = _each([row.copies_in_the_end])
            lines.append(
                f"| {row.name} | {row.status} {row.dsn} | {shown} | {row.copies} | {end} |"
            )
    return "\n".join(lines) + "\n"


def failures() -> str:
    """Return README's table of the words for how a host failed."""
    lines = ["| word | the host | status |", "|---|---|---|"]
    for verdict, (status, words) in VERDICTS.items():
        if verdict not in NOT_BUILT:
            lines.append(f"| `{verdict.value}` | {words} | {status} |")
    return "\n".join(lines)


def event_names() -> str:
    """Return README's table of what a JSON log has: each event, and its members."""
    lines = ["| `event` | when | members |", "|---|---|---|"]
    for kind in get_args(events.Event):
        event = kind(**{name: EXAMPLE[name] for name in kind._fields})
        facts = json.loads(json_line(event, ""))
        when = _one_line(kind.__doc__.partition("\n\n")[0])
        members = [f"`{name}`" for name in facts if name not in COMMON_MEMBERS]
        if facts.keys() >= CANDIDATE_MEMBERS:
            members = ["*candidate*"]
            members += [
                f"`{name}`"
                for name in facts
                if name not in CANDIDATE_MEMBERS | COMMON_MEMBERS
            ]
        always = " \\*" if is_always_logged(event) else ""
        row = f"| `{facts['event']}`{always} | {when} | {', '.join(members)} |"
        lines.append(row)
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "options": table,
    "contract": kinds_of_failure,
    "failures": failures,
    "events": event_names,
}
"""What README has between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""


def with_tables(readme: str) -> str:
    """Return *readme* with the tables between their marks made anew.

    Raises:
        ValueError: The marks of one are not there.
    """
    for name, made in BLOCKS.items():
        before, begin, rest = readme.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            raise ValueError(f"no <!-- {name} --> and <!-- /{name} --> in it")
        readme = f"{before}{begin}\n\n{made()}\n\n{end}{after}"
    return readme


def main() -> int:
    """Write all three files."""
    SAMPLE.write_text(sample())
    CONTRACT.write_text(contract())
    try:
        README.write_text(with_tables(README.read_text()))
    except (OSError, ValueError) as exc:
        print(f"{README}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
