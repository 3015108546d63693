"""What a server lists in its EHLO reply (RFC 5321 §4.1.1.1), and what we may add then.

Reading: `Extensions`. Writing: the DSN parameters of MAIL and RCPT (RFC 3461). An
unknown keyword is kept and does no harm.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = [
    "Extensions",
    "Limits",
    "MailDsn",
    "RcptDsn",
    "from_xtext",
    "orcpt",
    "xtext",
]

# A Cisco firewall overwrites the keywords that it blocks: every letter becomes X, and
# the last one counts up from A. STARTTLS has eight letters.
_MASKED_STARTTLS = re.compile(r"X{7}[A-Z]")

# RFC 9422 §3: one to six digits, no leading zero.
_LIMIT = re.compile(r"[1-9][0-9]{0,5}")

# RFC 1870 §3: up to 20 digits.
_SIZE = re.compile(r"[0-9]{1,20}")

# RFC 3461 §4: xchar is 33 to 126 except "+" and "="; RFC 6533 §3 takes "\" too. Few
# messages have such a parameter: these are compiled when one has.
_NOT_XCHAR = rb"[^!-*,-<>-~]"
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*"
_HEXCHAR = rb"\+([0-9A-F]{2})"
_NOT_QCHAR = r"[^!-*,-<>-\[\]-~]"


class Limits(NamedTuple):
    """What the server takes in one session (RFC 9422); None is "not said".

    Attributes:
        mailmax: Mail transactions in a session.
        rcptmax: Recipients in a transaction.
        rcptdomainmax: Different domains of recipients in a session.
    """

    mailmax: int | None = None
    rcptmax: int | None = None
    rcptdomainmax: int | None = None

    def next_batch(self, domains: Sequence[str], met: Collection[str]) -> list[int]:
        """Return which recipients the next transaction may have; empty for none.

        Args:
            domains: Of all that are left; the result has indices of it.
            met: The domains that the session has had.
        """
        batch: list[int] = []
        those = set(met)
        for index, domain in enumerate(domains):
            if len(batch) == self.rcptmax:
                break
            if domain in those or len(those) != self.rcptdomainmax:
                those.add(domain)
                batch.append(index)
        return batch


class Extensions(dict[str, tuple[str, ...]]):
    """{keyword in capitals: its parameters as sent} of one EHLO reply.

    Empty before it, after HELO, and after STARTTLS. What a keyword allows:
    ``PIPELINING`` RFC 2920, ``8BITMIME`` RFC 6152, ``SMTPUTF8`` RFC 6531, ``DSN``
    RFC 3461.
    """

    __slots__ = ()

    @classmethod
    def from_reply(cls, reply: Reply) -> Extensions:
        """Read an EHLO reply; its first line is the server's name and no keyword."""
        lines = (line.split() for line in reply.lines[1:])
        return cls({words[0].upper(): tuple(words[1:]) for words in lines if words})

    @property
    def size(self) -> int | None:
        """RFC 1870: bytes a message may have; 0 is "no limit said", None "not offered"."""
        if "SIZE" not in self:
            return None
        said = " ".join(self["SIZE"])
        return int(said) if _SIZE.fullmatch(said) else 0

    @property
    def starttls(self) -> bool:
        """RFC 3207."""
        return "STARTTLS" in self

    @property
    def starttls_masked(self) -> bool:
        """True when a firewall has overwritten the keyword STARTTLS on its way to us."""
        return not self.starttls and any(map(_MASKED_STARTTLS.fullmatch, self))

    @property
    def limits(self) -> Limits:
        """RFC 9422; a limit that cannot be read counts as not said (§4)."""
        said = {}
        for word in self.get("LIMITS", ()):
            name, _, value = word.partition("=")
            if _LIMIT.fullmatch(value):
                said[name.lower()] = int(value)
        return Limits(*(said.get(name) for name in Limits._fields))


class MailDsn(NamedTuple):
    """What the sender wants to be told, for MAIL (RFC 3461 §4.3, §4.4).

    Attributes:
        ret: ``FULL``, ``HDRS``, or empty for "not said".
        envid: The envelope identifier as the sender gave it, not in xtext.
    """

    ret: str = ""
    envid: str = ""

    def parameters(self) -> list[str]:
        """Return them as MAIL takes them."""
        ret = [f"RET={self.ret}"] if self.ret else []
        envid = [f"ENVID={xtext(self.envid)}"] if self.envid else []
        return ret + envid


class RcptDsn(NamedTuple):
    """What the sender wants to be told of a recipient, for RCPT (RFC 3461 §4.1, §4.2).

    Attributes:
        notify: ``NEVER``, or of ``SUCCESS``, ``FAILURE``, ``DELAY``; empty for "not said".
        original: The address that the sender wrote, with its type and in xtext, as
            `orcpt` makes it; empty for "not said". A relay passes it on unchanged
            (§5.2.1).
    """

    notify: tuple[str, ...] = ()
    original: str = ""

    def parameters(self) -> list[str]:
        """Return them as RCPT takes them."""
        notify = [f"NOTIFY={','.join(self.notify)}"] if self.notify else []
        original = [f"ORCPT={self.original}"] if self.original else []
        return notify + original


def xtext(text: str) -> str:
    """Return *text* as xtext (RFC 3461 §4): ``+`` and two hex digits for all but xchar."""
    return re.sub(
        _NOT_XCHAR,
        lambda found: b"+%02X" % found[0][0],
        text.encode("utf-8", "surrogateescape"),
    ).decode("ascii")


def from_xtext(text: str) -> str:
    """Return what `xtext` was made of; bytes that are not UTF-8 are lone surrogates.

    Raises:
        ValueError: *text* is no xtext.
    """
    if not re.fullmatch(_XTEXT, text):
        raise ValueError(text)
    decoded = re.sub(_HEXCHAR, lambda found: bytes([int(found[1], 16)]), text.encode())
    return decoded.decode("utf-8", "surrogateescape")


def orcpt(address: str) -> str:
    """Return *address* as ORCPT takes it, with its address type.

    An address beyond ASCII has the type ``utf-8``. The hops that follow are unknown,
    so it has the form that is all ASCII (RFC 6533 §3, utf-8-addr-xtext).
    """
    if address.isascii():
        return "rfc822;" + xtext(address)
    return "utf-8;" + re.sub(
        _NOT_QCHAR, lambda found: f"\\x{{{ord(found[0]):02X}}}", address
    )
