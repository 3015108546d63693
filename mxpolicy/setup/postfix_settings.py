"""What set-up would change in main.cf. Pure.

A line that is there already is left out. One that the postmaster has otherwise is kept,
joined, replaced or refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.check.master_cf import parse_services
from mxpolicy.check.status_filter import FILTER_NAME
from mxpolicy.setup.cf_text import entries, squeeze
from mxpolicy.setup.postfix_draft import RELAY, SENDER, SENDER_RELAYS, SENDER_TRANSPORTS
from mxpolicy.setup.postfix_lines import OWN, RELAY_CHECK, SENDER_CHECK
from mxpolicy.setup.restrictions import joined_relay, joined_sender
from mxpolicy.setup.steps import MAIN, MASTER

if TYPE_CHECKING:
    from mxpolicy.setup.postfix_draft import Draft
    from mxpolicy.setup.steps import Asked

__all__ = ["ask_policy", "look_at_relays", "settle"]


def settle(draft: Draft, name: str, value: str) -> None:
    """Have main.cf say *value*, as far as what the postmaster has there may go."""
    there = draft.there(MAIN, name)
    if there is None:
        # postconf(1) takes an empty value for one that was set.
        if value or draft.seen.effective.get(name):
            draft.set(MAIN, name, value)
    elif squeeze(there) == squeeze(value):
        return
    elif name.startswith(OWN):
        draft.note(f"{name} = {there} stays as it is, not {value}")
    elif name == FILTER_NAME:
        if "".join(value.split()) in "".join(there.split()):
            return
        draft.refuse(
            f"{MAIN} has {name} = {there} already; join them by hand, {value} as one"
            " of its tables would bounce no mail where mxpolicy cannot start"
        )
    elif name == "smtp_fallback_relay":
        draft.refuse(
            f"{MAIN} has {name} = {there} already, and mail has one fallback only:"
            " choose --one-domain or --all-mail, or take it out"
        )
    else:
        draft.set(MAIN, name, value)
        if name == "relayhost":
            draft.note(
                f"mail no longer goes by {there}: mxpolicy looks up the MX itself"
            )


def ask_policy(draft: Draft) -> None:
    """Have smtpd(8) ask mxpolicy, where the postmaster's lists leave a place for it."""
    rows = (
        (RELAY, joined_relay, RELAY_CHECK, "recipients elsewhere are judged"),
        (SENDER, joined_sender, SENDER_CHECK, "strangers' senders are judged"),
    )
    for name, joined, check, what in rows:
        written = draft.there(MAIN, name)
        value = joined(written, draft.seen.effective.get(name, ""))
        if value is None:
            draft.note(
                f"{name} is more than mxpolicy may add to without a change of what"
                f" it does; put this in where {what}: {check}"
            )
        elif value != written:
            draft.set(MAIN, name, value)
    for entry in entries(MASTER, draft.seen.master):
        for service in parse_services(entry.value, "smtpd"):
            own = [one for one in (RELAY, SENDER) if one in service.overrides]
            is_fallback = service.overrides.get("content_filter") == "mxpolicy:"
            if own and not is_fallback:
                draft.note(
                    f"{entry.key} in {MASTER} has its own {' and '.join(own)}: mxpolicy"
                    " is not asked there"
                )


def look_at_relays(draft: Draft, asked: Asked) -> None:
    """Say what becomes of relays that the postmaster has."""
    effective = draft.seen.effective
    relays, transports = (
        effective.get(one, "") for one in (SENDER_RELAYS, SENDER_TRANSPORTS)
    )
    if asked.all_mail and relays:
        draft.refuse(
            f"{MAIN} has {SENDER_RELAYS} = {relays}: mxpolicy would be given these"
            " relays as next hop. It does not log in there, and they would refuse"
            " the mail. Choose --one-domain or --fallback, or take that out"
        )
    if asked.all_mail and transports:
        draft.note(
            f"{MAIN} has {SENDER_TRANSPORTS} = {transports}: mail of senders that it"
            " has goes its way, not by mxpolicy"
        )
    if asked.fallback and (relay := effective.get("relayhost")):
        draft.note(
            f"what {relay} (relayhost) does not take at once goes to the MX hosts"
            " themselves"
        )
