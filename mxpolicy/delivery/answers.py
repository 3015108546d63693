"""The refusals of one host, and which of them count. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery import refusals
from mxpolicy.protocol.smtp_states import Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mxpolicy.reply import Reply

__all__ = ["Answers"]


class Answers:
    """The refusals of one host, filled in as it answers.

    Attributes:
        refused: The refused verb and the reply, by a recipient's number.
        goodbye: What the host said when it broke the session, if anything.
    """

    __slots__ = ("_unproven", "goodbye", "refused")

    def __init__(self) -> None:
        self.refused: dict[int, tuple[Verb, Reply]] = {}
        self.goodbye: Reply | None = None
        self._unproven: list[int] = []

    def refuse(self, numbers: Iterable[int], verb: Verb, reply: Reply) -> None:
        """*reply* to *verb* refused all of *numbers*."""
        for number in numbers:
            self.refused[number] = (verb, reply)
            if verb is not Verb.DOT:  # that came after 354
                self._unproven.append(number)

    def are_in_step(self) -> None:
        """The replies so far are known to be answers to their commands."""
        self._unproven.clear()

    def take_back_unproven(self) -> None:
        """Forget the refusals since `are_in_step`, and the goodbye."""
        for number in self._unproven:
            self.refused.pop(number, None)
        self._unproven.clear()
        self.goodbye = None

    def take_back_about_session(self) -> Reply | None:
        """Forget the refusals that are about the session; return one of them, or None."""
        about = {
            number: reply
            for number, (verb, reply) in self.refused.items()
            if refusals.is_about_the_session(verb, reply)
            or (verb is not Verb.DOT and refusals.wants_tls(reply))
        }
        for number in about:
            del self.refused[number]
        return next(iter(about.values()), None)

    def take_back_for_want_of_tls(self) -> Reply | None:
        """Forget the refusals in clear that ask for TLS; return one of them, or None."""
        asked = {
            number: reply
            for number, (_, reply) in self.refused.items()
            if refusals.wants_tls(reply)
        }
        for number in asked:
            del self.refused[number]
        replies = [*asked.values()]
        if self.goodbye is not None and refusals.wants_tls(self.goodbye):
            replies.append(self.goodbye)
        self.goodbye = None
        return replies[0] if replies else None

    def take_back_over_limit(self, numbers: Iterable[int]) -> list[int]:
        """Forget and return those refused only because there were "too many" of them."""
        over_limit = [
            number
            for number in numbers
            if number in self.refused
            and refusals.is_too_many_recipients(*self.refused[number])
        ]
        for number in over_limit:
            del self.refused[number]
        return over_limit
