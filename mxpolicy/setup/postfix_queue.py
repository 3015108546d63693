"""Queued messages that are bound to a transport, whatever the configuration says.

A ``content_filter`` of smtpd(8), and FILTER of an access table, are kept in the queue
file of the message.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from mxpolicy.setup.disk import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Ask = Callable[..., str]

__all__ = ["waiting"]

# One line of some 300 bytes for each message in the queue.
MOST_OF_QUEUE = 512 * 1024 * 1024
QUEUE_PATIENCE = 300.0
AT_ONCE = 100

# So many queue ids are named.
MOST_NAMED = 20

_FILTER = re.compile(r"^content_filter: *([\w.-]+):", re.M)
_MESSAGE = re.compile(r"^\*\*\* ENVELOPE RECORDS (?:.*/)?(\w+) \*\*\*$", re.M)


def waiting(ask: Ask, transports: set[str], first: str = "") -> list[str]:
    """Return a sentence about messages that are bound to *transports*; mostly none.

    Args:
        ask: Runs a command line and returns what it prints.
        transports: Their names.
        first: What is to be done first, or they would soon be bound again.

    Raises:
        SetupError: The queue cannot be looked at.
    """
    if not transports:
        return []
    # Such a message keeps its content_filter or FILTER in its own queue file,
    # whatever main.cf says later.
    limits = {"patience": QUEUE_PATIENCE, "most": MOST_OF_QUEUE}
    try:
        lines = ask("postqueue", "-j", **limits).splitlines()
    except SetupError as error:
        raise SetupError(
            f"{error}; so it is not known whether a message in the queue is bound to"
            f" {' or '.join(sorted(transports))}: mend that first"
        ) from error
    queue = {
        one["queue_id"]: one["queue_name"]
        for one in map(json.loads, lines)
        # pickup(8) takes off what a message was bound to.
        if one["queue_name"] != "maildrop"
    }
    bound = list(_filtered(ask, list(queue), transports))
    if not bound:
        return []
    free = [one for one in bound if queue[one] != "hold"]
    named = ", ".join(
        one if queue[one] != "hold" else f"{one} (on hold)"
        for one in bound[:MOST_NAMED]
    )
    more = f" and {len(bound) - MOST_NAMED} more" if len(bound) > MOST_NAMED else ""
    mend = f": {first}postsuper -r {' '.join(free[:MOST_NAMED])}" if free else ""
    return [
        f"{len(bound)} queued messages are bound to {' or '.join(sorted(transports))}"
        f" by a content filter: {named}{more}. Without it they would wait until they"
        f" bounce. Let them be delivered first, or have them routed anew{mend}"
        " (a message on hold is released by -r)"
    ]


def _filtered(ask: Ask, ids: Sequence[str], transports: set[str]) -> Iterator[str]:
    for place in range(0, len(ids), AT_ONCE):
        some = ids[place : place + AT_ONCE]
        try:
            text = ask("postcat", "-qe", *some)
        except SetupError:
            # One of them has left the queue.
            text = "".join(_envelope(ask, one) for one in some)
        _, *parts = _MESSAGE.split(text)
        for queue_id, envelope in zip(parts[::2], parts[1::2], strict=True):
            if transports.intersection(_FILTER.findall(envelope)):
                yield queue_id


def _envelope(ask: Ask, queue_id: str) -> str:
    try:
        return ask("postcat", "-qe", queue_id)
    except SetupError as error:
        if "No such file" in str(error):
            return ""
        raise
