"""Every option, with its default and its text, read from the sources of `options.py`.

The text of an option is the docstring under its field, found in the source because Python
itself does not keep it.
"""

import ast
import itertools
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_args

from mxpolicy import options
from mxpolicy.option_values import parse_duration
from mxpolicy.options import Options

__all__ = ["Option", "all_options", "as_yaml", "one_line"]

_MISSING = object()


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
            yield Option(path + name, None, one_line(kind.__doc__ or ""))
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
            texts[statement.target.id] = one_line(str(after.value.value))
    return texts


def one_line(text: str) -> str:
    """Return *text* without its line ends."""
    return " ".join(text.split())
