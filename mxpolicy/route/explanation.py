"""A plan with its reasons: when each candidate starts, and what is worth knowing. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.hosts.remembered import SCHEMA, Remembered, candidate_json
from mxpolicy.outcome import EXIT_BOUNCE, EXIT_DEFER, EXIT_DELIVERED, Bounced, Deferred
from mxpolicy.reply import printable
from mxpolicy.routing.mx import LookupStatus
from mxpolicy.routing.order import MAX_ADDRESSES
from mxpolicy.routing.race import Race, Start, Wake

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mxpolicy.delivery.forecast import Forecast
    from mxpolicy.delivery.plan import Plan
    from mxpolicy.options import Options
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.mx import Lookup

__all__ = [
    "Explained",
    "Remark",
    "answer_text",
    "as_json",
    "exit_status",
    "explain",
    "starts",
]

# How a refusal ends: the action, and the exit status of ``mxpolicy pipe``.
_ENDS = {
    type(None): ("deliver", EXIT_DELIVERED),
    Deferred: ("defer", EXIT_DEFER),
    Bounced: ("bounce", EXIT_BOUNCE),
}

_UNRESOLVED = (
    "cannot be looked up, and is better: what worse hosts refuse does not bounce until"
    " that has lasted for an hour"
)


class Remark(NamedTuple):
    """One thing worth knowing about a plan.

    Attributes:
        about: ``dns``, ``implicit_mx``, ``unresolved``, ``own``, ``left_out``,
            ``order``, ``memory``, ``start``.
        text: One printable line.
        facts: The same for machines: further members of the JSON object.
    """

    about: str
    text: str
    facts: Mapping[str, object] = {}


class Explained(NamedTuple):
    """A plan with its reasons.

    Attributes:
        forecast: The plan, and what is remembered.
        options: It was made by these.
        starts: When each candidate is dialled; see `starts`.
        remarks: What is worth knowing beside the candidates.
    """

    forecast: Forecast
    options: Options
    starts: Mapping[Candidate, float]
    remarks: Sequence[Remark]

    def remembered(self, candidate: Candidate) -> Remembered:
        """Return *candidate* with what is remembered of it."""
        plan, known = self.forecast
        return Remembered(
            candidate,
            known.record(candidate),
            plan.nexthop if known.is_limited(candidate) else "",
            known.of_tls.get(candidate),
        )


def explain(
    forecast: Forecast,
    options: Options,
    sender: str,
    recipient: str,
    troubles: Sequence[str] = (),
) -> Explained:
    """Return the plan of *forecast* with its reasons.

    Args:
        forecast: The plan, and what is remembered.
        options: It was made by these.
        sender: Printable.
        recipient: Printable; empty when not known.
        troubles: Why nothing can be read of what is remembered.
    """
    plan = forecast.plan
    when = starts(forecast, options)
    remarks = [
        *map(_dns, plan.lookups),
        *_implicit(plan.lookups),
        *(Remark("left_out", remark) for remark in plan.remarks),
        *(
            Remark("unresolved", f"{one.name} {_UNRESOLVED}", {"name": one.name})
            for one in plan.unresolved
        ),
        *_worse_than_own(plan),
        *_not_kept(plan),
    ]
    if _has_equals(plan.candidates):
        text = (
            "hosts of one preference are shuffled, alike for the retries of some hours"
        )
        if recipient:
            text += f"; this is the order for <{sender}> to <{recipient}>"
        remarks.append(Remark("order", text))
    remarks += _memory(forecast, options)
    if when:
        times = [when.get(one) for one in plan.candidates]
        seconds = [None if time is None else round(time, 3) for time in times]
        text = "when each candidate is dialled if no host answers, in seconds"
        remarks.append(Remark("start", text, {"seconds": seconds}))
    remarks += [Remark("memory", printable(text, 500)) for text in troubles]
    return Explained(forecast, options, when, remarks)


def starts(forecast: Forecast, options: Options) -> dict[Candidate, float]:
    """Return when each candidate would be dialled, in seconds, if no host answers.

    It comes from a real race in which nothing happens. A candidate without a time would
    not be dialled in one attempt.
    """
    plan, known = forecast
    found: dict[Candidate, float] = {}
    if plan.refusal is not None:
        return found
    entries = [known.entrant(candidate) for candidate in plan.candidates]
    race = Race(entries, options.race, options.deadline)
    now = 0.0
    actions = race.begin(now)
    while True:
        for action in actions:
            if isinstance(action, Start):
                found.setdefault(action.candidate, now)
        wakes = [one.at for one in actions if isinstance(one, Wake)]
        if not wakes:
            return found
        now = max(now, wakes[0])
        actions = race.wake(now)


def exit_status(plan: Plan) -> int:
    """Return 0 when there is a host to dial, else what ``mxpolicy pipe`` would return."""
    return _ENDS[type(plan.refusal)][1]


def as_json(explained: Explained) -> dict[str, object]:
    """Return the plan in the shape of route and hosts, without empty members."""
    plan, options = explained.forecast.plan, explained.options
    refusal = plan.refusal
    whole: dict[str, object] = {
        "schema": SCHEMA,
        "nexthop": printable(plan.nexthop),
        "findings": [
            {"about": one.about, "text": one.text, **one.facts}
            for one in explained.remarks
        ],
        "candidates": [
            candidate_json(
                explained.remembered(one),
                explained.forecast.known.at,
                options.memory,
                options.tls.default.value,
            )
            for one in plan.candidates
        ],
        "action": _ENDS[type(refusal)][0],
    }
    if refusal is not None:
        whole |= {"status": str(refusal.status), "text": refusal.text}
    return whole


def _memory(forecast: Forecast, options: Options) -> Iterator[Remark]:
    """Say what happens now when every host has failed lately."""
    fast = options.memory.fast_deferral
    if forecast.known.is_hopeless:
        text = "every host has failed and is in its pause"
        said = "mail is deferred at once" if fast else "all are asked again"
        setting = f"memory.fast_deferral: {'yes' if fast else 'no'}"
        yield Remark("memory", f"{text}: {said} ({setting})")
    elif not forecast.known.has_other and fast:
        text = "every host has failed; one message of all asks them again, the others"
        yield Remark("memory", f"{text} wait 15 s at most for what it finds")


def _dns(lookup: Lookup) -> Remark:
    facts: dict[str, object] = {
        "name": lookup.name,
        "type": lookup.rdtype,
        "answer": lookup.status.value,
        "records": _records(lookup),
        "secure": lookup.secure,
    }
    text = f"{lookup.rdtype} {lookup.name}: {answer_text(lookup)}"
    return Remark("dns", text, facts)


def answer_text(lookup: Lookup) -> str:
    """Return what DNS said, printable."""
    match lookup.status:
        case LookupStatus.FAILED:
            return f"no answer that can be believed ({printable(lookup.reason)})"
        case LookupStatus.NODATA:
            said = "no such record"
        case LookupStatus.NXDOMAIN:
            said = "no such name"
        case LookupStatus.FOUND:
            said = ", ".join(_records(lookup))
    return f"{said} ({'secure' if lookup.secure else 'not secure'})"


def _records(lookup: Lookup) -> list[str]:
    exchanges = sorted(lookup.exchanges)
    return [f"{p} {printable(name)}" for p, name in exchanges] or list(lookup.addresses)


def _implicit(lookups: Sequence[Lookup]) -> Iterator[Remark]:
    absent = {LookupStatus.NODATA, LookupStatus.NXDOMAIN}
    for lookup in lookups:
        if lookup.rdtype == "MX" and lookup.status in absent:
            text = f"{lookup.name} has no MX record and stands for itself"
            yield Remark("implicit_mx", f"{text} (implicit MX, RFC 5321 5.1)")


def _worse_than_own(plan: Plan) -> Iterator[Remark]:
    """Name the hosts that were left out because we are in the list ourselves."""
    mine = plan.own_preference
    # In a list of nexthops the MX records may be those of another one.
    if mine is None or "," in plan.nexthop:
        return
    found = [one for lookup in plan.lookups for one in lookup.exchanges]
    names = [f"{p} {printable(name)}" for p, name in sorted(found) if p >= mine]
    if names:
        text = f"left out, not better than this system itself: {', '.join(names)}"
        yield Remark("own", f"{text} (RFC 5321 5.1)", {"preference": mine})


def _not_kept(plan: Plan) -> Iterator[Remark]:
    """Say which addresses are tried as another host's, and whether there are too many."""
    tried_as = {one.address: one.host for one in plan.candidates}
    for lookup in plan.lookups:
        for address in lookup.addresses:
            other = tried_as.get(address, lookup.name)
            if other != lookup.name:
                text = f"{lookup.name}[{address}] is tried once, as {other}"
                yield Remark("left_out", text)
    if len(plan.candidates) == MAX_ADDRESSES:
        text = f"no more than {MAX_ADDRESSES} addresses are kept, the first of every"
        yield Remark("left_out", f"{text} host before the second of any")


def _has_equals(candidates: Sequence[Candidate]) -> bool:
    hosts = {(one.rank, one.host) for one in candidates}
    return len(hosts) > len({rank for rank, _ in hosts})
