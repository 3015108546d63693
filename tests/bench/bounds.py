"""What a daemon keeps by host, domain or message: each bound, and the memory of a row.

    python -m tests.bench bounds

Needs no root and no lab. Each thing is filled to its bound, or to ten thousand rows, with
what a domain of two hosts leaves, each with an address of both families; the memory is
what Python allocates for it (`tracemalloc`). What is open to a host is bounded by
`limits.connections`, and measured by `python -m tests.bench daemon_memory`.
"""

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mxpolicy.delivery import destinations, events, kick
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.plan import Plan
from mxpolicy.net import dns_cache
from mxpolicy.options import KickOptions, Options, TlsLevel
from mxpolicy.routing import deferred_mail, kept_findings
from mxpolicy.routing.candidate import Candidate
from mxpolicy.routing.host_record import KEPT, HostRecord, encode
from mxpolicy.routing.known_hosts import KnownHosts
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord
from mxpolicy.state import memory
from mxpolicy.state.store import HEAVY, JOURNAL

from . import report

FILL = 10_000

# As long as what the journal keeps of a delivered recipient with the host's reply.
ENTRY = 180


class Kept(NamedTuple):
    """A thing that is kept.

    Attributes:
        what: Its name.
        bound: How many rows.
        fill: Makes it with so many rows.
    """

    what: str
    bound: int
    fill: Callable[[int], object]


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table."""
    argparse.ArgumentParser(
        prog="python -m tests.bench bounds", description=(__doc__ or "").split("\n")[0]
    ).parse_args(arguments)
    begun = time.monotonic()
    rows = []
    whole = 0.0
    for one in THINGS:
        each = _bytes_each(one.fill, min(one.bound, FILL))
        whole += each * one.bound
        size = report.mebibytes(each * one.bound / 1024)
        rows.append((one.what, f"{one.bound:,}", f"{each:.0f}", size))
    rows.append(("all of them", "", "", report.mebibytes(whole / 1024)))
    print(report.table(("kept", "rows at most", "bytes a row", "in all"), rows))
    print(f"\n{report.circumstances(begun)}")
    return 0


def _bytes_each(fill: Callable[[int], object], count: int) -> float:
    fill(1)  # what is made once
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    there = fill(count)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del there
    return (after - before) / count


# --- what a domain leaves -------------------------------------------------------------


def _plan(number: int) -> Plan:
    domain = f"domain-{number}.example"
    candidates, lookups = [], []
    hosts = [f"mx{which}.{domain}" for which in (1, 2)]
    records = tuple(MxRecord(10 * n, host) for n, host in enumerate(hosts))
    lookups.append(Lookup(domain, "MX", LookupStatus.FOUND, records, ttl=3600.0))
    for which, host in enumerate(hosts):
        v4 = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        v6 = f"2001:db8:{number:x}::{which + 1:x}"
        for kind, address in (("AAAA", v6), ("A", v4)):
            found = LookupStatus.FOUND
            lookups.append(Lookup(host, kind, found, (address,), ttl=3600.0))
            candidates.append(Candidate(host, address, 25, 10 * which))
    return Plan(domain, tuple(candidates), lookups=tuple(lookups), aim=domain)


def _hosts(count: int) -> object:
    rows = memory.MemoryStore().rows
    for number in range(count):
        record = HostRecord(
            connect_time=0.021,
            greeting_latency=0.184,
            last_ready=1.7e9,
            name=f"mx1.domain-{number}.example",
        )
        key = f"host direct 10.{number >> 16}.{number >> 8 & 255}.{number & 255}:25"
        rows.put(key, encode(record), time.time() + KEPT, None, False)
    return rows


def _journal(count: int) -> object:
    rows = memory.MemoryStore().rows
    for number in range(count):
        value = bytes(bytearray(ENTRY))
        rows.put(f"{JOURNAL}{number:064x}", value, time.time() + KEPT, HEAVY, False)
    return rows


def _answers(count: int) -> object:
    cache = dns_cache.Cache()
    for number in range(count // 5 + 1):
        for lookup in _plan(number).lookups:
            cache.put(lookup, 0.0)
    return cache


def _findings(count: int) -> object:
    findings: kept_findings.KeptFindings[Plan] = kept_findings.KeptFindings()
    for number in range(count):
        plan = _plan(number)
        kept = kept_findings.Kept(
            kept_findings.Found(),
            plan,
            len(plan.candidates),
            number + 300.0,
            number + 1.0,
        )
        findings.keep(plan.nexthop, kept)
    return findings


def _destinations(count: int) -> object:
    known = destinations.Destinations()
    for number in range(count):
        plan = _plan(number)
        nothing = KnownHosts(plan.candidates)
        known.learn(
            plan.nexthop,
            plan.nexthop,
            plan,
            nothing,
            known_until=1e9,
            now=float(number),
            tls=TlsLevel.MAY,
        )
    return known


def _under_way(count: int) -> object:
    context = Context(Options(kick=KickOptions(("/bin/true",))))
    one = kick.Kick(lambda: context, lambda event: None)
    for number in range(count):
        plan = _plan(number)
        one.observe(
            events.Planned(0.0, plan.nexthop, plan.candidates, (), f"4Zb{number:07}")
        )
    return one


def _deferred(count: int) -> object:
    mail = deferred_mail.DeferredMail()
    for number in range(count):
        who = deferred_mail.Waiting(f"4Zb{number:07}", f"user@domain-{number}.example")
        mail.deferred(who, _plan(number).candidates, 0.0)
    return mail


THINGS = (
    Kept("hosts, without a file", memory.MAX_ROWS, _hosts),
    Kept("the journal, without a file", memory.MAX_ROWS, _journal),
    Kept("answers of DNS", dns_cache.MAX_ENTRIES, _answers),
    Kept("access policy and LMTP: findings", kept_findings.MAX_KEPT, _findings),
    Kept("fast path: destinations", destinations.MOST, _destinations),
    Kept("kick: messages under way", kick.UNDER_WAY, _under_way),
    Kept(
        "kick: recipients deferred",
        min(deferred_mail.RECIPIENTS, deferred_mail.HOSTS // 4),
        _deferred,
    ),
)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
