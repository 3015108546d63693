"""``mxpolicy hosts``: what is remembered, as a table or as JSON; and ``hosts clear``.

Reads the state file that the mail server's user has made, and never makes one:
root, who will call this most often, would make one that this user cannot write.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.config import load
from mxpolicy.delivery.host_memory import HOST, NEXTHOP, TLS
from mxpolicy.delivery.leases import LEASED
from mxpolicy.errors import ConfigError, StoreError
from mxpolicy.remembered import facts, sentences
from mxpolicy.reply import printable
from mxpolicy.routing import broken_tls
from mxpolicy.routing.host_record import NOTHING, HostRecord, decode
from mxpolicy.state.opening import state_file
from mxpolicy.state.store import StoreAbsent
from mxpolicy.terminal import BOLD, Terminal, reader_may_leave

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mxpolicy.options import MemoryOptions
    from mxpolicy.routing.broken_tls import BrokenTls
    from mxpolicy.state.store import Store, Stored

__all__ = ["Entry", "as_json", "clear", "entries", "main", "show"]

SCHEMA = 1

Json = dict[str, object]


class Entry(NamedTuple):
    """One thing remembered.

    Attributes:
        key: In the store.
        egress: The way out.
        address: Of the host.
        port: TCP port.
        nexthop: What it is limited to; empty for what holds for all mail.
        record: What is remembered.
        tls: What is known of broken STARTTLS; then there is nothing else.
    """

    key: str
    egress: str
    address: str
    port: int
    nexthop: str
    record: HostRecord
    tls: BrokenTls | None = None

    def has_name(self, name: str) -> bool:
        """Return whether an operator may mean this one by *name*."""
        name = name.lower().rstrip(".")
        place = f"[{self.address}]" if ":" in self.address else self.address
        return bool(name) and name in {
            self.record.name,
            self.address,
            f"{place}:{self.port}",
            self.nexthop,
        }


def main(argv: Sequence[str]) -> int:
    """Show or clear what is remembered, as *argv* asks.

    Returns:
        0; 1 when the file cannot be used, or there is nothing to clear. Leaves by
        `SystemExit` with 2 on a wrong command line.
    """
    arguments = _parser().parse_args(argv)
    try:
        options = load(arguments.config, os.environ)
    except ConfigError as error:
        print(f"mxpolicy: {error}", file=sys.stderr)
        return 1
    path = state_file(options.state, os.environ)
    try:
        if arguments.action == "clear":
            return asyncio.run(_clear(path, arguments.key))
        # Without a file nothing has been remembered yet.
        found = asyncio.run(_read(path)) if os.path.lexists(path) else []
    except StoreError as error:
        print(f"mxpolicy: {error}", file=sys.stderr)
        return 1
    now = time.time()
    with reader_may_leave():
        if arguments.json:
            print(json.dumps(as_json(found, now, options.memory), indent=2))
        else:
            show(found, now, options.memory, Terminal(sys.stdout, os.environ))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mxpolicy hosts",
        description="Show what is remembered of hosts, or forget it.",
        epilog="KEY is a host's name, an address, ADDRESS:PORT or a nexthop; "
        "without it everything is forgotten.",
        allow_abbrev=False,
    )
    parser.add_argument("action", nargs="?", choices=["show", "clear"], default="show")
    parser.add_argument("key", nargs="?", metavar="KEY", help="what to clear")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--config", metavar="FILE", help="the configuration")
    return parser


# -- the store -----------------------------------------------------------------


async def _read(path: str) -> list[Entry]:
    from mxpolicy.state.sqlite import SqliteStore
    from mxpolicy.state.trust import Trust

    store = SqliteStore(path, create=False, read_only=True, trust=Trust.READ)
    try:
        return await entries(store)
    except StoreAbsent:
        return []  # of an earlier version, or gone by now
    finally:
        await store.close()


async def _clear(path: str, key: str | None) -> int:
    from mxpolicy.state.sqlite import SqliteStore
    from mxpolicy.state.trust import Trust

    # What root adds beside the file belongs to its owner, by the library's own care.
    trust = Trust.OURS if os.geteuid() else Trust.READ
    store = SqliteStore(path, create=False, trust=trust)
    try:
        count = await clear(store, key)
    finally:
        await store.close()
    print(f"{count} forgotten")
    return 0 if count or key is None else 1


async def entries(store: Store) -> list[Entry]:
    """Return what *store* has about hosts, what holds for all first."""
    prefixes = HOST, NEXTHOP, TLS
    rows = [row for prefix in prefixes for row in await store.scan(prefix)]
    found = [_entry(row) for row in rows]
    return [one for one in found if one is not None]


def _entry(row: Stored) -> Entry | None:
    head, _, tail = row.key.rpartition(HOST)
    words = tail.split(" ")
    if len(words) != 3 or not words[2].isdecimal():
        return None
    egress, address, port = words[0], words[1], int(words[2])
    if head.startswith(TLS):
        named = NOTHING._replace(name=head.removeprefix(TLS).rstrip(" "))
        tls = broken_tls.decode(row.value)
        return Entry(row.key, egress, address, port, "", named, tls)
    nexthop = head.removeprefix(NEXTHOP).rstrip(" ")
    return Entry(row.key, egress, address, port, nexthop, decode(row.value))


async def clear(store: Store, name: str | None) -> int:
    """Forget what *name* means, or everything; return how much that was."""
    chosen = [one for one in await entries(store) if name is None or one.has_name(name)]
    for one in chosen:
        await store.delete(one.key)
        await store.delete(LEASED + one.key)
    return len(chosen)


# -- for people ------------------------------------------------------------------


def show(
    found: Sequence[Entry], now: float, options: MemoryOptions, terminal: Terminal
) -> None:
    """Write *found* as a table, those that fail first."""
    if not found:
        terminal.line("Nothing is remembered.")
        return
    ordered = sorted(found, key=lambda one: (one.record.verdict is None, one.key))
    failing = sum(one.record.verdict is not None for one in found)
    terminal.line(
        terminal.paint(f"{len(found)} remembered, {failing} of them as failing", BOLD)
    )
    heads = ("host", "address", "connects", "greets", "what is known")
    rows = [heads, *(_row(one, now, options) for one in ordered)]
    terminal.table(rows, right=(2, 3))


def _row(one: Entry, now: float, options: MemoryOptions) -> tuple[str, ...]:
    place = f"[{one.address}]" if ":" in one.address else one.address
    way = "" if one.egress == "direct" else f" by {one.egress}"
    return (
        one.record.name or "-",
        f"{place}:{one.port}{way}",
        _milliseconds(one.record.connect_time),
        _milliseconds(one.record.greeting_latency),
        printable("; ".join(_sentences(one, now, options))),
    )


def _sentences(one: Entry, now: float, options: MemoryOptions) -> list[str]:
    return sentences(one.record, now, options, one.nexthop, one.tls)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


# -- for machines ------------------------------------------------------------------


def as_json(found: Sequence[Entry], now: float, options: MemoryOptions) -> Json:
    """Return *found* in the shape that ``route`` and ``probe`` have, too."""
    return {
        "schema": SCHEMA,
        "candidates": [_facts(one, now, options) for one in found],
    }


def _facts(one: Entry, now: float, options: MemoryOptions) -> Json:
    whose: dict[str, object | None] = {
        "egress": one.egress,
        "host": one.record.name or None,
        "address": one.address,
        "port": one.port,
        "nexthop": one.nexthop or None,
    }
    known = {name: value for name, value in whose.items() if value is not None}
    return {**known, **facts(one.record, now, options, one.tls)}
