"""An event as one line of a log: Postfix's form, or JSON with the same facts.

Pure: values in, one printable line out, never longer than `MAX_LINE`.
`mxpolicy.delivery.log`, which writes it, adds the time and the name of the program.

A recipient's line, the only one unless every step is logged::

    4bXyz1: to=<kim@example.com>, relay=mx2.example.com[192.0.2.2]:25,
    egress=direct, tls=TLSv1.3/TLS_AES_256_GCM_SHA384, delay=1.7,
    delays=0.02/1.5/0.08/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4bXzA),
    tried=mx1.example.com[192.0.2.1]:25 filtered 1.5s

``delays`` are dns/reach/tls/transfer, in seconds. ``tried`` comes last, because it may be
long, and a line that is too long is cut at its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from mxpolicy.delivery.events import (
    AccessJudged,
    CandidateDoubted,
    CandidateDropped,
    CandidateFailed,
    CandidateLeft,
    CandidateStarted,
    CandidateTaken,
    HostRecovered,
    LateReplyEnded,
    Notice,
    PhaseReached,
    Planned,
    Progressed,
    RecipientSettled,
    Secured,
    SessionReplaced,
    SessionReused,
    StrayReply,
    TlsWanted,
    Trouble,
    WorkedAround,
)
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Candidate, egress_of, shown_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.delivery.events import Event
    from mxpolicy.routing.candidate import Candidate

    Facts = dict[str, object]

__all__ = ["MAX_LINE", "json_line", "text_line"]

# With what syslog and a file put before it, a line stays under PIPE_BUF, 4096. So lines
# of several processes never mix, and no syslogd cuts them (RFC 5424 §6.1 asks for 2048
# and rsyslog takes 8192).
MAX_LINE = 4000

MAX_ADDRESS = 320  # RFC 5321 §4.5.3.1: 64 + 1 + 255
MAX_TEXT = 1000  # of an outcome; so that `tried` has room beside it
MAX_ID = 100
MAX_STATE = 20

# The words for what happened at a candidate.
_WORDS = {
    CandidateStarted: "started",
    PhaseReached: "reached",
    Progressed: "progressed",
    CandidateFailed: "failed",
    CandidateDoubted: "doubted",
    WorkedAround: "worked around",
    Secured: "secured",
    SessionReused: "session reused",
    SessionReplaced: "session replaced",
    TlsWanted: "TLS wanted",
    StrayReply: "stray reply",
    CandidateDropped: "dropped",
    CandidateTaken: "taken",
    CandidateLeft: "left",
    HostRecovered: "recovered",
    LateReplyEnded: "late reply",
}

# Postfix's words.
_STATUS = {Delivered: "sent", Deferred: "deferred", Bounced: "bounced"}


def text_line(event: Event) -> str:
    """Return *event* as a line in the form of Postfix's own: ``ID: key=value, …``."""
    facts = _facts(event)
    if isinstance(event, RecipientSettled):  # Postfix's line has neither
        del facts["event"], facts["at"]
    words = "".join(_as_text(name, value) for name, value in facts.items())
    return printable(f"{_identity(event)}: {words.removeprefix(', ')}", MAX_LINE)


def json_line(event: Event, time: str) -> str:
    """Return *event* as one JSON object in ASCII, at most `MAX_LINE` long.

    Args:
        time: When, as RFC 3339 says; taken as it is.
    """
    import json  # 30 million instructions, so only where JSON is wanted

    facts: Facts = {"time": time, "id": _identity(event)}
    for name, value in _facts(event).items():
        facts |= _as_json(name, value)
    line = json.dumps(facts, separators=(",", ":"))
    while len(line) > MAX_LINE:
        _shorten(facts)
        line = json.dumps(facts, separators=(",", ":"))
    return line


