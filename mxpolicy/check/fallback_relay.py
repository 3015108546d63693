"""Which of Postfix's own clients leave to mxpolicy what they could not deliver. Pure.

``smtp_fallback_relay`` of main.cf holds for each smtp(8) of master.cf, whatever it
delivers to: a content filter, a host of our own behind this one. Only the client of
``default_transport`` sends to the world. What another one could not deliver would go past
the filter, or to the MX of a domain of our own. That MX is this mail system, and mxpolicy
bounces the message as a loop.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.master_cf import parse_services, words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = ["RELAY", "WAYS", "Fallback", "fallback", "is_to_us"]
__all__ += ["of_the_world", "others", "ways_by"]

RELAY = "smtp_fallback_relay"

FILTER = "content_filter"

# What names a client for other mail than that for the world. The last two are local(8)'s.
WAYS = (
    *(FILTER, "local_transport", "virtual_transport", "relay_transport"),
    *("mailbox_transport", "fallback_transport"),
)

_AT = re.compile(r"\[([^]\s]+)\]:(\d+)")


class Fallback(NamedTuple):
    """What main.cf's relay holds for and should not.

    Attributes:
        clients: Beside the one for the world: ``NAME/TYPE`` each.
        ways: What gives mail to one of them: ``NAME = VALUE`` each.
        ways_of_world: What gives other mail to the one for the world.
    """

    clients: Sequence[str] = ()
    ways: Sequence[str] = ()
    ways_of_world: Sequence[str] = ()


def fallback(master: str, settings: Mapping[str, str]) -> Fallback:
    """Return what main.cf's relay holds for and should not; see `others` and `ways_by`."""
    clients = others(master, settings)
    return Fallback(
        clients,
        ways_by({one.partition("/")[0] for one in clients}, master, settings),
        ways_by({of_the_world(master, settings)}, master, settings),
    )


def of_the_world(master: str, settings: Mapping[str, str]) -> str:
    """Return the name of the client that sends to the world.

    Where ``default_transport`` is no smtp(8), as when all mail goes by mxpolicy, it has
    its usual name.

    Args:
        master: Lines of master.cf as ``postconf -M`` prints them.
        settings: Of main.cf.
    """
    name = settings["default_transport"].partition(":")[0]
    is_client = any(one.name == name for one in parse_services(master, "smtp"))
    return name if is_client else "smtp"


def others(master: str, settings: Mapping[str, str]) -> list[str]:
    """Return the clients for which main.cf's relay should not hold, and does: ``NAME/TYPE``.

    Args:
        master: As for `of_the_world`.
        settings: Likewise.
    """
    world = of_the_world(master, settings)
    return [
        one.place
        for one in parse_services(master, "smtp")
        if one.name != world and RELAY not in one.overrides
    ]


def ways_by(
    names: Collection[str], master: str, settings: Mapping[str, str]
) -> list[str]:
    """Return what gives other mail than that for the world to a client: ``NAME = VALUE``.

    Args:
        names: Of the clients.
        master: As for `others`.
        settings: Of main.cf; ``relay_domains`` and `WAYS` are looked at.
    """
    return list(dict.fromkeys(_ways_by(names, master, settings)))


def _ways_by(
    names: Collection[str], master: str, settings: Mapping[str, str]
) -> Iterator[str]:
    said = [(name, settings[name]) for name in WAYS]
    for agent in ("smtpd", "pickup", "qmqpd"):
        said += [
            (FILTER, one.overrides.get(FILTER, ""))
            for one in parse_services(master, agent)
        ]
    for name, value in said:
        # Without such domains nothing goes that way.
        is_unused = name == "relay_transport" and not settings["relay_domains"]
        if value.partition(":")[0] in names and not is_unused:
            yield f"{name} = {value}"


def is_to_us(master: str, settings: Mapping[str, str], names: Collection[str]) -> bool:
    """Return whether main.cf's relay is a smtpd(8) that gives its mail to mxpolicy.

    Args:
        master: As for `others`.
        settings: Of main.cf; `RELAY` is looked at.
        names: Of the transports that run mxpolicy.
    """
    ours = {
        one.name
        for one in parse_services(master, "smtpd")
        if one.overrides.get(FILTER, "").partition(":")[0] in names
    }
    relays = map(_AT.fullmatch, words(settings[RELAY], " \t,"))
    return any(f"{at[1]}:{at[2]}" in ours for at in relays if at)
