"""The sample configuration and README's tables, made from `options.py` and the lab's.

``python -m tests.reference`` writes both; `test_reference` compares. The text
of an option is the docstring under its field, found in the source because
Python itself does not keep it.
"""

import ast
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_args

from mxpolicy import options
from mxpolicy.option_values import parse_duration
from mxpolicy.options import Options
from tests.lab.provocations import PROVOCATIONS

CHECKOUT = Path(__file__).parents[1]
SAMPLE = CHECKOUT / "contrib" / "postfix" / "mxpolicy.yaml"
README = CHECKOUT / "README.md"
BEGIN, END = "<!-- options -->", "<!-- /options -->"
CONTRACT = "<!-- contract -->", "<!-- /contract -->"

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
    for one in fields(record):
        default = _default(one)
        if is_dataclass(default):
            kind = type(default)
            text = _one_line(kind.__doc__ or "")
            yield Option(path + one.name, None, text)
            yield from all_options(kind, f"{path}{one.name}.")
        else:
            yield Option(
                path + one.name,
                as_yaml(default, one.type),
                texts[one.name],
                _keys(one.type, f"{path}{one.name}[]."),
            )


def _default(option: Field[Any]) -> object:
    if option.default_factory is not MISSING:
        return option.default_factory()
    return option.default


def _keys(kind: object, path: str) -> tuple[Option, ...]:
    first, *_ = get_args(kind) or (None,)
    return tuple(all_options(first, path)) if is_dataclass(first) else ()


def as_yaml(value: object, kind: object) -> str:
    """Return the default *value* of an option of *kind* as one would write it."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is MISSING:
        return ""
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "auto"}[value]
    if value == ():
        return "[]"
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


def contract() -> str:
    """Return what is provoked in `tests.lab.provocations`, and what comes of it."""
    groups: dict[tuple[str, str, int, int | None], list[str]] = {}
    for row in PROVOCATIONS:
        what = row.status, row.dsn, row.copies, row.copies_in_the_end
        groups.setdefault(what, []).append(row.name.replace("-", " "))
    lines = ["| provoked | the mail server logs | copies | after the next try |"]
    lines.append("|---|---|---:|---:|")
    for (status, dsn, copies, end), names in groups.items():
        last = "" if end is None else end
        lines.append(f"| {', '.join(names)} | {status} {dsn} | {copies} | {last} |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """Return *readme* with the tables between their marks made anew."""
    return _between(CONTRACT, contract(), _between((BEGIN, END), table(), readme))


def _between(marks: tuple[str, str], text: str, readme: str) -> str:
    before, begin, rest = readme.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"no {marks[0]} and {marks[1]} in it")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main() -> int:
    """Write both files."""
    SAMPLE.write_text(sample())
    try:
        README.write_text(with_table(README.read_text()))
    except (OSError, ValueError) as exc:
        print(f"{README}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
