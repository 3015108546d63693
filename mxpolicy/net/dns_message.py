"""DNS messages: a question to bytes, bytes to an answer that can be believed.

RFC 1035 (messages), RFC 2308 (negative answers), RFC 6840 §5.7 (AD in a query asks
for AD in the answer, without EDNS). A stub resolver has two questions, answered here:
does this message answer *this* query, and what does it say. No I/O.

Only the header, the question, the answer section and the SOA of the authority section
matter. They are read record by record, so that a broken record harms no other one. An
answer with records of which none is good is a failed lookup, never "there is none".
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.net.dns_wire import (
    HEADER_SIZE,
    Header,
    Reader,
    WireError,
    name_from_text,
    name_to_text,
)
from mxpolicy.routing.mx import LookupStatus, MxRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from mxpolicy.net.dns_wire import Record

    Records: TypeAlias = tuple[MxRecord, ...] | tuple[str, ...]

__all__ = ["Answer", "Question", "is_for", "read_answer"]

# The size that passes everywhere without IP fragments (dnsflagday.net/2020).
EDNS_PAYLOAD = 1232

# Links of one CNAME chain inside one message; Postfix and BIND have similar limits.
MAX_CNAMES = 10

# A negative answer is believed for five minutes at most: a domain that was just
# registered or repaired should not wait for its old SOA.
MAX_NEGATIVE_TTL = 300.0
MAX_TTL = 86400.0

# As many addresses as a whole plan keeps.
MAX_ADDRESSES = 100

# RFC 1035 §3.2.2 and §3.2.4, RFC 3596 §2.1, RFC 6891 §6.1.1
IN = 1
CNAME, SOA, NS, OPT = 5, 6, 2, 41
TYPES = {"A": 1, "MX": 15, "AAAA": 28}
ADDRESS_SIZES = {TYPES["A"]: 4, TYPES["AAAA"]: 16}

# RFC 1035 §4.1.1, RFC 4035 §3.2.3
QR, AA, TC, RD, RA, AD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020

NOERROR, NXDOMAIN = 0, 3
RCODES = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED", 9: "NOTAUTH"}

MALFORMED = "malformed answer"
CUT = "truncated answer"
LAME = "lame answer"

# MNAME and RNAME of one octet each, and five numbers (RFC 1035 §3.3.13).
MIN_SOA = 22

_NUMBER = Struct("!H")
_LONG = Struct("!I")
_OPT = Struct("!BHHIH")


class Question(NamedTuple):
    """What is asked.

    Attributes:
        name: The name in wire form and lower case, see `mxpolicy.net.dns_wire`.
        rdtype: The number of its type.
    """

    name: bytes
    rdtype: int

    @classmethod
    def of(cls, name: str, rdtype: str) -> Question:
        """Return the question for a domain, final dot or not.

        Args:
            rdtype: ``MX``, ``A`` or ``AAAA``.

        Raises:
            WireError: It is no domain name.
        """
        return cls(name_from_text(name), TYPES[rdtype])

    def to_wire(self, message_id: int, *, edns: bool = False) -> bytes:
        """Return the query: recursion and AD wanted, signatures not."""
        header = Header(message_id, RD | AD, 1, 0, 0, int(edns))
        asked = self.name + _NUMBER.pack(self.rdtype) + _NUMBER.pack(IN)
        opt = _OPT.pack(0, OPT, EDNS_PAYLOAD, 0, 0) if edns else b""
        return header.to_wire() + asked + opt


class Answer(NamedTuple):
    """What one message says.

    Attributes:
        status: FAILED unless the message answers the question.
        records: Empty unless FOUND.
        secure: The AD bit, believed or not.
        ttl: Seconds; 0 when it must not be kept.
        reason: Why it failed, ``SERVFAIL``.
        follow: The CNAME chain ends at this name, of which nothing is said: ask for it.
        ask_again: The message was cut or is damaged, perhaps on its way: ask over another
            transport. What it does say may still be used.
    """

    status: LookupStatus
    records: Records = ()
    secure: bool = False
    ttl: float = 0.0
    reason: str = ""
    follow: bytes | None = None
    ask_again: bool = False


class _AnswerSection(NamedTuple):
    """The records that may belong to the answer, by owner.

    Attributes:
        links: The target and the TTL of each CNAME.
        records: Those of the type asked for; their RDATA is not read yet.
        is_damaged: The owner or target of a record cannot be read.
        is_whole: The message holds as many records as it says.
    """

    links: dict[bytes, tuple[bytes, int]]
    records: dict[bytes, list[Record]]
    is_damaged: bool
    is_whole: bool


def is_for(wire: bytes, message_id: int) -> bool:
    """Return whether *wire* is a response with this id; all others are ignored.

    A forged or late message must not end a lookup (RFC 5452 §9.1).
    """
    if len(wire) < HEADER_SIZE:
        return False
    header = Header.of(wire)
    return header.message_id == message_id and bool(header.flags & QR)


def read_answer(
    wire: bytes, question: Question, *, over_tcp: bool = False
) -> Answer | None:
    """Return what *wire* says, or None when it answers another question.

    Never raises, whatever a name server sends.

    Args:
        wire: The message.
        question: What was asked.
        over_tcp: TCP has room for all: what a cut message holds may be used.
    """
    try:
        header = Header.of(wire)
    except WireError:
        return _failed(MALFORMED, ask_again=True)
    reader = Reader(wire)
    asked = _questions(reader, header)
    if asked and (*question, IN) not in asked:
        return None
    if header.rcode not in (NOERROR, NXDOMAIN):
        # Some name servers say FORMERR and the like without a question.
        return _failed(RCODES.get(header.rcode, f"RCODE {header.rcode}"))
    is_cut = bool(header.flags & TC)
    if is_cut and not over_tcp:
        # The missing part may be the one that counts (RFC 2181 §9).
        return _failed(CUT, ask_again=True)
    if asked is None:
        return _failed(MALFORMED, ask_again=True)
    if not asked:
        return None
    answer = _read_sections(reader, header, question)
    if is_cut and answer.status is not LookupStatus.FOUND:
        return _failed(CUT, ask_again=True)
    return answer._replace(ask_again=True) if is_cut else answer


def _questions(reader: Reader, header: Header) -> list[tuple[bytes, int, int]] | None:
    try:
        return reader.questions(header.questions)
    except WireError:
        return None


def _failed(reason: str, *, ask_again: bool = False) -> Answer:
    return Answer(LookupStatus.FAILED, reason=reason, ask_again=ask_again)


def _read_sections(reader: Reader, header: Header, question: Question) -> Answer:
    section = _read_answer_section(reader, header, question)
    is_damaged = section.is_damaged or not section.is_whole
    name, ttl = question.name, MAX_TTL
    seen = {name}
    while True:
        here = section.records.get(name, [])
        if records := _good_records(reader, question, here):
            ttl = min(ttl, *(one.ttl for one in here))
            cut = not section.is_whole
            secure = bool(header.flags & AD)
            return Answer(LookupStatus.FOUND, records, secure, ttl, ask_again=cut)
        is_damaged |= bool(here)
        if name not in section.links:
            break
        name, link_ttl = section.links[name]
        ttl = min(ttl, link_ttl)
        if name in seen or len(seen) > MAX_CNAMES:
            return _failed("CNAME loop" if name in seen else "CNAME chain too long")
        seen.add(name)
    if is_damaged:
        return _failed(MALFORMED, ask_again=True)
    return _without_records(reader, header, question, name, ttl)


def _read_answer_section(
    reader: Reader, header: Header, question: Question
) -> _AnswerSection:
    found, is_whole = reader.section(header.answers)
    links: dict[bytes, tuple[bytes, int]] = {}
    records: dict[bytes, list[Record]] = {}
    is_damaged = False
    for record in found:
        if record.rdclass != IN or record.rdtype not in (question.rdtype, CNAME):
            continue
        try:
            owner, _ = reader.name(record.owner_at)
            if record.rdtype == CNAME:
                target = _name_within(reader, record.start, record.end)
                links.setdefault(owner, (target, record.ttl))
            else:
                records.setdefault(owner, []).append(record)
        except WireError:
            is_damaged = True
    return _AnswerSection(links, records, is_damaged, is_whole)


def _good_records(reader: Reader, question: Question, found: list[Record]) -> Records:
    """Return what the unbroken ones of *found* hold, each once."""
    if question.rdtype == TYPES["MX"]:
        return tuple(dict.fromkeys(_exchangers(reader, found)))
    size = ADDRESS_SIZES[question.rdtype]
    packed = {reader.wire[one.start : one.end] for one in found}
    # Sorted, because name servers rotate their records: a retry should meet the same
    # hosts.
    kept = sorted(one for one in packed if len(one) == size)[:MAX_ADDRESSES]
    return tuple(str(ip_address(one)) for one in kept)


def _exchangers(reader: Reader, found: list[Record]) -> Iterator[MxRecord]:
    for record in found:
        name_at = record.start + _NUMBER.size
        with suppress(WireError):
            exchange = _name_within(reader, name_at, record.end)
            (preference,) = _NUMBER.unpack_from(reader.wire, record.start)
            yield MxRecord(preference, name_to_text(exchange))


def _name_within(reader: Reader, start: int, end: int) -> bytes:
    """Return the name at *start*. What follows it in the RDATA is ignored.

    Raises:
        WireError: It is broken, or goes beyond *end*.
    """
    name, after = reader.name(start)
    if after > end:
        raise WireError("a name goes beyond its record")
    return name


def _without_records(
    reader: Reader, header: Header, question: Question, name: bytes, ttl: float
) -> Answer:
    """Return what the message says of *name*, at which it has no record of the type."""
    if header.answers and name == question.name:
        return _failed(LAME)  # its records are of other names
    authority, _ = reader.section(header.authorities)
    soa = next((one for one in authority if _is_soa(one)), None)
    secure = bool(header.flags & AD)
    # RFC 2308 §5: kept as long as the SOA says; without one, not at all.
    negative_ttl = 0.0
    if soa is not None:
        (minimum,) = _LONG.unpack_from(reader.wire, soa.end - _LONG.size)
        negative_ttl = min(ttl, soa.ttl, minimum, MAX_NEGATIVE_TTL)
    if header.rcode == NXDOMAIN:
        if soa is None and not _has_standing(header):
            return _failed("NXDOMAIN from a lame server")
        return Answer(LookupStatus.NXDOMAIN, (), secure, negative_ttl)
    if soa is not None:
        return Answer(LookupStatus.NODATA, (), secure, negative_ttl)
    if name != question.name:
        return Answer(LookupStatus.NODATA, (), secure, ttl, follow=name)
    if not _has_standing(header) or _is_referral(header, authority):
        return _failed(LAME)
    return Answer(LookupStatus.NODATA, (), secure)


def _is_soa(record: Record) -> bool:
    size = record.end - record.start
    return record.rdtype == SOA and record.rdclass == IN and size >= MIN_SOA


def _has_standing(header: Header) -> bool:
    """Return whether the server is recursive or authoritative; others know nothing."""
    return bool(header.flags & (RA | AA))


def _is_referral(header: Header, authority: list[Record]) -> bool:
    # RFC 2308 §2.2: NS without SOA says "ask them", not "there is none".
    return not header.flags & AA and any(one.rdtype == NS for one in authority)
