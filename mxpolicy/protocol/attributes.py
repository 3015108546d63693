"""Bytes -> requests of ``name=value`` lines, each ended by an empty line.

The form of Postfix's policy protocol (SMTPD_POLICY_README; attr_scan_plain): names
and values in lines that end in LF, then an empty line. The server's side;
`mxpolicy.protocol.access_policy` knows what the attributes mean.

The connection survives a request that is not understood. It is read to its empty line
like any other, and comes as `Malformed` in its turn. So every request has its own answer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_REQUEST",
    "AttributeReader",
    "Malformed",
]

# Postfix 3.12 sends 33 attributes. The longest values are parameters and addresses
# of SMTP (2048 bytes a line) and the names in a client's certificate.
MAX_ATTRIBUTES = 200
MAX_REQUEST = 64 * 1024

MAX_SHOWN = 40  # characters of a wrong line

# The end of a request. A CR before LF, as a terminal sends it, is ignored everywhere.
_END = re.compile(rb"(?:\A|\n)\r?\n")
_END_LENGTH = 3

# A line; one that is none is not found, and two of one name become one of a dictionary.
_ATTRIBUTE = re.compile(r"^([^=\n]+)=(.*)", re.MULTILINE)


class Malformed(NamedTuple):
    """A request that cannot be understood.

    Attributes:
        reason: Why, for a log; it may hold what the client sent.
    """

    reason: str


class AttributeReader:
    """A parser that is fed bytes and gives requests. It never raises.

    It holds at most `MAX_REQUEST` bytes of a request, and drops the rest until the empty
    line.
    """

    __slots__ = ("_data", "_is_cut", "_searched")

    def __init__(self) -> None:
        self._data = bytearray()
        self._searched = 0  # no end begins among the first so many bytes
        self._is_cut = False

    def __bool__(self) -> bool:
        """True in the middle of a request: the peer owes us the rest."""
        return bool(self._data)

    def receive_data(self, data: bytes) -> list[dict[str, str] | Malformed]:
        """Take *data* and return the requests that it completed, in their order.

        Each is ``{name: value}``, as sent. Bytes that are no UTF-8 become lone
        surrogates (``surrogateescape``), which no address and no domain has.
        """
        if not self._data and _is_one_request(data):
            return [_parse(data[:-2])]
        self._data += data
        requests = []
        while end := _END.search(self._data, self._searched):
            requests.append(self._request(end.start()))
            del self._data[: end.end()]
            self._searched, self._is_cut = 0, False
        if len(self._data) > MAX_REQUEST:
            self._cut()
        self._searched = max(0, len(self._data) - _END_LENGTH)
        return requests

    def _request(self, length: int) -> dict[str, str] | Malformed:
        if self._is_cut or length > MAX_REQUEST:
            return Malformed(f"over {MAX_REQUEST} bytes without an empty line")
        return _parse(bytes(self._data[:length]))

    def _cut(self) -> None:
        # At the start of a request one LF alone would be its end, so a byte stays in front.
        self._data[:-_END_LENGTH] = b"?"
        self._is_cut = True


def _is_one_request(data: bytes) -> bool:
    """Return whether *data* is a request and nothing else, as Postfix sends it."""
    return (
        0 < data.find(b"\n\n") == len(data) - 2
        and b"\r" not in data
        and not data.startswith(b"\n")
        and len(data) <= MAX_REQUEST
    )


def _parse(data: bytes) -> dict[str, str] | Malformed:
    text = data.decode("utf-8", "surrogateescape")
    if "\r" in text:
        text = "\n".join([line.rstrip("\r") for line in text.split("\n")])
    count = text.count("\n") + 1
    if count > MAX_ATTRIBUTES:
        return Malformed(f"over {MAX_ATTRIBUTES} attributes")
    values = dict(_ATTRIBUTE.findall(text))
    return values if len(values) == count else _mistake(text.split("\n"))


def _mistake(lines: Sequence[str]) -> Malformed:
    """Return what is wrong with *lines*, the first of all."""
    names = set()
    for line in lines:
        name, equals, _ = line.partition("=")
        if not name or not equals:
            return Malformed(f"expected name=value, not {line[:MAX_SHOWN]!a}")
        if name in names:
            # Readers might disagree on which one counts. Postfix sends each once.
            return Malformed(f"attribute given twice: {name[:MAX_SHOWN]!a}")
        names.add(name)
    raise AssertionError("there is a mistake")
