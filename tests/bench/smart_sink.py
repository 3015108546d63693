"""A quick host that does not take everything, as KumoMTA's smart sink does not.

    python3 smart_sink.py [PORT]

Of 100 recipients 10 are answered 4yz, 5 are answered 5yz, and 2 never; all else is taken.
What a recipient gets follows from the number in its local part, `user123@`, so that it is
the same in every run and for every client. It says so to RCPT, and is silent there, too:
what comes on the same connection behind that is not read. Standard library only, one
file: it is started by its path, in the lab's Internet.
"""

import asyncio
import re
import sys

TRANSIENT, PERMANENT, SILENT = 10, 5, 2
"""Of 100 recipients."""


def answer(recipient: bytes) -> bytes:
    """Return what RCPT for *recipient* is answered; empty: nothing."""
    found = re.search(rb"(\d+)@", recipient)
    # Neighbours are alike in nothing: 37 has no factor in common with 100.
    place = int(found[1]) * 37 % 100 if found else 100
    if place < TRANSIENT:
        return b"450 4.2.1 The user is receiving mail at a rate that is too high\r\n"
    if place < TRANSIENT + PERMANENT:
        return b"550 5.1.1 The email account that you tried to reach does not exist\r\n"
    if place < TRANSIENT + PERMANENT + SILENT:
        return b""
    return b"250 2.1.5 Ok\r\n"


class Host(asyncio.Protocol):
    """One session."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = b""
        self._is_body = self._is_silent = False
        self._has_recipient = False
        transport.write(b"220 mx.lab.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        """Answer what is there."""
        self._buffer += data
        while not self._is_silent:
            end = b"\r\n.\r\n" if self._is_body else b"\r\n"
            line, found, rest = self._buffer.partition(end)
            if not found:
                return
            self._buffer = rest
            self._transport.write(self._reply(line))

    def _reply(self, line: bytes) -> bytes:
        verb = b"" if self._is_body else line[:4].upper()
        self._is_body = False
        if verb in {b"MAIL", b"RSET"}:
            self._has_recipient = False
        if verb == b"RCPT":
            reply = answer(line)
            self._is_silent = not reply
            self._has_recipient |= reply[:1] == b"2"
            return reply
        if verb == b"DATA":
            self._is_body = self._has_recipient
            return b"354 Go on\r\n" if self._is_body else b"503 5.5.1 No recipient\r\n"
        if verb == b"EHLO":
            return b"250-mx.lab.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
        if verb == b"QUIT":
            self._transport.write(b"221 2.0.0 Bye\r\n")
            self._transport.close()
            return b""
        return b"250 2.0.0 Ok\r\n"


async def main(port: int) -> None:
    """Serve for ever, at every address."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Host, "0.0.0.0", port, backlog=1000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 25))
