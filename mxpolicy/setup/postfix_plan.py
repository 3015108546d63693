"""What set-up would change in a Postfix: a pure function of what was seen of it.

The command line chooses lines of `postfix_lines`. `postfix_table`, `postfix_services`,
`postfix_fallback` and `postfix_settings` compare them with what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.check.master_cf import words
from mxpolicy.check.own_client import PROBES, told_to_client, unheeded, verified
from mxpolicy.check.tls_level import DEMANDING, LEVEL, demand
from mxpolicy.setup import (
    postfix_fallback,
    postfix_services,
    postfix_settings,
    postfix_table,
)
from mxpolicy.setup.postfix_draft import INSTANCES, PROTOCOLS, Draft
from mxpolicy.setup.postfix_lines import ALL_MAIL, FALLBACK, LMTP, PIPE, POLICY
from mxpolicy.setup.steps import MAIN, MASTER

if TYPE_CHECKING:
    from mxpolicy.setup.postfix_draft import Seen
    from mxpolicy.setup.postfix_lines import Part
    from mxpolicy.setup.steps import Asked, Plan

__all__ = ["plan"]


def plan(asked: Asked, seen: Seen) -> Plan:
    """Return what would be done for *asked*; in this order each line finds what it names."""
    draft = Draft(seen)
    _look_at_texts(draft)
    _look_at_instances(draft)
    _look_at_protocols(draft, asked)
    _look_at_tls(draft, asked)
    _look_at_client(draft, asked)
    parts, transport = _parts(asked), "mxlmtp" if asked.lmtp else "mxpolicy"
    postfix_table.add(draft, asked.domains, transport)
    if asked.all_mail:
        postfix_table.look_at_others(draft, transport)
    for line in (one for part in parts for one in part.services):
        postfix_services.add(draft, line, asked)
    for name, value in (one for part in parts for one in part.settings):
        is_default = name == "default_transport"
        postfix_settings.settle(draft, name, f"{transport}:" if is_default else value)
    if asked.fallback:
        postfix_fallback.keep_others_out(draft)
    if asked.policy:
        postfix_settings.ask_policy(draft)
    if asked.domains:
        postfix_table.join(draft)
    postfix_settings.look_at_relays(draft, asked)
    return draft.made()


def _look_at_texts(draft: Draft) -> None:
    """Refuse what postconf(1) would not give back as it was."""
    for name, text in ((MAIN, draft.seen.main), (MASTER, draft.seen.master)):
        path = f"{draft.seen.directory}/{name}"
        if "\0" in text:
            line = text.partition("\0")[0].count("\n") + 1
            draft.refuse(
                f"{path} has a NUL byte in line {line}, and postconf would drop the rest"
                " of that line and join the next one to it: take the byte out"
            )
        elif text and not text.endswith("\n"):
            draft.refuse(
                f"{path} does not end with a line end, and postconf would write on"
                f" behind its last word: echo >>{path}"
            )


def _look_at_instances(draft: Draft) -> None:
    if others := draft.seen.effective.get(INSTANCES):
        draft.note(
            f"Postfix has further instances ({INSTANCES} = {others}): this is the one of"
            f" {draft.seen.directory}, and -c DIR names another"
        )


def _look_at_protocols(draft: Draft, asked: Asked) -> None:
    """Refuse what goes by 127.0.0.1 in a Postfix that has no IPv4."""
    said = draft.seen.effective.get(PROTOCOLS, "")
    protocols = words(said.lower(), " \t,")
    if protocols and {"ipv4", "all"}.isdisjoint(protocols):
        rows = (
            (asked.fallback, "--fallback", "would end, for it could not listen there"),
            (asked.lmtp, "--lmtp", "would defer that mail"),
        )
        for is_asked, option, effect in rows:
            if is_asked:
                draft.refuse(
                    f"{PROTOCOLS} is {said}: {option} goes by 127.0.0.1, and Postfix"
                    f" {effect}. Choose --one-domain or --all-mail"
                )


def _look_at_tls(draft: Draft, asked: Asked) -> None:
    """Say what becomes of a demand for TLS, as mxpolicy takes TLS where it is offered."""
    effective = draft.seen.effective
    level = effective.get(LEVEL, "")
    if asked.fallback and level in DEMANDING:
        draft.refuse(
            f"{LEVEL} is {level}: --fallback goes by 127.0.0.1 without TLS, and"
            " Postfix would not deliver there, but defer as before"
        )
    if _gets_mail(asked) and (demands := demand(effective)):
        draft.note(
            f"{demands}: mail that goes by mxpolicy is encrypted only where the host"
            " offers that, and no certificate is checked (level may)"
        )


def _look_at_client(draft: Draft, asked: Asked) -> None:
    """Say what Postfix's own client was told, and mxpolicy does otherwise.

    What falls back has come by that client.
    """
    master, effective = draft.seen.services, draft.seen.effective
    if asked.domains or asked.all_mail:
        for one in unheeded(told_to_client(master, effective)):
            draft.note(one)
    # As long as nothing else is said, it is default_transport.
    is_usual = effective.get(PROBES) == effective.get("default_transport")
    if asked.all_mail and is_usual and (said := verified(master, effective)):
        draft.note(
            f"{' and '.join(said)}: Postfix asks no host by mxpolicy's transports, and"
            f" takes each address for a good one: postconf -e {PROBES}=smtp:"
        )


def _gets_mail(asked: Asked) -> bool:
    return bool(asked.domains or asked.fallback or asked.all_mail)


def _parts(asked: Asked) -> list[Part]:
    delivers = _gets_mail(asked) or asked.lmtp
    rows = (
        (PIPE, delivers or not asked.policy),
        (LMTP, asked.lmtp),
        (FALLBACK, asked.fallback),
        (POLICY, asked.policy),
        (ALL_MAIL, asked.all_mail),
    )
    return [part for part, is_asked in rows if is_asked]
