"""What each host of a story did and when, put together from the steps in the log.

Pure: steps go in with their time, and a `Track` for each host comes out, from
which the screen draws. `narrate` says a step in one line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from mxpolicy.routing.candidate import Phase, Verdict

__all__ = ["Ending", "Step", "StepKind", "Timeline", "Track", "narrate"]


class StepKind(Enum):
    """What a line of the log is about; the values are the log's own words."""

    PLANNED = "planned"
    STARTED = "started"
    REACHED = "reached"
    FAILED = "failed"
    DROPPED = "dropped"
    TAKEN = "taken"
    SETTLED = "settled"
    TROUBLE = "trouble"


class Step(NamedTuple):
    """One line of the log, as far as the demo needs it.

    Attributes:
        at: Seconds since the command was started.
        host: Label of the host concerned, ``mx1``; empty when none is.
        phase: Of the host, None where the event has none.
        word: The verdict's word, or how the recipient was settled (``sent``,
            ``deferred``, ``bounced``).
        text: What was said.
    """

    at: float
    kind: StepKind
    host: str = ""
    phase: Phase | None = None
    word: str = ""
    text: str = ""


class Ending(Enum):
    """How a host's part in a story ended."""

    TOOK_IT = "took it"
    FAILED = "failed"
    LET_GO = "let go"


# What a host has not done yet while it is in a phase.
AWAITED = {
    Phase.CONNECT: "no SYN-ACK",
    Phase.GREETING: "no greeting",
    Phase.EHLO: "no answer to EHLO",
    Phase.TLS: "TLS not established",
    Phase.READY: "ready",
    Phase.TRANSACTION: "gets the message",
    Phase.DOT: "has the message",
}

# What entering a phase means.
REACHED = {
    Phase.CONNECT: "SYN sent",
    Phase.GREETING: "answered the SYN",
    Phase.EHLO: "greeted",
    Phase.TLS: "offers STARTTLS",
    Phase.READY: "answered EHLO: ready",
    Phase.TRANSACTION: "MAIL, RCPT, DATA",
    Phase.DOT: "the final dot is out",
}


# Verdicts of a host that did not answer.
NOTHING_CAME = frozenset({Verdict.FILTERED.value, Verdict.SILENT.value})


@dataclass(slots=True)
class Track:
    """One host's part; times are seconds since the command was started.

    Attributes:
        label: ``mx1``.
        started: When its SYN went out, None while it is not tried.
        entered: The phases it came to, and when, in order.
        ended: When its part was over, None while it is not.
    """

    label: str
    address: str
    started: float | None = None
    entered: list[tuple[float, Phase]] = field(default_factory=list)
    ended: float | None = None
    ending: Ending | None = None
    text: str = ""

    @property
    def phase(self) -> Phase:
        """The phase it came to last."""
        return self.entered[-1][1] if self.entered else Phase.CONNECT

    def phase_at(self, moment: float) -> Phase | None:
        """Return the phase it was in at *moment*, None before it was tried or after its end."""
        if self.started is None or moment < self.started:
            return None
        if self.ended is not None and moment >= self.ended:
            return None
        reached = [phase for at, phase in self.entered if at <= moment]
        return reached[-1] if reached else Phase.CONNECT

    def says(self, now: float) -> str:
        """Return in a few words what it does at *now*, or how its part ended."""
        if self.started is None:
            return ""
        if self.ended is None:
            return f"{AWAITED[self.phase]} ({now - self.started:.1f} s)"
        words = AWAITED[self.phase] if self.ending is Ending.LET_GO else self.text
        if self.ending is Ending.LET_GO:
            words += ": let go"
        return f"{words} at {self.ended:.2f} s"

    def end(self, at: float, ending: Ending, text: str = "") -> None:
        """Close the track, unless it is closed already."""
        if self.ended is None:
            self.ended, self.ending, self.text = at, ending, text


class Timeline:
    """All hosts of one story.

    Args:
        hosts: ``(label, address)`` in order of preference.
    """

    def __init__(self, hosts: list[tuple[str, str]]) -> None:
        self.tracks = [Track(label, address) for label, address in hosts]
        self._by_label = {track.label: track for track in self.tracks}
        self._taken: Track | None = None

    def note(self, step: Step) -> None:
        """Take in the next step; steps about hosts that are not of the story are ignored."""
        if step.kind is StepKind.SETTLED:
            self._settle(step)
        track = self._by_label.get(step.host)
        if track is None:
            return
        match step.kind:
            case StepKind.STARTED:
                track.started = step.at
            case StepKind.REACHED if step.phase is not None:
                track.entered.append((step.at, step.phase))
            case StepKind.FAILED:
                track.end(step.at, Ending.FAILED, _failure(step))
            case StepKind.DROPPED:
                track.end(step.at, Ending.LET_GO)
            case StepKind.TAKEN:
                self._taken = track
            case _:
                pass

    def _settle(self, step: Step) -> None:
        """Whoever was taken last has decided, if anybody was."""
        if self._taken is None:
            return
        if step.word == "sent":
            self._taken.end(step.at, Ending.TOOK_IT, "took the message")
        else:
            self._taken.end(step.at, Ending.FAILED, "refused the recipient")


def narrate(step: Step) -> str:
    """Say *step* in one line, without its time."""
    match step.kind:
        case StepKind.PLANNED:
            return f"plan: {step.text}"
        case StepKind.STARTED:
            return f"{step.host} is tried: SYN sent"
        case StepKind.REACHED if step.phase is not None:
            return f"{step.host} {REACHED[step.phase]}"
        case StepKind.FAILED:
            said = f" ({step.text})" if step.text else ""
            return f"{step.host} {_failure(step)}{said}"
        case StepKind.DROPPED:
            awaited = AWAITED[step.phase] if step.phase is not None else ""
            return f"{step.host} is let go: {awaited}"
        case StepKind.TAKEN:
            return f"{step.host} gets the message"
        case StepKind.SETTLED:
            # Of the others, the command's own answer says why.
            said = f" ({step.text})" if step.word == "sent" else ""
            return f"status={step.word}{said}"
        case _:
            return f"trouble: {step.text}"


def _failure(step: Step) -> str:
    """The verdict in words; where nothing came, what did not come."""
    words = step.word.replace("_", " ")
    if step.word in NOTHING_CAME and step.phase is not None:
        return f"{AWAITED[step.phase]}: {words}"
    return words
