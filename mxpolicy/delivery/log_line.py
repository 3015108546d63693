"""An event as one line of a log: Postfix's form, or JSON with the same facts.

Pure: values in, one printable line out, never longer than `MAX_LINE`. Whoever
writes it (`mxpolicy.delivery.log`) adds the time and the name of the program.

A recipient's line, the only one unless every step is logged::

    4bXyz1: to=<kim@example.com>, relay=mx2.example.com[192.0.2.2]:25,
    egress=direct, delay=1.7, delays=0.02/1.5/0.08/0.1, dsn=2.0.0, status=sent
    (250 2.0.0 Ok: queued as 4bXzA), tried=mx1.example.com[192.0.2.1]:25 filtered 1.5s

``delays`` are dns/reach/tls/transfer, in seconds. ``tried`` comes after the
text because it may be long, and is cut at its end: what matters stands first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from mxpolicy.delivery.events import (
    AccessJudged,
    CandidateDoubted,
    CandidateDropped,
    CandidateFailed,
    CandidateStarted,
    CandidateTaken,
    PhaseReached,
    Planned,
    Progressed,
    RecipientSettled,
    Secured,
    StrayReply,
    TlsWanted,
    Trouble,
    WorkedAround,
)
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import printable
from mxpolicy.routing.candidate import shown_of

if TYPE_CHECKING:
    from mxpolicy.delivery.events import Event
    from mxpolicy.outcome import Outcome
    from mxpolicy.routing.candidate import Candidate

    Facts = dict[str, object]

__all__ = ["MAX_LINE", "json_line", "text_line"]

# With what syslog and a file put before it, it stays under PIPE_BUF, 4096: then
# lines of several processes are never mixed, and no syslogd cuts them (RFC 5424
# §6.1 asks for 2048 and rsyslog takes 8192).
MAX_LINE = 4000

MAX_ADDRESS = 320  # RFC 5321 §4.5.3.1: 64 + 1 + 255
MAX_TEXT = 1000  # of an outcome; so that `tried` has room beside it
MAX_ID = 100


def text_line(event: Event) -> str:
    """Return *event* as a line in the form of Postfix's own: ``ID: key=value, …``."""
    words = _settled(event) if isinstance(event, RecipientSettled) else _step(event)
    return printable(f"{_identity(event)}: {words}", MAX_LINE)


def json_line(event: Event, time: str) -> str:
    """Return *event* as one JSON object in ASCII, at most `MAX_LINE` long.

    Args:
        time: When, as RFC 3339 says; taken as it is.
    """
    import json  # 30 million instructions, so only where JSON is wanted

    facts = {"time": time, "id": _identity(event), **_facts(event)}
    line = json.dumps(facts, separators=(",", ":"))
    while len(line) > MAX_LINE:
        _shorten(facts)
        line = json.dumps(facts, separators=(",", ":"))
    return line


# Postfix's form


def _settled(event: RecipientSettled) -> str:
    outcome = event.outcome
    delays = "/".join(map(_seconds, event.delays))
    tried = f", tried={'; '.join(event.tried)}" if event.tried else ""
    return (
        f"to=<{printable(event.recipient, MAX_ADDRESS)}>, relay={shown_of(outcome.relay)},"
        f" egress={event.egress}, delay={_seconds(event.at)}, delays={delays},"
        f" dsn={outcome.status}, status={_status(outcome)}"
        f" ({printable(outcome.text, MAX_TEXT)}){tried}"
    )


def _step(
    event: Planned
    | CandidateStarted
    | PhaseReached
    | Progressed
    | CandidateFailed
    | CandidateDoubted
    | WorkedAround
    | Secured
    | TlsWanted
    | StrayReply
    | CandidateDropped
    | CandidateTaken
    | AccessJudged
    | Trouble,
) -> str:
    at = f"at={_seconds(event.at)}"
    match event:
        case Planned(_, nexthop, candidates, remarks):
            remarked = f", remarks={'; '.join(remarks)}" if remarks else ""
            hosts = " ".join(map(str, candidates)) or "none"
            return f"planned, {at}, nexthop={nexthop}, candidates={hosts}{remarked}"
        case CandidateStarted(_, candidate):
            return f"started, {at}, candidate={_way(candidate)}"
        case PhaseReached(_, candidate, phase):
            return f"reached, {at}, candidate={_way(candidate)}, phase={phase.word}"
        case Progressed(_, candidate):
            return f"progressed, {at}, candidate={_way(candidate)}"
        case CandidateFailed(_, candidate, finding):
            said = f" ({finding.text})" if finding.text else ""
            return (
                f"failed, {at}, candidate={_way(candidate)}, phase={finding.phase.word},"
                f" verdict={finding.verdict.value}, waited={_seconds(finding.waited)}"
                f"{'' if finding.full else ', provisional'}{said}"
            )
        case CandidateDoubted(_, candidate, finding):
            return (
                f"doubted, {at}, candidate={_way(candidate)}, phase={finding.phase.word},"
                f" waited={_seconds(finding.waited)}"
            )
        case WorkedAround(_, candidate, small_segments, in_clear):
            return (
                f"worked around, {at}, candidate={_way(candidate)},"
                f" by={_detour(small_segments, in_clear)}"
            )
        case Secured(_, candidate):
            return f"secured, {at}, candidate={_way(candidate)}"
        case TlsWanted(_, candidate, text):
            return f"TLS wanted, {at}, candidate={_way(candidate)} ({text})"
        case StrayReply(_, candidate, text):
            return f"stray reply, {at}, candidate={_way(candidate)} ({text})"
        case CandidateDropped(_, candidate, phase):
            return f"dropped, {at}, candidate={_way(candidate)}, phase={phase.word}"
        case CandidateTaken(_, candidate):
            return f"taken, {at}, candidate={_way(candidate)}"
        case AccessJudged():
            return _judged(event)
        case Trouble(_, text):
            return f"trouble, {at} ({text})"
    assert_never(event)


