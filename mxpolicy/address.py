"""Domains and mailboxes: what a mail server hands us, and what goes on the wire.

RFC 5321 §2.3.11 and §4.1.2 (mailboxes), §4.1.3 (address literals), RFC 6531
§3.3 (UTF-8 local parts), RFC 5890 and UTS 46 (international domains). Text enters the
program here: what leaves this module can be put into an SMTP command as it is. Nothing
is looked up.

Some mail servers quote a local part before they give it to a program, some do not
(Postfix does with ``flags=q`` only). Both forms are read: a local part that is well
quoted is unquoted, any other is taken literally. `Mailbox.wire` quotes it if need be.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple, NewType

from mxpolicy.errors import MxPolicyError

__all__ = [
    "AddressError",
    "Domain",
    "Mailbox",
    "ReversePath",
    "UnsupportedDomain",
    "canonical_address",
    "domain_of",
    "is_address_literal",
    "is_utf8",
    "parse_address_literal",
    "parse_domain",
    "parse_mailbox",
    "parse_reverse_path",
]

Domain = NewType("Domain", str)
"""A lower-case A-label domain without the final dot, ``xn--bcher-kva.example``."""

# RFC 1035 §2.3.4: 255 octets on the wire are 253 characters of text.
MAX_DOMAIN = 253
MAX_LABEL = 63

# RFC 5321 §4.5.3.1.1 obliges every host to take local parts of 64 octets. VERP and SRS
# addresses are often longer; the host decides on them. A path must fit into a line
# (§4.5.3.1.6).
MAX_PATH = 998

# Characters before it is a domain: a U-label is a little shorter than its A-label, and
# Punycode over a megabyte would take far too long.
_MAX_DOMAIN_TEXT = 1024

# Texts whose meaning is remembered: one message asks for the same ones again and again.
REMEMBERED = 1024

# No character class has ranges beyond Latin-1: compiling them costs ten times as much as
# the rest of this module.
_LDH_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\Z")
_DOTS = {0x3002: ".", 0xFF0E: ".", 0xFF61: "."}  # RFC 3490 §3.1, UTS 46 §4
# Controls, lone surrogates (bytes that are not UTF-8), line and paragraph ends.
_CONTROL_CATEGORIES = frozenset(("Cc", "Cs", "Zl", "Zp"))
# What IDNA2003 maps and UTS 46 non-transitional keeps (UTS 46 §2.3, "deviation
# characters"), and the fillers that UTS 46 drops and IDNA2003 keeps.
_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d\u115f\u1160\u17b4\u17b5\u3164\uffa0")

# RFC 5321 §4.1.2, with RFC 6531 §3.3: Dot-string = Atom *("." Atom). Everything
# but specials, blanks and controls is atext, UTF-8 included.
_ATEXT = r'[^\x00-\x20"(),.:;<>@\[\\\]\x7f]'
_DOT_STRING = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*\Z")
# Quoted-string = DQUOTE *(qtextSMTP / quoted-pairSMTP) DQUOTE
_QUOTED = r'"(?:[^"\\]|\\.)*"'
# obs-local-part = word *("." word), RFC 5322 §4.4
_WORDS = re.compile(rf"(?:{_ATEXT}+|{_QUOTED})(?:\.(?:{_ATEXT}+|{_QUOTED}))*\Z")
# Each < and > is in a quoted string; a quote without end begins none.
_KEEPS_BRACKETS = re.compile(rf'(?>{_QUOTED}|[^<>"]|"(?=[^<>]*\Z))*\Z')
_ENDS_LINE = re.compile(r"[\r\n\0]")


class AddressError(MxPolicyError, ValueError):
    """The text is not an address: no host could ever deliver to it.

    Attributes:
        text: What was given.
        reason: What is wrong with it.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text, reason)
        self.text = text
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.text[:200]!a}: {self.reason}"


class UnsupportedDomain(AddressError):
    """The domain may exist, but this installation does not know its name in DNS.

    Defer it, never bounce it: with the extra ``idna`` installed it works.
    """


class Mailbox(NamedTuple):
    """``local_part@domain``.

    Attributes:
        local_part: Unquoted, case kept: ``john doe`` for ``"john doe"@…``.
        domain: A `Domain`, or an address literal with its brackets.
    """

    local_part: str
    domain: str

    @property
    def wire(self) -> str:
        """What goes between ``<`` and ``>``: local part quoted if need be, A-labels."""
        local = self.local_part
        if not _DOT_STRING.match(local):
            local = _in_quotes(local)
        return f"{local}@{self.domain}"

    @property
    def needs_smtputf8(self) -> bool:
        """True when only RFC 6531 can carry it: the domain is A-labels already."""
        return not self.local_part.isascii()

    def __str__(self) -> str:
        return self.wire


