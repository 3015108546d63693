"""Whether a session is under TLS, and what says so. Pure.

A `TlsRequirement` is part of an `Approach` to a candidate. It says how much TLS a
session needs, what says so, and how a session fails that does not meet it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mxpolicy.options import TlsLevel
from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Finding, Phase, Scope, Verdict

__all__ = ["Level", "Source", "TlsRequirement", "tls_requirement", "wanted_by_host"]


class Level(Enum):
    """How much TLS, in Postfix's words."""

    NONE = "none"  # in clear
    MAY = "may"  # under TLS where it is offered and works, else in clear
    ENCRYPT = "encrypt"  # never in clear


class Source(Enum):
    """What has set the level."""

    DEFAULT = "the option tls.default"
    MEMORY = "STARTTLS was found to be broken here, by other messages"
    FAILURE = "TLS has just failed here"
    HOST = "the host does not take the message in clear"


class TlsRequirement(NamedTuple):
    """What a session must meet.

    Attributes:
        level: How much TLS.
        source: What says so.
        reason: The cause, printable; may be empty.
    """

    level: Level
    source: Source
    reason: str = ""

    @property
    def is_ruled_out(self) -> bool:
        """Whether the operator wants no TLS. A host that wants it does not get it."""
        return self.level is Level.NONE and self.source is Source.DEFAULT

    def unmet(self, finding: Finding) -> Finding:
        """Return *finding*, a failure to meet this, as a failure of TLS.

        A host may refuse a second connection because of the first. That is not remembered
        for all mail, as a failure before TLS would be.
        """
        if finding.phase < Phase.TLS and finding.scope is not Scope.SITE:
            said = f"{finding.verdict.value} {finding.text}".rstrip()
            text = f"the second connection: {said}"
            finding = Finding(Verdict.TLS_FAILED, Phase.TLS, finding.waited, text=text)
        text = "; ".join(filter(None, (finding.text, self.reason)))
        return finding._replace(text=printable(text))


def tls_requirement(default: TlsLevel, *, is_broken: bool = False) -> TlsRequirement:
    """Return the requirement for the first session with a candidate.

    Args:
        default: The operator's level.
        is_broken: STARTTLS is known to be broken there.
    """
    level = Level(default.value)
    if level is Level.MAY and is_broken:
        return TlsRequirement(Level.NONE, Source.MEMORY)
    return TlsRequirement(level, Source.DEFAULT)


def wanted_by_host(said: str) -> TlsRequirement:
    """Return the requirement for the next session with a host that *said* it wants TLS."""
    return TlsRequirement(Level.ENCRYPT, Source.HOST, f"in clear it said {said}")
