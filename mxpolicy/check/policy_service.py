"""The services of master.cf that run ``mxpolicy policy``.

`look` gathers what an entry refers to; `judge` says what follows from it. Where spawn(8)
cannot start the command, smtpd(8) asks again and again (`policy_clients`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import ADD_USER
from mxpolicy.check.command import Command, cannot_run, cannot_use_file, gather
from mxpolicy.check.policy_clients import SLOW, judge_asking
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.check.time_limit import parse_time
from mxpolicy.config import config_option
from mxpolicy.options import Options
from mxpolicy.policy import USAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxpolicy.check.machine import Machine
    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.policy_clients import Client
    from mxpolicy.check.report import Item

__all__ = ["PolicyService", "judge", "look", "settings_of"]

_SETTINGS = ("default_process_limit", "smtpd_policy_service_max_ttl")

# What contrib says.
TIME_LIMIT = "3600s"
_LATER = f"smtpd(8) asks again and again: {SLOW}"


class PolicyService(NamedTuple):
    """An entry, and what it refers to.

    Attributes:
        service: The entry.
        settings: As they hold for it.
        command: What is run.
        asks: The ways in which smtpd(8) asks it.
    """

    service: Service
    settings: Mapping[str, str]
    command: Command
    asks: Sequence[Client] = ()


def settings_of(services: Sequence[Service]) -> list[str]:
    """Return the names in main.cf that `look` has to know."""
    return [*_SETTINGS, *(f"{one.name}_time_limit" for one in services)]


def look(
    service: Service,
    settings: Mapping[str, str],
    asks: Sequence[Client],
    machine: Machine,
) -> PolicyService:
    """Gather what the entry *service* refers to."""
    user = machine.account(service.attributes.get("user", ""))
    given = service.arguments or ()
    command = gather("policy", service.argv[0], given, user, _parse, machine)
    return PolicyService(service, service.settings(settings), command, asks)


def _parse(argv: Sequence[str]) -> tuple[None, str | None]:
    return None, config_option(argv, USAGE)


def judge(it: PolicyService) -> list[Item]:
    """Return what is said of one service."""
    name, options = it.service.name, it.command.options or Options()
    nothing = f"nothing in main.cf asks {name}, nor does an smtpd(8) with -o"
    return [
        *_judge_entry(it),
        *_judge_time(it),
        *judge_asking(name, it.asks, options.policy.timeout),
        *said(ok(not it.asks, nothing)),
    ]


def _judge_entry(it: PolicyService) -> list[Item]:
    name, place = it.service.name, it.service.place
    user = it.service.attributes.get("user", "")
    limit, most = it.service.process_limit, it.settings["default_process_limit"]
    return said(
        first(
            fail(
                it.service.is_user_refused(it.settings),
                f"{name} has user={user}, which spawn(8) refuses; {_LATER}",
            ),
            fail(
                it.command.account is None,
                f"{name} has user={user}, which is not known here; {_LATER}",
                ADD_USER,
            ),
            cannot_run(it.command, name, f"; {_LATER}"),
            fail(
                it.command.usage_error,
                f"{name}: no question is answered: {it.command.usage_error}",
            ),
            cannot_use_file(it.command, name, warn, "every question is answered DUNNO"),
            ok(True, f"service {name} runs {' '.join(it.service.argv)}, as {user}"),
        ),
        fail(
            it.service.unprivileged != "n",
            f"{name} has no 'n' in the column unpriv: spawn(8) cannot become another"
            f" user; {_LATER}",
            f"postconf -F {place}/unprivileged=n",
        ),
        fail(
            it.service.is_chrooted(it.settings),
            f"{name} runs in a chroot, where there is no Python; {_LATER}",
            f"postconf -F {place}/chroot=n",
        ),
        warn(
            limit.isdigit() and most.isdigit() and 0 < int(limit) < int(most),
            f"{name} may have {limit} processes, smtpd(8) more: an smtpd(8) that finds"
            " no place waits for its timeout with every recipient",
            f"postconf -F {place}/process_limit=0",
        ),
    )


def _judge_time(it: PolicyService) -> list[Item]:
    name = f"{it.service.name}_time_limit"
    limit = parse_time(it.settings[name])
    longest = parse_time(it.settings["smtpd_policy_service_max_ttl"]) or 0.0
    return said(
        first(
            warn(
                limit is None,
                f"{name} cannot be understood: {it.settings[name]}",
            ),
            warn(
                (limit or 0.0) <= longest,
                f"{name} is {it.settings[name]}: spawn(8) kills the command while"
                f" smtpd(8) still uses its connection, up to {longest:.0f} s; that"
                " question is asked anew",
                it.service.set_command(name, TIME_LIMIT),
            ),
        )
    )
