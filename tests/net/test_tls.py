from __future__ import annotations

import socket
import ssl
import threading
import warnings
from contextlib import suppress

import pytest
import trustme

from mxpolicy.net import tls


def test_nothing_is_verified_and_no_ca_store_loaded() -> None:
    context = tls.opportunistic()
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname
    assert context.get_ca_certs() == []


def test_the_context_is_made_once() -> None:
    assert tls.opportunistic() is tls.opportunistic()


def test_making_it_warns_nobody() -> None:
    # On stderr a warning would come before our answer to the mail server.
    tls.opportunistic.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tls.opportunistic()


@pytest.mark.parametrize(
    ("version", "is_built"),
    [
        pytest.param(ssl.TLSVersion.TLSv1, ssl.HAS_TLSv1, id="TLSv1"),
        pytest.param(ssl.TLSVersion.TLSv1_1, ssl.HAS_TLSv1_1, id="TLSv1.1"),
        pytest.param(ssl.TLSVersion.TLSv1_2, ssl.HAS_TLSv1_2, id="TLSv1.2"),
        pytest.param(ssl.TLSVersion.TLSv1_3, ssl.HAS_TLSv1_3, id="TLSv1.3"),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_host_that_knows_one_version_only_is_spoken_to(
    version: ssl.TLSVersion, is_built: bool
) -> None:
    if not is_built:
        pytest.skip(f"this OpenSSL is built without {version.name}")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = server.maximum_version = version
    server.set_ciphers("ALL:@SECLEVEL=0")
    assert handshake(server) == version.name.replace("_", ".")


@pytest.mark.parametrize("cipher", ["AES128-SHA", "ECDHE-RSA-AES128-SHA"])
def test_a_host_that_knows_one_old_cipher_only_is_spoken_to(cipher: str) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.set_ciphers(f"{cipher}:@SECLEVEL=0")
    assert handshake(server) == "TLSv1.2"


def handshake(server: ssl.SSLContext) -> str | None:
    """Return the version that the two agree on over a real connection."""
    certificate = trustme.CA(key_type=trustme.KeyType.RSA).issue_cert(
        "mx.example", key_type=trustme.KeyType.RSA
    )
    certificate.configure_cert(server)
    near, far = socket.socketpair()

    def serve() -> None:
        with far, suppress(OSError), server.wrap_socket(far, server_side=True) as peer:
            peer.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with tls.opportunistic().wrap_socket(near, server_hostname="mx.example") as us:
            return us.version()
    finally:
        near.close()
        thread.join()
