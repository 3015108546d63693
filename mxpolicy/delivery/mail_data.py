"""The mail data: kept as it comes, and read again for every host.

It can be read while it still grows. `spool` reads it from a descriptor, to the end.

Up to 1 MiB stays in memory, more goes to a `SpoolFile`. So a message of 100 MiB does not
take 100 MiB of memory. Many messages at a time share a `SpoolMemory`, and each keeps less
of its data there the more it is used. Size and header are examined as the data comes, for
SMTP and the journal.

An mbox ``From_`` line on top is no header field and is dropped: it would end the header
for the receiving host. Exim's pipe transport adds one unless ``message_prefix`` is empty,
Postfix's with ``flags=F``.

The bytes are kept as they came. `mxpolicy.protocol.dot_stuffing` does line ends and dots.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import sha256

from mxpolicy.delivery.spool_file import SpoolFile
from mxpolicy.delivery.spool_memory import BLOCK, Blocks, SpoolMemory
from mxpolicy.errors import LocalTrouble
from mxpolicy.protocol.dot_stuffing import size_on_the_wire

__all__ = ["DIGESTED", "MailData", "spool"]

MEMORY_LIMIT = 1 << 20

_CHUNK = 65536
# Bytes of a message with a file that are in memory: a write of fewer costs as much.
_TAIL = 4 * _CHUNK

# Bytes of the mail data that its digest covers. All of it would be known too late: the
# journal needs the digest at the start.
DIGESTED = 64 * 1024

# Bytes in which Received: fields are counted: those of a loop are on top. Postfix's
# header_size_limit is 102,400 for one field.
_HEADER_LIMIT = 256 * 1024
# Bytes of the header that are kept to be looked at together, at its beginning.
_TOP_LIMIT = 16 * 1024

# A From_ line holds an address and a date; RFC 5322 §2.1.1 ends any line at 998.
_LINE_LIMIT = 1000

# "From :" with white space before the colon is a header field in RFC 5322's obsolete
# form (§4.5.2), and stays.
_MBOX_LINE = re.compile(rb"From [ \t]*[^: \t\r\n][^\n]*\n")

_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_BLANK_LINE = re.compile(rb"^\r?\n", re.MULTILINE)

# What a mail server's final delivery writes above the last Received: field.
_ABOVE_RECEIVED = re.compile(
    rb"(?:(?:return-path|delivered-to|x-original-to|envelope-to|delivery-date)"
    rb"[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*)*received[ \t]*:",
    re.IGNORECASE,
)


class MailData:
    """One message, growing by `append` until `finish`, or until `give_up`.

    It has one writer, which waits for `drain` after each `append`. Any number may read
    `chunks`, also while it grows.

    Args:
        memory_limit: Bytes that stay in memory; the rest goes to a file.
        memory: Shared with other messages.
        file: That file.

    Attributes:
        size: Bytes on the wire with CRLF line ends, without doubled dots and the
            final dot, which is what SIZE= declares (RFC 1870 §5). Folding of
            overlong lines may add a few. None while the message grows.
        declared_size: What the client has said that `size` will be; None when it has not.
        has_8bit: A byte above 127 has come (RFC 6152).
        has_received_on_top: The first field, after the fields of final delivery, is
            Received:. Each mail server adds one (RFC 5321 §4.4). So two messages with
            equal bytes are one message, seen twice.
        received_count: How many Received: fields the header has: mail servers passed
            (RFC 5321 §6.3).
    """

    def __init__(
        self,
        *,
        memory_limit: int = MEMORY_LIMIT,
        memory: SpoolMemory | None = None,
        file: SpoolFile | None = None,
    ) -> None:
        self.size: int | None = None
        self.declared_size: int | None = None
        self.has_8bit = False
        self.has_received_on_top = False
        self.received_count = 0
        self._on_the_wire = 0
        self._memory_limit = memory_limit
        self._shared = memory or SpoolMemory()
        # The message is what the file has, what is on its way there, and then the rest.
        self._file = file or SpoolFile()
        self._leaving = Blocks()
        self._memory = Blocks()
        self._has_file = False
        # Until `_wrote` has dropped from memory what is in the file now.
        self._writing: asyncio.Future[int] | None = None
        self._is_closed = False
        self._stored = 0  # bytes kept, in memory or in the file
        self._top: bytes | None = b""  # the first line, until it is complete
        self._last = 0x0A  # the byte before the next one
        self._header: bytearray | None = bytearray()  # until it is complete
        self._examined = 0  # bytes that it has had
        self._has_seen_top = False
        self._hash = sha256()
        self._trouble: LocalTrouble | None = None
        self._watched: tuple[int, Callable[[], None]] | None = None
        self._news = asyncio.Event()
        self._written = asyncio.Event()

    @property
    def likely_size(self) -> int | None:
        """What SIZE= says to a host now (RFC 1870 §6.3): an estimate while it grows."""
        return self.declared_size if self.size is None else self.size

    @property
    def may_have_8bit(self) -> bool:
        """Whether a host must expect bytes above 127: of what is still to come, too."""
        return self.has_8bit or self.size is None

    def append(self, data: bytes) -> None:
        """Take the next bytes, of any number.

        Raises:
            LocalTrouble: The disk is full, or the writer has given up.
        """
        if self._trouble is not None:
            raise self._trouble
        if self._top is not None:
            data = self._top + data
            if b"\n" not in data and len(data) < _LINE_LIMIT:
                self._top = data
                return
            data = self._without_mbox_line(data)
        self._take(data)
        if self._trouble is not None:
            raise self._trouble
        self._news.set()
        if self._watched is not None and self._stored > self._watched[0]:
            self._tell_watcher()

    @property
    def is_full(self) -> bool:
        """Whether `drain` would wait."""
        if self._writing is None:
            return False
        kept = self._kept()
        return self._in_memory > kept + min(kept, _TAIL)

    async def drain(self) -> None:
        """Wait until the disk has taken so much that more may come.

        Raises:
            LocalTrouble: The disk is full, or the writer has given up.
        """
        while self.is_full:
            self._written.clear()
            await self._written.wait()
        if self._trouble is not None:
            raise self._trouble

    def finish(self) -> None:
        """The message is complete, unless the writer has given up: then it never is."""
        if self._trouble is not None:
            return
        if self._top is not None:
            self._take(self._without_mbox_line(self._top))
            if self._trouble is not None:
                return
        if self._last != 0x0A:
            self._on_the_wire += 2  # the line end that the last line lacks
        if self._header is not None:
            self._understand_header(self._header)
        self.size = self._on_the_wire
        self._news.set()
        self._tell_watcher()

    def give_up(self, trouble: LocalTrouble) -> None:
        """No more will come, though the message is not complete: readers raise *trouble*."""
        self._trouble = trouble
        self._news.set()
        self._tell_watcher()

    def watch(self, limit: int, told: Callable[[], None]) -> None:
        """Call *told* once: when the message is complete, or ends in trouble.

        Or as soon as it has more than *limit* bytes. Perhaps that is so already.
        """
        self._watched = limit, told
        if self.size is not None or self._trouble or self._stored > limit:
            self._tell_watcher()

    def _tell_watcher(self) -> None:
        if self._watched is not None:
            _, told = self._watched
            self._watched = None
            told()

    def content(self) -> bytes | None:
        """Return the whole message; None unless it is complete, small and in memory."""
        if self.size is None or self._has_file or not 0 < self._stored <= BLOCK:
            return None
        return self._memory.read(0, self._stored)

    async def chunks(self, size: int = _CHUNK) -> AsyncIterator[bytes]:
        """Yield the message from its beginning, up to *size* bytes at a time, to its end.

        It waits for bytes that are still to come.

        Raises:
            LocalTrouble: The writer has given up, or the spool file cannot be read, or
                is shorter than it was.
        """
        position, has_more = 0, True
        while has_more:
            while position < self._stored:
                chunk = await self._read(position, size)
                position += len(chunk)
                yield chunk
            has_more = await self._has_news()

    async def digest(self) -> bytes:
        """Return the SHA-256 of the first `DIGESTED` bytes, once they are there.

        By then the attributes of the header are known, too.

        Raises:
            LocalTrouble: The writer has given up.
        """
        while self._stored < DIGESTED or self._header is not None:
            if not await self._has_news():
                break
        return self.digest_so_far()

    def digest_so_far(self) -> bytes:
        """Return the same, of a message that is complete."""
        return self._hash.digest()

    async def whole(self) -> None:
        """Wait until the message is complete.

        Raises:
            LocalTrouble: The writer has given up.
        """
        while await self._has_news():
            pass

    async def _has_news(self) -> bool:
        """Wait for the writer's next step; return False if the message is complete."""
        if self.size is not None:
            return False
        if self._trouble is None:
            self._news.clear()
            await self._news.wait()
        if self._trouble is not None:
            raise self._trouble
        return True

    def close(self) -> None:
        """Free the memory or the file; may be called twice."""
        if self.size is None:
            self.give_up(LocalTrouble("the message was never complete"))
        if not self._is_closed:
            self._is_closed = True  # `chunks` now fails; it never yields less than all
            self._shared.used -= self._in_memory
            self._leaving, self._memory = Blocks(), Blocks()
            self._file.close()

    def _without_mbox_line(self, data: bytes) -> bytes:
        self._top = None
        found = _MBOX_LINE.match(data)
        return data[found.end() :] if found else data

    def _take(self, data: bytes) -> None:
        if not data:
            return
        self._on_the_wire += size_on_the_wire(data)
        if self._last == 0x0D and data[0] == 0x0A:
            self._on_the_wire -= 1  # the CR is there already
        self._last = data[-1]
        self.has_8bit = self.has_8bit or not data.isascii()
        if self._stored < DIGESTED:
            self._hash.update(data[: DIGESTED - self._stored])
        if self._header is not None:
            self._look_for_end(self._header, data)
        self._store(data)

    def _look_for_end(self, header: bytearray, data: bytes) -> None:
        before = len(header)
        data = data[: _HEADER_LIMIT - self._examined]
        self._examined += len(data)
        header += data
        end = _BLANK_LINE.search(header, max(0, before - 1))
        if end or self._examined == _HEADER_LIMIT:
            self._understand_header(header[: end.start()] if end else header)
        elif len(header) > _TOP_LIMIT:
            self._understand_part(header)

    def _understand_part(self, header: bytearray) -> None:
        """Count in the lines that are complete, and forget them."""
        self._look_at_top(header)
        complete = header.rfind(b"\n") + 1
        self.received_count += len(_RECEIVED.findall(header[:complete]))
        del header[:complete]
        del header[_LINE_LIMIT:]  # of a line, only the beginning is looked at

    def _understand_header(self, header: bytearray) -> None:
        self._look_at_top(header)
        self.received_count += len(_RECEIVED.findall(header))
        self._header = None

    def _look_at_top(self, header: bytearray) -> None:
        if not self._has_seen_top:
            self._has_seen_top = True
            self.has_received_on_top = _ABOVE_RECEIVED.match(header) is not None

    # -- memory and file ----------------------------------------------------

    def _store(self, data: bytes) -> None:
        self._memory.append(data)
        self._shared.used += len(data)
        self._stored += len(data)
        if self._writing is None:
            self._write_out()

    @property
    def _in_memory(self) -> int:
        return self._leaving.size + self._memory.size

    def _kept(self) -> int:
        """Return how many bytes may stay in memory."""
        kept = min(self._memory_limit, self._shared.share())
        return min(kept, _TAIL) if self._has_file else kept

    def _write_out(self) -> None:
        """Begin to write to the file what is too much for memory."""
        if self._is_closed or self._in_memory <= self._kept():
            return
        try:
            self._writing = self._file.write(self._memory.pieces)
        except LocalTrouble as error:
            self._could_not_write(error)
            return
        self._leaving, self._memory = self._memory, Blocks()
        self._has_file = True
        self._writing.add_done_callback(self._wrote)

    def _wrote(self, writing: asyncio.Future[int]) -> None:
        """Drop what is in the file now, and go on."""
        self._writing = None
        try:
            count = writing.result()
            if not self._is_closed:
                self._shared.used -= count
                self._leaving = Blocks()
                self._write_out()
        except LocalTrouble as error:
            self._could_not_write(error)
        self._written.set()

    def _could_not_write(self, error: LocalTrouble) -> None:
        """Keep it in memory, where no more may come.

        A message that was complete by then is delivered.
        """
        if self.size is None:
            self.give_up(error)

    async def _read(self, position: int, size: int) -> bytes:
        if self._is_closed:
            raise LocalTrouble("the message was closed")
        begin = position - (self._stored - self._in_memory)
        if begin < 0:
            return await self._file.read(position, min(size, -begin))
        if begin < self._leaving.size:
            return self._leaving.read(begin, size)
        return self._memory.read(begin - self._leaving.size, size)


async def spool(descriptor: int, *, memory_limit: int = MEMORY_LIMIT) -> MailData:
    """Read *descriptor* to its end, without blocking the loop, and return the message.

    A pipe, a socket or a terminal is waited for. A file is read piece by piece, and the
    loop runs in between. The descriptor may be blocking or not, is read by nothing else
    meanwhile, and stays open. Its end does not prove that the writer was done.

    Raises:
        LocalTrouble: the descriptor cannot be read, or memory or disk are full.
    """
    message = MailData(memory_limit=memory_limit)
    try:
        while data := await _read_some(descriptor):
            message.append(data)
            await message.drain()
        message.finish()
    except MemoryError as error:
        message.close()
        raise LocalTrouble("no memory for the message") from error
    except BaseException:
        message.close()
        raise
    return message


async def _read_some(descriptor: int) -> bytes:
    """Return what can be read, ``b""`` at the end."""
    try:
        while True:
            await _readable(descriptor)
            # Ready, and nothing else reads: this does not block.
            with suppress(BlockingIOError):
                return os.read(descriptor, _CHUNK)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise LocalTrouble(f"cannot read the message: {reason}") from error


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        # epoll(7) does not take regular files and /dev/null: they never block.
        await asyncio.sleep(0)
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
