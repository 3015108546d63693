"""What our own kernel knows about bytes on their way, and what follows from it.

A black hole for large packets lets the SMTP dialogue pass and loses the message. It is a
firewall that drops large packets, and the ICMP message that would say so (RFC 2923
§2.1). Only our kernel can see it: segments are never acknowledged.

The kernel is asked before the final dot, while moving on to another host is harmless.
That is why the dot leaves only when all before it is acknowledged. After the dot, one
thing proves that the host cannot have the message: the dot has never left. A dot without
acknowledgement proves nothing, since acknowledgements may be lost. Nor does a hole, that
is acknowledged segments behind a missing one: a retransmission may have filled it.

Pure: `mxpolicy.net.tcp_info` reads the kernel, and these functions interpret it. They
hold for a direct connection only: through a proxy they are about the proxy.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["STALL_TIME", "AckProgress", "SendState", "is_stalled"]

# Seconds without one more byte acknowledged before retransmissions mean anything: a
# radio link or a rerouted path may be down that long. Linux sends again after 0.2 s at
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
