"""The words of an option's value: durations, sizes, names, networks.

Text to value, without YAML and without I/O. `ITEMS` and `LISTS` say for each
kind, which is the type of a field in `mxpolicy.options`, how its text is read.
Every reader raises ValueError with a sentence that says what was expected; it is
shown to the operator as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mxpolicy import options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from enum import Enum

    Reader = Callable[[str], object]

__all__ = [
    "ITEMS",
    "LISTS",
    "choice",
    "duration_text",
    "near_miss",
    "parse_duration",
    "parse_size",
    "shown",
    "size_text",
]

MAX_SHOWN = 60  # characters of a wrong word
MAX_PATH = 1024
MAX_SOCKET_PATH = 107

# Compiled where they are needed: most messages meet one of them at most.
_DURATION = r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(ms|s|m|h|d)"
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = r"([0-9]{1,12})\s*(B|KiB|MiB|GiB)"
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_BARE = r"[1-9][0-9]{0,5}|0?\.[0-9]{1,3}"
_WHOLE = r"0|[1-9][0-9]{0,8}"
_WITH_PORT = r"(?:\[([^\[\]]*)\]|([^:\[\]]+)):([0-9]+)"
_GROUP = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}"
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
# smtpd(8)'s names; BDAT is shown as DATA.
_STATES = ("CONNECT", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE", "VRFY", "ETRN")  # fmt: skip
_YES_NO_AUTO = {
    **dict.fromkeys(("yes", "on", "true"), True),
    **dict.fromkeys(("no", "off", "false"), False),
    "auto": None,
}


def parse_duration(text: str) -> float:
    """Return the seconds that ``250ms``, ``1.5s``, ``5m``, ``2h`` or ``1d`` stands for.

    Raises:
        ValueError: With a sentence that says what was expected.
    """
    return _amount(text, _DURATION, _DURATION_UNITS, "duration; write a number", "s")


def parse_size(text: str) -> int:
    """Return the bytes that ``512KiB`` or ``10MiB`` stands for.

    Raises:
        ValueError: With a sentence that says what was expected.
    """
    return int(_amount(text, _SIZE, _SIZE_UNITS, "size; write a whole number", "MiB"))


def _amount(
    text: str, pattern: str, units: Mapping[str, float], what: str, usual: str
) -> float:
    if text == "0":
        return 0.0
    found = re.fullmatch(pattern, text)
    if not found:
        number = text if re.fullmatch(_BARE, text) else 30  # it may lack the unit only
        raise ValueError(
            f"{_quoted(text)} is not a {what} and one of {', '.join(units)},"
            f" for example {number}{usual}"
        )
    return float(found[1]) * units[found[2]]


def duration_text(seconds: float) -> str:
    """Return what `parse_duration` reads as *seconds*, in the largest unit that fits."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.10g}ms"
    for letter, unit in reversed(_DURATION_UNITS.items()):
        if unit >= 1 and seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f}{letter}"
    return f"{seconds:.10g}s"


def size_text(size: int) -> str:
    """Return what `parse_size` reads as *size*, in the largest unit that fits."""
    for name, unit in reversed(_SIZE_UNITS.items()):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return "0B"


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Return *text*, which may hold anything, fit for one line of a log or a terminal."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(one if one.isprintable() else "?" for one in text)


def _quoted(text: str) -> str:
    return f"'{shown(text)}'"


def near_miss(word: str, known: tuple[str, ...]) -> str:
    """Return `` (did you mean 'x'?)`` when one of *known* looks like *word*."""
    import difflib  # 28 million instructions, so only when there is a mistake to show

    word = word[:MAX_SHOWN].lower().replace("-", "_")
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def choice(text: str, enum: type[Enum]) -> Enum:
    """Return the member of *enum* whose value is *text*.

    Raises:
        ValueError: With the words to choose from, and the one that was meant.
    """
    return enum(_one_of(tuple(str(one.value) for one in enum), text))


def _one_of(words: tuple[str, ...], text: str) -> str:
    if text in words:
        return text
    raise ValueError(
        f"{_quoted(text)} is not allowed here; use one of: {', '.join(words)}"
        + near_miss(text, words)
    )


def _from_to(parse: Callable[[str], float], least: str, most: str) -> Reader:
    def read(text: str) -> float:
        amount = parse(text)
        if not parse(least) <= amount <= parse(most):
            raise ValueError(f"{_quoted(text)} is out of range: {least} to {most}")
        return amount

    return read


def _whole(least: int, most: int) -> Reader:
    def read(text: str) -> int:
        if not re.fullmatch(_WHOLE, text):
            raise ValueError(
                f"{_quoted(text)} is not a whole number from {least} to {most}"
            )
        if not least <= int(text) <= most:
            raise ValueError(f"{_quoted(text)} is out of range: {least} to {most}")
        return int(text)

    return read


def _that(is_right: Callable[[str], object], wrong: str) -> Reader:
    """Return the reader of a text that is taken as it is where it *is_right*."""

    def read(text: str) -> str:
        if not is_right(text):
            raise ValueError(f"{_quoted(text)}{wrong}")
        return text

    return read


def _yes_no_auto(text: str) -> bool | None:
    try:
        return _YES_NO_AUTO[text.lower()]
    except KeyError:
        raise ValueError(f"{_quoted(text)}: expected yes, no or auto") from None


def _host_name(text: str) -> str:
    if not text.isascii():
        raise ValueError(f"{_quoted(text)}: write it as A-labels (xn--...)")
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(re.fullmatch(_LABEL, label) for label in labels):
        raise ValueError(f"{_quoted(text)} is not a host name")
    if labels[-1].isdigit():
        raise ValueError(f"{_quoted(text)} is an address, not a host name")
    return name


