"""One client's questions, and its answers in the order in which it asked.

SMTPD_POLICY_README. The client's connection lives for many questions. Bytes that it did
not ask for are a broken connection to it. So each question has one answer, what is no
question is answered DUNNO, and a later answer waits for the earlier ones.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from typing import TYPE_CHECKING

from mxpolicy.delivery.events import Trouble
from mxpolicy.protocol.access_policy import (
    DUNNO,
    AccessRequest,
    RequestError,
    answer,
    parse_request,
)
from mxpolicy.protocol.attributes import AttributeReader, Malformed

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.delivery.events import Observe

__all__ = ["MAX_UNANSWERED", "Conversation"]

# Questions of one client that are not answered yet. While there are so many, no more is
# read from it. smtpd(8) has one at a time.
MAX_UNANSWERED = 250

# What is no question is told to the log so often for one client. Each may be one byte.
MAX_TOLD = 10


class Conversation:
    """What was asked and is not answered yet. Its owner reads and writes.

    Args:
        action_for: Returns the action for a request, or the task that finds it out.
        send: Takes the answers' bytes.
        observe: Told what is no question.

    Attributes:
        owed: The answers that are not sent yet.
    """

    def __init__(
        self,
        action_for: Callable[[AccessRequest], str | asyncio.Task[str]],
        send: Callable[[bytes], None],
        observe: Observe,
    ) -> None:
        self.owed: deque[str | asyncio.Task[str]] = deque()
        self._requests = AttributeReader()
        self._action_for = action_for
        self._send = send
        self._observe = observe
        self._misunderstood = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be read for now."""
        return len(self.owed) >= MAX_UNANSWERED

    @property
    def awaited(self) -> asyncio.Task[str] | None:
        """What the next answer waits for."""
        first = self.owed[0] if self.owed else None
        return None if isinstance(first, str) else first

    def receive_data(self, data: bytes) -> None:
        """Take *data*, and send what can be answered at once."""
        for one in self._requests.receive_data(data):
            self.owed.append(self._answer_to(one))
        self.send_ready()

    def receive_eof(self) -> None:
        """Take the end of what the client sends; its questions are answered still."""
        if self._requests:
            self._misunderstand("the connection ended in the middle of a request")
        if self._misunderstood > MAX_TOLD:
            more = self._misunderstood - MAX_TOLD
            self._tell(f"not a request, {more} times more")

    def send_ready(self) -> None:
        """Send every answer that waits for no earlier one."""
        ready = []
        while self.owed:
            first = self.owed[0]
            if not isinstance(first, str):
                if not first.done():
                    break
                first = DUNNO if first.cancelled() else first.result()
            ready.append(answer(first))
            self.owed.popleft()
        if ready:
            self._send(b"".join(ready))

    def cancel(self) -> list[asyncio.Task[str]]:
        """Let the answer to all that waits be DUNNO; return the tasks, cancelled.

        `send_ready` sends them.
        """
        tasks = [one for one in self.owed if not isinstance(one, str)]
        self.owed = deque(
            one if isinstance(one, str) or one.done() else DUNNO for one in self.owed
        )
        for task in tasks:
            task.cancel()
        return tasks

    def _answer_to(self, one: dict[str, str] | Malformed) -> str | asyncio.Task[str]:
        try:
            if isinstance(one, Malformed):
                raise RequestError(one.reason)  # noqa: TRY301 - one place answers both
            return self._action_for(parse_request(one))
        except RequestError as error:
            self._misunderstand(f"not a request: {error}")
        except Exception:
            self._tell(traceback.format_exc())
        return DUNNO

    def _misunderstand(self, text: str) -> None:
        self._misunderstood += 1
        if self._misunderstood <= MAX_TOLD:
            self._tell(text)

    def _tell(self, text: str) -> None:
        self._observe(Trouble(0.0, f"{text}; answered {DUNNO}"))
