"""What this process has learned while its store was away, and writes when it is back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery.domain_history import DOMAIN
from mxpolicy.delivery.failed_lookups import LOOKUP
from mxpolicy.delivery.host_memory import HOST, NEXTHOP, TLS
from mxpolicy.delivery.journal import Entry, EntryState, myself
from mxpolicy.state.store import is_of_journal

if TYPE_CHECKING:
    from mxpolicy.state.store import Stored

__all__ = ["prevails"]

_LEARNED = (HOST, NEXTHOP, TLS, DOMAIN, LOOKUP)


def prevails(ours: Stored, theirs: Stored | None) -> bool:
    """Return whether *ours*, of the memory, is written where *theirs* is.

    Of what was learned, the newer row: that which ends later. Of the journal, outcomes.
    Claims, leases and places were about that time, and are never written later.
    """
    if is_of_journal(ours.key):
        return _is_last_word(ours, theirs)
    if not ours.key.startswith(_LEARNED):
        return False
    return theirs is None or ours.expires > theirs.expires


def _is_last_word(ours: Stored, theirs: Stored | None) -> bool:
    """Return whether an entry of the journal is the last word.

    That somebody has the message is the truth, whatever else is written. Of two entries
    that say so, the one that is kept longer counts: the mail server may come back for
    other recipients. A refusal or a deferral takes the place of this process's own
    claim only.
    """
    entry = Entry.decode(ours.value)
    there = Entry.decode(theirs.value) if theirs is not None else None
    match entry.state if entry else None:
        case EntryState.DELIVERED:
            is_same = there is not None and there.state is EntryState.DELIVERED
            return theirs is None or not is_same or ours.expires > theirs.expires
        case EntryState.REFUSED | EntryState.DEFERRED:
            # All but the call: it is this process, whichever delivery it was.
            return there is None or there.owner[:-1] == myself()[:-1]
        case _:
            return False
