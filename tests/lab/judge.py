"""Judges one case's first attempt: what the mail server logged, what the hosts got."""

import re
import time
from collections import Counter
from dataclasses import dataclass

from . import exim
from .case import Placed
from .exim import Exim
from .hosts import Hosts, Message
from .postfix import Delivery, Postfix

# Seconds beyond its time for a case to be late in, rather than missing.
_LATENESS = 20.0
# Seconds that a busy machine may take for what goes with a delivery: to start processes,
# and to log. What a wrong decision would wait for is further off.
_BUSY = 3.0
# Seconds for a bounce to come home.
_BOUNCE = 10.0


@dataclass(frozen=True)
class Sent:
    """A case's message under way."""

    placed: Placed
    queue_id: str
    at: float
    """Seconds since the epoch."""


class Judge:
    """Knows where to look."""

    def __init__(self, server: Postfix | Exim, hosts: Hosts) -> None:
        self._server = server
        self._hosts = hosts

    def misfits(self, sent: Sent) -> list[str]:
        """Wait for a case's first attempt to end; return what is not as expected."""
        expected = sent.placed.expected
        recipients = len(sent.placed.recipients)
        left = sent.at + expected.within + _LATENESS - time.time()
        deliveries = self._server.await_deliveries(
            sent.queue_id, max(left, 1.0), recipients
        )
        if len(deliveries) != recipients:
            log = "\n".join(self._server.log(sent.queue_id)) or "nothing"
            return [
                f"{len(deliveries)} delivery lines in the log, not {recipients}:\n{log}"
            ]
        found = [text for one in deliveries for text in _wrong_words(sent, one)]
        for recipient in sent.placed.recipients:
            found += self._wrong_copies(sent.placed, recipient)
        found += self._wrong_visits(sent.placed)
        found += self._wrong_bounces(sent)
        return found

    def _wrong_copies(self, placed: Placed, recipient: str) -> list[str]:
        expected = placed.expected
        # What went over the wire in UTF-8 was written down in Latin-1.
        path = recipient.encode().decode("latin-1")
        copies = [one for one in self._hosts.received(path) if not one.refused]
        found = Counter(one.host.removesuffix(f".{placed.domain}") for one in copies)
        if expected.one_of:
            right = found.total() == 1 and set(found) <= set(expected.one_of)
            wanted = f"1 at one of {expected.one_of}"
        else:
            right = found == Counter(expected.copies)
            wanted = str(dict(expected.copies))
        wrong = (
            [] if right else [f"{recipient}: copies are {dict(found)}, not {wanted}"]
        )
        return wrong + [text for one in copies for text in _wrong_message(placed, one)]

    def _wrong_visits(self, placed: Placed) -> list[str]:
        found = {
            host: len(self._hosts.sessions(f"{host}.{placed.domain}"))
            for host in placed.expected.visits
        }
        if found == placed.expected.visits:
            return []
        return [f"visits are {found}, not {dict(placed.expected.visits)}"]

    def _wrong_bounces(self, sent: Sent) -> list[str]:
        wanted = 1 if sent.placed.expected.status == "bounced" else 0
        until = time.monotonic() + (_BOUNCE if wanted else 0)
        while len(found := self._bounces(sent)) < wanted and time.monotonic() < until:
            time.sleep(0.1)
        return [] if len(found) == wanted else [f"{len(found)} bounces, not {wanted}"]

    def _bounces(self, sent: Sent) -> list[Message]:
        return self._hosts.received(sent.placed.sender)


def _wrong_words(sent: Sent, delivery: Delivery | exim.Delivery) -> list[str]:
    """Return what in a log line differs from the expectation."""
    expected = sent.placed.expected
    found = []
    if (delivery.status, delivery.dsn) != (expected.status, expected.dsn):
        found.append(
            f"status={delivery.status} dsn={delivery.dsn}, not "
            f"{expected.status} {expected.dsn}: {delivery.text}"
        )
    if not re.search(expected.text, delivery.text):
        found.append(f"no {expected.text!r} in: {delivery.text}")
    if not expected.after <= delivery.delay <= expected.within + _BUSY:
        found.append(
            f"took {delivery.delay} s, not {expected.after} to {expected.within} s: "
            f"{delivery.text}"
        )
    return found


def _wrong_message(placed: Placed, message: Message) -> list[str]:
    expected = placed.expected
    found = []
    if expected.data and not re.search(expected.data, message.data):
        found.append(f"no {expected.data!r} in: {message.data[:1000]!r}")
    if expected.tls is not None and message.tls is not expected.tls:
        found.append(f"encrypted is {message.tls}")
    if message.bare_cr or message.bare_lf:
        found.append(f"{message.bare_cr} bare CR, {message.bare_lf} bare LF")
    return found
