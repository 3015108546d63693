"""`mxpolicy.routing.dialling`: what is learned from one dialling."""

from __future__ import annotations

from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict
from mxpolicy.routing.dialling import Dialling, Ready

HOST = Candidate("mx.example", "192.0.2.1", 25)


def test_times_to_connect_and_to_greet_are_learned() -> None:
    dialling = Dialling(HOST, 100.0)
    assert dialling.reached(Phase.GREETING, 100.5) is None
    assert dialling.reached(Phase.EHLO, 106.5) is None
    assert dialling.reached(Phase.EHLO, 107.0) is None  # a second connection, in clear
    assert dialling.reached(Phase.READY, 107.5) == Ready(0.5, 6.0)
    assert dialling.full_at() is None


def test_session_that_was_open_already_teaches_no_times() -> None:
    assert Dialling(HOST, 1.0).reached(Phase.READY, 1.0) == Ready(None, None)


def test_full_verdict_is_due_when_the_full_time_has_passed() -> None:
    dialling = Dialling(HOST, 100.0)
    assert dialling.full_at() == 106.0
    assert dialling.overdue(105.9) is None
    assert dialling.overdue(106.0) == Finding(Verdict.FILTERED, Phase.CONNECT, 6.0)
    assert dialling.overdue(107.0) is None
    assert dialling.full_at() is None


def test_end_of_what_was_known_fully_is_no_news() -> None:
    dialling = Dialling(HOST, 100.0)
    dialling.overdue(106.0)
    end = Finding(Verdict.FILTERED, Phase.CONNECT, 30.0)
    assert dialling.failed(end) is None


def test_next_phase_begins_anew() -> None:
    dialling = Dialling(HOST, 100.0)
    dialling.overdue(106.0)
    dialling.reached(Phase.GREETING, 107.0)
    assert dialling.full_at() == 137.0
    silent = Finding(Verdict.SILENT, Phase.GREETING, 30.0)
    assert dialling.overdue(137.0) == silent


def test_doubt_is_taught_and_the_full_verdict_after_it() -> None:
    dialling = Dialling(HOST, 100.0)
    doubt = Finding(Verdict.FILTERED, Phase.CONNECT, 1.5, full=False)
    assert dialling.failed(doubt) == doubt
    assert dialling.overdue(106.0) is not None