def _facts(event: Event) -> Facts:
    """Return the facts of *event*, in the order of both formats, not yet formatted."""

    def of(candidate: Candidate, **more: object) -> Facts:
        word = _WORDS[type(event)]
        return {"event": word, "at": event.at, "candidate": candidate, **more}

    match event:
        case RecipientSettled(at, recipient, outcome, delays, tried, _, tls):
            return {
                "event": "settled",
                "at": at,
                "to": recipient,
                "relay": shown_of(outcome.relay),
                "egress": egress_of(outcome.relay),
                "tls": tls,
                "delay": at,
                "delays": delays,
                "dsn": str(outcome.status),
                "status": _STATUS[type(outcome)],
                "text": printable(outcome.text, MAX_TEXT),
                "tried": tried,
            }
        case Planned(at, nexthop, candidates, remarks):
            return {
                "event": "planned",
                "at": at,
                "nexthop": nexthop,
                "candidates": candidates,
                "remarks": remarks,
            }
        case (
            CandidateStarted(_, candidate)
            | Progressed(_, candidate)
            | Secured(_, candidate)
            | SessionReused(_, candidate)
            | CandidateTaken(_, candidate)
            | CandidateLeft(_, candidate)
        ):
            return of(candidate)
        case PhaseReached(_, candidate, phase) | CandidateDropped(_, candidate, phase):
            return of(candidate, phase=phase.word)
        case (
            TlsWanted(_, candidate, text)
            | StrayReply(_, candidate, text)
            | SessionReplaced(_, candidate, text)
        ):
            return of(candidate, text=text)
        case CandidateFailed(_, candidate, finding):
            return of(
                candidate,
                phase=finding.phase.word,
                verdict=finding.verdict.value,
                waited=finding.waited,
                full=finding.full,
                text=finding.text,
            )
        case CandidateDoubted(_, candidate, finding):
            return of(candidate, phase=finding.phase.word, waited=finding.waited)
        case LateReplyEnded(_, candidate, recipient, is_taken, text):
            has_it = "yes" if is_taken else "no"
            text = printable(text, MAX_TEXT)
            return of(candidate, to=recipient, taken=has_it, text=text)
        case WorkedAround(_, candidate, small_segments, in_clear):
            ways = ["small segments"] * small_segments + ["clear text"] * in_clear
            return of(candidate, by=" and ".join(ways))
        case HostRecovered(_, candidate, messages):
            return of(candidate, messages=messages)
        case AccessJudged():
            return {
                "event": "access",
                "delay": event.at,
                "state": printable(event.protocol_state, MAX_STATE),
                "client": event.client,
                "from": event.sender,
                "to": event.recipient,
                "found": event.found,
                "action": event.action,
            }
        case Trouble(at, text):
            return {"event": "trouble", "at": at, "text": _in_one_line(text)}
        case Notice(at, text):
            return {"event": "notice", "at": at, "text": _in_one_line(text)}
    assert_never(event)


def _as_text(name: str, value: Any) -> str:
    """Return a fact as Postfix would write it, with the separator before it."""
    formatted = _AS_TEXT.get(name)
    return f", {name}={value}" if formatted is None else formatted(name, value)


def _seconds_as_text(name: str, value: float) -> str:
    return f", {name}={_seconds(value)}"


def _address_as_text(name: str, value: str) -> str:
    return f", {name}=<{printable(value, MAX_ADDRESS)}>"


def _list_as_text(name: str, value: Sequence[str]) -> str:
    return f", {name}={'; '.join(value)}" if value else ""


# Facts that are not written as ``name=value``.
_AS_TEXT: dict[str, Callable[[str, Any], str]] = {
    "event": lambda name, value: f", {value}",
    "text": lambda name, value: f" ({value})" if value else "",
    "tls": lambda name, value: f", {name}={value}" if value else "",
    "full": lambda name, value: "" if value else ", provisional",
    "candidate": lambda name, value: f", {name}={value}, egress={value.egress}",
    "candidates": lambda name, value: f", {name}={' '.join(map(str, value)) or 'none'}",
    "found": lambda name, value: f", {name}={'; '.join(value) or 'nothing'}",
    "tried": _list_as_text,
    "remarks": _list_as_text,
    "to": _address_as_text,
    "from": _address_as_text,
    "delays": lambda name, value: f", {name}={'/'.join(map(_seconds, value))}",
    "at": _seconds_as_text,
    "delay": _seconds_as_text,
    "waited": _seconds_as_text,
}


def _as_json(name: str, value: Any) -> Facts:
    """Return a fact as JSON has it: one member, or for a candidate several.

    The names are those that ``route`` and ``hosts`` show.
    """
    match name:
        case "candidate":
            assert isinstance(value, Candidate)
            return value.facts()
        case "candidates":
            value = [_as_json("candidate", one) for one in value]
        case "tried" | "remarks" | "found":
            value = list(value)
        case "to" | "from":
            value = value[:MAX_ADDRESS]
        case "text" | "nexthop":
            value = printable(value, MAX_TEXT)
        case "delays":
            value = {
                part: round(seconds, 6) for part, seconds in value._asdict().items()
            }
        case "at" | "delay" | "waited":
            value = round(value, 6)
        case _:
            pass
    return {name: value}


def _shorten(facts: Facts) -> None:
    """Cut the longest fact: first the lists, whose lost items are counted as left out."""
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


def _in_one_line(text: str) -> str:
    """Return our own *text*, a traceback perhaps, with its lines behind each other."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _identity(event: Event) -> str:
    return printable(event.queue_id, MAX_ID) or "NOQUEUE"


def _seconds(value: float) -> str:
    """Return *value* with as many places as matter: ``0.02``, ``1.5``, ``300``."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
