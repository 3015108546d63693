"""Bytes from an SMTP or LMTP server -> `Reply` (RFC 5321 §4.2), the client's side.

It is lenient where hosts in the field are lax and that does no harm. Lines may end with
a bare LF, the text after the code may be missing, the codes of one reply may differ. A
reply may have up to `MAX_REPLY` bytes, of which fewer are kept: giving up on a long 250
to the final dot would make a copy of the message with each retry.

Other lines are skipped where the caller allows it. That is safe while one reply is
outstanding. With more an answer could be paired with the wrong command, and mail would
be lost; Postfix warns of that in its source.

Used by `mxpolicy.protocol.smtp_client`; knows nothing of commands and states.
"""

from __future__ import annotations

import re

from mxpolicy.errors import RemoteProtocolError
from mxpolicy.protocol.receive_buffer import ReceiveBuffer
from mxpolicy.reply import Reply, printable

__all__ = ["KEPT", "MAX_REPLY", "ReplyReader"]

# Bytes of a reply that are kept, as in Postfix (line_length_limit). RFC 5321
# §4.5.3.1.5 has 512 for a line, and allows several.
KEPT = 2048

# Bytes of one reply. The longest in the field, refusals with a policy's text, have some
# 10 KiB; this ends one without end.
MAX_REPLY = 1024 * 1024

# RFC 5321 §4.2: Reply-line = *( Reply-code "-" [ textstring ] CRLF )
#                             Reply-code [ SP textstring ] CRLF
# The caller knows what a first digit means.
_REPLY_LINE = re.compile(rb"([0-9]{3})(?:([ -])(.*))?", re.DOTALL)

# First words of servers that do not speak SMTP: a web server, SSH, IMAP, POP3. Behind
# them no greeting will come.
_OTHER_PROTOCOL = re.compile(rb"HTTP/|SSH-|\* OK|\+OK")


class ReplyReader:
    """A parser that is fed bytes and gives replies.

    After an error it cannot be used any more.

    Attributes:
        received: Bytes taken so far.
        began: How many of them had come before the reply that was returned last.
        skipped: The first line that was skipped after that reply, printable;
            empty when none was.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_code",
        "_ended",
        "_kept",
        "_texts",
        "began",
        "received",
        "skipped",
    )

    def __init__(self) -> None:
        self._buffer = ReceiveBuffer(KEPT)
        self.received = 0
        self.began = 0
        self.skipped = ""
        self._at = 0  # the end of the last line, in bytes received
        self._ended = 0  # the end of the last reply
        # The reply that is being read: what its lines had so far.
        self._code = b""
        self._texts: list[str] = []
        self._kept = 0

    @property
    def has_unread(self) -> bool:
        """True when bytes came that no returned reply and no skipped line has used."""
        return bool(self._buffer) or bool(self._code)

    def receive_data(self, data: bytes) -> None:
        """Take *data* from the wire. Call `next_reply` until it gives None."""
        self._buffer.append(data)
        self.received += len(data)

    def next_reply(self, *, keep: int = KEPT, skip: bool = False) -> Reply | None:
        """Return the next whole reply, or None until more bytes come.

        Its code is that of its last line, as in Postfix. Earlier lines with another
        first digit (RFC 5321 §4.2.1 forbids them) are left out.

        Args:
            keep: Bytes that are kept; the line that goes beyond them is the last.
            skip: Whether other lines than reply lines are skipped.

        Raises:
            RemoteProtocolError: The peer sent something else than a reply, or too much
                of it. Replies before it have been returned.
        """
        while (line := self._buffer.next_line()) is not None:
            began, self._at = self._at, self.received - len(self._buffer)
            self._check_size(self._at)
            found = _REPLY_LINE.fullmatch(line)
            if found is None:
                self._pass_over(line, skip)
                continue
            if not self._code:
                self.began = began
                if found[2] != b"-":  # one line is all of it, as nearly always
                    self._ended, self.skipped = self._at, ""
                    return Reply(int(found[1]), (printable(found[3] or b""),))
            if self._is_last(found, keep):
                return self._whole()
        self._check_size(self.received)
        return None

    def _pass_over(self, line: bytes, skip: bool) -> None:
        """Leave out a line that is no reply line, or raise."""
        shown = printable(line, 80)
        is_greeting = not self._ended
        if not skip or (is_greeting and _OTHER_PROTOCOL.match(line)):
            raise RemoteProtocolError(f"not an SMTP reply: {shown!r}")
        self.skipped = self.skipped or shown

    def _is_last(self, found: re.Match[bytes], keep: int) -> bool:
        """Add one line to the reply; True when the reply is whole."""
        code, hyphen, text = found.groups()
        if code[:1] != self._code[:1]:
            self._texts, self._kept = [], 0
        self._code = code
        if self._kept < keep:
            self._texts.append(printable(text or b""))
            self._kept += len(found[0])
        return bool(hyphen != b"-")

    def _whole(self) -> Reply:
        """Return the reply, and begin anew."""
        reply = Reply(int(self._code), tuple(self._texts))
        self._code, self._texts, self._kept = b"", [], 0
        self._ended, self.skipped = self._at, ""
        return reply

    def _check_size(self, end: int) -> None:
        if end - self._ended > MAX_REPLY:
            raise RemoteProtocolError(f"a reply of over {MAX_REPLY} bytes")
