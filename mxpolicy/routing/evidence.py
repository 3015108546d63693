"""What our own kernel knows about bytes on their way, and what follows from it.

A black hole for large packets lets the whole SMTP dialogue pass and swallows the
message: a firewall that drops them and the ICMP message that would say so (RFC 2923
§2.1). Nothing is said. Only the kernel sees segments that are never acknowledged.

It is asked before the final dot, while moving on to another host is harmless. That
is why the dot leaves only when all that was written before it is acknowledged. After
the dot one thing alone proves that the host cannot have the message: that the dot
has never left. A dot without acknowledgement proves nothing: lost acknowledgements look
just so. Neither does a hole, acknowledged segments behind a missing one: a
retransmission may have filled it, and the path back may have died.

Pure: `mxpolicy.net.tcp_info` reads the kernel, these functions judge. What they
say holds on a direct connection only: through a proxy it is about the proxy.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["STALL_TIME", "AckProgress", "SendState", "is_stalled"]

# Seconds without one more byte acknowledged, before retransmissions mean anything: a
# radio link or a rerouted path may be away that long. Linux sends again after 0.2 s at
# the earliest and then at doubled intervals: six times or more in this time.
STALL_TIME = 20.0
# Fewer could be ordinary loss.
RETRANSMISSIONS = 3


class SendState(NamedTuple):
    """What the kernel says of our half of a connection.

    Attributes:
        unsent: Bytes that have never left (SIOCOUTQNSD).
        unacknowledged: Bytes not acknowledged, sent or not (SIOCOUTQ).
        retransmissions: Of the oldest unacknowledged segment, in a row.
    """

    unsent: int
    unacknowledged: int
    retransmissions: int


class AckProgress:
    """Since when the peer has acknowledged nothing more.

    Args:
        acknowledged: Bytes that it has acknowledged by now.
        now: Seconds, on any clock.
    """

    __slots__ = ("_acknowledged", "_since")

    def __init__(self, acknowledged: int, now: float) -> None:
        self._acknowledged = acknowledged
        self._since = now

    def still_for(self, acknowledged: int, now: float) -> float:
        """Return the seconds without progress, looking again *now*."""
        if acknowledged > self._acknowledged:
            self._acknowledged, self._since = acknowledged, now
        return now - self._since


def is_stalled(state: SendState, still_for: float) -> bool:
    """Return True only when the kernel proves that what we send is lost.

    Args:
        state: Now.
        still_for: Seconds since the peer last acknowledged a byte.

    A closed window is no stall: the peer's kernel has everything, its program
    does not read.
    """
    return (
        still_for >= STALL_TIME
        and state.unacknowledged > state.unsent
        and state.retransmissions >= RETRANSMISSIONS
    )