def _helo(text: str) -> str:
    if not text:
        return text
    if text.startswith("["):
        inside = text.removeprefix("[").removesuffix("]")
        address = re.sub("(?i)^ipv6:", "", inside)
        # RFC 5321 §4.1.3: [192.0.2.1], [IPv6:2001:db8::1]
        if text.endswith("]") and _ip(address) == (6 if address != inside else 4):
            return text
        raise ValueError(f"{_quoted(text)} is not an address literal (RFC 5321 §4.1.3)")
    name = _host_name(text)
    if "." not in name:
        # Hosts answer 504 to such a name (Postfix: reject_non_fqdn_helo_hostname).
        raise ValueError(f"{_quoted(text)} is not a fully qualified host name")
    return name


def _ip(text: str) -> int | None:
    """Return 4 or 6 when *text* is an address, else None."""
    import ipaddress

    try:
        return None if "%" in text else ipaddress.ip_address(text).version
    except ValueError:
        return None


def _network(text: str) -> str:
    import ipaddress

    if _ip(text):
        return text
    wrong = f"{_quoted(text)} is not an address or a network, for example 192.0.2.0/24"
    address, slash, _ = text.partition("/")
    if not slash or not _ip(address):
        raise ValueError(wrong)
    try:
        wide = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(wrong) from None
    if wide.network_address != ipaddress.ip_address(address):
        raise ValueError(f"{_quoted(text)} has host bits set; write {wide}")
    return str(wide)


def _is_with_port(text: str, default: str = "") -> bool:
    """Return whether it is ``ADDRESS:PORT`` or ``[V6]:PORT``."""
    found = re.fullmatch(_WITH_PORT, text)
    bracketed, plain, port = found.groups() if found else (None, text, default)
    version = _ip(bracketed or plain or "")
    is_port = re.fullmatch(_WHOLE, port) and 1 <= int(port) <= 65535
    return bool(is_port and version and not (bracketed and version == 4))


def _path(text: str) -> str:
    path = text.removeprefix("unix:")  # as Postfix writes it
    if text == options.UNIX:
        return text
    if not _is_path(path):
        raise ValueError(
            f"{_quoted(text)}: expected unix, or a socket's absolute path"
            + near_miss(text, (options.UNIX,))
        )
    if len(path) > MAX_SOCKET_PATH:
        raise ValueError(
            f"{_quoted(text)} is longer than {MAX_SOCKET_PATH} bytes (unix(7))"
        )
    return path


def _socket(text: str) -> str:
    if text == options.UNIX or text.startswith(("/", "unix:")):
        return _path(text)
    address = text.removeprefix("inet:")
    if not _is_with_port(address):
        raise ValueError(
            f"{_quoted(text)} is no socket; write unix, an absolute path,"
            " 127.0.0.1:2424 or [::1]:2424"
        )
    return address


def _log_target(text: str) -> str:
    words = ("syslog", "journald", "stderr")
    if text not in words and not _is_path(text):
        raise ValueError(
            f"{_quoted(text)}: expected {', '.join(words)} or a file's absolute path"
            + near_miss(text, words)
        )
    return text


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.isprintable() and len(text) <= MAX_PATH


def _access_action(text: str) -> str:
    # Imported when there is a rule: most messages are piped without.
    from mxpolicy.protocol.access_policy import VERBS, parse_action

    try:
        return str(parse_action(text))
    except ValueError as error:
        verb = text.partition(" ")[0].lower()
        known = tuple(map(str.lower, VERBS))
        near = "" if verb in known else near_miss(verb, known)
        raise ValueError(f"{error}{near}") from None


def _protocol_state(text: str) -> str:
    state = text.upper()
    if state not in _STATES:
        raise ValueError(
            f"{_quoted(text)}: expected one of {', '.join(_STATES)}"
            + near_miss(text, tuple(map(str.lower, _STATES)))
        )
    return state


def _destination(text: str) -> str:
    dot = "." if text.startswith(".") else ""
    return dot + _host_name(text.removeprefix("."))


# The type of a field in options.py -> how its text is read, or that of each item.
ITEMS: dict[object, Reader] = {
    bool: lambda text: _one_of(("yes", "no"), text) == "yes",
    options.Delay: _from_to(parse_duration, "0s", "1h"),
    options.Timeout: _from_to(parse_duration, "1ms", "1d"),
    options.Size: _from_to(parse_size, "0", "1GiB"),
    options.Port: _whole(1, 65535),
    options.Clients: _whole(1, 100000),
    options.Hops: _whole(1, 1000),
    options.Places: _whole(1, 32),
    options.Processes: _whole(0, 10000),
    options.Rate: _whole(1, 1000),
    options.YesNoAuto: _yes_no_auto,
    options.HostName: _helo,
    options.LogTarget: _log_target,
    options.Directory: _that(
        lambda text: not text or _is_path(text),
        ": expected a directory's absolute path",
    ),
    options.Group: _that(
        lambda text: not text or re.fullmatch(_GROUP, text),
        " is not the name of a group",
    ),
    options.AccessAction: _access_action,
}
LISTS: dict[object, Reader] = {
    options.HostNames: _host_name,
    options.Networks: _network,
    options.NetworksOrPrivate: lambda text: (
        text if text == "private" else _network(text)
    ),
    options.NameServers: _that(
        lambda text: _is_with_port(text, default="53"),
        " is not a name server; write an address, 192.0.2.53, 192.0.2.53:5353"
        " or [2001:db8::53]:5353",
    ),
    options.Paths: _path,
    options.Sockets: _socket,
    options.AccessFindings: lambda text: choice(text, options.AccessFinding),
    options.ProtocolStates: _protocol_state,
    options.Destinations: _destination,
    options.Texts: _that(
        lambda text: text and text.isprintable(), ": expected a word, in one line"
    ),
}
