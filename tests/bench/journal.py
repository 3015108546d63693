"""What a durable note before the final dot costs, on a quick disk and on a slow one.

    python -m tests.bench journal [MESSAGES] [--rounds N] [--directory PATH]

Small messages to one quick host on loopback, by the engine alone, over sessions that are
used again: one at a time, then 20 at once. The state is in a file; `journal.durable` is
no or yes. A slow disk is made of a quick one. A library in front of libc's (LD_PRELOAD)
lets each fsync(2) and fdatasync(2) wait 10 or 50 ms before it is done, as a disk that
turns or a network may. It also counts them. All else, SQLite's commit and its
checkpoints among it, is as it is. Needs a C compiler, no root and no lab.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.replay import prevails
from mxpolicy.options import JournalOptions, Options
from mxpolicy.state.opening import open_store

from . import report
from .sessions import HAS_UVLOOP, deliver, serve_host

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDS = 3
AT_ONCE = (1, 20)
SLOWER_BY = (0, 10, 50)  # ms

LIBRARY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static long calls;

long slow_disk_calls(void) { return __atomic_load_n(&calls, __ATOMIC_SEQ_CST); }

static int slow(const char *name, int descriptor)
{
    int (*real)(int) = (int (*)(int)) dlsym(RTLD_NEXT, name);
    const char *delay = getenv("SLOW_DISK_MS");
    long ms = delay ? atol(delay) : 0;
    struct timespec wait = { ms / 1000, ms % 1000 * 1000000 };

    __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (ms)
        nanosleep(&wait, NULL);
    return real(descriptor);
}

int fsync(int descriptor) { return slow("fsync", descriptor); }
int fdatasync(int descriptor) { return slow("fdatasync", descriptor); }
"""


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        "python -m tests.bench journal", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("messages", nargs="?", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--directory", help="on the disk that is measured")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_measure(**json.loads(options.child))))
        return 0
    begun = time.monotonic()
    print(table(options.messages, options.rounds, options.directory))
    print(f"\n{report.circumstances(begun)}")
    return 0


def table(count: int, rounds: int, directory: str | None) -> str:
    """Return the table for *count* messages, the best of so many rounds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    host = context.Process(target=serve_host, args=(theirs,), daemon=True)
    host.start()
    port, rows = ours.recv(), []
    with tempfile.TemporaryDirectory() as built:
        library = _build(Path(built))
        for slower, at_once in product(SLOWER_BY, AT_ONCE):
            # One at a time each message waits for the disk.
            some = count if at_once > 1 or not slower else max(20, count // 10)
            found = {
                durable: min(
                    (
                        _in_child(library, slower, port, some, at_once, durable, where)
                        for where in [directory] * rounds
                    ),
                    key=lambda one: one["wall"],
                )
                for durable in (False, True)
            }
            rows += [_row(slower, at_once, one, found) for one in (False, True)]
    ours.send(False)
    host.join()
    loop = "uvloop" if HAS_UVLOOP else "asyncio"
    head = [f"the engine alone, {loop}", "`journal.durable`", "a second", "of no"]
    return report.table([*head, "processor time", "fsync a message"], rows)


def _row(
    slower: int, at_once: int, durable: bool, found: dict[bool, dict[str, float]]
) -> list[str]:
    one = found[durable]
    return [
        f"{f'each fsync {slower} ms slower' if slower else 'the disk as it is'},"
        f" {at_once} at once",
        "yes" if durable else "no",
        f"{1 / one['wall']:.0f}",
        report.ratio(found[False]["wall"], one["wall"]),
        report.seconds(one["processor"]),
        f"{one['syncs']:.2f}",
    ]


def _build(directory: Path) -> str:
    source, library = directory / "slow_disk.c", str(directory / "slow_disk.so")
    source.write_text(LIBRARY)
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", library, str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


def _in_child(
    library: str,
    slower: int,
    port: int,
    count: int,
    at_once: int,
    durable: bool,
    where: str | None,
) -> dict[str, float]:
    asked = {"port": port, "count": count, "at_once": at_once}
    child = json.dumps(asked | {"durable": durable, "where": where})
    command = [sys.executable, "-m", "tests.bench.journal", "--child", child]
    environ = os.environ | {"LD_PRELOAD": library, "SLOW_DISK_MS": f"{slower}"}
    done = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(
    *, port: int, count: int, at_once: int, durable: bool, where: str | None
) -> dict[str, float]:
    """Deliver; return what a message took: seconds, and calls of fsync."""
    calls = ctypes.CDLL(None).slow_disk_calls
    calls.restype = ctypes.c_long

    async def work() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=where) as directory:
            store = open_store(f"{directory}/state", _tell, prevails, stays=True)
            options = Options(
                helo="mail.example.com",
                allow_dial=("127.0.0.0/8",),
                journal=JournalOptions(durable=durable),
            )
            engine = Engine(Context(options, store=store, keeps_sessions=True))
            name = os.urandom(4).hex()
            await deliver(engine, port, [f"{name}w{one}" for one in range(20)], at_once)
            before = calls(), time.process_time(), time.monotonic()
            numbers = [f"{name}{one}" for one in range(count)]
            await deliver(engine, port, numbers, at_once)
            after = calls(), time.process_time(), time.monotonic()
            await engine.stop("the measurement is over")
            await store.close()
        used = [(one - other) / count for one, other in zip(after, before, strict=True)]
        return dict(zip(("syncs", "processor", "wall"), used, strict=True))

    new: Any = importlib.import_module("uvloop").new_event_loop if HAS_UVLOOP else None
    with asyncio.Runner(loop_factory=new) as runner:
        return runner.run(work())


def _tell(trouble: str) -> None:
    print(trouble, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
