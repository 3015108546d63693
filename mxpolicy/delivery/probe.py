"""Probes: candidates whose pause is over are dialled beside a message.

A probe is not part of the race: it delays no message, and goes on when another host is
ready. It ends ready or with a full finding, or it is cut when its time is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.errors import LocalTrouble
from mxpolicy.routing.dialling import Dialling
from mxpolicy.routing.tls_requirement import tls_requirement

if TYPE_CHECKING:
    from mxpolicy.delivery.context import Context
    from mxpolicy.delivery.learner import Learner
    from mxpolicy.delivery.trace import Trace
    from mxpolicy.routing.candidate import Candidate, Phase

__all__ = ["Probes"]

# Seconds that a process of its own goes on for a probe after its message is settled.
LINGER = 3.0


class Probes:
    """The probes beside one message.

    Args:
        context: The engine's.
        trace: The message's; told of our own trouble.
        learner: Remembers what a probe finds.
    """

    def __init__(self, context: Context, trace: Trace, learner: Learner) -> None:
        self._context = context
        self._trace = trace
        self._learner = learner
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, candidate: Candidate) -> None:
        """Dial *candidate*, whose lease is ours, beside the attempt."""
        task = asyncio.create_task(self._probe(candidate))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, linger: float = LINGER) -> None:
        """Wait *linger* seconds for the probes, then cut those that go on."""
        if self._tasks and linger:
            await asyncio.wait(self._tasks, timeout=linger)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, candidate: Candidate) -> None:
        """Dial *candidate* to the end; handle all that fails in it."""
        dialling = Dialling(candidate, self._trace.now())
        try:
            await self._reach(dialling)
        except SessionFailed as failed:
            self._learner.found(candidate, dialling.failed(failed.finding))
        except TimeoutError:
            self._learner.found(candidate, dialling.overdue(self._trace.now()))
        except asyncio.CancelledError:
            self._learner.probe_was_cut(dialling)
            raise
        except LocalTrouble:
            pass  # it says nothing of the host
        except Exception as error:
            self._trace.trouble(error)

    async def _reach(self, dialling: Dialling) -> None:
        candidate = dialling.candidate

        def entered(phase: Phase) -> None:
            self._learner.found(candidate, dialling.reached(phase, self._trace.now()))
            limit.reschedule(self._limit(dialling))

        sessions = self._context.sessions
        approach = Approach(tls_requirement(self._context.options.tls.default))
        async with asyncio.timeout_at(self._limit(dialling)) as limit:
            session = await sessions.probe(candidate, approach, Listener(entered))
        if session.is_secured:
            self._learner.secured(candidate)
        sessions.give_back(session)

    def _limit(self, dialling: Dialling) -> float | None:
        """Return when the probe ends with a full finding, on the loop's clock."""
        at = dialling.full_at()
        if at is None:
            return None
        return asyncio.get_running_loop().time() + max(0.0, at - self._trace.now())
