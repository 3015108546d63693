"""What a door asks the engine to deliver."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.delivery import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.protocol.extensions import MailDsn, RcptDsn

__all__ = ["Request"]


async def _always() -> bool:
    return True


class Request(NamedTuple):
    """What a door was asked to deliver, in the mail server's own words.

    Attributes:
        sender: Reverse-path; ``""`` or ``<>`` is the null one.
        recipients: Forward-paths, at least one.
        nexthop: ``""`` means each recipient's own domain.
        queue_id: The mail server's name for the message; may be empty.
        deadline: Seconds from now in which the final dot must be sent.
        ends: Seconds from now after which the mail server no longer listens.
        observe: Told everything that happens to the message; see
            `mxpolicy.delivery.events`.
        has_process: Whether a process of the mail server waits for the outcome, as with
            pipe(8). There are few of those (`mxpolicy.routing.places`). So the message
            needs a place for it, and does not wait for its turn at a host.
        dsn: What the sender wants to be told (RFC 3461); None where nothing was said.
        recipients_dsn: The same of recipients, by their number. A host that does not
            offer DSN hears of neither.
        may_send_dot: Asked before the mail data is sent, and again just before the final
            dot, which makes the message the host's (RFC 5321 §4.1.1.4). The message is
            deferred where it returns False.
        is_wanted: The same, known without waiting; None where it is not. It is asked in
            the place of `may_send_dot`.
    """

    sender: str
    recipients: tuple[str, ...]
    nexthop: str
    queue_id: str
    deadline: float
    ends: float = inf
    observe: events.Observe = lambda event: None
    dsn: MailDsn | None = None
    recipients_dsn: Mapping[int, RcptDsn] = MappingProxyType({})
    may_send_dot: Callable[[], Awaitable[bool]] = _always
    is_wanted: Callable[[], bool] | None = None
    has_process: bool = True
