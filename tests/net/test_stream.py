"""`mxpolicy.net.stream` over real TCP: reading, writing and TLS that wait."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trustme

from mxpolicy.errors import RemoteProtocolError, TLSError
from mxpolicy.net import tls
from mxpolicy.net.ack_watch import StreamSilent, telling_progress
from mxpolicy.net.channel import StreamClosed
from mxpolicy.net.stream import Stream
from tests.net.pairs import (
    Pair,
    connected_pair,
    expect,
    fill,
    pair,
    receive_all,
    watched_descriptors,
)

__all__ = ["pair"]  # a fixture


def has_closed_window(stream: Stream) -> bool:
    """Return whether the peer has acknowledged all that left, and there is more."""
    state = stream.send_state()
    return state is not None and 0 < state.unsent == state.unacknowledged


class TestReading:
    async def test_returns_what_has_come_and_then_the_end(self, pair: Pair) -> None:
        stream, peer = pair
        peer.sendall(b"220 hello\r\n")
        assert await stream.read() == b"220 hello\r\n"
        peer.close()
        assert await stream.read() == b""
        assert await stream.read() == b""

    async def test_never_returns_more_than_asked_for(self, pair: Pair) -> None:
        stream, peer = pair
        peer.sendall(b"abcdef")
        assert await stream.read(4) == b"abcd"
        assert await stream.read(4) == b"ef"

    async def test_what_came_before_a_reset_is_read_first(self, pair: Pair) -> None:
        stream, peer = pair
        await stream.write(b"unread")
        await stream.drain()
        peer.sendall(b"421 going\r\n")
        peer.close()  # with unread bytes: the kernel resets
        assert await stream.read() == b"421 going\r\n"
        with pytest.raises(StreamClosed, match="Connection reset by peer"):
            await stream.read()

    async def test_a_cancelled_read_loses_nothing(self, pair: Pair) -> None:
        stream, peer = pair
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await stream.read()
        assert watched_descriptors() == set()
        peer.sendall(b"late")
        assert await stream.read() == b"late"


class TestWriting:
    async def test_everything_arrives_in_order(self, pair: Pair) -> None:
        stream, peer = pair
        data = os.urandom(1 << 20)
        async with asyncio.TaskGroup() as group:
            received = group.create_task(receive_all(peer, len(data)))
            for start in range(0, len(data), 65536):
                assert await stream.write(data[start : start + 65536])
            assert await stream.drain()
        assert received.result() == data
        assert stream.unacknowledged() == 0

    async def test_a_small_write_is_not_held_back(self, pair: Pair) -> None:
        stream, _ = pair
        nagle = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert nagle != 0

    async def test_a_peer_that_takes_nothing_is_found_silent(self, pair: Pair) -> None:
        stream, _ = pair
        with pytest.raises(StreamSilent) as caught:
            await fill(stream, progress_timeout=0)
        assert caught.value.unacknowledged > 0
        assert watched_descriptors() == set()

    async def test_acknowledged_bytes_are_progress_however_slow(
        self, pair: Pair
    ) -> None:
        stream, peer = pair
        clock = Clock()
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(
                expect(StreamSilent, fill(stream, progress_timeout=180))
            )
            await clock.until(lambda: stream.unacknowledged() > 0)
            for _ in range(3):
                await clock.advance(170)
                before = stream.acknowledged
                await receive_all(peer, 16384)
                await clock.until(lambda: stream.acknowledged > before)  # noqa: B023
                assert not writing.done()
            await clock.advance(170)
            assert not writing.done()
            await clock.advance(20)
            await clock.until(writing.done)

    async def test_acknowledged_bytes_are_told_and_nothing_else(
        self, pair: Pair
    ) -> None:
        stream, peer = pair
        clock = Clock()
        told: list[float] = []
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            with telling_progress(stream, lambda: told.append(loop.time())):
                writing = group.create_task(
                    expect(StreamSilent, fill(stream, progress_timeout=180))
                )
                await clock.until(lambda: has_closed_window(stream))
                await clock.until(lambda: len(told) > 0)
                await clock.advance(20)
                before, at_first = stream.acknowledged, len(told)
                await clock.advance(100)
                assert len(told) == at_first
                await receive_all(peer, 16384)
                await clock.until(lambda: stream.acknowledged > before)
                await clock.advance(6)
                assert len(told) == at_first + 1
            await clock.advance(180)
            await clock.until(writing.done)
        assert len(told) == at_first + 1

    async def test_handing_to_the_kernel_is_no_progress(self, pair: Pair) -> None:
        stream, _ = pair
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert await stream.write(bytes(200_000))  # all of it fits into our kernel
        with pytest.raises(StreamSilent):
            await stream.drain(progress_timeout=0)

    async def test_a_reply_in_the_middle_of_the_mail_data_stops_it(
        self, pair: Pair
    ) -> None:
        stream, peer = pair
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(fill(stream, heed_input=True))
            await asyncio.sleep(0)
            peer.sendall(b"552 too large\r\n")
            assert await writing is False
        assert await stream.read() == b"552 too large\r\n"

    async def test_the_end_in_the_middle_of_the_mail_data_stops_it(
        self, pair: Pair
    ) -> None:
        stream, peer = pair
        peer.shutdown(socket.SHUT_WR)
        assert await fill(stream, heed_input=True) is False
        assert await stream.read() == b""

    async def test_slow_reader_is_silent_and_not_stalled(self, pair: Pair) -> None:
        stream, _ = pair
        clock = Clock()
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(
                expect(StreamSilent, fill(stream, progress_timeout=180))
            )
            await clock.until(lambda: has_closed_window(stream))
            await clock.advance(179)
            assert not writing.done()
            await clock.advance(2)
            await clock.until(writing.done)
        state = stream.send_state()
        assert state is not None
        assert state.retransmissions == 0

    async def test_draining_stops_for_a_reply(self, pair: Pair) -> None:
        stream, peer = pair
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert await stream.write(bytes(200_000))
        peer.sendall(b"552 too large\r\n")
        assert await stream.drain(heed_input=True) is False

    async def test_all_of_a_long_reply_is_read_from_one_who_takes_no_more(
        self, pair: Pair
    ) -> None:
        stream, peer = pair
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(fill(stream, heed_input=True))
            await asyncio.sleep(0)
            peer.sendall(b"552-too large\r\n")
            assert await writing is False
        assert await stream.read() == b"552-too large\r\n"
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(stream.read())
            await asyncio.sleep(0)
            peer.sendall(b"552 sorry\r\n")
            assert await reading == b"552 sorry\r\n"

    async def test_draining_notices_a_reset(self, pair: Pair) -> None:
        stream, peer = pair
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert await stream.write(bytes(200_000))
        peer.close()
        with pytest.raises(StreamClosed):
            await stream.drain()

    async def test_a_refusal_before_the_reset_can_still_be_read(
        self, pair: Pair
    ) -> None:
        stream, peer = pair
        await stream.write(b"mail data")
        await stream.drain()
        peer.sendall(b"552 5.3.4 too large\r\n")
        peer.close()  # with unread bytes: the kernel resets
        with pytest.raises(StreamClosed):
            await fill(stream)
        assert await stream.read() == b"552 5.3.4 too large\r\n"
        with pytest.raises(StreamClosed):
            await stream.read()

    async def test_a_cancelled_write_cannot_be_gone_on_with(self, pair: Pair) -> None:
        stream, _ = pair
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await fill(stream)
        assert watched_descriptors() == set()
        with pytest.raises(StreamClosed, match="cut short"):
            await stream.write(b"QUIT\r\n")


# --- what is known of the last words when they are answered
#
# A reply to the final dot is believed only if the dot is acknowledged once the reply
# has been read: `Dialogue._has_arrived`. A good one that was not believed would be a
# second copy of the message.


async def test_answer_brings_the_acknowledgement_of_what_it_answers(pair: Pair) -> None:
    stream, peer = pair
    loop = asyncio.get_running_loop()
    rode_on_the_answer = 0
    for _ in range(200):
        # Acknowledged later, by the answer, unless that takes 40 ms.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        await stream.write(b".\r\n")
        sent = stream.handed_over
        assert await receive_all(peer, 3) == b".\r\n"
        rode_on_the_answer += stream.acknowledged < sent
        await loop.sock_sendall(peer, b"250 ok\r\n")
        assert await stream.read() == b"250 ok\r\n"
        assert stream.acknowledged >= sent
    assert rode_on_the_answer > 100


def answer_dots(peer: socket.socket) -> None:
    with suppress(OSError):
        while peer.recv(65536):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            peer.sendall(b"250 ok\r\n")


@pytest.mark.parametrize("secured", [False, True], ids=["clear", "tls"])
async def test_no_answer_is_read_before_its_acknowledgement_is_known(
    secured: bool, server_context: ssl.SSLContext
) -> None:
    async with served(answer_dots, server_context if secured else None) as stream:
        if secured:
            await stream.start_tls(tls.opportunistic(), "mx.example")
        for _ in range(2000):
            await stream.write(b".\r\n")
            sent = stream.handed_over
            assert await stream.read() == b"250 ok\r\n"
            assert stream.acknowledged >= sent


async def test_write_goes_on_after_what_was_said_in_the_middle(pair: Pair) -> None:
    stream, peer = pair
    loop = asyncio.get_running_loop()
    data = bytes(range(256)) * 4096
    peer.sendall(b"250 too early\r\n")
    assert await stream.write(data, heed_input=True) is False
    assert await stream.read() == b"250 too early\r\n"
    reading = asyncio.create_task(receive_all(peer, len(data)))
    await loop.sock_sendall(peer, b"250 and more\r\n")
    while not await stream.resume(heed_input=True):
        assert await stream.read() == b"250 and more\r\n"
    assert await reading == data
    assert await stream.write(b".\r\n"), "no write is cut short any more"


async def test_words_of_a_peer_that_reads_nothing_are_no_progress(pair: Pair) -> None:
    stream, peer = pair
    clock = Clock()

    async def insist() -> None:
        how: dict[str, Any] = {"progress_timeout": 180, "heed_input": True}
        done = await stream.write(bytes(1 << 22), **how)
        while not done:
            await stream.read()
            done = await stream.resume(**how)

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(expect(StreamSilent, insist()))
        await clock.until(lambda: has_closed_window(stream))
        await clock.advance(1)  # the last that was acknowledged has been noticed
        began = clock.offset
        for _ in range(3):
            await clock.advance(59)
            peer.sendall(b"well")
            await clock.until(lambda: not stream.has_input())
            assert not writing.done()
        await clock.until(writing.done)
    assert clock.offset - began == pytest.approx(180, abs=2)


async def test_what_is_said_before_our_words_arrive_shows_itself(pair: Pair) -> None:
    stream, peer = pair
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    await stream.write(bytes(200_000))
    await stream.write(b".\r\n")
    peer.sendall(b"250 too early\r\n")
    assert await stream.read() == b"250 too early\r\n"
    assert stream.acknowledged < stream.handed_over


# --- TLS

Server = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example").configure_cert(context)
    return context


@asynccontextmanager
async def served(
    server: Server, context: ssl.SSLContext | None = None
) -> AsyncIterator[Stream]:
    """Yield a stream whose other end *server* handles, in a thread, under TLS if *context*."""
    stream, peer = connected_pair()
    peer.settimeout(10)

    def serve() -> None:
        with peer:
            if context is None:
                server(peer)
                return
            with (
                suppress(OSError),
                context.wrap_socket(peer, server_side=True) as secured,
            ):
                server(secured)

    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(serve))
        try:
            yield stream
        finally:
            stream.abort()


def echo(peer: socket.socket) -> None:
    with suppress(OSError):
        while data := peer.recv(65536):
            peer.sendall(data)


def say_nothing(peer: socket.socket) -> None:
    with suppress(OSError):
        while peer.recv(65536):
            pass


def hang_up(peer: socket.socket) -> None:
    peer.recv(1)


def say_nonsense(peer: socket.socket) -> None:
    peer.recv(65536)
    peer.sendall(b"454 no TLS today\r\n")


def say_too_much(peer: socket.socket) -> None:
    peer.sendall(b"250 injected\r\n")
    say_nothing(peer)


class TestTls:
    async def test_bytes_go_both_ways(self, server_context: ssl.SSLContext) -> None:
        async with served(echo, server_context) as stream:
            assert not stream.tls
            await stream.start_tls(tls.opportunistic(), "mx.example")
            assert stream.tls
            await stream.write(b"EHLO me\r\n")
            assert await stream.read(4) == b"EHLO"
            assert await stream.read() == b" me\r\n"

    async def test_large_data_arrives_whole(
        self, server_context: ssl.SSLContext
    ) -> None:
        data = os.urandom(1 << 20)
        taken = bytearray()

        def take_all(peer: socket.socket) -> None:
            while len(taken) < len(data):
                taken.extend(peer.recv(65536))

        async with served(take_all, server_context) as stream:
            await stream.start_tls(tls.opportunistic(), "mx.example")
            for start in range(0, len(data), 65536):
                # The server's session tickets come now; they are no reply.
                assert await stream.write(data[start : start + 65536], heed_input=True)
            assert await stream.drain()
            assert await stream.read() == b""
        assert taken == data

    async def test_a_reply_in_the_middle_of_the_mail_data_stops_it(
        self, server_context: ssl.SSLContext
    ) -> None:
        def refuse(peer: socket.socket) -> None:
            peer.recv(1)
            peer.sendall(b"552 too large\r\n")
            say_nothing(peer)

        async with served(refuse, server_context) as stream:
            await stream.start_tls(tls.opportunistic(), "mx.example")
            assert await fill(stream, heed_input=True) is False
            assert await stream.read() == b"552 too large\r\n"

    async def test_the_end_without_a_goodbye_is_the_end(
        self, server_context: ssl.SSLContext
    ) -> None:
        def break_off(peer: socket.socket) -> None:
            peer.recv(1)
            peer.shutdown(socket.SHUT_RDWR)

        async with served(break_off, server_context) as stream:
            await stream.start_tls(tls.opportunistic(), "mx.example")
            await stream.write(b"x")
            assert await stream.read() == b""

    async def test_records_without_data_are_not_read_for_ever(
        self, server_context: ssl.SSLContext
    ) -> None:
        endless = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("mx.example").configure_cert(endless)
        endless.num_tickets = 1000  # of some 250 bytes
        async with served(echo, endless) as stream:
            await stream.start_tls(tls.opportunistic(), "mx.example")
            with pytest.raises(StreamClosed, match="without data"):
                await stream.read()

    async def test_garbage_between_records_closes(
        self, server_context: ssl.SSLContext
    ) -> None:
        def garble(peer: socket.socket) -> None:
            peer.recv(1)
            os.write(peer.fileno(), b"250 in clear after all\r\n")
            say_nothing(peer)

        async with served(garble, server_context) as stream:
            await stream.start_tls(tls.opportunistic(), "mx.example")
            await stream.write(b"x")
            with pytest.raises(StreamClosed):
                await stream.read()

    async def test_closing_says_last_words_under_tls(
        self, server_context: ssl.SSLContext
    ) -> None:
        heard = []

        def listen(peer: socket.socket) -> None:
            while data := peer.recv(100):
                heard.append(data)
            heard.append(b"end")

        async with served(listen, server_context) as stream:
            await stream.start_tls(tls.opportunistic(), "mx.example")
            stream.close(b"QUIT\r\n")
        assert heard == [b"QUIT\r\n", b"end"]

    @pytest.mark.parametrize("server", [hang_up, say_nonsense])
    async def test_a_handshake_that_fails(self, server: Server) -> None:
        async with served(server) as stream:
            with pytest.raises(TLSError):
                await stream.start_tls(tls.opportunistic(), "mx.example")
            assert not stream.tls

    async def test_bytes_before_the_handshake_are_not_believed(self) -> None:
        async with served(say_too_much) as stream:
            await stream.ready(reading=True)
            with pytest.raises(RemoteProtocolError):
                await stream.start_tls(tls.opportunistic(), "mx.example")

    async def test_a_cancelled_handshake_leaves_nothing(self) -> None:
        async with served(say_nothing) as stream:
            number = stream.socket.fileno()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await stream.start_tls(tls.opportunistic(), "mx.example")
            assert number not in watched_descriptors()
            stream.close(b"QUIT\r\n")

    @pytest.mark.parametrize(
        "name", ["192.0.2.1", "mx..example", "x" * 70 + ".example"]
    )
    async def test_a_name_that_is_no_sni_is_left_out(
        self, server_context: ssl.SSLContext, name: str
    ) -> None:
        async with served(echo, server_context) as stream:
            await stream.start_tls(tls.opportunistic(), name)
            assert stream.tls

    async def test_a_name_that_must_be_checked_is_not_left_out(self) -> None:
        strict = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with served(say_nothing) as stream:
            with pytest.raises(TLSError):
                await stream.start_tls(strict, "mx..example")

    async def test_a_certificate_that_must_be_trusted_is_checked(
        self, server_context: ssl.SSLContext
    ) -> None:
        strict = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with served(echo, server_context) as stream:
            with pytest.raises(TLSError, match="VERIFY"):
                await stream.start_tls(strict, "mx.example")


# --- help


class Clock:
    """The running loop's time, moved by hand; what waits for sockets really waits."""

    def __init__(self) -> None:
        loop: Any = asyncio.get_running_loop()
        self.offset = 0.0
        real = loop.time
        loop.time = lambda: real() + self.offset

    async def advance(self, seconds: float) -> None:
        self.offset += seconds
        for _ in range(10):  # let everything that is now due happen
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.offset += 0.01
            await asyncio.sleep(0)
