"""DNS messages: a question to bytes, bytes to an answer that can be believed.

RFC 1035 (messages), RFC 6891 (EDNS), RFC 2308 (negative answers), RFC 6840 §5.7
(AD in a query asks for AD in the answer). dnspython does the coding; here is what
a stub resolver has to judge: does this message answer *this* question, and what
does it say. No I/O.
"""

from __future__ import annotations

from typing import NamedTuple

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from mxpolicy.address import canonical_address
from mxpolicy.reply import printable
from mxpolicy.routing.mx import LookupStatus, MxRecord

__all__ = ["Answer", "Question", "is_for", "is_truncated", "read_answer"]

# The size that passes everywhere without IP fragments (dnsflagday.net/2020).
EDNS_PAYLOAD = 1232

# Links of one CNAME chain inside one message; Postfix and BIND stop near here too.
MAX_CNAMES = 10

# A negative answer is believed for five minutes at most: a domain that has just
# been registered or repaired shall not wait for its old SOA.
MAX_NEGATIVE_TTL = 300.0
MAX_TTL = 86400.0

# Reading a message costs dnspython 25 microseconds a record; a stranger's zone may
# make us read two hundred of them. No mail domain needs a thousand records.
MAX_MESSAGE = 16384
# As many addresses as a whole plan keeps.
MAX_ADDRESSES = 100

HEADER = 12

# Extended DNS errors are free text of a name server (RFC 8914 §2).
_MAX_EXTENDED = 80

Records = tuple[MxRecord, ...] | tuple[str, ...]


class Question(NamedTuple):
    """What is asked.

    Attributes:
        name: The name, absolute.
        rdtype: Its type.
    """

    name: dns.name.Name
    rdtype: dns.rdatatype.RdataType

    @classmethod
    def of(cls, name: str, rdtype: str) -> Question:
        """Return the question for a domain without final dot.

        Raises:
            dns.exception.DNSException: It is no domain name.
        """
        return cls(
            dns.name.from_text(name, dns.name.root),
            dns.rdatatype.from_text(rdtype),
        )

    def to_wire(self, *, edns: bool) -> tuple[int, bytes]:
        """Return a random message id, and the query."""
        query = dns.message.make_query(
            self.name,
            self.rdtype,
            use_edns=0 if edns else None,
            payload=EDNS_PAYLOAD if edns else None,
        )
        query.flags |= dns.flags.AD
        return query.id, query.to_wire()


class Answer(NamedTuple):
    """What one message says.

    Attributes:
        status: FAILED for anything that is no answer to the question.
        records: Empty unless FOUND.
        secure: The AD bit, believed or not.
        ttl: Seconds; 0 when it must not be kept.
        reason: Why it failed, ``SERVFAIL (DNSSEC Bogus)``.
        follow: The CNAME chain ended here without a word about this name: ask on.
        edns_refused: The server does not understand EDNS: ask without.
    """

    status: LookupStatus
    records: Records = ()
    secure: bool = False
    ttl: float = 0.0
    reason: str = ""
    follow: dns.name.Name | None = None
    edns_refused: bool = False


def is_for(wire: bytes, message_id: int) -> bool:
    """Return whether *wire* is a response with this id; all others are ignored.

    A forged or late message must not end a lookup (RFC 5452 §9.1).
    """
    return (
        len(wire) >= HEADER
        and int.from_bytes(wire[:2], "big") == message_id
        and bool(wire[2] & 0x80)
    )


def is_truncated(wire: bytes) -> bool:
    """Return whether the TC bit is set: ask again over TCP (RFC 7766 §5)."""
    return bool(wire[2] & 0x02)


def read_answer(wire: bytes, question: Question) -> Answer | None:
    """Return what *wire* says, or None when it answers another question.

    Never raises, whatever a name server sends.
    """
    try:
        # What follows a complete message is nobody's business (RFC 1035 §4.1).
        message = dns.message.from_wire(wire, ignore_trailing=True)
        return _read(message, question)
    except Exception as error:
        # dnspython raises more than its own exceptions for broken bytes.
        return _failed(f"malformed answer ({type(error).__name__})")


def _read(message: dns.message.Message, question: Question) -> Answer | None:
    rcode = message.rcode()
    if message.question and not _asks(message, question):
        return None
    if rcode not in _SPEAKING:
        # Some name servers say FORMERR and the like without a question.
        reason = dns.rcode.to_text(rcode) + _extended_errors(message)
        return _failed(reason, edns_refused=rcode in _NO_EDNS)
    if not message.question:
        return None
    if message.flags & dns.flags.TC:
        return _failed("truncated answer")
    return _read_sections(message, question)


