"""One message's events: each is told with the message's queue id and time."""

from __future__ import annotations

import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from mxpolicy.delivery.events import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from mxpolicy.delivery.events import Event, Observe

__all__ = ["Trace"]

P = ParamSpec("P")


class Trace:
    """Tells what happens to one message.

    Args:
        queue_id: The mail server's name for the message; may be empty.
        clock: Seconds, monotonic.
        observe: Told every event. What it raises is ignored: no mail is lost for a log.
        learners: Ours, told before *observe*. What one raises is our trouble.
        heeded: The kinds of events that *observe* heeds; None is all. Others are told to
            learners only, and are not made where there are none.
    """

    def __init__(
        self,
        queue_id: str,
        clock: Callable[[], float],
        observe: Observe,
        *learners: Observe,
        heeded: Container[object] | None = None,
    ) -> None:
        self.queue_id = queue_id
        self._clock = clock
        self._began = clock()
        self._observe = observe
        self._learners = learners
        self._heeded = heeded

    def with_learners(self, *learners: Observe) -> Trace:
        """Return the same, also told to *learners*."""
        given = self.queue_id, self._clock, self._observe
        trace = Trace(*given, *learners, heeded=self._heeded)
        trace._began = self._began
        return trace

    def now(self) -> float:
        """Return the seconds since the delivery began."""
        return self._clock() - self._began

    def tell(
        self,
        kind: Callable[Concatenate[float, P], Event],
        *facts: P.args,
        **named_facts: P.kwargs,
    ) -> None:
        """Tell that something happened now; its *facts* come after ``at``."""
        self.tell_of(self.now(), kind, *facts, **named_facts)

    def tell_of(
        self,
        at: float,
        kind: Callable[Concatenate[float, P], Event],
        *facts: P.args,
        **named_facts: P.kwargs,
    ) -> None:
        """Tell the same of what happened *at* that time."""
        is_heeded = self._heeded is None or kind in self._heeded
        if not is_heeded and not self._learners:
            return
        named_facts["queue_id"] = self.queue_id
        event = kind(at, *facts, **named_facts)
        for learn in self._learners:
            try:
                learn(event)
            except Exception as error:
                self.trouble(error)
        if not is_heeded:
            return
        try:
            self._observe(event)
        except Exception:
            return  # no mail is lost for a log

    def trouble(self, error: BaseException) -> None:
        """Tell *error*, which is no fact about a host, with its traceback."""
        with suppress(Exception):
            text = "".join(traceback.format_exception(error))
            self._observe(Trouble(self.now(), text, self.queue_id))
