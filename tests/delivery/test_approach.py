"""`mxpolicy.delivery.approach`: what is tried after a stall, whole."""

from __future__ import annotations

import pytest

from mxpolicy.delivery.approach import SMALL_SEGMENT, Approach
from mxpolicy.options import TlsLevel
from mxpolicy.routing.tls_requirement import tls_requirement

TLS = tls_requirement(TlsLevel.MAY)
ORDINARY = Approach(TLS)
SMALL = Approach(TLS, SMALL_SEGMENT)
UNSEEN = Approach(TLS, None, waits_for_body=False)


@pytest.mark.parametrize(
    ("stalled", "others_left", "expected"),
    [
        (ORDINARY, True, SMALL),
        (ORDINARY, False, SMALL),
        (SMALL, True, None),
        (SMALL, False, UNSEEN),
        (UNSEEN, True, None),
        (UNSEEN, False, None),
    ],
)
def test_what_is_tried_after_a_stall(
    stalled: Approach, others_left: bool, expected: Approach | None
) -> None:
    assert stalled.after_stall(others_left=others_left) == expected


def test_only_clear_text_after_a_failure_of_tls_had_to_be_so() -> None:
    assert ORDINARY.in_clear().had_to_be_in_clear
    for tls in (TLS, tls_requirement(TlsLevel.NONE)):
        assert not Approach(tls).had_to_be_in_clear
    assert not Approach(
        tls_requirement(TlsLevel.MAY, is_broken=True)
    ).had_to_be_in_clear
