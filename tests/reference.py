"""What is made from the sources: tables of the manual, the sample configuration and more.

``python -m tests.reference`` writes all of it; `test_reference` compares. When an event
is told, is the first sentence of its class's docstring. `tests.options_table` has the
options, `tests.man_pages` the manual pages, and `tests.completion` what a shell completes.
"""

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

from mxpolicy.delivery import events
from mxpolicy.delivery.log import is_always_logged
from mxpolicy.delivery.log_line import json_line
from mxpolicy.delivery.trouble import VERDICTS
from mxpolicy.outcome import Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict
from tests import completion, man_pages
from tests.lab.daemon_provocations import BEFALLEN, ELSEWHERE, repeated_rows
from tests.lab.provocations import KINDS
from tests.options_table import Option, all_options, one_line

CHECKOUT = Path(__file__).parents[1]
SAMPLE = CHECKOUT / "contrib" / "postfix" / "mxpolicy.yaml"
README = CHECKOUT / "README.md"
OPERATING = CHECKOUT / "OPERATING.md"
REFERENCE = CHECKOUT / "REFERENCE.md"
INTERNALS = CHECKOUT / "INTERNALS.md"
MANUAL = (README, OPERATING, REFERENCE, CHECKOUT / "BENCHMARKS.md", INTERNALS)
CONTRACT = CHECKOUT / "tests" / "lab" / "CONTRACT.md"

WIDTH = 80

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
    "tls": "",
    "is_taken": True,
    "protocol_state": "",
    "client": "",
    "sender": "",
    "found": (),
    "action": "REJECT",
}
COMMON_MEMBERS = {"time", "id", "event", "at"}
CANDIDATE_MEMBERS = _CANDIDATE.facts().keys()


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
    """Return REFERENCE.md's table of options."""
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
    return "\n".join([*lines, *_contract_with_daemon()]) + "\n"


def _contract_with_daemon() -> Iterator[str]:
    """Yield the lines of CONTRACT.md about the same with a daemon up."""
    yield "\n## The same with a daemon up\n"
    yield "`test_daemon_contract.py` provokes these rows again. The command hands over.\n"
    yield "| provoked | status | copies |"
    yield "|---|---|---:|"
    for row in repeated_rows():
        yield f"| {row.name} | {row.status} {row.dsn} | {row.copies} |"
    yield "\n## What befalls the daemon\n"
    yield "Through hand-over and LMTP, from Postfix and from Exim. *Copies* are those in the"
    yield "end, after another try with nothing in its way.\n"
    yield "| provoked | status | copies | it lives |"
    yield "|---|---|---:|---|"
    for one in BEFALLEN:
        status = " or ".join(one.statuses) + (
            f" {one.dsn}" if "deferred" in one.statuses else ""
        )
        yield f"| {one.name} | {status.strip()} | {one.copies} | {'yes' if one.lives else 'no'} |"
    yield "\n## What is not repeated with a daemon up\n"
    yield "| provoked | why |"
    yield "|---|---|"
    for name, why in ELSEWHERE.items():
        yield f"| {name} | {why} |"


def failures() -> str:
    """Return REFERENCE.md's table of the words for how a host failed."""
    lines = ["| word | the host | status |", "|---|---|---|"]
    for verdict, (status, words) in VERDICTS.items():
        if verdict not in man_pages.NOT_BUILT:
            lines.append(f"| `{verdict.value}` | {words} | {status} |")
    return "\n".join(lines)


def event_names() -> str:
    """Return REFERENCE.md's table of what a JSON log has: each event, and its members."""
    lines = ["| `event` | when | members |", "|---|---|---|"]
    for kind in get_args(events.Event):
        event = kind(**{name: EXAMPLE[name] for name in kind._fields})
        facts = json.loads(json_line(event, ""))
        when = one_line(kind.__doc__.partition("\n\n")[0])
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


BLOCKS: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"contract": kinds_of_failure},
    REFERENCE: {"options": table, "failures": failures, "events": event_names},
}
"""What a file has between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""


def with_tables(path: Path) -> str:
    """Return the text of a file of `BLOCKS`, its tables between their marks made anew.

    Raises:
        ValueError: The marks of one are not there.
    """
    text = path.read_text()
    for name, made in BLOCKS[path].items():
        before, begin, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            raise ValueError(f"no <!-- {name} --> and <!-- /{name} --> in {path}")
        text = f"{before}{begin}\n\n{made()}\n\n{end}{after}"
    return text


FILES: dict[Path, Callable[[], str]] = {
    SAMPLE: sample,
    CONTRACT: contract,
    **{
        CHECKOUT / "contrib" / "man" / name: partial(man_pages.page, name)
        for name in man_pages.PAGES
    },
    CHECKOUT / "contrib" / "completion" / "mxpolicy.bash": completion.bash,
    CHECKOUT / "contrib" / "completion" / "_mxpolicy": completion.zsh,
    **{path: partial(with_tables, path) for path in BLOCKS},
}
"""The files of which all or a table is made."""


def main() -> int:
    """Write all files."""
    try:
        for path, made in FILES.items():
            path.write_text(made())
    except (OSError, ValueError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
