"""TLS: a context for each of Postfix's levels that needs one, and TLS between two buffers.

At level ``may`` the alternative to weak TLS is clear text. So all that encrypts is
accepted: TLS 1.0, old ciphers, short keys, servers without secure renegotiation (RFC
5746), and certificates that are not valid. No CA store is loaded. That keeps out an
eavesdropper that only listens, and not one that interferes (RFC 7435).
"""

from __future__ import annotations

import ssl
import warnings
from contextlib import suppress
from functools import cache

from mxpolicy.errors import TLSError
from mxpolicy.reply import printable

__all__ = ["TlsLayer", "opportunistic", "words_of"]

# ssl.OP_LEGACY_SERVER_CONNECT has a name only since Python 3.12; OpenSSL 3 refuses
# servers without RFC 5746 unless it is set, OpenSSL 1.1 had it set by default.
_LEGACY_SERVER_CONNECT = 0x4


@cache
def opportunistic() -> ssl.SSLContext:
    """Return the context for level ``may``, the same one each time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        # Python warns of TLS 1.0; see above why it is allowed.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    # SECLEVEL=0: at the default level OpenSSL 3 allows neither TLS 1.0 nor SHA-1.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.options |= _LEGACY_SERVER_CONNECT
    return context


class TlsLayer:
    """An `ssl.SSLObject` between two memory buffers: bytes in, bytes out.

    Any method may raise `ssl.SSLError`.

    Raises:
        TLSError: *context* checks names, and *server_name* cannot be one.
    """

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            self._object = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=server_name
            )
        except ValueError as error:  # not a name that IDNA 2003 can encode
            if context.check_hostname:
                raise TLSError(str(error)) from error
            self._object = context.wrap_bio(self._incoming, self._outgoing)

    def feed(self, data: bytes) -> None:
        """Take bytes from the network; ``b""`` is their end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def outgoing(self) -> bytes:
        """Return the bytes that must go to the network now."""
        return self._outgoing.read()

    def handshake(self) -> bool:
        """Go on; return True when complete. In any case send `outgoing`."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self, limit: int) -> bytes | None:
        """Return clear text, ``b""`` at its end, None when more must be fed first."""
        try:
            return self._object.read(limit)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def encrypt(self, data: bytes) -> None:
        """Take clear text; a memory buffer takes all of it."""
        if data:
            self._object.write(data)

    def words(self) -> str:
        """Return protocol and cipher, as ``TLSv1.3/TLS_AES_256_GCM_SHA384``."""
        cipher = self._object.cipher()
        return printable(f"{self._object.version()}/{cipher[0]}") if cipher else ""

    def say_goodbye(self) -> None:
        """Make a close_notify, without waiting for the peer's (RFC 8446 §6.1)."""
        with suppress(ssl.SSLWantReadError):
            self._object.unwrap()


def words_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's words without its source file and line."""
    return printable(error.reason or str(error.strerror or error))
