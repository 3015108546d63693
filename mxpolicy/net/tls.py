"""TLS contexts, one for each of Postfix's levels that needs one.

At level ``may`` the alternative to weak TLS is clear text, so nothing that
encrypts is refused: TLS 1.0, old ciphers, short keys, servers without secure
renegotiation (RFC 5746), any certificate or none that is valid. No CA store is
loaded. An eavesdropper who only listens is kept out, one who interferes is not
(RFC 7435).
"""

from __future__ import annotations

import ssl
import warnings
from functools import cache

__all__ = ["opportunistic"]

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
        # The deprecation is of TLS 1.0 as such; see above why it is allowed.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    # SECLEVEL=0: at the default level OpenSSL 3 allows neither TLS 1.0 nor SHA-1.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.options |= _LEGACY_SERVER_CONNECT
    return context
