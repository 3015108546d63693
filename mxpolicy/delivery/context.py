"""What every attempt shares with its engine: configuration, our name, the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mxpolicy.net.dial import dial as dial_directly

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.events import Observe
    from mxpolicy.net.stream import Stream
    from mxpolicy.options import Options
    from mxpolicy.routing.candidate import Candidate

__all__ = ["Context", "Dial"]


class Dial(Protocol):
    """How a candidate is connected to: `mxpolicy.net.dial.dial`."""

    async def __call__(
        self, candidate: Candidate, /, *, mss: int | None = None
    ) -> Stream:
        """Return the connected stream, or raise what `mxpolicy.net.dial.dial` does."""
        ...


class Context:
    """What an attempt takes from the engine; the same for every message.

    Attributes:
        options: The configuration.
        helo: Our name.
        is_myself: Whether a name is ours.
        clock: Seconds, monotonic.
        observe: Told everything that happens.
        input_is_complete: Whether the mail data is known to be whole. Asked
            before the final dot (RFC 5321 §4.1.1.4 makes it ours after that).
        dial: Connects to a candidate.
    """

    __slots__ = (
        "clock",
        "dial",
        "helo",
        "input_is_complete",
        "is_myself",
        "observe",
        "options",
    )

    def __init__(
        self,
        options: Options,
        *,
        helo: str,
        is_myself: Callable[[str], bool],
        clock: Callable[[], float],
        observe: Observe,
        input_is_complete: Callable[[], bool],
        dial: Dial = dial_directly,
    ) -> None:
        self.options = options
        self.helo = helo
        self.is_myself = is_myself
        self.clock = clock
        self.observe = observe
        self.input_is_complete = input_is_complete
        self.dial = dial

    def observed_by(self, observe: Observe) -> Context:
        """Return the same for one attempt, everything told to *observe* instead."""
        return Context(
            self.options,
            helo=self.helo,
            is_myself=self.is_myself,
            clock=self.clock,
            observe=observe,
            input_is_complete=self.input_is_complete,
            dial=self.dial,
        )
