"""The envelope of RFC 5321 §2.3.1: where the message came from and where it goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mxpolicy.address import Mailbox, ReversePath

__all__ = ["Envelope", "Recipient"]


class Recipient(NamedTuple):
    """One forward-path.

    Attributes:
        place: Its place on the mail server's own list, from 0.
        text: As the mail server wrote it, printable; what logs and answers show.
        mailbox: The same, understood.
    """

    place: int
    text: str
    mailbox: Mailbox


class Envelope(NamedTuple):
    """What SMTP carries beside the mail data.

    Attributes:
        reverse_path: None is the null reverse-path ``<>``.
        recipients: At least one. Everything below speaks of a recipient by its
            index in this tuple, since the same address may be there twice.
    """

    reverse_path: ReversePath | None
    recipients: tuple[Recipient, ...]

    def needs_smtputf8(self, indices: Iterable[int]) -> bool:
        """Return whether a transaction with these recipients needs RFC 6531.

        It does when a local part is not ASCII (§3.3), or the sender's domain has no
        A-labels: nothing else needs it.
        """
        if self.reverse_path is not None and self.reverse_path.needs_smtputf8:
            return True
        return any(self.recipients[index].mailbox.needs_smtputf8 for index in indices)
