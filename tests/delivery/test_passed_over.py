from __future__ import annotations

from mxpolicy.delivery.passed_over import PassedOver
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.host_record import HostRecord
from mxpolicy.routing.known_hosts import NOTHING_KNOWN, KnownHosts

BEST = Candidate("a.example", "192.0.2.1", 25, preference=10)
MIDDLE = Candidate("b.example", "192.0.2.2", 25, preference=20)
WORST = Candidate("c.example", "192.0.2.3", 25, preference=30)
RELAY = str(MIDDLE.key)


def dialled(
    phase: Phase = Phase.CONNECT, known: KnownHosts = NOTHING_KNOWN
) -> PassedOver:
    """The best host is dialled and comes to *phase*, then the others are."""
    passed_over = PassedOver(known)
    passed_over.started(BEST, 0.0)
    if phase is not Phase.CONNECT:
        passed_over.entered(BEST, phase, 0.5)
    passed_over.started(MIDDLE, 1.5)
    passed_over.started(WORST, 3.0)
    return passed_over


def test_the_one_that_was_outlasted_is_named_with_its_wait() -> None:
    passed_over = dialled()
    passed_over.dropped(BEST, 1.75)
    passed_over.dropped(WORST, 3.25)
    assert passed_over.before(RELAY, 9.0) == ("a.example[192.0.2.1]:25 filtered 1.8s",)


def test_the_word_says_how_far_it_came() -> None:
    words = {
        Phase.CONNECT: " filtered 3.0s",
        Phase.GREETING: " silent 2.5s",
        Phase.EHLO: " silent 2.5s",
        Phase.TLS: " tls_silent 2.5s",
    }
    for phase in Phase:
        named = dialled(phase).before(RELAY, 3.0)
        assert [one.removeprefix(str(BEST.key)) for one in named] == (
            [words[phase]] if phase in words else []
        ), phase


def test_failed_one_is_told_elsewhere() -> None:
    passed_over = dialled()
    passed_over.failed(BEST)
    assert passed_over.before(RELAY, 9.0) == ()


def test_the_best_one_has_passed_over_none() -> None:
    assert dialled().before(str(BEST.key), 9.0) == ()
    assert dialled().before("", 9.0) == ()


def test_one_in_its_pause_is_named_with_what_is_remembered() -> None:
    record = HostRecord(verdict=Verdict.REFUSED, waited=0.1, since=100.0, said="nope")
    known = KnownHosts(
        order=(MIDDLE, WORST, BEST), of_host={BEST: record, WORST: record}, at=130.0
    )
    passed_over = PassedOver(known)
    passed_over.started(MIDDLE, 0.0)
    assert passed_over.before(RELAY, 9.0) == (
        "a.example[192.0.2.1]:25 refused 0.1s, 30s ago (nope)",
    )
