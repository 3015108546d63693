"""Where the question to mxpolicy goes in the postmaster's own lists. Pure.

The lists are smtpd_relay_restrictions and smtpd_sender_restrictions
(SMTPD_ACCESS_README). No line of the postmaster's may lose its effect by the question.
"""

from __future__ import annotations

from mxpolicy.check.master_cf import words
from mxpolicy.setup.postfix_lines import (
    RELAY_CHECK,
    RELAY_LIST,
    SENDER_CHECK,
    SENDER_LIST,
    STRANGERS,
)

__all__ = ["joined_relay", "joined_sender"]

_AUTH_DESTINATION = "permit_auth_destination"

# What permit_auth_destination may stand before: mail for our own domains passes each of
# them, or is let in by it.
_RELAY_ONLY = frozenset(
    (
        *("permit_mynetworks", "permit_sasl_authenticated", "permit_tls_clientcerts"),
        *("permit_tls_all_clientcerts", _AUTH_DESTINATION),
        *("reject_unauth_destination", "defer_unauth_destination"),
    )
)

# Nothing behind one of these is looked at.
_LAST_WORDS = frozenset(("permit", "reject", "defer", "defer_if_permit"))


def joined_relay(written: str | None, effective: str) -> str | None:
    """Return smtpd_relay_restrictions with the question about recipients.

    Args:
        written: As main.cf has it; None where it has none.
        effective: With each ``$name`` filled in.

    Returns:
        The new value. None where the list has more in it than who may relay: what
        stands behind permit_auth_destination would not be looked at for our own domains.
    """
    if written is None:
        # Without any list, smtpd_recipient_restrictions says who may relay.
        return RELAY_LIST if effective else None
    if _asks(RELAY_CHECK, written):
        return written
    items = _items(effective)
    if not items or not _RELAY_ONLY.issuperset(items):
        return None
    return f"{_AUTH_DESTINATION}, {RELAY_CHECK}, {written}"


def joined_sender(written: str | None, effective: str) -> str | None:
    """Return smtpd_sender_restrictions with the question about senders.

    Args:
        written: As main.cf has it; None where it has none.
        effective: With each ``$name`` filled in.

    Returns:
        The new value. None where the list ends with a word for all, and nothing behind
        it would be asked.
    """
    if not written:
        return SENDER_LIST
    if _asks(SENDER_CHECK, written):
        return written
    if _LAST_WORDS.intersection(_items(effective)):
        return None
    # What comes to the end of the list is let through by it: so do the two words.
    return f"{written.rstrip(', ')}, {STRANGERS}, {SENDER_CHECK}"


def _asks(check: str, written: str) -> bool:
    return "".join(check.split()) in "".join(written.split())


def _items(text: str) -> list[str]:
    return words(text, " \t,")
