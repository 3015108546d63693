"""Looks at a Postfix: its files, its settings, and what its tables say of some domains."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mxpolicy.check.fallback_relay import WAYS, of_the_world
from mxpolicy.check.master_cf import words
from mxpolicy.check.own_client import LISTS, PROBES, UNHEEDED
from mxpolicy.check.postconf import Postconf
from mxpolicy.check.programs import ProgramError
from mxpolicy.check.tls_level import LEVEL, POLICY_MAPS
from mxpolicy.setup.cf_text import find
from mxpolicy.setup.disk import SetupError, read_text
from mxpolicy.setup.postfix_domains import OWN_DOMAINS, own
from mxpolicy.setup.postfix_draft import (
    INSTANCES,
    PROTOCOLS,
    RELAY,
    SENDER,
    SENDERS,
    Seen,
)
from mxpolicy.setup.postfix_lines import FALLBACK_AT, TABLE
from mxpolicy.setup.postfix_processes import is_taken
from mxpolicy.setup.steps import MAIN, MASTER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.check.programs import Ended
    from mxpolicy.setup.steps import Asked

__all__ = ["see", "text_of"]

SETTINGS = (
    *("transport_maps", "relayhost", RELAY, SENDER, *SENDERS, *OWN_DOMAINS),
    *(INSTANCES, PROTOCOLS, LEVEL, POLICY_MAPS, "default_transport"),
    *("relay_domains", *WAYS, *UNHEEDED, PROBES, *LISTS),
)


def see(asked: Asked, directory: str, run: Callable[..., Ended]) -> Seen:
    """Return what is there, as far as *asked* needs it.

    Args:
        asked: What the postmaster asks for.
        directory: That of main.cf.
        run: Runs a program of Postfix's.

    Raises:
        SetupError: A file or a table does not say.
        ProgramError: Postfix does not say.
    """
    main, master = (text_of(f"{directory}/{one}") for one in (MAIN, MASTER))
    # One that is not there is empty.
    effective = Postconf(run).settings(SETTINGS)
    others = words(effective["transport_maps"], " \t,")
    tables = _Tables(run)
    routed = {
        domain: f"{hop} ({table})"
        for domain in asked.domains
        for table in reversed(others)
        if not table.endswith(f"/{TABLE}") and (hop := tables.look(domain, table))
    }
    local = {
        domain: own(domain, effective, tables.look, tables.listed)
        for domain in asked.domains
    }
    seen = Seen(
        directory,
        main,
        master,
        read_text(f"{directory}/{TABLE}"),
        effective,
        routed,
        local,
    )
    if not asked.fallback:
        return seen
    host, port = FALLBACK_AT
    is_new = not find(MASTER, master, f"{host}:{port}/inet")
    inward, unlisted = _inward(others, seen, tables)
    return seen._replace(
        is_taken=is_new and is_taken(host, port), inward=inward, unlisted=unlisted
    )


def text_of(path: str) -> str:
    """Return the text of main.cf or master.cf.

    Raises:
        SetupError: It is not there, or cannot be read.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
    if text is None:
        raise SetupError(f"{path}: is not there: see -c DIR and MAIL_CONFIG")
    return text


class _Tables:
    """The lookup tables of a Postfix, by their names in main.cf."""

    def __init__(self, run: Callable[..., Ended]) -> None:
        self._run = run
        # A table with thousands of routes is compared with one of thousands of domains.
        self.listed = cache(self._listed)

    def look(self, key: str, table: str) -> str:
        """Return what *table* has for *key*, empty where it has nothing.

        Raises:
            SetupError: It cannot be asked.
        """
        try:
            return Postconf(self._run).filtered(key, [table])
        except ProgramError as error:
            raise SetupError(
                f"main.cf: {table} cannot be asked for {key}: {error}; so it is not known"
                " where its mail goes: mend that first"
            ) from error

    def has(self, key: str, table: str) -> str:
        """Return what `look` does, of a list of all where *table* has one."""
        known = self.listed(table)
        return self.look(key, table) if known is None else known.get(key, "")

    def _listed(self, table: str) -> dict[str, str] | None:
        """Return what is in *table*, by key; None where it does not say."""
        try:
            ended = self._run("postmap", "-s", table)
        except ProgramError:
            return None
        # A database in the network does not list what it has.
        if ended.status:
            return None
        rows = (line.partition("\t") for line in ended.out.splitlines())
        return {key: value for key, _, value in rows}


def _inward(
    routes: Sequence[str], seen: Seen, tables: _Tables
) -> tuple[list[str], list[str]]:
    """Return what the tables *routes* send to hosts of our own; see `Seen`."""
    names, effective = (*OWN_DOMAINS, "relay_domains"), seen.effective
    world = of_the_world(seen.services, effective)
    inward, unlisted = [], []
    for table in routes:
        listed = tables.listed(table)
        if listed is None:
            unlisted.append(table)
        for key, value in (listed or {}).items():
            transport, _, nexthop = value.partition(":")
            domain = key.rpartition("@")[2].lower()
            if transport != world or not nexthop or domain in {"", "*"}:
                continue
            if own(domain, effective, tables.has, tables.listed, names).name:
                inward.append(f"{key} {value} ({table})")
    return inward, unlisted
