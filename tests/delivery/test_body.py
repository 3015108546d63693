"""The end of the mail data: what leaves when, over a real path that may swallow it."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from contextlib import closing, suppress
from typing import NamedTuple

import pytest

from mxpolicy.delivery.session import Session
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.net.dial import dial
from mxpolicy.options import TlsLevel
from mxpolicy.routing.candidate import Candidate, Verdict
from mxpolicy.routing.evidence import PROVEN_FOR
from tests.delivery.attempts import envelope, mail_data
from tests.delivery.conversations import (
    FIVE,
    Owner,
    Result,
    Told,
    session_over,
    transaction,
)
from tests.helpers.socket_loop import let_pass, run_with_sockets

# Of struct tcp_info in <linux/tcp.h>: tcpi_data_segs_out.
_DATA_SEGMENTS = 156


class Host:
    """A host that takes each message, and the path to it.

    Attributes:
        heard: All that has come.
        segments: How many brought each message's data, without the dot.
    """

    def __init__(self, peer: socket.socket, sender: socket.socket) -> None:
        self._peer = peer
        self._sender = sender
        self.heard = b""
        self.segments: list[int] = []

    def swallow(self, size: int) -> None:
        """Have the path lose every segment of more than *size* bytes from now on."""
        # Load the length; jump if it is greater; take all of it, or nothing.
        code = [
            (0x80, 0, 0, 0),
            (0x25, 1, 0, size),
            (6, 0, 0, 0xFFFFFFFF),
            (6, 0, 0, 0),
        ]
        program = b"".join(struct.pack("=HBBI", *one) for one in code)
        kept = ctypes.create_string_buffer(program)
        pointer = struct.pack("HP", len(code), ctypes.addressof(kept))
        so_attach_filter = 26
        self._peer.setsockopt(socket.SOL_SOCKET, so_attach_filter, pointer)

    def _sent(self) -> int:
        info = self._sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("=I", info, _DATA_SEGMENTS)[0])

    async def serve(self) -> None:
        """Answer every command, and every dot."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._peer, b"220 mx.example.com\r\n")
        data, begun = b"", -1
        while received := await loop.sock_recv(self._peer, 65536):
            self.heard += received
            data += received
            if begun >= 0 and data.endswith(b"\r\n.\r\n"):
                self.segments.append(self._sent() - begun - 1)
                data, begun = b"", -1
                await loop.sock_sendall(self._peer, b"250 taken\r\n")
            elif begun < 0 and data.endswith(b"\r\n"):
                is_data, data = data == b"DATA\r\n", b""
                begun = self._sent() if is_data else -1
                reply = b"354 go on\r\n" if is_data else b"250 ok\r\n"
                await loop.sock_sendall(self._peer, reply)


class Message(NamedTuple):
    """One of several over one session.

    Attributes:
        size: Bytes of its mail data.
        pause: Seconds before it.
        swallowed: From then on the path loses segments of more bytes than that.
    """

    size: int
    pause: float = 0.0
    swallowed: int | None = None


async def _send(session: Session, size: int) -> Result:
    result = Result()
    data = (b"x" * 68 + b"\r\n") * (size // 70)
    with closing(mail_data(data + b"y" * (size % 70))) as spooled:
        await transaction(
            session, envelope(FIVE[0]), [0], spooled, Owner(), result
        ).run()
    return result


async def over_one_session(
    *messages: Message,
) -> tuple[Host, list[Result | SessionFailed]]:
    """Send *messages*, one after the other; return the host, and what came of each."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        candidate = Candidate("mx", "127.0.0.1", listener.getsockname()[1], 10)
        stream = await dial(candidate)
        peer, _ = await loop.sock_accept(listener)
    came: list[Result | SessionFailed] = []
    with peer:
        host = Host(peer, stream.socket)
        serving = asyncio.create_task(host.serve())
        session = session_over(
            stream,
            candidate,
            Told(),
            tls=TlsLevel.NONE,
        )
        await session.open()
        for message in messages:
            let_pass(message.pause)
            if message.swallowed is not None:
                host.swallow(message.swallowed)
            try:
                came.append(await _send(session, message.size))
            except SessionFailed as failure:
                came.append(failure)
                break
        session.abort()
        with suppress(ConnectionResetError):
            await serving
    return host, came


LATER = 1.1 * PROVEN_FOR


@pytest.mark.parametrize(
    ("messages", "segments"),
    [
        pytest.param([Message(1000)], [2], id="first"),
        pytest.param([Message(1000), Message(1000)], [2, 1], id="as_large"),
        pytest.param([Message(1000), Message(500)], [2, 1], id="smaller"),
        pytest.param([Message(1000), Message(1070)], [2, 2], id="larger"),
        pytest.param([Message(1000), Message(1000, LATER)], [2, 2], id="later"),
        pytest.param([Message(1000)] * 4, [2, 1, 1, 1], id="one_after_another"),
    ],
)
def test_line_end_leaves_alone_where_its_arrival_is_waited_for(
    messages: list[Message], segments: list[int]
) -> None:
    host, came = run_with_sockets(over_one_session(*messages))
    assert all(isinstance(one, Result) and one.delivered == {0} for one in came)
    assert host.segments == segments


def test_line_end_of_a_message_of_many_pieces_leaves_alone() -> None:
    host, came = run_with_sockets(over_one_session(Message(1 << 20)))
    assert [isinstance(one, Result) and one.delivered for one in came] == [{0}]
    assert host.heard.count(b"\r\n.\r\n") == 1
    assert len(host.heard) > 1 << 20


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([Message(1000, swallowed=600)], id="first"),
        pytest.param([Message(9), Message(1000, swallowed=600)], id="larger"),
        pytest.param([Message(1000), Message(1000, LATER, swallowed=600)], id="later"),
        pytest.param([Message(200_000, swallowed=600)], id="many_pieces"),
    ],
)
def test_body_that_is_swallowed_is_followed_by_no_dot(messages: list[Message]) -> None:
    host, came = run_with_sockets(over_one_session(*messages))
    assert isinstance(came[-1], SessionFailed)
    assert came[-1].finding.verdict in (Verdict.SILENT, Verdict.STALLED)
    assert came[-1].finding.phase.word == "transaction"
    assert host.heard.count(b"\r\n.\r\n") == len(messages) - 1


def test_path_that_changes_at_once_is_found_after_the_dot() -> None:
    messages = Message(1000), Message(1000, swallowed=600)
    host, came = run_with_sockets(over_one_session(*messages))
    assert isinstance(came[1], SessionFailed)
    assert came[1].finding.phase.word == "dot"
    assert host.heard.count(b"\r\n.\r\n") == 1, "the host cannot take half a message"
