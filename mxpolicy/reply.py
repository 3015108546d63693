"""What a server answers: a reply (RFC 5321 §4.2) and its enhanced status (RFC 3463).

Text from a host enters the program only here. It is escaped and bounded at once. So it is
safe in a log line, on a terminal and in the answer to the mail server.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["MAX_TEXT", "EnhancedStatus", "Reply", "printable"]

# Characters. Postfix keeps 4096 bytes of our whole answer, and a bounce shows one line. A
# reply line may have 512 bytes (RFC 5321 §4.5.3.1.5).
MAX_TEXT = 512

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?:\s+|$)")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def printable(text: str | bytes, limit: int = MAX_TEXT) -> str:
    """Return *text* as one line of printable ASCII, at most *limit* characters.

    Control characters and all beyond ASCII become ``?``: a reply may carry terminal
    escapes, line ends or half of a UTF-8 sequence.
    """
    if isinstance(text, bytes):
        text = text[: limit + 1].decode("latin-1")
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub("?", text)


class EnhancedStatus(NamedTuple):
    """``class.subject.detail`` of RFC 3463 §2; the class is 2, 4 or 5."""

    class_: int
    subject: int
    detail: int

    def __str__(self) -> str:
        return f"{self.class_}.{self.subject}.{self.detail}"

    @classmethod
    def parse(cls, text: str) -> EnhancedStatus | None:
        """Return the status at the very start of *text*, or None.

        It must be followed by white space or the end (RFC 2034 §4).
        """
        found = _ENHANCED.match(text)
        return cls(*map(int, found.groups())) if found else None


class Reply(NamedTuple):
    """One complete reply, all its lines.

    Attributes:
        code: 0 to 999, as sent in the last line.
        lines: The texts after the code, one for each line, already `printable`. They end
            after 2 KiB.
    """

    code: int
    lines: tuple[str, ...]

    @property
    def is_positive(self) -> bool:
        """2yz, or 3yz (only DATA is answered so), RFC 5321 §4.2.1."""
        return 200 <= self.code < 400

    @property
    def is_transient(self) -> bool:
        """4yz: the same command may succeed later (RFC 5321 §4.2.1)."""
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        """5yz: the same command will not succeed (RFC 5321 §4.2.1)."""
        return 500 <= self.code < 600

    @property
    def enhanced(self) -> EnhancedStatus | None:
        """The enhanced status of the first line, if its class fits the code.

        Where its class differs from the first digit, it becomes ``class.0.0``. A host
        that says ``450 5.7.1`` means 450, but for Postfix a ``5.7.1`` overrides our exit
        status 75.
        """
        found = EnhancedStatus.parse(self.lines[0]) if self.lines else None
        if found and found.class_ != self.code // 100:
            return EnhancedStatus(self.code // 100, 0, 0)
        return found

    def shortened(self) -> Reply:
        """Return it with no more lines than `text` has room for.

        A host may send such a reply for each of a thousand recipients, and all are kept.
        """
        room = MAX_TEXT
        for place, line in enumerate(self.lines):
            room -= len(line) + 1
            if room < 0:
                return self._replace(lines=self.lines[: place + 1])
        return self

    @property
    def text(self) -> str:
        """Code and all lines in one line, for a log or a bounce."""
        return printable(" ".join((f"{self.code:03}", *self.lines))).rstrip()
