"""Where smtpd(8) asks a policy service, and whether the daemon answers there.

A list of main.cf holds for every smtpd(8) of master.cf that has no ``-o`` of that name. A
path is looked up in the queue directory, and an absolute one too where smtpd(8) runs in a
chroot (SMTPD_POLICY_README). Without an answer smtpd(8) asks again and again before it
goes on: seconds for every recipient, and mail that is put off without default_action.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import WRITE, login
from mxpolicy.check.master_cf import words
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.check.time_limit import parse_time

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mxpolicy.check.machine import Machine
    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.report import Item

__all__ = ["LISTS", "SETTINGS", "SLOW", "Client", "asking", "clients", "judge_asking"]
__all__ += ["judge_daemon", "looked_at"]

_PLACES = ("client", "helo", "sender", "relay", "recipient", "data", "end_of_data")
LISTS = tuple(f"smtpd_{one}_restrictions" for one in _PLACES)
SETTINGS = (
    *LISTS,
    "mail_owner",
    "queue_directory",
    "smtpd_policy_service_timeout",
    "smtpd_policy_service_default_action",
)
_CHECK = re.compile(r"check_policy_service\s+(\{[^}]*\}|[^\s,]+)")

SLOW = "each recipient takes seconds, and is judged by default_action"


class Client(NamedTuple):
    """A way in which smtpd(8) asks.

    Attributes:
        at: ``unix:private/NAME``.
        timeout: Seconds that an answer is waited for; None when it is no time.
        default_action: What is done without an answer.
    """

    at: str
    timeout: float | None
    default_action: str


def clients(settings: Mapping[str, str]) -> list[Client]:
    """Return how the lists of *settings* have smtpd(8) ask policy services; each once."""
    found = []
    for name in LISTS:
        for text in _CHECK.findall(settings[name]):
            server, *rest = words(text.strip("{}"), " \t,")
            given = dict(one.partition("=")[::2] for one in rest)
            timeout = given.get("timeout", settings["smtpd_policy_service_timeout"])
            action = given.get(
                "default_action", settings["smtpd_policy_service_default_action"]
            )
            found.append(Client(server, parse_time(timeout), action))
    return list(dict.fromkeys(found))


def asking(
    services: Sequence[Service], settings: Mapping[str, str]
) -> dict[Client, list[Service]]:
    """Return which of *services*, those of smtpd(8), ask in each way.

    Args:
        services: With ``-o`` of their own.
        settings: Of main.cf.
    """
    found: dict[Client, list[Service]] = {one: [] for one in clients(settings)}
    for service in services:
        for one in clients(service.settings(settings)):
            found.setdefault(one, []).append(service)
    return found


def looked_at(
    client: Client, services: Sequence[Service], settings: Mapping[str, str]
) -> list[str]:
    """Return where *services* really look: paths, or one ``ADDRESS:PORT``."""
    kind, _, where = client.at.partition(":")
    if kind != "unix":
        return [re.sub(r"^(localhost)?(?=:)", "127.0.0.1", where)]
    queue = settings["queue_directory"]
    below = os.path.join(queue, where.lstrip("/"))
    if not where.startswith("/"):
        return [below]
    chrooted = [one.is_chrooted(settings) for one in services] or [False]
    return list(dict.fromkeys(below if one else where for one in chrooted))


def judge_asking(name: str, asks: Sequence[Client], own: float) -> list[Item]:
    """Judge how *name*, which answers within *own* seconds, is asked."""
    hard = [one for one in asks if not one.default_action.upper().startswith("DUNNO")]
    least = min((one.timeout for one in asks if one.timeout is not None), default=None)
    return said(
        warn(
            least is not None and least <= own,
            f"smtpd(8) waits {least or 0.0:g} s for an answer of {name}, which takes up"
            f" to {own:g} s (policy.timeout): {SLOW}",
            f"timeout={own + 2:.0f}s in check_policy_service",
        ),
        first(
            warn(
                hard,
                f"without an answer of {name}, smtpd(8) says"
                f" '{''.join(one.default_action for one in hard[:1])}': any trouble with"
                " it puts off all mail",
                "default_action=DUNNO in check_policy_service",
            ),
            ok(asks, f"{name} is asked; without an answer mail goes on"),
        ),
    )


def judge_daemon(
    client: Client,
    services: Sequence[Service],
    settings: Mapping[str, str],
    sockets: Collection[str],
    machine: Machine,
) -> Item | None:
    """Say whether the daemon answers where *client* asks; None where that is not ours.

    Args:
        client: A way of asking that leads to no service of master.cf.
        services: That ask so.
        settings: Of main.cf.
        sockets: Of the daemon's policy service.
        machine: This one.
    """
    where = client.at.partition(":")[2]
    looked = looked_at(client, services, settings)
    if not {where, *looked}.intersection(sockets) and "mxpolicy" not in client.at:
        return None
    who = " and ".join(one.place for one in services) or "main.cf"
    astray = [one for one in looked if one not in sockets][:1]
    user = login(settings["mail_owner"] or "postfix")
    local = [one for one in looked if one.startswith("/")]
    shut = [
        why for one in local if user and (why := machine.objection(user, one, WRITE))
    ]
    dead = [why for one in looked if (why := machine.answer(one).trouble)]
    queue = settings["queue_directory"]
    # Where mail is put off without an answer, a warning is too little.
    level = warn if client.default_action.upper().startswith("DUNNO") else fail
    return first(
        level(
            astray and where in sockets,
            f"{who} asks at {client.at} in a chroot, where that is"
            f" {''.join(astray)}, and the daemon does not listen there: {SLOW}",
            f"listen: {{policy: {{at: [{queue}/mxpolicy/policy], group: postfix}}}},"
            " and unix:mxpolicy/policy in main.cf",
        ),
        level(
            astray and where.startswith("private/"),
            f"{who} asks at {client.at}, and master.cf has no such service: {SLOW}",
            "mxpolicy setup postfix --policy",
        ),
        level(
            astray,
            f"{who} asks at {client.at}, where the daemon is not to listen"
            f" (listen.policy.at has {', '.join(sockets) or 'nothing'}): {SLOW}",
            f"listen: {{policy: {{at: [{''.join(astray)}]}}}}",
        ),
        level(
            dead,
            f"{who} asks the daemon at {client.at}, where none answers"
            f" ({''.join(dead[:1])}): {SLOW}",
            machine.start,
        ),
        level(
            shut,
            f"{who} asks the daemon at {client.at}, but {''.join(shut[:1])}: {SLOW}",
            "listen: {policy: {group: postfix}}",
        ),
        ok(True, f"{who} asks the daemon at {client.at}, which answers"),
    )