_SPEAKING = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
# RFC 6891 §7: a server without EDNS says FORMERR; NOTIMP is seen, too.
_NO_EDNS = (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)


def _failed(reason: str, *, edns_refused: bool = False) -> Answer:
    return Answer(LookupStatus.FAILED, reason=reason, edns_refused=edns_refused)


def _asks(message: dns.message.Message, question: Question) -> bool:
    # dnspython compares names without regard to case (RFC 4343).
    return any(
        asked.name == question.name
        and asked.rdtype == question.rdtype
        and asked.rdclass == dns.rdataclass.IN
        for asked in message.question
    )


def _read_sections(message: dns.message.Message, question: Question) -> Answer:
    sets = {
        (one.name, one.rdtype): one
        for one in message.answer
        if one.rdclass == dns.rdataclass.IN
    }
    secure = bool(message.flags & dns.flags.AD)
    name, ttl = question.name, MAX_TTL
    seen = {name}
    while (name, question.rdtype) not in sets:
        link = sets.get((name, dns.rdatatype.CNAME))
        if link is None:
            return _without_records(message, question, name, ttl)
        name, ttl = link[0].target, min(ttl, link.ttl)
        if name in seen or len(seen) > MAX_CNAMES:
            return _failed("CNAME loop" if name in seen else "CNAME chain too long")
        seen.add(name)
    found = sets[name, question.rdtype]
    records = _records(found)
    if not records:
        return _failed("answer without a usable record")
    return Answer(LookupStatus.FOUND, records, secure, min(ttl, found.ttl))


def _without_records(
    message: dns.message.Message, question: Question, name: dns.name.Name, ttl: float
) -> Answer:
    """There is no record of the type at *name*; does the message say so, or nothing?"""
    secure = bool(message.flags & dns.flags.AD)
    soa = next(
        (one for one in message.authority if one.rdtype == dns.rdatatype.SOA), None
    )
    # RFC 2308 §5: kept as long as the SOA says; without one, not at all.
    negative_ttl = 0.0
    if soa is not None:
        negative_ttl = min(ttl, soa.ttl, soa[0].minimum, MAX_NEGATIVE_TTL)
    if message.rcode() == dns.rcode.NXDOMAIN:
        if soa is None and not _has_standing(message):
            return _failed("NXDOMAIN from a lame server")
        return Answer(LookupStatus.NXDOMAIN, (), secure, negative_ttl)
    if soa is not None:
        return Answer(LookupStatus.NODATA, (), secure, negative_ttl)
    if name != question.name:
        return Answer(LookupStatus.NODATA, (), secure, ttl, follow=name)
    if message.answer or not _has_standing(message) or _is_referral(message):
        return _failed("lame answer")
    return Answer(LookupStatus.NODATA, (), secure)


def _has_standing(message: dns.message.Message) -> bool:
    """A recursive or an authoritative server speaks; others know nothing."""
    return bool(message.flags & (dns.flags.RA | dns.flags.AA))


def _is_referral(message: dns.message.Message) -> bool:
    # RFC 2308 §2.2: NS without SOA says "ask them", not "there is none".
    return not message.flags & dns.flags.AA and any(
        one.rdtype == dns.rdatatype.NS for one in message.authority
    )


def _records(found: dns.rrset.RRset) -> Records:
    if found.rdtype == dns.rdatatype.MX:
        return tuple(
            MxRecord(one.preference, one.exchange.to_text(omit_final_dot=True).lower())
            for one in found
        )
    # Sorted, so that a name server that rotates its records does not change which
    # ones are kept: a retry shall meet the same hosts.
    kept = sorted(one.address for one in found)[:MAX_ADDRESSES]
    addresses = (canonical_address(address) for address in kept)
    return tuple(address for address in addresses if address is not None)


def _extended_errors(message: dns.message.Message) -> str:
    """``(DNSSEC Bogus: signature expired)``, or nothing (RFC 8914)."""
    texts = []
    for option in message.options:
        if isinstance(option, dns.edns.EDEOption):
            code = str(getattr(option.code, "name", option.code))
            extra = f": {option.text}" if option.text else ""
            texts.append(code.replace("_", " ").lower() + extra)
    return f" ({printable('; '.join(texts), _MAX_EXTENDED)})" if texts else ""
