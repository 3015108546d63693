"""`mxpolicy.delivery.connect`: what is tried after what has failed, whole."""

from __future__ import annotations

from itertools import product

import pytest

from mxpolicy.delivery.approach import SMALL_SEGMENT, Approach
from mxpolicy.delivery.connect import next_approach
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.options import TlsLevel
from mxpolicy.routing.candidate import Finding, Phase, Verdict
from mxpolicy.routing.tls_requirement import (
    TlsRequirement,
    tls_requirement,
    wanted_by_host,
)

MAY = tls_requirement(TlsLevel.MAY)
BROKEN = tls_requirement(TlsLevel.MAY, is_broken=True)
NONE = tls_requirement(TlsLevel.NONE)
WANTED = wanted_by_host("530 TLS!")


def unanswered() -> SessionFailed:
    """A ClientHello is not answered."""
    failed = failure(Phase.TLS)
    failed.client_hello_is_unanswered = True
    return failed


def failure(phase: Phase) -> SessionFailed:
    return SessionFailed(Finding(Verdict.CLOSED, phase, 1.0))


ORDINARY = (None, True)
SMALL = (SMALL_SEGMENT, True)
UNSEEN = (None, False)
HELLO, TLS, OTHER = unanswered(), failure(Phase.TLS), failure(Phase.GREETING)

# (asked, tried, failed) -> tried next, at level "may"; "clear" is as asked, in clear.
TABLE = {
    (ORDINARY, "asked", HELLO): "small",
    (ORDINARY, "asked", TLS): "clear",
    (ORDINARY, "asked", OTHER): None,
    (ORDINARY, "small", HELLO): "clear",
    (ORDINARY, "small", TLS): "clear",
    (ORDINARY, "small", OTHER): "clear",
    (ORDINARY, "clear", OTHER): None,
    (SMALL, "asked", HELLO): "clear",
    (SMALL, "asked", TLS): "clear",
    (SMALL, "asked", OTHER): None,
    (SMALL, "clear", OTHER): None,
    (UNSEEN, "asked", HELLO): "clear",
    (UNSEEN, "asked", TLS): "clear",
    (UNSEEN, "asked", OTHER): None,
    (UNSEEN, "clear", OTHER): None,
}


def named(asked: Approach, name: str | None) -> Approach | None:
    match name:
        case "small":
            return asked.with_small_segments()
        case "clear":
            return asked.in_clear()
        case _:
            return asked if name else None


@pytest.mark.parametrize("row", TABLE)
def test_what_is_tried_next_at_level_may(
    row: tuple[tuple[int | None, bool], str, SessionFailed],
) -> None:
    (segment_size, waits), tried, failed = row
    asked = Approach(MAY, segment_size, waits)
    before = named(asked, tried)
    assert before is not None
    assert next_approach(asked, before, failed) == named(asked, TABLE[row])


@pytest.mark.parametrize("tls", [NONE, BROKEN, WANTED])
def test_nothing_is_sent_in_clear_at_another_level(tls: TlsRequirement) -> None:
    for (segment_size, waits), failed in product(
        (ORDINARY, SMALL, UNSEEN), (HELLO, TLS, OTHER)
    ):
        asked = Approach(tls, segment_size, waits)
        following = next_approach(asked, asked, failed)
        may_shrink = failed is HELLO and asked.is_ordinary
        assert following == (asked.with_small_segments() if may_shrink else None)
        if following is not None:
            assert next_approach(asked, following, failed) is None
