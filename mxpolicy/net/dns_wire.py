"""The wire form of DNS messages: names and records, one by one (RFC 1035 §4.1).

A message is read record by record, so that broken contents cost one record only. Names
are read when they are wanted. The length of the message bounds the work, and `MAX_STEPS`
does so for names that point to each other.

What records mean is not decided here. No I/O.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "HEADER_SIZE",
    "Header",
    "Reader",
    "Record",
    "WireError",
    "name_from_text",
    "name_to_text",
]

# RFC 1035 §2.3.4 and §4.1.4
MAX_LABEL = 63
MAX_NAME = 255
POINTER = 0xC0

# Labels and pointers followed in one message. 64 KiB of MX records, each with a
# compressed name, take 40,000. Names made to be slow would take millions.
MAX_STEPS = 100_000

# A TTL with the highest bit set means 0 (RFC 2181 §8).
TTL_BOUND = 1 << 31

# What zone files escape with a backslash (RFC 1035 §5.1).
_ESCAPED = frozenset(b'"().;\\@$')

_HEADER = Struct("!6H")
_QUESTION = Struct("!2H")
_RECORD = Struct("!2HIH")

HEADER_SIZE = _HEADER.size


class WireError(ValueError):
    """The bytes are no name, or no record."""


class Header(NamedTuple):
    """The first twelve bytes (RFC 1035 §4.1.1); counts may lie."""

    message_id: int
    flags: int
    questions: int
    answers: int
    authorities: int
    additionals: int

    @property
    def rcode(self) -> int:
        """The four bits in the header; those of an OPT record are left out."""
        return self.flags & 0x0F

    @classmethod
    def of(cls, wire: bytes) -> Header:
        """Return the header of a message.

        Raises:
            WireError: It is shorter than a header.
        """
        if len(wire) < HEADER_SIZE:
            raise WireError("shorter than a header")
        return cls(*_HEADER.unpack_from(wire))

    def to_wire(self) -> bytes:
        """Return the twelve bytes."""
        return _HEADER.pack(*self)


class Record(NamedTuple):
    """A record whose bytes are all there; their sense is checked later.

    Attributes:
        owner_at: Where its owner name begins in the message.
        rdtype: Its type.
        rdclass: Its class.
        ttl: Seconds.
        start: Where its RDATA begins.
        end: Where its RDATA ends.
    """

    owner_at: int
    rdtype: int
    rdclass: int
    ttl: int
    start: int
    end: int


class Reader:
    """Reads a message once, from the question to the last section that is wanted."""

    def __init__(self, wire: bytes) -> None:
        self.wire = wire
        self._at = HEADER_SIZE
        self._steps = MAX_STEPS

    def questions(self, count: int) -> list[tuple[bytes, int, int]]:
        """Return the next *count* questions as (name, type, class).

        Raises:
            WireError: One of them is broken; nothing after it can be found.
        """
        found = []
        for _ in range(count):
            name, at = self.name(self._at)
            if at + _QUESTION.size > len(self.wire):
                raise WireError("the message ends in a question")
            rdtype, rdclass = _QUESTION.unpack_from(self.wire, at)
            found.append((name, rdtype, rdclass))
            self._at = at + _QUESTION.size
        return found

    def section(self, count: int) -> tuple[list[Record], bool]:
        """Return the next *count* records, and whether the message held so many.

        When it did not, there is no next section.
        """
        found: list[Record] = []
        try:
            while len(found) < count:
                record = self._record(self._at)
                found.append(record)
                self._at = record.end
        except WireError:
            return found, False
        return found, True

    def name(self, at: int) -> tuple[bytes, int]:
        """Return the name at *at* and the place after it.

        The name is uncompressed and in lower case (RFC 4343), so that equal names are
        equal values.

        Raises:
            WireError: It is broken, too long, or points to no earlier name.
        """
        wire, labels, after = self.wire, bytearray(), 0
        # A pointer leads to a place before its own labels, so there is an end.
        run = at
        while True:
            self._steps -= 1
            if self._steps < 0:
                raise WireError("too many names to follow")
            size = _octet(wire, at)
            if size >= POINTER:
                after = after or at + 2
                at = (size - POINTER) << 8 | _octet(wire, at + 1)
                if not HEADER_SIZE <= at < run:
                    raise WireError("a name points to no earlier one")
                run = at
                continue
            if size > MAX_LABEL:
                raise WireError("unknown kind of label")
            labels += wire[at : at + 1 + size]
            at += 1 + size
            if at > len(wire) or len(labels) > MAX_NAME:
                raise WireError("a name is too long")
            if not size:
                # A length is below 64, so lower() leaves it alone.
                return bytes(labels).lower(), after or at

    def _record(self, at: int) -> Record:
        fixed = self._after_name(at)
        start = fixed + _RECORD.size
        if start > len(self.wire):
            raise WireError("the message ends in a record")
        rdtype, rdclass, ttl, size = _RECORD.unpack_from(self.wire, fixed)
        if start + size > len(self.wire):
            raise WireError("the message ends in a record")
        ttl = ttl if ttl < TTL_BOUND else 0
        return Record(at, rdtype, rdclass, ttl, start, start + size)

    def _after_name(self, at: int) -> int:
        """Return the place after the name at *at*, wherever that points to."""
        while (size := _octet(self.wire, at)) <= MAX_LABEL:
            at += 1 + size
            if not size:
                return at
        if size < POINTER:
            raise WireError("unknown kind of label")
        return at + 2


def _octet(wire: bytes, at: int) -> int:
    if at >= len(wire):
        raise WireError("the message ends in a name")
    return wire[at]


def name_from_text(text: str) -> bytes:
    """Return the wire form of a domain in lower case; a final dot does not matter.

    Raises:
        WireError: It is no domain name.
    """
    try:
        labels = text.lower().removesuffix(".").encode("ascii").split(b".")
    except UnicodeEncodeError as error:
        raise WireError("not in ASCII") from error
    if not all(0 < len(label) <= MAX_LABEL for label in labels):
        raise WireError("an empty or a long label")
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(wire) > MAX_NAME:
        raise WireError("a name is too long")
    return wire


def name_to_text(name: bytes) -> str:
    """Return an uncompressed name as a zone file has it, without the final dot.

    The root is ``.``; a dot inside a label and other odd octets are escaped.
    """
    texts = []
    at = 0
    while size := name[at]:
        texts.append(_escaped(name[at + 1 : at + 1 + size]))
        at += 1 + size
    return ".".join(texts) or "."


def _escaped(label: Iterable[int]) -> str:
    return "".join(
        f"\\{chr(octet)}"
        if octet in _ESCAPED
        else chr(octet)
        if 0x20 < octet < 0x7F
        else f"\\{octet:03d}"
        for octet in label
    )
