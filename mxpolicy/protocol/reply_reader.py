"""Bytes from an SMTP or LMTP server -> `Reply` (RFC 5321 §4.2), the client's side.

Lenient where hosts in the field are lax and no harm can follow: lines may end
with a bare LF, the text after the code may be missing, lines may be four times
as long as §4.5.3.1.5 allows. Strict where laxity would pair an answer with the
wrong question: a line that is no reply line is never skipped. Postfix skips it
with a warning, and warns in its source that mail can be lost that way.

Used by `mxpolicy.protocol.smtp_client`; knows nothing of commands and states.
"""

from __future__ import annotations

import re

from mxpolicy.errors import RemoteProtocolError
from mxpolicy.protocol.receive_buffer import ReceiveBuffer
from mxpolicy.reply import Reply, printable

__all__ = ["MAX_LINE", "MAX_LINES", "MAX_REPLY", "ReplyReader"]

# RFC 5321 §4.5.3.1.5 has 512; Postfix reads 2048 (line_length_limit).
MAX_LINE = 2048

# The longest EHLO replies in the field have some 20 lines, the longest refusals
# with a policy's text some 30. Text is kept, so it has to end somewhere.
MAX_LINES = 100
MAX_REPLY = 64 * 1024

# RFC 5321 §4.2: Reply-line = *( Reply-code "-" [ textstring ] CRLF )
#                             Reply-code [ SP textstring ] CRLF
# Its Reply-code begins with 2 to 5; "1yz" has no use in SMTP (§4.2.1).
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


class ReplyReader:
    """A parser that is fed bytes and gives replies.

    After an error it cannot be used any more.
    """

    __slots__ = ("_buffer", "_code", "_size", "_texts")

    def __init__(self) -> None:
        self._buffer = ReceiveBuffer(MAX_LINE)
        # The reply that is being read: what its lines had so far.
        self._code = b""
        self._texts: list[str] = []
        self._size = 0

    @property
    def has_unread(self) -> bool:
        """True when bytes came that no returned reply has used."""
        return bool(self._buffer) or bool(self._texts)

    def receive_data(self, data: bytes) -> None:
        """Take *data* from the wire. Call `next_reply` until it gives None."""
        self._buffer.append(data)

    def next_reply(self) -> Reply | None:
        """Return the next whole reply, or None until more bytes come.

        Raises:
            RemoteProtocolError: The peer sent something that is no reply, or
                too much of it. Replies before it have been returned.
        """
        while (line := self._buffer.next_line()) is not None:
            if self._is_last(line):
                reply = Reply(int(self._code), tuple(self._texts))
                self._code, self._texts, self._size = b"", [], 0
                return reply
        return None

    def _is_last(self, line: bytes) -> bool:
        """Add one line to the reply; True when the reply is whole."""
        found = _REPLY_LINE.fullmatch(line)
        if found is None:
            raise RemoteProtocolError(f"not an SMTP reply: {printable(line, 80)!r}")
        code, hyphen, text = found.groups()
        self._judge_code(code)
        self._size += len(line)
        self._texts.append(printable(text or b""))
        if len(self._texts) > MAX_LINES or self._size > MAX_REPLY:
            raise RemoteProtocolError(
                f"a reply of over {MAX_LINES} lines or {MAX_REPLY} bytes"
            )
        return bool(hyphen != b"-")

    def _judge_code(self, code: bytes) -> None:
        """All lines MUST have one code (RFC 5321 §4.2.1).

        A reply that says both yes and no is neither: to take the wrong one
        loses or bounces mail. Within one class the last line's code is taken,
        as Postfix does.
        """
        if self._code and code[0] != self._code[0]:
            both = f"{self._code.decode()} and {code.decode()}"
            raise RemoteProtocolError(f"one reply with the codes {both}")
        self._code = code