class ReversePath(NamedTuple):
    """The sender of a message, as its mail server gave it (RFC 5321 §2.3.1).

    Attributes:
        wire: What goes between ``<`` and ``>``; never empty. It need not be an address.
            Bytes that are not UTF-8 are lone surrogates (PEP 383).
    """

    wire: str

    @property
    def needs_smtputf8(self) -> bool:
        """True when only RFC 6531 can carry it.

        Nothing can carry what is not UTF-8; it is sent as it is, and the host decides.
        """
        return not self.wire.isascii() and is_utf8(self.wire)


def parse_domain(text: str) -> Domain:
    """Return *text* as it is asked for in DNS; a final dot is dropped.

    Letters, digits, hyphens, and underscores (not allowed by RFC 1035 §2.3.1,
    but in use, and Postfix takes them). International names by UTS 46
    non-transitional.

    Raises:
        AddressError: It is not a domain name, for example an IPv4 address.
        UnsupportedDomain: It needs the extra ``idna``; defer.
    """
    if len(text) > _MAX_DOMAIN_TEXT:
        raise AddressError(text, "domain name too long")
    name = text if text.isascii() else _to_ascii(text)
    name = name.lower().removesuffix(".")
    if not name:
        raise AddressError(text, "empty domain name")
    if len(name) > MAX_DOMAIN:
        raise AddressError(text, "domain name too long")
    for label in name.split("."):
        if len(label) > MAX_LABEL or not _LDH_LABEL.match(label):
            raise AddressError(text, "not a domain name")
    if name.replace(".", "").isdigit():
        raise AddressError(text, "numeric domain name")
    return Domain(name)


def parse_mailbox(text: str) -> Mailbox:
    """Return the mailbox that *text* names, quoted or not, ``-`` in front or not.

    Raises:
        AddressError: No ``@``, an empty part, a control character (CR, LF and
            NUL would end up in an SMTP command), a bad domain, too long.
        UnsupportedDomain: See `parse_domain`.
    """
    local, domain = _parts(text)
    return _bounded(text, Mailbox(_unquoted(local), _mail_domain(domain)))


def domain_of(text: str) -> str:
    """Return the domain of the mailbox that *text* names; see `Mailbox`.

    A domain that was seen a moment ago costs little. Of the local part it is only seen
    that it is there, and has no control character.

    Raises:
        AddressError, UnsupportedDomain: As `parse_mailbox`.
    """
    return _mail_domain(_parts(text)[1])


def parse_reverse_path(text: str) -> ReversePath | None:
    """Return the sender as it is sent to a host, or None for the null reverse-path.

    The null reverse-path: nothing, blanks, ``<>``, and ``MAILER-DAEMON`` without a
    domain, which Postfix's pipe(8) writes for it by default (``null_sender``).

    We deliver nothing to a sender, so the host decides, as with Postfix's smtp(8) and
    Exim. The domain is left as it is, even one that cannot exist (``root@483920174635``
    in a container), and so is an address without domain. As in smtp(8)
    (quote_821_local.c), a local part that needs quotes gets them.

    Raises:
        AddressError: It would end the command or its ``<>``: CR, LF, NUL, or ``<`` or
            ``>`` outside a quoted local part.
    """
    text = text.strip(" ")
    if text in ("", "<>") or text.upper() == "MAILER-DAEMON":
        return None
    if _ENDS_LINE.search(text):
        raise AddressError(text, "line end or NUL in address")
    local, at, domain = text.rpartition("@")
    if not at or _WORDS.match(text):  # in the latter it may be quoted
        local, at, domain = text, "", ""
    if not _KEEPS_BRACKETS.match(local) or "<" in domain or ">" in domain:
        raise AddressError(text, "< or > in address")
    return ReversePath(_sender_local_part(local) + at + _sender_domain(domain))


def _sender_local_part(local: str) -> str:
    """Return it in quotes if it needs them; a possible source route is left as it is."""
    if not local or local.startswith("@") or _WORDS.match(local):
        return local
    return _in_quotes(local)


def _sender_domain(text: str) -> str:
    """Return *text*, with A-labels for an international name where that has them."""
    if text.isascii() or not is_utf8(text):
        return text
    try:
        return parse_domain(text)
    except AddressError:
        return text


def is_address_literal(text: str) -> bool:
    """Return whether *text* has the brackets of an address literal (RFC 5321 §4.1.3)."""
    return text.startswith("[") and text.endswith("]")


