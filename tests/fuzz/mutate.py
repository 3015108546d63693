"""The corpus, and inputs that are like it."""

from __future__ import annotations

import random
from pathlib import Path

__all__ = ["corpus", "mutated"]

CORPUS = Path(__file__).parent / "corpus"

# What readers look at: codes, separators, ends, escapes, the edges of limits.
WORDS = (
    b"\r\n", b"\n", b"\r", b"\0", b".", b"\r\n.\r\n", b"-", b" ", b"250", b"250-",
    b"220 ", b"354 ", b"421 ", b"450 4.7.1 ", b"550 5.1.1 ", b"552 ", b"5.7.1", b"2.",
    b"\x1b[2J", b"\x1b]0;x\x07", b"\x9b31m", b"\x7f", b"\xe2\x80\xae", b"\xe2\x80\xa8",
    b"\xff\xfe", b"\xc3", b"\xf0\x9f\x98\x80", b"@", b'"', b"\\", b"<", b">", b"[", b"]",
    b":", b",", b"xn--", b"\xc3\x9f", b"IPv6:", b"::1", b"127.0.0.1", b"PIPELINING",
    b"STARTTLS", b"XXXXXXXA", b"SIZE 1", b"LIMITS RCPTMAX=1", b"helo", b"\xc0\x0c",
    b"\x00\x0f\x00\x01", b"\x00\x05\x00\x01", b"\x81\x80", b"- &a", b"*a", b"!!x ", b"? ",
    b"x" * 512, b"x" * 998, b"x" * 2048, b"250-x\r\n" * 101,
)  # fmt: skip


def corpus(name: str) -> list[bytes]:
    """Return the seeds of one target: the files ``NAME-*``, and nothing."""
    return [b"", *(one.read_bytes() for one in sorted(CORPUS.glob(f"{name}-*")))]


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """Return one of *seeds*, changed in a few places, and perhaps joined with another."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[at:at] = chance.choice(WORDS)
            case 1:
                data[at : at + chance.randrange(1, 9)] = b""
            case 2:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 4:
                piece = data[at : at + chance.randrange(1, 64)]
                data[at:at] = piece * chance.choice((1, 2, 9))
            case _:
                data[at:] += chance.choice(seeds)
    return bytes(data[: 1 << 16])
