"""The log of ``mxpolicy pipe``, read while it is being written.

The command logs one JSON object a line (``log: {format: json, detail:
events}``), each step as it happens. Lines that are not understood are skipped:
the log may say more than the demo needs.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mxpolicy.demo.timeline import Step, StepKind
from mxpolicy.routing.candidate import Phase

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LogFile", "step_of"]

KINDS = {kind.value: kind for kind in StepKind}
PHASES = {phase.word: phase for phase in Phase}


class LogFile:
    """The steps in a log file, given out as they appear.

    Args:
        began: When the command was started, in seconds since the epoch; steps
            are timed from there, by the time that each line carries.
    """

    def __init__(self, path: Path, began: float) -> None:
        self._path = path
        self._began = began
        self._read = 0

    def new_steps(self) -> list[Step]:
        """Return the steps of the lines completed since the last call."""
        steps = [step_of(line, self._began) for line in self._new_lines()]
        return [step for step in steps if step is not None]

    def _new_lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._read += len(whole) + len(newline)
        return whole.splitlines()


def step_of(line: bytes, began: float) -> Step | None:
    """Understand one line of the log, timed from *began*, or return None."""
    try:
        facts = json.loads(line)
        kind = KINDS[facts["event"]]
        step = Step(
            at=max(0.0, datetime.fromisoformat(facts["time"]).timestamp() - began),
            kind=kind,
            host=_label(facts.get("host", "")),
            phase=PHASES[facts["phase"]] if "phase" in facts else None,
            word=str(facts.get("verdict") or facts.get("status") or ""),
            text=str(facts.get("text", "")),
        )
        if kind is StepKind.PLANNED:
            return step._replace(text=_plan(facts))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return step


def _label(host: str) -> str:
    """The first label is enough within a story."""
    return host.partition(".")[0]


def _plan(facts: dict[str, Any]) -> str:
    hosts = [f"{_label(c['host'])} ({c['preference']})" for c in facts["candidates"]]
    return ", ".join(hosts) or "nobody to ask"
