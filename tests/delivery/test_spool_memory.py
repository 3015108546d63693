"""`mxpolicy.delivery.spool_memory`: mail data in blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.delivery.spool_memory import BLOCK, Blocks, SpoolMemory

_SIZES = st.sampled_from([0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])


@given(st.lists(_SIZES, max_size=6), st.sampled_from([1000, BLOCK, 2 * BLOCK]))
def test_what_was_appended_is_read(sizes: list[int], step: int) -> None:
    blocks, whole = Blocks(), b""
    for number, size in enumerate(sizes):
        data = bytes([number]) * size
        blocks.append(data)
        whole += data
    assert blocks.size == len(whole)
    assert b"".join(blocks.pieces) == whole
    assert all(len(one) == BLOCK for one in blocks.pieces[:-1])
    position = 0
    while position < len(whole):
        chunk = blocks.read(position, step)
        assert 1 <= len(chunk) <= step
        assert chunk == whole[position : position + len(chunk)]
        position += len(chunk)


def test_share_shrinks_as_memory_is_used() -> None:
    memory = SpoolMemory(8000)
    assert memory.share() == 1000
    memory.used = 4000
    assert memory.share() == 500
    memory.used = 9000
    assert memory.share() == 0
