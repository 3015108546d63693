"""`mxpolicy.routing.broken_tls`: when STARTTLS is left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.routing.broken_tls import (
    BrokenTls,
    after_taking_in_clear,
    decode,
    encode,
)

START = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0


def taken(*messages: tuple[float, str]) -> BrokenTls:
    """Return what is known after messages that were taken in clear."""
    known = None
    for later, name in messages:
        known = after_taking_in_clear(known, name, START + later)
    assert known is not None
    return known


@pytest.mark.parametrize(
    ("messages", "at", "is_believed"),
    [
        pytest.param([(0, "a")], 1, False, id="one message"),
        pytest.param([(0, "a"), (9, "a"), (18, "a")], 19, False, id="its retries"),
        pytest.param([(0, "a"), (9, "b")], 10, True, id="two messages"),
        pytest.param([(0, "a"), (9, "a"), (18, "b")], 19, True, id="a retry between"),
        pytest.param([(0, "a"), (0, "b")], HOUR - 1, True, id="for an hour"),
        pytest.param([(0, "a"), (0, "b")], HOUR + 1, False, id="no longer"),
        pytest.param(
            [(0, "a"), (0, "b"), (HOUR + 1, "c")], HOUR + 2, True, id="one renews it"
        ),
        pytest.param(
            [(0, "a"), (0, "b"), (HOUR + 1, "b")], HOUR + 2, True, id="any renews it"
        ),
        pytest.param([(0, "a"), (DAY + 1, "b")], DAY + 2, False, id="a day between"),
        pytest.param(
            [(0, "a"), (0, "b"), (2 * DAY, "c")], 2 * DAY, False, id="begins anew"
        ),
        pytest.param([(0, "a"), (0, "b")], -60, False, id="clock set back"),
        pytest.param([(0, "a"), (0, "b")], -1, True, id="clocks differ a little"),
        pytest.param([(0, "a"), (-DAY, "b")], -DAY, False, id="witness of tomorrow"),
    ],
)
def test_starttls_is_left_out_after_two_messages_in_clear(
    messages: list[tuple[float, str]], at: float, is_believed: bool
) -> None:
    assert taken(*messages).is_believed(START + at) is is_believed


@given(
    st.builds(
        BrokenTls,
        st.integers(0, 2**33).map(float),
        st.text("0123456789abcdef", min_size=1, max_size=16),
        st.booleans(),
    )
)
def test_it_is_read_as_it_was_written(known: BrokenTls) -> None:
    assert decode(encode(known)) == known


@given(st.none() | st.binary(max_size=60))
def test_anything_can_be_read(value: bytes | None) -> None:
    known = decode(value)
    assert known is None or known.is_believed(START) in (True, False)


@pytest.mark.parametrize(
    "value", [b"2 1.000 a proven", b"1 nan a proven", b"1 inf a once", b"1 x a once"]
)
def test_what_cannot_be_understood_is_not_there(value: bytes) -> None:
    assert decode(value) is None
