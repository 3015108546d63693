"""Mail data -> the bytes between 354 and the final dot (RFC 5321 §4.5.2), streaming.

What comes out:

- Every line ends with CRLF, and CR and LF appear in no other way (§2.3.8). LF and
  CRLF end a line; any other CR becomes a space, also the first of CR CR LF. So no two
  readers can disagree on where a line or the header ends, and the mail data cannot
  hold an end of data that only some of them see (SMTP smuggling, CVE-2023-51764).
- A dot at the start of a line is doubled.
- A line of over 998 bytes is folded by CRLF and a space, as Postfix does
  (smtp_line_length_limit), or passed as it is. The space counts; the doubled dot
  does not (§4.5.3.1.6). What is folded off begins with the space, so a dot in it
  is never at the start of a line. A UTF-8 sequence is not cut in two.

NUL and other bytes pass. The final dot itself is not written here: `FINAL_DOT`
leaves in a segment of its own, when the session may send it.

The space for a CR is Postfix's (cleanup_replace_stray_cr_lf, tried with 3.7.11): what it
has looked at comes here without a stray CR. Exim 4.96 has made line ends of them, in a
header field folded ones, so that neither ends the header where the other sees none.

BUGS: folding in the middle of a header field's word, or of signed text, changes
what the recipient sees. There is no place to fold that would not.
"""

from __future__ import annotations

from mxpolicy.options import LongLines

__all__ = ["FINAL_DOT", "MAX_TEXT_LINE", "DotStuffer"]

FINAL_DOT = b".\r\n"

# RFC 5321 §4.5.3.1.6: 1000 with CRLF, without the transparent dot.
MAX_TEXT_LINE = 998


class DotStuffer:
    """An encoder for one message; what comes out does not depend on how it is cut.

    All work over bytes is done by the methods of ``bytes``: one pass each of
    search or replace, and one step of Python for every 998 bytes.

    Args:
        long_lines: What to do with lines over 998 bytes.
    """

    __slots__ = ("_at_line_start", "_fold", "_held")

    def __init__(self, long_lines: LongLines = LongLines.FOLD) -> None:
        self._fold = long_lines is LongLines.FOLD
        # Not yet written: a CR whose LF may follow and, when folding, the whole
        # open line, at most 998 bytes: only the next one tells where to cut.
        self._held = b""
        self._at_line_start = True

    def encode(self, chunk: bytes) -> bytes:
        """Return what can be sent now; it may be nothing."""
        text = self._held + chunk
        self._held = b""
        if text.endswith(b"\r"):
            text, self._held = text[:-1], b"\r"
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b" ")
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
        return dot + text.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")


def _fold(text: bytes) -> bytes:
    """Fold the lines of *text* (LF only, begins a line), also the last, open one."""
    pieces: list[bytes] = []
    start = at = 0
    room = MAX_TEXT_LINE
    while len(text) - at > room:
        # Looking backwards from where the line must have ended passes over many
        # short lines in one step.
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
            # The first byte of a sequence; or ASCII, and then what follows it
            # is no UTF-8 and may be cut anywhere.
            return place if text[place] >= 0xC0 else at
    return at
