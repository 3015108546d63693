"""The configuration as it was understood, with the defaults filled in."""

from __future__ import annotations

import importlib.util
import os
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.config import DEFAULT_PATH
from mxpolicy.net.own_name import own_name
from mxpolicy.net.resolv_conf import read_resolv_conf
from mxpolicy.option_values import duration_text, size_text
from mxpolicy.options import Delay, Options, Size, Timeout, YesNoAuto, is_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mxpolicy.check.report import Item

__all__ = [
    "SHORT_DEADLINE",
    "TOO_SHORT",
    "Setting",
    "as_written",
    "look",
    "settings",
]

# Time enough to be turned away by a better host, to come back to it, and to wait 300 s for
# its reply (RFC 5321 §4.5.3.2).
SHORT_DEADLINE = 900.0
TOO_SHORT = (
    "under 900 s there is no time to wait for a slow host as long as RFC 5321 gives it;"
    " mail that a worse one refuses meanwhile is deferred again and again"
)


class Setting(NamedTuple):
    """One option.

    Attributes:
        path: ``resolver.timeout``.
        value: As it could be written in YAML.
        is_default: Whether it is the default.
        meaning: What an empty or an "auto" value stands for on this machine.
    """

    path: str
    value: str
    is_default: bool
    meaning: str = ""


def settings(options: Options, environ: Mapping[str, str]) -> list[Setting]:
    """Return every option with its value, in the order of the sample file."""
    return list(_settings(options, Options(), "", _meanings(options, environ)))


def _settings(
    record: Any, default: Any, path: str, meanings: Mapping[str, str]
) -> Iterator[Setting]:
    for key, kind in type(record).__annotations__.items():
        value, usual = getattr(record, key), getattr(default, key)
        name = path + key
        if is_record(value):
            yield from _settings(value, usual, f"{name}.", meanings)
        else:
            meaning = "" if value not in ("", (), None) else meanings.get(name, "")
            yield Setting(name, as_written(value, kind), value == usual, meaning)


def _meanings(options: Options, environ: Mapping[str, str]) -> dict[str, str]:
    """Return {option: what its empty or "auto" value stands for on this machine}."""
    conf = read_resolv_conf()
    believed = conf.trust_ad and not options.resolver.servers
    return {
        "helo": own_name(),
        "resolver.servers": f"resolv.conf: {', '.join(conf.servers)}",
        "resolver.trust_ad": "yes" if believed else "no",
        "state": environ.get("STATE_DIRECTORY") or "/var/lib/mxpolicy",
    }


def as_written(value: object, kind: object) -> str:
    """Return *value* of an option of *kind*, a field's type in `options`, as in YAML."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if kind in (bool, YesNoAuto):
        return {True: "yes", False: "no", None: "auto"}[value]  # type: ignore[index]
    if kind in (Delay, Timeout):
        return duration_text(float(str(value)))
    if kind == Size:
        return size_text(int(str(value)))
    return str(value) if value != "" else '""'


def look(path: str | None, options: Options, environ: Mapping[str, str]) -> list[Item]:
    """Say which file was read and what is missing of what could be installed."""
    named = path or environ.get("MXPOLICY_CONFIG")
    file = named or DEFAULT_PATH
    changed = sum(not one.is_default for one in settings(options, environ))
    return said(
        first(
            ok(
                named or os.path.exists(file),
                f"{file} is understood; {changed} options are not as by default",
            ),
            ok(True, f"there is no {file}: everything is as by default"),
        ),
        warn(
            named and not path,
            "$MXPOLICY_CONFIG was followed here; Postfix does not hand it to pipe(8)"
            " commands, which will read another file",
            f"mxpolicy pipe ... --config {file}",
        ),
        fail(
            options.deadline < SHORT_DEADLINE,
            f"the option deadline is {duration_text(options.deadline)}: {TOO_SHORT}",
            "deadline: 15m",
        ),
        warn(
            importlib.util.find_spec("idna") is None,
            "the Python package idna is missing: mail to international domains is"
            " deferred where old and new rules differ (names with sharp s, joiners)",
            f"{os.path.join(sys.prefix, 'bin', 'python')} -m pip install idna",
        ),
    )
