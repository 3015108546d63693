"""``mxpolicy hosts``: what is remembered, as a table or as JSON; and ``hosts clear``.

It uses the state file that a delivery has made, and never makes one: most often root
runs it, and the user that deliveries run as could not write a file of root's.

`remembered` has what is known of each host, `destinations` puts that under the
destinations that the hosts take mail for.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from mxpolicy.config import load
from mxpolicy.errors import ConfigError, StoreError
from mxpolicy.hosts import destinations
from mxpolicy.hosts.remembered import EMPTY, Remembered, as_json, clear, read, show
from mxpolicy.state.opening import state_file
from mxpolicy.state.store import StoreAbsent
from mxpolicy.terminal import shown_by, write_out

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Sequence

    from mxpolicy.routing.domain_record import DomainRecord
    from mxpolicy.state.store import Store

__all__ = ["main", "parser"]

T = TypeVar("T")


def main(argv: Sequence[str]) -> int:
    """Show or clear what is remembered, as *argv* asks.

    Returns:
        0; 1 when the file cannot be used. Leaves by `SystemExit` with 2 on a wrong
        command line.
    """
    arguments = parser().parse_args(argv)
    clears, key = arguments.action == "clear", arguments.key
    found: dict[str, Remembered] = {}
    domains: dict[str, DomainRecord] = {}
    try:
        options = load(arguments.config, os.environ)
        path = state_file(options.state, os.environ)
        # Without a file nothing is remembered, nor in one of an earlier version.
        with suppress(FileNotFoundError, NotADirectoryError, StoreAbsent):
            os.lstat(path)
            if clears:
                count = asyncio.run(_use(path, lambda store: clear(store, key), True))
                print(f"{count} forgotten")
                return 0
            found = asyncio.run(_use(path, read))
            if arguments.by_destination:
                domains = asyncio.run(_use(path, destinations.read))
    except (ConfigError, StoreError) as error:
        print(f"mxpolicy: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"mxpolicy: {path}: cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    if clears:
        print(EMPTY)
        return 0
    now = time.time()
    if arguments.by_destination:
        sorted_out = destinations.sort_out(found, domains)
        write_out(
            arguments,
            lambda: destinations.as_json(sorted_out, now, options.memory),
            lambda terminal: destinations.show(
                sorted_out, now, options.memory, terminal
            ),
        )
        return 0
    write_out(
        arguments,
        lambda: as_json(found, now, options.memory),
        lambda terminal: show(found, now, options.memory, terminal),
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = shown_by(
        "hosts",
        "Show what is remembered of hosts, or forget it.",
        "KEY is a host's name, an address, ADDRESS:PORT or a nexthop; without it"
        " everything is forgotten.",
    )
    made.add_argument(
        "--by-destination",
        action="store_true",
        help="under each destination that took mail lately, its hosts",
    )
    made.add_argument("action", nargs="?", choices=["show", "clear"], default="show")
    made.add_argument("key", nargs="?", metavar="KEY", help="what to clear")
    return made


async def _use(
    path: str, work: Callable[[Store], Awaitable[T]], changes: bool = False
) -> T:
    """Return what *work* makes of the store in the file *path*."""
    from mxpolicy.state.sqlite import SqliteStore
    from mxpolicy.state.trust import Trust

    # SQLite gives what root adds beside the file to the file's owner.
    trust = Trust.OURS if changes and os.geteuid() else Trust.READ
    store = SqliteStore(path, create=False, read_only=not changes, trust=trust)
    try:
        return await work(store)
    finally:
        await store.close()