def _judged(event: AccessJudged) -> str:
    found = "; ".join(event.found) or "nothing"
    return (
        f"access, delay={_seconds(event.at)}, state={event.protocol_state},"
        f" client={event.client}, from=<{printable(event.sender, MAX_ADDRESS)}>,"
        f" to=<{printable(event.recipient, MAX_ADDRESS)}>, found={found},"
        f" action={event.action}"
    )


def _way(candidate: Candidate) -> str:
    return f"{candidate}, egress={candidate.egress}"


# JSON. The names are those that `route`, `probe` and `hosts` will show.


def _facts(event: Event) -> Facts:
    at = round(event.at, 6)

    def of(candidate: Candidate, word: str, **more: object) -> Facts:
        return {"event": word, "at": at, **candidate.facts(), **more}

    match event:
        case RecipientSettled():
            return {"event": "settled", "at": at, **_settled_facts(event)}
        case Planned(_, nexthop, candidates, remarks):
            return {
                "event": "planned",
                "at": at,
                "nexthop": printable(nexthop, MAX_TEXT),
                "candidates": [one.facts() for one in candidates],
                "remarks": list(remarks),
            }
        case CandidateStarted(_, candidate):
            return of(candidate, "started")
        case PhaseReached(_, candidate, phase):
            return of(candidate, "reached", phase=phase.word)
        case Progressed(_, candidate):
            return of(candidate, "progressed")
        case CandidateFailed(_, candidate, finding):
            return of(
                candidate,
                "failed",
                phase=finding.phase.word,
                verdict=finding.verdict.value,
                waited=round(finding.waited, 6),
                full=finding.full,
                text=finding.text,
            )
        case CandidateDoubted(_, candidate, finding):
            waited = round(finding.waited, 6)
            return of(candidate, "doubted", phase=finding.phase.word, waited=waited)
        case WorkedAround(_, candidate, small_segments, in_clear):
            by = _detour(small_segments, in_clear)
            return of(candidate, "worked around", by=by)
        case Secured(_, candidate):
            return of(candidate, "secured")
        case TlsWanted(_, candidate, text):
            return of(candidate, "TLS wanted", text=text)
        case StrayReply(_, candidate, text):
            return of(candidate, "stray reply", text=text)
        case CandidateDropped(_, candidate, phase):
            return of(candidate, "dropped", phase=phase.word)
        case CandidateTaken(_, candidate):
            return of(candidate, "taken")
        case AccessJudged():
            return _judged_facts(event)
        case Trouble(_, text):
            return {"event": "trouble", "at": at, "text": printable(text, MAX_TEXT)}
    assert_never(event)


def _settled_facts(event: RecipientSettled) -> Facts:
    outcome = event.outcome
    delays = event.delays._asdict()
    return {
        "to": event.recipient[:MAX_ADDRESS],
        "relay": shown_of(outcome.relay),
        "egress": event.egress,
        "delay": round(event.at, 6),
        "delays": {name: round(value, 6) for name, value in delays.items()},
        "dsn": str(outcome.status),
        "status": _status(outcome),
        "text": printable(outcome.text, MAX_TEXT),
        "tried": list(event.tried),
    }


def _judged_facts(event: AccessJudged) -> Facts:
    return {
        "event": "access",
        "delay": round(event.at, 6),
        "state": event.protocol_state,
        "client": event.client,
        "from": event.sender[:MAX_ADDRESS],
        "to": event.recipient[:MAX_ADDRESS],
        "found": list(event.found),
        "action": event.action,
    }


def _shorten(facts: Facts) -> None:
    """Take from what is longest: lists lose their end first, counted as left out."""
    lists = {name: one for name, one in facts.items() if isinstance(one, list) and one}
    if not lists:
        texts = {name: one for name, one in facts.items() if isinstance(one, str)}
        name = max(texts, key=lambda one: len(texts[one]))
        facts[name] = texts[name][: len(texts[name]) // 2]
        return
    name = max(lists, key=lambda one: len(str(lists[one])))
    kept = len(lists[name]) * 4 // 5
    so_far = facts.get("left_out", 0)
    assert isinstance(so_far, int)
    facts["left_out"] = so_far + len(lists[name]) - kept
    facts[name] = lists[name][:kept]


# Words


def _identity(event: Event) -> str:
    return printable(event.queue_id, MAX_ID) or "NOQUEUE"


def _status(outcome: Outcome) -> str:
    """Return Postfix's word for it."""
    match outcome:
        case Delivered():
            return "sent"
        case Deferred():
            return "deferred"
        case Bounced():
            return "bounced"
    assert_never(outcome)


def _detour(small_segments: bool, in_clear: bool) -> str:
    words = ["small segments"] * small_segments + ["clear text"] * in_clear
    return " and ".join(words)


def _seconds(value: float) -> str:
    """Return *value* with as many places as matter: ``0.02``, ``1.5``, ``300``."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
