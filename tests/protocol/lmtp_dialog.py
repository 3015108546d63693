"""Dialogs as text files, in the notation of the RFCs, played against `LmtpServer`.

``C:`` lines are fed to it; neighbours together. ``S:`` lines are all that it says since
then, and an empty one is nothing. ``A:`` is what its caller answers to an RCPT: number,
code, status, text. ``V:`` is what became of the message for an accepted recipient.
``#`` begins a comment.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mxpolicy.protocol.lmtp_server import Event, LmtpReply, LmtpServer, Offers
from mxpolicy.reply import EnhancedStatus
from tests.protocol.dialog import turns

DIALOGS = sorted((Path(__file__).parent.parent / "dialogs" / "lmtp").glob("*.txt"))
OFFERS = Offers("foo.example", 1000)

Cut = Callable[[bytes], list[bytes]]


def whole(data: bytes) -> list[bytes]:
    """Return *data* as it is."""
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    """Return *data* byte by byte."""
    return [data[at : at + 1] for at in range(len(data))]


class Player:
    """A server, and what it has said and told."""

    def __init__(self, cut: Cut = whole, offers: Offers = OFFERS) -> None:
        self.server = LmtpServer(offers)
        self.events: list[Event] = []
        self._cut = cut

    def feed(self, data: bytes) -> None:
        """Let the client send *data*."""
        for piece in self._cut(data):
            self.server.receive_data(piece)
            self.look()

    def look(self) -> None:
        """Take all events."""
        while (event := self.server.next_event()) is not None:
            self.events.append(event)

    def answer(self, number: int, reply: LmtpReply) -> None:
        """Answer an RCPT."""
        self.server.answer(number, reply)
        self.look()

    def settle(self, recipient: int, reply: LmtpReply) -> None:
        """Say what became of the message for a recipient."""
        self.server.settle(recipient, reply)
        self.look()

    def said(self) -> list[str]:
        """Return the lines that the server has said since the last time."""
        lines = self.server.data_to_send().decode("ascii").split("\r\n")
        assert lines.pop() == ""
        return lines

    def all(self, *kinds: type[Event]) -> list[Event]:
        """The events of these kinds."""
        return [one for one in self.events if isinstance(one, kinds)]


def play(dialog: str, cut: Cut = whole) -> Player:
    """Play *dialog*; return what there is at its end."""
    player = Player(cut)
    for mark, lines in turns(dialog):
        match mark:
            case "C:":
                text = "".join(f"{line}\r\n" for line in lines)
                player.feed(text.encode())
            case "S:":
                assert player.said() == [line for line in lines if line]
            case "A:":
                for line in lines:
                    player.answer(*parse(line))
            case "V:":
                for line in lines:
                    player.settle(*parse(line))
            case _:
                raise AssertionError(f"a dialog with {mark!r}")
    assert player.said() == []
    return player


def parse(line: str) -> tuple[int, LmtpReply]:
    """Return a number and a reply, as ``A:`` and ``V:`` have them."""
    number, code, status, text = line.split(" ", 3)
    parsed = EnhancedStatus.parse(status)
    assert parsed is not None
    return int(number), LmtpReply(int(code), parsed, text)
