"""What our own kernel knows about bytes on their way, and what follows from it.

A black hole for large packets lets the SMTP dialogue pass and loses the message. It is a
firewall that drops large packets, and the ICMP message that would say so (RFC 2923
§2.1). Only our kernel can see it: segments are never acknowledged.

The kernel is asked before the final dot, while moving on to another host is harmless.
That is why the dot leaves only when all before it is acknowledged. After the dot, one
thing proves that the host cannot have the message: the dot has never left. A dot without
acknowledgement proves nothing, since acknowledgements may be lost. Nor does a hole, that
is acknowledged segments behind a missing one: a retransmission may have filled it.

A wait for what is sure to arrive can be left out. `PathProof` says when that is.

Pure: `mxpolicy.net.tcp_info` reads the kernel, and these functions interpret it. They
hold for a direct connection only: through a proxy they are about the proxy.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "LARGEST_SEGMENT",
    "PROVEN_FOR",
    "STALL_TIME",
    "AckProgress",
    "PathProof",
    "SendState",
    "is_stalled",
]

# Seconds without one more byte acknowledged before retransmissions mean anything: a
# radio link or a rerouted path may be down that long. Linux sends again after 0.2 s at
# the earliest and then at doubled intervals: six times or more in this time.
STALL_TIME = 20.0
# Fewer could be ordinary loss.
RETRANSMISSIONS = 3

# Seconds for which an acknowledgement says that the path still lets such data through.
# Long enough for a session that is busy; a session that rests for longer is asked again,
# which costs a round trip. A path that changes within it is found only after the dot.
PROVEN_FOR = 1.0
# Bytes that may be on their way at most when the dot follows: the largest segment (an IP
# packet has 65,535 bytes). More than that is acknowledged at once (RFC 9293 §3.8.6.3).
LARGEST_SEGMENT = 65536


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


class PathProof:
    """How large the segments are that the path of one session is known to let through.

    A path swallows packets by their size. So a write that has arrived proves that as many
    bytes will arrive, whatever segments they leave in. Three things limit that:

    * It is about one session. Another one to the same address may take another path,
      where routers share the load by ports.
    * It is true for `PROVEN_FOR`, because paths change.
    * Commands do not count, however small the mail data is. They are nearly always
      smaller, and a firewall that looks into SMTP treats them otherwise.
    """

    __slots__ = ("_at", "_size", "_under_way")

    def __init__(self) -> None:
        self._size = 0  # of the largest write that has arrived lately
        self._at = 0.0
        # Writes: size, and the stream's bytes up to its end. Each is larger than those
        # before it, which prove less, and the first of its size.
        self._under_way: list[tuple[int, int]] = []

    def written(self, size: int, end: int) -> None:
        """Our kernel has taken a write of *size* bytes of mail data.

        Args:
            size: Bytes.
            end: How many bytes it has taken from the stream by now.
        """
        if not self._under_way or size > self._under_way[-1][0]:
            self._under_way.append((size, end))

    def acknowledged(self, count: int, now: float) -> None:
        """The host's kernel has so many bytes of the stream.

        Args:
            count: Bytes.
            now: Seconds, on any clock.
        """
        while self._under_way and self._under_way[0][1] <= count:
            size, _ = self._under_way.pop(0)
            if size >= self._size or now - self._at > PROVEN_FOR:
                self._size, self._at = size, now

    def covers(self, unacknowledged: int, now: float) -> bool:
        """Return whether the dot may follow so many bytes that are not acknowledged.

        Args:
            unacknowledged: Bytes of the mail data, sent or not.
            now: Seconds, on the same clock.
        """
        is_recent = now - self._at <= PROVEN_FOR
        proven = min(self._size, LARGEST_SEGMENT) if is_recent else 0
        return unacknowledged <= proven


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
