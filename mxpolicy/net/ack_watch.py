"""Waiting for acknowledgements, and when to stop: the clock beside `mxpolicy.net.stream`."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from mxpolicy.errors import MxPolicyError
from mxpolicy.routing.evidence import STALL_TIME, AckProgress, is_stalled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mxpolicy.routing.evidence import SendState

__all__ = ["AckWatch", "StreamSilent", "StreamStalled", "telling_progress"]

# Seconds between two looks at the progress that is told.
_TELL = 5.0


class StreamSilent(MxPolicyError):
    """The peer has acknowledged no byte for as long as we wait.

    Attributes:
        seconds: How long that was.
        unacknowledged: Bytes that the kernel still holds for it.
    """

    def __init__(self, seconds: float, unacknowledged: int) -> None:
        super().__init__(seconds, unacknowledged)
        self.seconds = seconds
        self.unacknowledged = unacknowledged

    def __str__(self) -> str:
        return f"no byte acknowledged for {self.seconds:.0f} seconds"


class StreamStalled(StreamSilent):
    """It acknowledges nothing though its window is open: what we send is lost."""

    def __str__(self) -> str:
        return f"{self.unacknowledged} bytes not acknowledged for {self.seconds:.0f} s"


class Acknowledged(Protocol):
    """What is watched: a `mxpolicy.net.stream.Stream`."""

    @property
    def handed_over(self) -> int:
        """Bytes that our kernel has taken; it only grows."""

    @property
    def acknowledged(self) -> int:
        """Bytes that the peer has acknowledged; it only grows."""

    def unacknowledged(self) -> int:
        """Bytes that our kernel still holds for the peer."""

    def send_state(self) -> SendState | None:
        """What our kernel knows of them, None where it does not tell."""


class AckWatch:
    """Watches, from now on, whether what *stream* has sent arrives.

    Args:
        timeout: Seconds without progress after which it stops for any reason.
    """

    def __init__(self, stream: Acknowledged, timeout: float = math.inf) -> None:
        self._stream = stream
        self._timeout = timeout
        self._clock = asyncio.get_running_loop().time
        self._progress = AckProgress(stream.acknowledged, self._clock())

    def check(self) -> None:
        """Look again; raise StreamStalled, or StreamSilent after too long a time."""
        still_for = self._progress.still_for(self._stream.acknowledged, self._clock())
        if still_for >= STALL_TIME:
            state = self._stream.send_state()
            if state is not None and is_stalled(state, still_for):
                raise StreamStalled(still_for, state.unacknowledged)
        if still_for >= self._timeout:
            raise StreamSilent(still_for, self._stream.unacknowledged())


@contextmanager
def telling_progress(stream: Acknowledged, tell: Callable[[], None]) -> Iterator[None]:
    """Call *tell* after every few seconds in which the peer has acknowledged bytes."""
    loop = asyncio.get_running_loop()
    before = stream.handed_over  # all of it is answered, and so acknowledged
    alarm: asyncio.TimerHandle

    def look() -> None:
        nonlocal alarm, before
        if stream.acknowledged > before:
            tell()
        before = stream.acknowledged
        alarm = loop.call_later(_TELL, look)

    alarm = loop.call_later(_TELL, look)
    try:
        yield
    finally:
        alarm.cancel()
