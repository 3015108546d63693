"""What our own kernel knows about bytes on their way, and what follows from it.

A black hole for large packets (a firewall that drops them and the ICMP message that
would say so, RFC 2923 §2.1) lets the whole SMTP dialogue pass and swallows the
message. Nobody says anything; only the kernel sees segments that are never
acknowledged. The same knowledge is the one proof that a host cannot have a
message although its final dot was written: without some byte before the dot,
there is no message.

Pure: `mxpolicy.net.tcp_info` reads the kernel, these functions judge. What they
say holds on a direct connection only: through a proxy it is about the proxy.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["STALL_TIME", "SendState", "is_missing_bytes", "is_stalled"]

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
        sacked: Segments that the peer has, behind a hole (RFC 2018).
        retransmissions: Of the oldest unacknowledged segment, in a row.
        probes: Unanswered probes of a closed window (RFC 9293 §3.8.6.1).
    """

    unsent: int
    unacknowledged: int
    sacked: int
    retransmissions: int
    probes: int


def is_stalled(state: SendState, still_for: float) -> bool:
    """Return whether what we send does not arrive.

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


def is_missing_bytes(state: SendState, still_for: float) -> bool:
    """Return whether the peer provably lacks bytes that were written before the last.

    Bytes that never left prove it. So does a hole: segments behind it are
    acknowledged and those in it are not, however often they were sent. Mere
    silence proves nothing, since lost acknowledgements look just so.
    """
    if still_for < STALL_TIME:
        return False
    hole = state.sacked > 0 and state.unacknowledged > 0
    return state.unsent > 0 or (hole and state.retransmissions >= RETRANSMISSIONS)
