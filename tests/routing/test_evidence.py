"""What the kernel's knowledge of bytes on their way is taken for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.routing.evidence import STALL_TIME, AckProgress, SendState, is_stalled

LOST = SendState(unsent=0, unacknowledged=1000, retransmissions=3)


@pytest.mark.parametrize(
    ("state", "still_for", "expected"),
    [
        pytest.param(LOST, 20.0, True, id="lost"),
        pytest.param(LOST, 19.9, False, id="too_soon"),
        pytest.param(
            LOST._replace(retransmissions=2), 600.0, False, id="ordinary_loss"
        ),
        pytest.param(
            LOST._replace(unsent=5000, unacknowledged=6000), 20.0, True, id="more"
        ),
        pytest.param(LOST._replace(unacknowledged=0), 600.0, False, id="all_there"),
        # A closed window: nothing is under way, and probes are no retransmissions.
        pytest.param(SendState(1000, 1000, 0), 600.0, False, id="slow_reader"),
        pytest.param(SendState(1000, 1000, 9), 600.0, False, id="never_left"),
    ],
)
def test_stall_is_what_is_sent_again_and_again(
    state: SendState, still_for: float, expected: bool
) -> None:
    assert is_stalled(state, still_for) is expected


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 3)), max_size=20))
def test_time_without_progress_is_since_the_last_byte(
    steps: list[tuple[float, int]],
) -> None:
    now, acknowledged, since = 1000.0, 5, 1000.0
    progress = AckProgress(acknowledged, now)
    for waited, more in steps:
        now += waited
        acknowledged += more
        since = now if more else since
        assert progress.still_for(acknowledged, now) == now - since


def test_kernel_has_sent_again_often_by_then() -> None:
    # 0.2 s, doubled each time (RFC 6298 §5.5), as Linux does it on a near path; and
    # from 1 s, where the round trip is not known yet (§2.1).
    for first, times in ((0.2, 6), (1.0, 4)):
        assert sum(first * 2**n for n in range(times)) <= STALL_TIME
        assert times >= 3
