"""One message by LMTP, from DATA to the last reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy.delivery.events import RecipientSettled
from mxpolicy.delivery.request import Request
from mxpolicy.delivery.trouble import told
from mxpolicy.errors import LocalTrouble
from mxpolicy.outcome import Bounced, Deferred, Delivered
from mxpolicy.protocol.lmtp_server import DataBegun, LmtpReply
from mxpolicy.protocol.smtp_states import DOT_TIME

if TYPE_CHECKING:
    from mxpolicy.delivery.engine import Engine
    from mxpolicy.delivery.events import Event, Observe
    from mxpolicy.outcome import Outcome

__all__ = ["Message", "reply_of"]


def reply_of(outcome: Outcome) -> LmtpReply:
    """Return what the mail server is told: code and status of the host, where they fit.

    421 would end the session, so it becomes 451. What a host has taken is 250.
    """
    said = outcome.reply.code if outcome.reply else 0
    match outcome:
        case Delivered():
            return LmtpReply(250, outcome.status, told(outcome).text)
        case Deferred():
            code = said if said // 100 == 4 and said != 421 else 451
        case Bounced():
            code = said if said // 100 == 5 else 550
    return LmtpReply(code, outcome.status, outcome.text)


class Message:
    """Delivers one message while its mail data comes.

    Args:
        engine: Delivers.
        begun: The envelope.
        observe: Told everything that happens.
        is_wanted: Whether the client is still there; asked before each final dot.
        settle: Called once for each recipient, in their order, with its number and its
            outcome.

    Attributes:
        is_complete: All mail data has come.
    """

    def __init__(
        self,
        engine: Engine,
        begun: DataBegun,
        observe: Observe,
        is_wanted: Callable[[], bool],
        settle: Callable[[int, Outcome], None],
    ) -> None:
        options = engine.context.options
        self._is_wanted = is_wanted
        self.is_complete = False
        self._observe = observe
        self._settle = settle
        self._limit = options.lmtp.message_size
        self._size = 0
        self._told = 0  # recipients whose outcome `settle` has been given
        self._count = len(begun.recipients)
        self._mail_data = engine.new_mail_data()
        self._mail_data.declared_size = begun.sender.size
        ends = options.lmtp.timeout
        request = Request(
            begun.sender.reverse_path,
            tuple(one.forward_path for one in begun.recipients),
            "",
            begun.queue_id,
            deadline=min(options.deadline, max(0.0, ends - DOT_TIME)),
            ends=ends,
            observe=self._on_event,
            dsn=begun.sender.dsn,
            recipients_dsn={
                number: one.dsn
                for number, one in enumerate(begun.recipients)
                if one.dsn is not None
            },
            may_send_dot=self._may_send_dot,
            is_wanted=is_wanted,
            has_process=False,
        )
        self._delivery = engine.begin(request, self._mail_data)
        self._delivery.ended.add_done_callback(self._end)

    def append(self, data: bytes) -> None:
        """Take some mail data. What comes for nothing is dropped."""
        if self._delivery.ended.done():
            return
        self._size += len(data)
        if self._size > self._limit:
            self.give_up(f"it is larger than {self._limit} bytes")
        try:
            self._mail_data.append(data)
        except (
            MemoryError
        ):  # the client keeps its connection: see `protocol.lmtp_server`
            self.give_up("there is no memory for it")
        except LocalTrouble:
            pass  # the delivery ends by it, too

    @property
    def is_full(self) -> bool:
        """Whether `drain` is to be waited for, before more is appended."""
        return self._mail_data.is_full

    async def drain(self) -> None:
        """Wait until more may come."""
        with suppress(LocalTrouble):  # the delivery ends by it, too
            await self._mail_data.drain()

    def complete(self) -> None:
        """All mail data has come."""
        self.is_complete = True
        if not self._delivery.ended.done():
            self._mail_data.finish()

    def give_up(self, why: str) -> None:
        """The mail data will never be complete: no host gets the message."""
        self._mail_data.give_up(LocalTrouble(f"the message was not taken: {why}"))

    def abandon(self, why: str) -> None:
        """The client has gone: send the message to no host, as far as that is possible."""
        if self._delivery.ended.done():
            return
        if not self.is_complete:
            self.give_up(why)
        self._delivery.cancel(why)

    async def _may_send_dot(self) -> bool:
        return self._is_wanted()

    def _on_event(self, event: Event) -> None:
        self._observe(event)
        if isinstance(event, RecipientSettled):
            self._tell()

    def _end(self, ended: asyncio.Future[list[Outcome]]) -> None:
        self._tell()
        self._mail_data.close()

    def _tell(self) -> None:
        while self._told < self._count:
            outcome = self._delivery.outcome(self._told)
            if outcome is None:
                return
            self._told += 1
            self._settle(self._told - 1, outcome)
