"""The hosts that mail passed by on its way to another one, for the log.

Most have failed, and `failures` has them. The others were passed over without a failure:

* dialled, and still not there when a host that was dialled later won the race;
* not dialled, because a host of a worse preference was asked first: this one had failed
  a while ago, and was in its pause.

Who reads the log wants to know why the mail went to the second MX. So each is named, with
the word for what is known of it and with the seconds that it was waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.outcome import Tried
from mxpolicy.routing.candidate import Phase, Verdict
from mxpolicy.routing.host_record import NOTHING

if TYPE_CHECKING:
    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.known_hosts import KnownHosts

__all__ = ["PassedOver", "remembered"]

# What a host would have failed by, had it been waited for to the end.
_WORDS = {
    Phase.CONNECT: Verdict.FILTERED,
    Phase.GREETING: Verdict.SILENT,
    Phase.EHLO: Verdict.SILENT,
    Phase.TLS: Verdict.TLS_SILENT,
}


class _Dialled:
    """One that was dialled.

    Attributes:
        started: When, in seconds since the delivery began.
        phase: How far it has come.
        since: When it came so far.
        until: When it was let go; None while it is waited for.
    """

    __slots__ = ("phase", "since", "started", "until")

    def __init__(self, started: float) -> None:
        self.started = self.since = started
        self.phase = Phase.CONNECT
        self.until: float | None = None


class PassedOver:
    """Those of one attempt.

    Args:
        known: What is remembered of the candidates.
    """

    def __init__(self, known: KnownHosts) -> None:
        self._known = known
        self._diallings: dict[Candidate, _Dialled] = {}
        self._failed: set[Candidate] = set()

    def started(self, candidate: Candidate, at: float) -> None:
        """*candidate* is dialled."""
        self._diallings[candidate] = _Dialled(at)

    def entered(self, candidate: Candidate, phase: Phase, at: float) -> None:
        """*candidate* has come so far."""
        dialling = self._diallings[candidate]
        dialling.phase, dialling.since = phase, at

    def dropped(self, candidate: Candidate, at: float) -> None:
        """*candidate* is not waited for any more."""
        self._diallings[candidate].until = at

    def failed(self, candidate: Candidate) -> None:
        """*candidate* has failed, which is told elsewhere."""
        self._failed.add(candidate)

    def before(self, relay: str, now: float) -> tuple[str, ...]:
        """Return one text for each that mail to *relay* has passed over.

        Args:
            relay: The key, as text, of the host that decided; empty for none.
            now: Seconds since the delivery began.
        """
        chosen = next((one for one in self._diallings if str(one.key) == relay), None)
        if chosen is None:
            return ()
        paused = [
            remembered(one, self._known, str(one.key))
            for one in self._known.order
            if one.rank < chosen.rank
            and one not in self._diallings
            and self._known.of_host.get(one, NOTHING).verdict is not None
        ]
        outlasted = [
            self._outlasted(one, dialling, now)
            for one, dialling in self._diallings.items()
            if dialling.started < self._diallings[chosen].started
            and dialling.phase in _WORDS
            and one not in self._failed
        ]
        return (*paused, *outlasted)

    def _outlasted(self, candidate: Candidate, dialling: _Dialled, now: float) -> str:
        until = now if dialling.until is None else dialling.until
        word = _WORDS[dialling.phase].value
        return str(Tried(str(candidate.key), word, until - dialling.since))


def remembered(candidate: Candidate, known: KnownHosts, name: str) -> str:
    """Return in words what is remembered of *candidate*, which has failed.

    Args:
        candidate: Whose record in `KnownHosts.of_host` has a verdict.
        known: What is remembered.
        name: How it is called.
    """
    record = known.of_host[candidate]
    assert record.verdict is not None, "it has failed"
    said = f" ({record.said})" if record.said else ""
    age = max(0.0, known.at - record.since)
    return f"{name} {record.verdict.value} {record.waited:.1f}s, {age:.0f}s ago{said}"
