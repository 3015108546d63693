"""Which rows are written to a store that was away, when it is back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery.domain_history import DOMAIN
from mxpolicy.delivery.failed_lookups import LOOKUP
from mxpolicy.delivery.host_memory import HOST, NEXTHOP, TLS
from mxpolicy.delivery.journal import Entry, EntryState
from mxpolicy.delivery.owner import is_own_process
from mxpolicy.state.store import is_of_journal

if TYPE_CHECKING:
    from mxpolicy.state.store import Stored

__all__ = ["prevails"]

_LEARNED = (HOST, NEXTHOP, TLS, DOMAIN, LOOKUP)


def prevails(ours: Stored, theirs: Stored | None) -> bool:
    """Return whether *ours*, from our memory, replaces *theirs*, in the store.

    Of what was learned, the newer row does: the one that ends later. Of the journal,
    outcomes do. Claims, leases and places were for their own time only, and never do.
    """
    if is_of_journal(ours.key):
        return _is_last_word(ours, theirs)
    if not ours.key.startswith(_LEARNED):
        return False
    return theirs is None or ours.expires > theirs.expires


def _is_last_word(ours: Stored, theirs: Stored | None) -> bool:
    """Return whether our entry of the journal replaces that in the store.

    A delivery is the truth, whatever is written there. Of two deliveries the entry that
    is kept longer counts: the mail server may come back for other recipients. A refusal
    or a deferral replaces only a claim of this process; also a deferral whose reply to
    the dot may still come: that host may have the message.
    """
    entry = Entry.decode(ours.value)
    there = Entry.decode(theirs.value) if theirs is not None else None
    match entry.state if entry else None:
        case EntryState.DELIVERED:
            is_same = there is not None and there.state is EntryState.DELIVERED
            return theirs is None or not is_same or ours.expires > theirs.expires
        case EntryState.REFUSED | EntryState.DEFERRED | EntryState.WAITING:
            return there is None or is_own_process(there.owner)
        case _:
            return False
