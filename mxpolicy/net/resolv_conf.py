"""What /etc/resolv.conf says that matters to a mail system (resolv.conf(5)).

The ``search`` list is left out on purpose. A mail domain is always complete; completing
it would send mail to another domain.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from mxpolicy.address import canonical_address

__all__ = ["ResolvConf", "ResolvConfFile", "parse_resolv_conf", "read_resolv_conf"]

PATH = "/etc/resolv.conf"

# As in glibc: MAXNS, and by default the local machine.
MAX_SERVERS = 3
DEFAULT_SERVER = "127.0.0.1"
MAX_TIMEOUT = 30
MAX_ATTEMPTS = 5

# Seconds between two looks whether the file is another one.
LOOK_AGAIN = 5.0

# Far above any real file; /dev/zero in its place must not take all memory.
MAX_SIZE = 65536


class ResolvConf(NamedTuple):
    """The options that matter.

    Attributes:
        servers: Addresses, perhaps with a zone index; at least one.
        trust_ad: ``options trust-ad``: the way to these servers is trusted, and so is
            their AD bit.
        timeout: Seconds for the first try, None where the file does not say.
        attempts: How often every server is asked, None where it does not say.
        use_vc: ``options use-vc``: ask over TCP only.
        rotate: ``options rotate``: share the queries out among the servers.
    """

    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    trust_ad: bool = False
    timeout: float | None = None
    attempts: int | None = None
    use_vc: bool = False
    rotate: bool = False


def read_resolv_conf(path: str = PATH) -> ResolvConf:
    """Return what the file at *path* says; without a readable one, the defaults."""
    try:
        with open(path, "rb") as file:
            return parse_resolv_conf(file.read(MAX_SIZE).decode("latin-1"))
    except OSError:
        return ResolvConf()


class ResolvConfFile:
    """The file, for a process that lives longer than what it says.

    Args:
        path: Where it is.
    """

    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._seen = self._mark()
        self._looked: float | None = None

    def read(self) -> ResolvConf:
        """Return what it says; see `read_resolv_conf`."""
        return read_resolv_conf(self._path)

    def news(self, now: float) -> ResolvConf | None:
        """Return what it says where it is another one than before, else None.

        While it is missing, what it said last holds: it may just be replaced.

        Args:
            now: Seconds, monotonic.
        """
        if self._looked is not None and now < self._looked + LOOK_AGAIN:
            return None
        self._looked = now
        mark = self._mark()
        if mark is None or mark == self._seen:
            return None
        self._seen = mark
        return self.read()

    def _mark(self) -> tuple[int, ...] | None:
        """Return what differs when the file does."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def parse_resolv_conf(text: str) -> ResolvConf:
    """Return what *text* says. Unknown and malformed lines are ignored, as in glibc."""
    servers: list[str] = []
    options: dict[str, str] = {}
    for line in text.splitlines():
        # A keyword begins its line; "#" and ";" there begin comments.
        keyword, *values = line.split() if line[:1].strip() else [""]
        if keyword == "nameserver" and values:
            # A zone index may follow the address.
            if canonical_address(values[0].partition("%")[0]):
                servers.append(values[0])
        elif keyword == "options":
            options.update(value.partition(":")[::2] for value in values)
    return ResolvConf(
        tuple(servers[:MAX_SERVERS]) or (DEFAULT_SERVER,),
        "trust-ad" in options,
        _number(options.get("timeout"), MAX_TIMEOUT),
        _number(options.get("attempts"), MAX_ATTEMPTS),
        "use-vc" in options or "usevc" in options,
        "rotate" in options,
    )


def _number(text: str | None, most: int) -> int | None:
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return max(1, min(most, int(text[:9])))
