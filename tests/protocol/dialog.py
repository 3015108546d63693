"""Dialogs as text files, in the notation of the RFCs, played against `SmtpClient`.

``C:`` lines are what the client must send. The command in them is given to the
client by its method, and the bytes that come out must be the line. Lines of
mail data stand as they are on the wire; they go through `DotStuffer`.
``S:`` lines are fed to it; all up to the next ``C:`` together. ``E:`` lines say which
events (name, code, what else they carry) or which error the ``S:`` lines above
them gave; without one anything is right that lets the dialog go on. ``T:`` is the
TLS handshake. ``O:`` is what the caller of `SmtpClient.mail` asks for from now on,
offered or not, in place of what the ``C:`` line shows. ``#`` begins a comment.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mxpolicy.errors import RemoteProtocolError
from mxpolicy.protocol.dot_stuffing import DotStuffer
from mxpolicy.protocol.extensions import MailDsn, RcptDsn
from mxpolicy.protocol.smtp_client import SmtpClient
from mxpolicy.protocol.smtp_events import Closing, Event, RcptAnswered
from mxpolicy.protocol.smtp_states import State, Verb

DIALOGS = sorted((Path(__file__).parent.parent / "dialogs").glob("*.txt"))


class Turn(NamedTuple):
    """Neighbouring lines with one mark, without it."""

    mark: str
    lines: list[str]


def turns(dialog: str) -> Iterator[Turn]:
    """Take a dialog's text apart."""
    lines = [line for line in dialog.splitlines() if line and line[0] != "#"]
    for mark, group in itertools.groupby(lines, key=lambda line: line[:2]):
        yield Turn(mark, [line[3:] for line in group])


def play(dialog: str, cut: Callable[[bytes], list[bytes]]) -> SmtpClient:
    """Play *dialog*, its ``S:`` bytes cut by *cut*; return the client at its end."""
    helo = re.search(r"^C: (?:EHLO|HELO) (\S+)", dialog, re.MULTILINE)
    player = Player(SmtpClient(helo[1] if helo else "client.example"), cut)
    for turn in turns(dialog):
        player.play(turn)
    return player.client


class Player:
    """One client, and what has been heard of it since the server spoke last."""

    def __init__(self, client: SmtpClient, cut: Callable[[bytes], list[bytes]]) -> None:
        self.client = client
        self._cut = cut
        self._heard: list[str] = []
        self._body: list[str] = []
        self._asked = ""

    def play(self, turn: Turn) -> None:
        match turn.mark:
            case "S:":
                self._heard = self._serve("".join(f"{line}\r\n" for line in turn.lines))
            case "C:":
                self._expect(turn.lines)
            case "E:":
                assert self._heard == turn.lines
            case "T:":
                self.client.tls_established()
            case "O:":
                (self._asked,) = turn.lines
            case _:
                raise AssertionError(f"a dialog with {turn!r}")

    def _serve(self, text: str) -> list[str]:
        heard: list[str] = []
        try:
            for piece in self._cut(text.encode()):
                if not piece and self.client.state is State.TLS_HANDSHAKE:
                    continue  # what comes now is the handshake's
                heard += map(describe, self.client.receive_data(piece))
            self.client.data_to_send()  # an error behind good replies
        except RemoteProtocolError as error:
            heard.append(f"RemoteProtocolError {error}")
        return heard

    def _expect(self, lines: list[str]) -> None:
        wire = b""
        for line in lines:
            if self.client.state is State.BODY and line != ".":
                self._body.append(line)
                continue
            if self.client.state is State.BODY:
                self._check_body()
            give(self.client, line, self._asked)
            wire += line.encode() + b"\r\n"
        assert self.client.data_to_send() == wire

    def _check_body(self) -> None:
        """Un-stuff the lines, and see that stuffing them gives the same again."""
        plain = "".join(f"{line.removeprefix('.')}\n" for line in self._body)
        stuffer = DotStuffer()
        wire = stuffer.encode(plain.encode()) + stuffer.finish()
        assert wire.decode().split("\r\n")[:-1] == self._body
        self._body = []


def describe(event: Event) -> str:
    """Return an event as ``E:`` lines have it."""
    words: list[object] = [type(event).__name__]
    if isinstance(event, RcptAnswered):
        words.append(event.position)
    words.append(event.reply.code)
    if isinstance(event, Closing):
        words.append(event.awaited.value if event.awaited else None)
    return " ".join(map(str, words))


def give(client: SmtpClient, line: str, asked: str = "") -> None:
    """Give the client the command that shall put *line* on the wire.

    MAIL is given the parameters *asked* beside those in the line.
    """
    verb, _, rest = line.partition(" ")
    match Verb(verb):
        case Verb.MAIL:
            path, said = path_and_parameters(f"{rest} {asked}")
            client.mail(
                path,
                size=int(said["SIZE"]) if "SIZE" in said else None,
                body8bit=said.get("BODY") == "8BITMIME",
                smtputf8="SMTPUTF8" in said,
                dsn=MailDsn(said.get("RET", ""), said.get("ENVID", "")),
            )
        case Verb.RCPT:
            path, said = path_and_parameters(rest)
            notify = tuple(filter(None, said.get("NOTIFY", "").split(",")))
            original = said.get("ORCPT", "")
            client.rcpt(path, dsn=RcptDsn(notify, original))
        case Verb.DOT:
            client.dot()
        case other:
            getattr(client, other.value.lower())()


def path_and_parameters(rest: str) -> tuple[str, dict[str, str]]:
    """Take ``FROM:<path> KEY=VALUE`` apart; ``+2B`` is the one xtext that dialogs use."""
    path, _, parameters = rest.partition("<")[2].rpartition(">")
    pairs = (word.partition("=") for word in parameters.split())
    return path, {key: value.replace("+2B", "+") for key, _, value in pairs}