def parse_address_literal(text: str) -> str:
    """Return the address in ``[192.0.2.1]`` or ``[IPv6:2001:db8::1]``, canonical.

    Raises:
        AddressError: Anything else, other address families included.
    """
    inner = text[1:-1] if is_address_literal(text) else ""
    tag, colon, rest = inner.partition(":")
    if colon and tag.lower() == "ipv6":
        address = canonical_address(rest)
        if address and ":" in address:
            return address
    elif not colon:
        address = canonical_address(inner)
        if address:
            return address
    raise AddressError(text, "not an address literal")


@lru_cache(maxsize=REMEMBERED)
def canonical_address(text: str) -> str | None:
    """Return the IPv4 or IPv6 address in its canonical form, None for any other text.

    An address with a zone index (``fe80::1%eth0``) does not count: it means something on
    one machine only.
    """
    if "%" in text:
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _parts(text: str) -> tuple[str, str]:
    """Return local part and domain, neither of them empty, as they are."""
    if len(text) > MAX_PATH:
        raise AddressError(text, "address too long")
    if not (text.isprintable() if text.isascii() else _is_clean(text)):
        raise AddressError(text, "control character in address")
    local, at, domain = text.rpartition("@")
    if not at:
        raise AddressError(text, "no domain")
    if not local:
        raise AddressError(text, "no local part")
    return local, domain


def _is_clean(text: str) -> bool:
    from unicodedata import category

    return not any(category(char) in _CONTROL_CATEGORIES for char in text)


def _bounded(text: str, mailbox: Mailbox) -> Mailbox:
    if len(mailbox.wire.encode()) > MAX_PATH:
        raise AddressError(text, "address too long")
    return mailbox


@lru_cache(maxsize=REMEMBERED)
def _mail_domain(text: str) -> str:
    if not is_address_literal(text):
        return parse_domain(text)
    address = parse_address_literal(text)
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def is_utf8(text: str) -> bool:
    """Return whether *text* was UTF-8: other bytes are lone surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_quotes(local: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'


def _unquoted(local: str) -> str:
    if '"' not in local or not _WORDS.match(local):
        return local
    return re.sub(
        _QUOTED, lambda quoted: re.sub(r"\\(.)", r"\1", quoted[0][1:-1]), local
    )


def _to_ascii(text: str) -> str:
    # Imported here: international domains are rare, and the tables are large.
    try:
        import idna
    except ImportError:
        return _to_ascii_2003(text)
    try:
        mapped = idna.uts46_remap(text, std3_rules=False, transitional=False)
    except idna.IDNAError as error:
        raise _refused(text, error) from error
    return ".".join(_to_a_label(text, label) for label in mapped.split("."))


def _refused(text: str, error: Exception) -> AddressError:
    """Return the error for *text*; a character newer than our tables may be allowed."""
    from unicodedata import category

    if any(category(char) == "Cn" for char in text):
        return UnsupportedDomain(text, "has a character that is not known here")
    return AddressError(text, f"not a domain name: {error}")


def _to_a_label(text: str, label: str) -> str:
    import idna

    if label.isascii():
        return label
    try:
        return idna.alabel(label).decode("ascii")
    except idna.InvalidCodepointContext as error:
        raise AddressError(text, f"not a domain name: {error}") from error
    except idna.InvalidCodepoint:
        # UTS 46 allows symbols that IDNA2008 does not (UTS 46 §2, ``NV8``). Domains
        # with them exist, and take mail.
        return "xn--" + label.encode("punycode").decode("ascii")
    except idna.IDNAError as error:
        raise AddressError(text, f"not a domain name: {error}") from error


def _to_ascii_2003(text: str) -> str:
    """Use the standard library's IDNA2003 where UTS 46 gives the same name, else refuse.

    The name is the same when all of this holds: it has no deviation character, nothing
    in it was unassigned in Unicode 3.2, and today's case folding agrees with that of
    2003. Any other name could be another owner's domain.
    """
    import unicodedata
    from encodings import idna as idna2003
    from stringprep import in_table_a1

    labels = []
    for label in text.translate(_DOTS).split("."):
        if label.isascii():
            labels.append(label)
            continue
        if any(char in _DEVIATIONS or in_table_a1(char) for char in label):
            raise UnsupportedDomain(text, "needs the Python package idna")
        try:
            prepared = idna2003.nameprep(label)
            a_label = idna2003.ToASCII(label).decode("ascii")
        except UnicodeError as error:
            raise AddressError(text, "not a domain name") from error
        folded = unicodedata.normalize("NFKC", label).casefold()
        if prepared != unicodedata.normalize("NFKC", folded):
            raise UnsupportedDomain(text, "needs the Python package idna")
        labels.append(a_label)
    return ".".join(labels)
