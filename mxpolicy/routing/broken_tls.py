"""Whether STARTTLS is known to be broken at a host, so that it is left out. Pure.

At level ``may`` a message goes in clear when TLS fails (RFC 7435 §3). Noticing that may
take half a minute for each message, so it is remembered. But a lost packet looks the
same as broken TLS, and a host that demands TLS takes nothing in clear. So:

* It is kept by host *name* and address. A host may refuse TLS for a name that it does
  not know (RFC 6066 §3), and any domain can give it one.
* It is written only when a host has taken a message in clear after TLS had failed.
* It is believed when two different messages were taken so, and then for an hour.
* After that TLS is tried again. One more message that is taken in clear renews it.
* A session under TLS, and a host that wants TLS, make it unknown.

Times are UTC seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.routing.host_record import SKEW
from mxpolicy.routing.record_format import NUMBER, TEXT, RecordFormat, flag

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BELIEVED", "KEPT", "BrokenTls", "after_taking_in_clear", "decode", "encode"]

# Seconds for which STARTTLS is left out.
BELIEVED = 3600.0

# Seconds for which another message may prove or renew it.
KEPT = 86400.0


class BrokenTls(NamedTuple):
    """The messages that a host took in clear after TLS had failed.

    Attributes:
        since: When the last one was taken, UTC seconds.
        message_id: Names that message; without blanks.
        is_proven: Another message was taken so before it.
    """

    since: float
    message_id: str
    is_proven: bool = False

    def is_believed(self, now: float) -> bool:
        """Return whether STARTTLS is left out."""
        return self.is_proven and -SKEW <= now - self.since < BELIEVED

    def is_of_use(self, now: float) -> bool:
        """Return whether one message more proves or renews it."""
        return -SKEW <= now - self.since < KEPT


def after_taking_in_clear(
    known: BrokenTls | None, message_id: str, now: float
) -> BrokenTls:
    """Return what is remembered when a message was taken in clear after TLS had failed.

    Args:
        known: What was remembered.
        message_id: Names the message, the same when it is tried again.
        now: UTC seconds.
    """
    if known is None or not known.is_of_use(now):
        return BrokenTls(now, message_id)
    is_proven = known.is_proven or known.message_id != message_id
    return BrokenTls(now, message_id, is_proven)


_FORMAT = RecordFormat(BrokenTls, "1", NUMBER, TEXT, flag("proven", "once"))

encode: Callable[[BrokenTls], bytes] = _FORMAT.encode
decode: Callable[[bytes | None], BrokenTls | None] = _FORMAT.decode
