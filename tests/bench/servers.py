"""Postfix with mxpolicy, Exim, and one quick host that takes everything from them.

For what is about the clients: smtp-sink(1), which is Postfix's own and throws away what
it gets, holds none of them up. The rest is the lab's (`tests.lab`).
"""

import contextlib
import re
import time
from collections.abc import Sequence

from tests.lab.exim import Exim
from tests.lab.names import NameService
from tests.lab.postfix import Postfix
from tests.lab.world import World

SINK = "198.18.1.1"

LARGEST = 100 * 1024 * 1024
"""Bytes of the largest message that Postfix takes; Exim's limit in the lab is this."""

# Processes that stay: what is read of them afterwards must still be there.
_SETTINGS = {
    "message_size_limit": str(LARGEST),
    "mailbox_size_limit": "0",
    "max_use": "100000",
    "max_idle": "1000s",
}

MXPOLICY, SMTP, EXIM = "mxpolicy", "smtp", "exim"

CLIENTS = {MXPOLICY: "mxpolicy", SMTP: "Postfix smtp(8)", EXIM: "Exim smtp"}


class Servers:
    """All of it, started; a context manager. Raises LabUnavailable."""

    def __init__(self) -> None:
        self.world = World()
        try:
            self._start()
        except BaseException:
            self.world.close()
            raise

    def _start(self) -> None:
        records = [f"{client}.lab.test. MX 10 mx.lab.test." for client in CLIENTS]
        NameService(self.world, [*records, f"mx.lab.test. A {SINK}"])
        self.world.start("net", ["smtp-sink", "-u", "nsd", f"{SINK}:25", "1000"])
        routes = [(f"{name}.lab.test", f"{name}:") for name in (MXPOLICY, SMTP)]
        self.postfix = Postfix(self.world, routes, settings=_SETTINGS)
        self.exim = Exim(self.world)

    def deliver(self, client: str, data: bytes) -> float:
        """Send a message, and wait for its end; return the seconds from queue to sent."""
        recipients = [f"user@{client}.lab.test"]
        if client == EXIM:
            return self._by_exim(recipients, data)
        queue_id = self.postfix.send(recipients, "", data)
        [end] = self.postfix.await_deliveries(queue_id, 300)
        assert end.status == "sent", end
        _, *after_arrival = end.delays
        return sum(after_arrival)

    def _by_exim(self, recipients: Sequence[str], data: bytes) -> float:
        message_id = self.exim.send(recipients, "", data)
        [end] = self.exim.await_deliveries(message_id, 300)
        assert end.status == "sent", end
        until = time.monotonic() + 10
        while not self.exim.is_completed(message_id) and time.monotonic() < until:
            time.sleep(0.02)
        return end.delay

    def processes(self, command: str) -> list[int]:
        """Return the ids of processes with a command line that *command* matches.

        They are as the lab numbers them; *command* is a regular expression.
        """
        found = []
        for path in self.world.path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it ended while we looked
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if re.match(command, line):
                    found.append(int(path.parent.name))
        return found

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.world.close()
