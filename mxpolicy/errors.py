"""What stops the work. Results (a refused recipient, a domain without mail) are values, not exceptions.

The tree::

    MxPolicyError
      ConfigError              the configuration cannot be used; all mistakes at once
      UsageError               the command line cannot be understood
      ListenError              a socket cannot be listened at
      ProtocolError
        LocalProtocolError     we would have broken the protocol: a bug here
        RemoteProtocolError    the peer broke it: close the connection
      TLSError                 the handshake or the verification failed
      LocalTrouble             our own machine: descriptors, memory, disk; never a verdict
      StoreError               the state store is away

`mxpolicy.net.dial.ConnectError` carries a verdict, and stands where verdicts are known.

Every exception keeps its facts as attributes and makes its text from them, so that no
caller parses a sentence. A foreign exception becomes one of these where its library is
used; ``__cause__`` keeps the original.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EXHAUSTED",
    "ConfigError",
    "ListenError",
    "LocalProtocolError",
    "LocalTrouble",
    "MxPolicyError",
    "ProtocolError",
    "RemoteProtocolError",
    "StoreError",
    "TLSError",
    "UsageError",
]

# Our own machine, never the peer: descriptors and memory have run out. See `LocalTrouble`.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class MxPolicyError(Exception):
    """The root of all that mxpolicy raises on purpose."""


class ConfigError(MxPolicyError):
    """The configuration cannot be used.

    Attributes:
        mistakes: One line for each mistake, in the order of the file:
            ``FILE:LINE:COLUMN: path: what was expected``.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__(mistakes)
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        return "; ".join(self.mistakes)


class UsageError(MxPolicyError):
    """The command line cannot be understood; the text says what was expected."""


class ListenError(MxPolicyError):
    """A socket cannot be listened at.

    Attributes:
        at: Its path, or ``ADDRESS:PORT``.
        reason: Why, and what to do.
    """

    def __init__(self, at: str, reason: str) -> None:
        super().__init__(at, reason)
        self.at = at
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot listen at {self.at}: {self.reason}"


class ProtocolError(MxPolicyError):
    """Either side broke the protocol; raise one of its children."""


class LocalProtocolError(ProtocolError):
    """We asked for something that the protocol does not allow in this state: a bug."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. The connection cannot be used any more."""


class TLSError(MxPolicyError):
    """The TLS handshake or the verification failed; its text is one line."""


class LocalTrouble(MxPolicyError):
    """Our own machine failed: no descriptors, no memory, no disk, no ports.

    It says nothing about any host: nothing is remembered of one, and the mail is deferred
    with 4.3.0.
    """


class StoreError(MxPolicyError):
    """The state store is away or broken. Mail goes on without it."""
