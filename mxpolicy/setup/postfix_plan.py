"""What set-up would change in a Postfix: a pure function of what was seen of it.

`wanted` turns the command line into lines of `postfix_lines`; `plan` compares them with
what is there. A line that is there already is left out. One that the postmaster has
otherwise is kept, joined, replaced or refused, by `_settle`'s table.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.master_cf import parse_services
from mxpolicy.check.postfix_rows import FILTER_NAME
from mxpolicy.setup.cf_text import entries, find, squeeze
from mxpolicy.setup.postfix_domains import Own
from mxpolicy.setup.postfix_lines import (
    ALL_MAIL,
    FALLBACK,
    FALLBACK_AT,
    LMTP,
    OWN,
    PIPE,
    POLICY,
    PROGRAM,
    RELAY_CHECK,
    SENDER_CHECK,
    TABLE,
    Part,
    table_line,
)
from mxpolicy.setup.restrictions import joined_relay, joined_sender
from mxpolicy.setup.steps import MAIN, MASTER, WHOLE, Plan, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RELAY", "SENDER", "SENDERS", "Asked", "Seen", "plan"]

RELAY = "smtpd_relay_restrictions"
SENDER = "smtpd_sender_restrictions"

# What says before default_transport and relayhost where a sender's mail goes.
SENDER_RELAYS = "sender_dependent_relayhost_maps"
SENDER_TRANSPORTS = "sender_dependent_default_transport_maps"
SENDERS = (SENDER_RELAYS, SENDER_TRANSPORTS)

_TABLE_HEAD = """\
# Made by `mxpolicy setup postfix --one-domain`; see transport(5). After a change of it:
# postfix reload
"""


class Asked(NamedTuple):
    """What the postmaster asks for.

    Attributes:
        domains: Whose mail goes by mxpolicy; ``.example.com`` is all below it.
        fallback: What smtp(8) could not deliver.
        all_mail: All mail that leaves.
        policy: Questions of smtpd(8).
        lmtp: By the daemon, over LMTP, in the place of pipe(8).
        program: Absolute path of mxpolicy.
        config: For ``--config`` of the commands; empty is the usual file.
        processes: How many deliveries run at once (``limits.processes``).
    """

    domains: tuple[str, ...] = ()
    fallback: bool = False
    all_mail: bool = False
    policy: bool = False
    lmtp: bool = False
    program: str = PROGRAM
    config: str = ""
    processes: int = 60


class Seen(NamedTuple):
    """What is there.

    Attributes:
        directory: That of main.cf.
        main, master: The text of the two files.
        table: The text of our transport table; None where there is none.
        effective: Values of main.cf as Postfix understands them.
        routed: What transport_maps say of a domain that was asked for, by domain:
            ``TRANSPORT:NEXTHOP (TABLE)``.
        local: Which of our own domains one that was asked for would take.
        is_taken: Whether another program listens at `FALLBACK_AT`.
    """

    directory: str
    main: str
    master: str
    table: str | None = None
    effective: Mapping[str, str] = {}
    routed: Mapping[str, str] = {}
    local: Mapping[str, Own] = {}
    is_taken: bool = False

    @property
    def table_path(self) -> str:
        """Where our transport table is."""
        return f"{self.directory}/{TABLE}"


def plan(asked: Asked, seen: Seen) -> Plan:
    """Return what would be done for *asked*."""
    return _Planner(asked, seen).plan()


class _Planner:
    def __init__(self, asked: Asked, seen: Seen) -> None:
        self._asked = asked
        self._seen = seen
        self._texts = {MAIN: seen.main, MASTER: seen.master}
        self._steps: list[Step] = []
        self._refusals: list[str] = []
        self._notes: list[str] = []

    def plan(self) -> Plan:
        for name, text in self._texts.items():
            if text and not text.endswith("\n"):
                path = f"{self._seen.directory}/{name}"
                self._refusals.append(
                    f"{path} does not end with a line end, and postconf would write on"
                    f" behind its last word: echo >>{path}"
                )
        parts = self._parts()
        # In this order each line finds what it names.
        self._add_table()
        for part in parts:
            for service in part.services:
                self._add_service(service)
        for part in parts:
            for name, value in part.settings:
                self._settle(name, value)
        if self._asked.policy:
            self._ask_policy()
        if self._asked.domains:
            self._join_table()
        self._look_at_relays()
        return Plan(tuple(self._steps), tuple(self._refusals), tuple(self._notes))

    def _parts(self) -> list[Part]:
        asked = self._asked
        delivers = asked.domains or asked.fallback or asked.all_mail or asked.lmtp
        rows = (
            (PIPE, delivers or not asked.policy),
            (LMTP, asked.lmtp),
            (FALLBACK, asked.fallback),
            (POLICY, asked.policy),
            (ALL_MAIL, asked.all_mail),
        )
        return [part for part, is_asked in rows if is_asked]

    @property
    def _transport(self) -> str:
        return "mxlmtp" if self._asked.lmtp else "mxpolicy"

    # -- master.cf ---------------------------------------------------------------

    def _add_service(self, line: str) -> None:
        line = self._fitted(line)
        key = "/".join(line.split()[:2])
        there = self._there(MASTER, key)
        if there is None:
            if key.endswith("/inet"):
                self._find_place(key)
            self._steps.append(Step(MASTER, key, line))
        elif squeeze(there) == line:
            return
        elif self._is_ours(there, line):
            self._notes.append(
                f"{MASTER} has {key} already, otherwise: it stays as it is"
            )
        else:
            self._refusals.append(
                f"{self._seen.directory}/{MASTER} has another service {key}: {there};"
                " give it another name, or take it out"
            )

    def _find_place(self, key: str) -> None:
        """Refuse where master(8) could not listen: it would end, and all mail stop."""
        host, port = FALLBACK_AT
        others = [
            one.key
            for one in entries(MASTER, self._seen.master)
            if one.key != key and re.search(rf"(^|:){port}/inet$", one.key)
        ]
        if others or self._seen.is_taken:
            who = (
                f"{self._seen.directory}/{MASTER} has {others[0]}"
                if others
                else "another program listens there"
            )
            self._refusals.append(
                f"port {port} of {host} is taken: {who} (ss -ltnp), and Postfix would"
                " end where it cannot listen. Have that listen elsewhere, or choose"
                " --one-domain or --all-mail"
            )

    def _fitted(self, line: str) -> str:
        """Return *line* with what is so on this machine."""
        asked = self._asked
        config = f" --config {asked.config}" if asked.config else ""
        for command in ("pipe", "policy"):
            line = line.replace(
                f"{PROGRAM} {command}", f"{asked.program} {command}{config}"
            )
        return line.replace(" 60 pipe ", f" {asked.processes} pipe ")

    @staticmethod
    def _is_ours(there: str, line: str) -> bool:
        """Return whether the service does what *line* does, in its own way."""
        if " pipe flags=" in line:
            return any(one.arguments is not None for one in parse_services(there))
        if "content_filter=" in line:
            return "content_filter=mxpolicy:" in there
        # Our own names, and the same program of Postfix.
        return there.split()[7:8] == line.split()[7:8]

    # -- main.cf -----------------------------------------------------------------

    def _settle(self, name: str, value: str) -> None:
        if name == "default_transport":
            value = f"{self._transport}:"
        there = self._there(MAIN, name)
        if there is None:
            # postconf(1) takes an empty value for one that was set.
            if value or self._seen.effective.get(name):
                self._set(name, value)
        elif squeeze(there) == squeeze(value):
            return
        elif name.startswith(OWN):
            self._notes.append(f"{name} = {there} stays as it is, not {value}")
        elif name == FILTER_NAME:
            if "".join(value.split()) in "".join(there.split()):
                return
            self._refusals.append(
                f"{MAIN} has {name} = {there} already; join them by hand, {value} as one"
                " of its tables would bounce no mail where mxpolicy cannot start"
            )
        elif name == "smtp_fallback_relay":
            self._refusals.append(
                f"{MAIN} has {name} = {there} already, and mail has one fallback only:"
                " choose --one-domain or --all-mail, or take it out"
            )
        else:
            self._set(name, value)
            if name == "relayhost":
                self._notes.append(
                    f"mail no longer goes by {there}: mxpolicy looks up the MX itself"
                )

    def _set(self, name: str, value: str) -> None:
        before = find(MAIN, self._seen.main, name)
        self._steps.append(Step(MAIN, name, value, before[0].text if before else None))

    def _there(self, file: str, key: str) -> str | None:
        """Return the value of *key*, None where there is none; refuse where it is twice."""
        found = find(file, self._texts[file], key)
        if len(found) > 1:
            lines = ", ".join(str(one.first + 1) for one in found)
            self._refusals.append(
                f"{self._seen.directory}/{file} has {key} more than once, in lines"
                f" {lines}: leave one of them"
            )
        return found[-1].value if found else None

    def _look_at_relays(self) -> None:
        effective = self._seen.effective
        relays, transports = (effective.get(one, "") for one in SENDERS)
        if self._asked.all_mail and relays:
            self._refusals.append(
                f"{MAIN} has {SENDER_RELAYS} = {relays}: mxpolicy would be given these"
                " relays as next hop. It does not log in there, and they would refuse"
                " the mail. Choose --one-domain or --fallback, or take that out"
            )
        if self._asked.all_mail and transports:
            self._notes.append(
                f"{MAIN} has {SENDER_TRANSPORTS} = {transports}: mail of senders that it"
                " has goes its way, not by mxpolicy"
            )
        if self._asked.fallback and (relay := effective.get("relayhost")):
            self._notes.append(
                f"what {relay} (relayhost) does not take at once goes to the MX hosts"
                " themselves"
            )

    # -- access policy -----------------------------------------------------------

    def _ask_policy(self) -> None:
        rows = (
            (RELAY, joined_relay, RELAY_CHECK, "recipients elsewhere are judged"),
            (SENDER, joined_sender, SENDER_CHECK, "strangers' senders are judged"),
        )
        for name, joined, check, what in rows:
            written = self._there(MAIN, name)
            value = joined(written, self._seen.effective.get(name, ""))
            if value is None:
                self._notes.append(
                    f"{name} is more than mxpolicy may add to without a change of what"
                    f" it does; put this in where {what}: {check}"
                )
            elif value != written:
                self._set(name, value)
        for entry in entries(MASTER, self._seen.master):
            own = [
                one
                for one in (RELAY, SENDER)
                if re.search(rf"\b{one}\s*=", entry.value)
            ]
            if own and "content_filter=mxpolicy:" not in entry.value:
                self._notes.append(
                    f"{entry.key} in {MASTER} has its own {' and '.join(own)}: mxpolicy"
                    " is not asked there"
                )

    # -- some domains ------------------------------------------------------------

    def _add_table(self) -> None:
        domains, before = self._asked.domains, self._seen.table
        if not domains:
            return
        for domain in domains:
            if said := self._seen.routed.get(domain):
                self._refusals.append(
                    f"transport_maps sends {domain} by {said} already: take that out"
                )
            local = self._seen.local.get(domain, Own())
            if local.name:
                self._refusals.append(
                    f"{local.name} is this mail system's own ({local.setting}), and with"
                    f" {domain} it would no longer be delivered here"
                )
            if local.unlisted:
                self._notes.append(
                    f"{', '.join(local.unlisted)} cannot be listed: see that no domain"
                    f" in there is below {domain}, or its mail would leave"
                )
        lines = [table_line(one, self._transport) for one in domains]
        known = set(map(squeeze, (before or "").split("\n")))
        taken = {one.split()[0]: one for one in known if one and one[0] != "#"}
        new = []
        for domain, line in zip(domains, lines, strict=True):
            if domain not in taken:
                new.append(line)
            elif taken[domain] != squeeze(line):
                self._refusals.append(
                    f"{self._seen.table_path} says {taken[domain]}: change it there"
                )
        if new:
            text = (_TABLE_HEAD if before is None else before) + "".join(new)
            self._steps.append(Step(self._seen.table_path, WHOLE, text, before))

    def _join_table(self) -> None:
        there, ours = self._there(MAIN, "transport_maps"), self._seen.table_path
        table = f"texthash:{ours}"
        if there is None or not there:
            self._set("transport_maps", table)
        elif table not in there:
            # First, for a domain that another table has by a wildcard.
            self._set("transport_maps", f"{table}, {there}")
