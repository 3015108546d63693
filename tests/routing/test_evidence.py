"""What the kernel's knowledge of bytes on their way is taken for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.routing.evidence import (
    LARGEST_SEGMENT,
    PROVEN_FOR,
    STALL_TIME,
    AckProgress,
    PathProof,
    SendState,
    is_stalled,
)

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


MUCH = LARGEST_SEGMENT

# The writes; how much of them has arrived; what may be missing; seconds after that.


@pytest.mark.parametrize(
    ("written", "acknowledged", "unacknowledged", "later", "expected"),
    [
        pytest.param([], 0, 0, 0, True, id="nothing_is_missing"),
        pytest.param([], 0, 1, 0, False, id="new_session"),
        pytest.param([500], 0, 500, 0, False, id="not_arrived"),
        pytest.param([500], 499, 1, 0, False, id="in_part"),
        pytest.param([500], 500, 500, 0, True, id="as_much_has_arrived"),
        pytest.param([500], 500, 501, 0, False, id="more_than_has_arrived"),
        pytest.param([500], 500, 500, PROVEN_FOR, True, id="still_recent"),
        pytest.param([500], 500, 500, PROVEN_FOR + 0.1, False, id="long_ago"),
        pytest.param([500], 500, 0, PROVEN_FOR + 0.1, True, id="long_ago_but_all"),
        pytest.param([500, 2], 500, 2, 0, True, id="all_but_its_line_end"),
        pytest.param([500, 2], 502, 502, 0, False, id="sum_of_two_writes"),
        pytest.param([9] * 99, 891, 500, 0, False, id="many_small_writes"),
        pytest.param([9, 500], 9, 500, 0, False, id="the_large_one_has_not"),
        pytest.param([9, 500], 509, 500, 0, True, id="the_large_one_has"),
        pytest.param([500, 9, 500], 500, 500, 0, True, id="the_first_of_its_size"),
        pytest.param([9 * MUCH], 9 * MUCH, MUCH, 0, True, id="largest_segment"),
        pytest.param([9 * MUCH], 9 * MUCH, MUCH + 1, 0, False, id="beyond_it"),
    ],
)
def test_dot_follows_what_is_sure_to_arrive(
    written: list[int],
    acknowledged: int,
    unacknowledged: int,
    later: float,
    expected: bool,
) -> None:
    proof, end = PathProof(), 0
    for size in written:
        end += size
        proof.written(size, end)
    proof.acknowledged(acknowledged, 1001.0)
    assert proof.covers(unacknowledged, 1001.0 + later) is expected


def test_smaller_message_neither_renews_nor_ends_the_proof_of_a_larger_one() -> None:
    proof = PathProof()
    proof.written(500, 500)
    proof.acknowledged(500, 1000.0)
    proof.written(9, 509)
    proof.acknowledged(509, 1000.0 + PROVEN_FOR)
    assert proof.covers(500, 1000.0 + PROVEN_FOR)
    assert not proof.covers(10, 1000.1 + PROVEN_FOR)


def test_proof_of_a_smaller_message_follows_that_of_a_larger_one() -> None:
    proof = PathProof()
    for now, size, end in ((1000.0, 500, 500), (1000.5 + PROVEN_FOR, 9, 509)):
        proof.written(size, end)
        proof.acknowledged(end, now)
    assert not proof.covers(10, 1000.5 + PROVEN_FOR)
    assert proof.covers(9, 1000.5 + 2 * PROVEN_FOR)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9)), max_size=20))
def test_nothing_is_believed_that_no_write_has_proved(
    steps: list[tuple[int, int]],
) -> None:
    proof = PathProof()
    ends: list[tuple[int, int]] = []
    end = count = 0
    for size, more in steps:
        end += size
        ends.append((end, size))
        proof.written(size, end)
        count = min(end, count + more)
        proof.acknowledged(count, 1000.0)
        proven = max((size for end, size in ends if end <= count), default=0)
        assert proof.covers(proven, 1000.0)
        assert not proof.covers(proven + 1, 1000.0)
