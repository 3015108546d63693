"""Mail data -> the bytes between 354 and the final dot (RFC 5321 §4.5.2), streaming.

What comes out:

- Every line ends with CRLF, and CR and LF appear in no other way (§2.3.8). LF and CRLF
  end a line; any other CR becomes a space, also the first of CR CR LF. So all readers
  agree on where a line and the header end. No end of data in the mail data is seen by
  some readers only (SMTP smuggling, CVE-2023-51764).
- A dot at the start of a line is doubled.
- A line of over 998 bytes is folded by CRLF and a space, as Postfix does
  (smtp_line_length_limit), or passed as it is. The space counts; the doubled dot does not
  (§4.5.3.1.6). The folded part begins with the space, so no dot of it is at the start of
  a line. A UTF-8 sequence stays whole.

NUL and other bytes pass. `FINAL_DOT` is not written here: it leaves in a segment of its
own, when the session may send it.

The space for a CR is Postfix's (cleanup_replace_stray_cr_lf, tried with 3.7.11), so mail
from Postfix comes here without a stray CR. Exim 4.96 has made line ends of them, folded
ones in a header field, so that the header ends for both at the same place.

`DotUnstuffer` is the way back, for what a mail server sends us. To it only CRLF is a line
end, and only CRLF.CRLF the end.

BUGS: folding changes what the recipient sees in the middle of a header field's word, or
of signed text. No place to fold avoids that.
"""

from __future__ import annotations

from mxpolicy.options import LongLines

__all__ = [
    "FINAL_DOT",
    "MAX_TEXT_LINE",
    "DotStuffer",
    "DotUnstuffer",
    "size_on_the_wire",
]

FINAL_DOT = b".\r\n"

# RFC 5321 §4.5.3.1.6: 1000 with CRLF, without the transparent dot.
MAX_TEXT_LINE = 998

_END = b"\r\n.\r\n"


class DotStuffer:
    """An encoder for one message; its output does not depend on how the input is cut.

    The methods of ``bytes`` do all work over bytes: one pass each of search or replace,
    and one step of Python for every 998 bytes. They are fast where they look for one byte
    (memchr), and up to ten times slower where they look for two: that is done only for a
    chunk where it may find something.

    Args:
        long_lines: What to do with lines over 998 bytes.
    """

    __slots__ = ("_at_line_start", "_fold", "_held")

    def __init__(self, long_lines: LongLines = LongLines.FOLD) -> None:
        self._fold = long_lines is LongLines.FOLD
        # Not yet written: a CR, as its LF may follow. When folding, also the whole open
        # line of at most 998 bytes, as only the next byte tells where to cut.
        self._held = b""
        self._at_line_start = True

    def encode(self, chunk: bytes) -> bytes:
        """Return what can be sent now; it may be nothing."""
        text = self._held + chunk
        self._held = b""
        if text.endswith(b"\r"):
            text, self._held = text[:-1], b"\r"
        text = _with_lf(text)
        if self._fold:
            text = _fold(text)
            whole = text.rfind(b"\n") + 1
            text, self._held = text[:whole], text[whole:] + self._held
        return self._stuff(text)

    def finish(self) -> bytes:
        """Return the rest; an open line is ended. `FINAL_DOT` may follow."""
        if not self._held and self._at_line_start:
            return b""
        if self._held.endswith(b"\r"):
            self._held = self._held[:-1] + b" "
        return self.encode(b"\n")

    def _stuff(self, text: bytes) -> bytes:
        """Double the dots and write the line ends; *text* has LF only."""
        if not text:
            return b""
        dot = b"." if self._at_line_start and text.startswith(b".") else b""
        self._at_line_start = text.endswith(b"\n")
        if b"." in text:
            text = dot + text.replace(b"\n.", b"\n..")
        return text.replace(b"\n", b"\r\n")


class DotUnstuffer:
    """A decoder for one message; its output does not depend on how the input is cut.

    CRLF ends a line, and nothing else does. So a dot between bare CRs or LFs is mail
    data, and no text in a message can end it early (SMTP smuggling).

    Attributes:
        is_over: The end of the data has come.
    """

    __slots__ = ("_held", "_invented", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        # What may be the beginning of the end. The data begins at the start of a line:
        # the line end before it is invented, and taken off again.
        self._held = b"\r\n"
        self._invented = 2

    def decode(self, chunk: bytes) -> tuple[bytes, bytes]:
        """Return the mail data in *chunk*, and what follows the end of the data.

        Not to be called once it `is_over`.
        """
        text = self._held + chunk
        end = text.find(_END) if b"." in text else -1
        if end >= 0:
            self.is_over = True
            return self._unstuff(text[: end + 2]), text[end + len(_END) :]
        held = next(n for n in (4, 3, 2, 1, 0) if text.endswith(_END[:n]))
        self._held = text[len(text) - held :]
        return self._unstuff(text[: len(text) - held]), b""

    def _unstuff(self, text: bytes) -> bytes:
        if not text:
            return b""
        invented, self._invented = self._invented, 0
        if b"." in text:
            text = text.replace(b"\r\n.", b"\r\n")
        return text[invented:] if invented else text


def size_on_the_wire(text: bytes) -> int:
    """Return how many bytes *text* has with CRLF in place of LF and CRLF."""
    with_crlf = text.replace(b"\r", b"").replace(b"\n", b"\r\n")
    if b"\r" not in text or with_crlf == text:
        return len(with_crlf)
    return len(text) + text.count(b"\n") - text.count(b"\r\n")


def _with_lf(text: bytes) -> bytes:
    """Return *text*, which does not end with CR, with LF as the end of each line."""
    if b"\r" not in text:
        return text
    without = text.replace(b"\r", b"")
    if without.replace(b"\n", b"\r\n") == text:
        return without
    return text.replace(b"\r\n", b"\n").replace(b"\r", b" ")


def _fold(text: bytes) -> bytes:
    """Fold the lines of *text* (LF only, begins a line), also the last, open one."""
    pieces: list[bytes] = []
    start = at = 0
    room = MAX_TEXT_LINE
    while len(text) - at > room:
        # Searching backwards from the last place for a line end passes over many short
        # lines in one step.
        newline = text.rfind(b"\n", at, at + room + 1)
        if newline >= 0:
            at, room = newline + 1, MAX_TEXT_LINE
            continue
        at = _place_to_cut(text, at + room)
        pieces += (text[start:at], b"\n ")
        start, room = at, MAX_TEXT_LINE - 1
    if not pieces:
        return text
    pieces.append(text[start:])
    return b"".join(pieces)


def _place_to_cut(text: bytes, at: int) -> int:
    """Return *at*, or up to three less so that a UTF-8 sequence stays whole."""
    for place in range(at, at - 4, -1):
        if text[place] & 0xC0 != 0x80:
            # The first byte of a sequence; or ASCII, and then the bytes after it are not
            # UTF-8 and may be cut anywhere.
            return place if text[place] >= 0xC0 else at
    return at
