"""What a server lists in its EHLO reply (RFC 5321 §4.1.1.1), and what we then may add.

Reading: `Extensions`. Writing: the parameters of MAIL and RCPT that a keyword
allows (RFC 1870 SIZE, RFC 6152 8BITMIME, RFC 6531 SMTPUTF8, RFC 3461 DSN). A
keyword that is not known here is kept and does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from mxpolicy.reply import Reply

__all__ = ["Extensions", "Limits", "MailDsn", "RcptDsn", "orcpt", "xtext"]

# A Cisco firewall overwrites the keywords that it does not let through: X for
# every letter but the last, which counts up from A. STARTTLS has eight letters.
_MASKED_STARTTLS = re.compile(r"X{7}[A-Z]")

# RFC 9422 §3: one to six digits, no leading zero.
_LIMIT = re.compile(r"[1-9][0-9]{0,5}")

# RFC 1870 §3: up to 20 digits.
_SIZE = re.compile(r"[0-9]{1,20}")

# RFC 3461 §4: xchar is 33 to 126 except "+" and "="; RFC 6533 §3 takes "\" too.
_NOT_XCHAR = re.compile(rb"[^!-*,-<>-~]")
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")


class Limits(NamedTuple):
    """RFC 9422: what the server takes in one session; None is "not said".

    Attributes:
        mailmax: Mail transactions in a session.
        rcptmax: Recipients in a transaction.
        rcptdomainmax: Different domains among them.
    """

    mailmax: int | None = None
    rcptmax: int | None = None
    rcptdomainmax: int | None = None


class Extensions:
    """The keywords of one EHLO reply; empty before it, after HELO, and after STARTTLS.

    Attributes:
        keywords: Keyword in capitals -> its parameters as sent.
    """

    __slots__ = ("keywords",)

    def __init__(self, keywords: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.keywords = dict(keywords or {})

    @classmethod
    def from_reply(cls, reply: Reply) -> Extensions:
        """Read an EHLO reply; its first line is the server's name and no keyword."""
        lines = (line.split() for line in reply.lines[1:])
        return cls({words[0].upper(): tuple(words[1:]) for words in lines if words})

    def __contains__(self, keyword: str) -> bool:
        """True when the server offers *keyword* (in capitals)."""
        return keyword in self.keywords

    def __repr__(self) -> str:
        return f"Extensions({self.keywords!r})"

    @property
    def size(self) -> int | None:
        """RFC 1870: bytes a message may have; 0 is "no limit said", None "not offered"."""
        if "SIZE" not in self:
            return None
        said = " ".join(self.keywords["SIZE"])
        return int(said) if _SIZE.fullmatch(said) else 0

    @property
    def pipelining(self) -> bool:
        """RFC 2920."""
        return "PIPELINING" in self

    @property
    def eightbitmime(self) -> bool:
        """RFC 6152."""
        return "8BITMIME" in self

    @property
    def smtputf8(self) -> bool:
        """RFC 6531."""
        return "SMTPUTF8" in self

    @property
    def dsn(self) -> bool:
        """RFC 3461."""
        return "DSN" in self

    @property
    def starttls(self) -> bool:
        """RFC 3207."""
        return "STARTTLS" in self

    @property
    def starttls_masked(self) -> bool:
        """True when a firewall has overwritten the keyword STARTTLS on its way to us."""
        return not self.starttls and any(map(_MASKED_STARTTLS.fullmatch, self.keywords))

    @property
    def limits(self) -> Limits:
        """RFC 9422; a limit that cannot be read counts as not said (§4)."""
        said = {}
        for word in self.keywords.get("LIMITS", ()):
            name, _, value = word.partition("=")
            if _LIMIT.fullmatch(value):
                said[name.lower()] = int(value)
        return Limits(*(said.get(name) for name in Limits._fields))


class MailDsn(NamedTuple):
    """What the sender wants to hear, for MAIL (RFC 3461 §4.3, §4.4).

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
    """What the sender wants to hear of one recipient, for RCPT (RFC 3461 §4.1, §4.2).

    Attributes:
        notify: ``NEVER``, or of ``SUCCESS``, ``FAILURE``, ``DELAY``; empty for "not said".
        original: The address as the sender wrote it; empty for "not said".
    """

    notify: tuple[str, ...] = ()
    original: str = ""

    def parameters(self) -> list[str]:
        """Return them as RCPT takes them."""
        notify = [f"NOTIFY={','.join(self.notify)}"] if self.notify else []
        original = [f"ORCPT={orcpt(self.original)}"] if self.original else []
        return notify + original


def xtext(text: str) -> str:
    """Encode as RFC 3461 §4: what is no xchar becomes ``+`` and two hex digits."""
    return _NOT_XCHAR.sub(
        lambda found: b"+%02X" % found[0][0], text.encode("utf-8", "surrogateescape")
    ).decode("ascii")


def orcpt(address: str) -> str:
    """Return *address* as ORCPT takes it, with its address type.

    One beyond ASCII has the type ``utf-8``. As it is not known what hops
    follow, it has the form that is all ASCII (RFC 6533 §3, utf-8-addr-xtext).
    """
    if address.isascii():
        return "rfc822;" + xtext(address)
    return "utf-8;" + _NOT_QCHAR.sub(
        lambda found: f"\\x{{{ord(found[0]):02X}}}", address
    )
