"""The envelope of RFC 5321 §2.3.1: where the message came from and where it goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import Mailbox, ReversePath

if TYPE_CHECKING:
    from mxpolicy.protocol.extensions import MailDsn, RcptDsn

__all__ = ["Envelope"]


class Envelope(NamedTuple):
    """What SMTP carries beside the mail data.

    Attributes:
        reverse_path: None is the null reverse-path ``<>``.
        recipients: Forward-paths by their number on the mail server's own list, from 0.
            The same address may be there twice. One that is no address is left out.
        dsn: What the sender wants to be told (RFC 3461); None where nothing was said.
        recipients_dsn: The same of recipients, by their number.
    """

    reverse_path: ReversePath | None
    recipients: Mapping[int, Mailbox]
    dsn: MailDsn | None = None
    recipients_dsn: Mapping[int, RcptDsn] = MappingProxyType({})

    @property
    def sender(self) -> str:
        """The reverse-path as on the wire; empty for the null one."""
        return self.reverse_path.wire if self.reverse_path else ""

    def needs_smtputf8(self, numbers: Iterable[int]) -> bool:
        """Return whether a transaction with these recipients needs RFC 6531.

        It does when a local part is not ASCII (§3.3), or the sender's domain has no
        A-labels: nothing else needs it.
        """
        if self.reverse_path is not None and self.reverse_path.needs_smtputf8:
            return True
        return any(self.recipients[number].needs_smtputf8 for number in numbers)
