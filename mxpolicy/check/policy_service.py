"""The services of master.cf that run ``mxpolicy policy``, and how smtpd(8) asks them.

`look` gathers what an entry refers to; `judge` says what follows from it. Where spawn(8)
cannot start the command, smtpd(8) asks again and again before it goes on without an
answer: seconds for every recipient, and mail that is put off without default_action.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.installation import Obstacle
from mxpolicy.check.master_cf import words
from mxpolicy.check.postfix_rows import parse_time
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.config import DEFAULT_PATH, config_option
from mxpolicy.errors import ConfigError, UsageError
from mxpolicy.options import Options
from mxpolicy.policy import USAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxpolicy.check.access import Account
    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.postfix import Machine
    from mxpolicy.check.report import Item

__all__ = ["Client", "PolicyService", "clients", "judge", "look", "settings_of"]

_PLACES = ("client", "helo", "sender", "relay", "recipient", "data", "end_of_data")
_LISTS = tuple(f"smtpd_{one}_restrictions" for one in _PLACES)
_SETTINGS = (
    "mail_owner",
    "default_process_limit",
    "smtpd_policy_service_max_ttl",
    "smtpd_policy_service_timeout",
    "smtpd_policy_service_default_action",
)
_CHECK = re.compile(r"check_policy_service\s+(\{[^}]*\}|[^\s,]+)")

# What contrib says.
TIME_LIMIT = "3600s"
TIMEOUT = "10s"
_SLOW = "each recipient takes seconds, and is judged by default_action"
_LATER = f"smtpd(8) asks again and again: {_SLOW}"


class Client(NamedTuple):
    """A place in main.cf where smtpd(8) asks.

    Attributes:
        at: ``unix:private/NAME``.
        timeout: Seconds that an answer is waited for; None when it is no time.
        default_action: What is done without an answer.
    """

    at: str
    timeout: float | None
    default_action: str


class PolicyService(NamedTuple):
    """An entry, and what it refers to.

    Attributes:
        service: The entry.
        settings: Of main.cf.
        account: Of ``user=``; None when there is none.
        cannot_run: What keeps that account from running the program.
        usage_error: What mxpolicy says of the command; empty when it takes it.
        file: The configuration file that it reads.
        mistakes: In that file, or why it cannot be read.
        cannot_read: What keeps the account from reading it.
        options: In that file.
    """

    service: Service
    settings: Mapping[str, str]
    account: Account | None = None
    cannot_run: Obstacle = Obstacle()
    usage_error: str = ""
    file: str = ""
    mistakes: str = ""
    cannot_read: Obstacle = Obstacle()
    options: Options = Options()


def settings_of(services: Sequence[Service]) -> list[str]:
    """Return the names in main.cf that `look` has to know."""
    return [*_SETTINGS, *_LISTS, *(f"{one.name}_time_limit" for one in services)]


def clients(settings: Mapping[str, str]) -> list[Client]:
    """Return where main.cf has smtpd(8) ask a policy service; each once."""
    found = []
    for name in _LISTS:
        for text in _CHECK.findall(settings[name]):
            server, *rest = words(text.strip("{}"), " \t,")
            given = dict(one.partition("=")[::2] for one in rest)
            timeout = given.get("timeout", settings["smtpd_policy_service_timeout"])
            action = given.get(
                "default_action", settings["smtpd_policy_service_default_action"]
            )
            found.append(Client(server, parse_time(timeout), action))
    return list(dict.fromkeys(found))


def look(
    service: Service, settings: Mapping[str, str], machine: Machine
) -> PolicyService:
    """Gather what the entry *service* refers to."""
    user = machine.account(service.attributes.get("user", ""))
    it = PolicyService(service, settings, user)
    if user:
        it = it._replace(cannot_run=machine.obstacle(user, service.argv[0]))
    command, *rest = service.arguments or ("",)
    if command != "policy":
        return it._replace(usage_error="'policy' is not its first word")
    try:
        given = config_option(rest, USAGE)
    except UsageError as error:
        return it._replace(usage_error=str(error))
    it = it._replace(file=given or DEFAULT_PATH)
    try:
        it = it._replace(options=machine.load(given))
    except ConfigError as error:
        return it._replace(mistakes="; ".join(error.mistakes))
    if user:
        it = it._replace(cannot_read=machine.unreadable(user, it.file))
    return it


def judge(it: PolicyService) -> list[Item]:
    """Return what is said of one service."""
    at = f"unix:private/{it.service.name}"
    asks = [one for one in clients(it.settings) if one.at == at]
    return [*_judge_entry(it), *_judge_time(it, asks), *_judge_clients(it, asks)]


def _judge_entry(it: PolicyService) -> list[Item]:
    name, place = it.service.name, it.service.place
    user = it.service.attributes.get("user", "")
    refused = {"", "root", it.settings["mail_owner"] or "postfix"}
    limit = it.service.process_limit
    return said(
        first(
            fail(
                user.partition(":")[0] in refused,
                f"{name} has user={user}, which spawn(8) refuses; {_LATER}",
            ),
            fail(
                it.account is None,
                f"{name} has user={user}, which is not known here; {_LATER}",
                "adduser --system --group --no-create-home mxpolicy",
            ),
            fail(
                it.cannot_run.why,
                f"{name} cannot run its program ({it.cannot_run.why}); {_LATER}",
                it.cannot_run.mend,
            ),
            fail(it.usage_error, f"{name}: no question is answered: {it.usage_error}"),
            warn(
                it.mistakes,
                f"{name}: every question is answered DUNNO: {it.mistakes}",
            ),
            warn(
                it.cannot_read.why,
                f"{name}: every question is answered DUNNO: {it.file}:"
                f" {it.cannot_read.why}",
                it.cannot_read.mend,
            ),
            ok(True, f"service {name} runs {' '.join(it.service.argv)}, as {user}"),
        ),
        fail(
            it.service.unprivileged != "n",
            f"{name} has no 'n' in the column unpriv: spawn(8) cannot become another"
            f" user; {_LATER}",
            f"postconf -F {place}/unprivileged=n",
        ),
        fail(
            it.service.chroot == "y",
            f"{name} runs in a chroot, where there is no Python; {_LATER}",
            f"postconf -F {place}/chroot=n",
        ),
        warn(
            limit not in {"0", "-"} and _is_less(limit, it.settings),
            f"{name} may have {limit} processes, smtpd(8) more: an smtpd(8) that finds"
            " no place waits for its timeout with every recipient",
            f"postconf -F {place}/process_limit=0",
        ),
    )


def _is_less(limit: str, settings: Mapping[str, str]) -> bool:
    most = settings["default_process_limit"]
    return limit.isdigit() and most.isdigit() and int(limit) < int(most)


def _judge_time(it: PolicyService, asks: Sequence[Client]) -> list[Item]:
    name = f"{it.service.name}_time_limit"
    written = it.service.overrides.get(name) or it.settings[name]
    limit = parse_time(written)
    longest = parse_time(it.settings["smtpd_policy_service_max_ttl"]) or 0.0
    own = it.options.policy.timeout
    least = min((one.timeout for one in asks if one.timeout is not None), default=None)
    return said(
        warn(limit is None, f"{name} cannot be understood: {written}"),
        warn(
            limit is not None and limit <= longest,
            f"{name} is {written}: spawn(8) kills the command while smtpd(8) still uses"
            f" its connection, up to {longest:.0f} s; that question is asked anew",
            f"postconf -P {it.service.place}/{name}={TIME_LIMIT}"
            if name in it.service.overrides
            else f"postconf -e {name}={TIME_LIMIT}",
        ),
        warn(
            least is not None and least <= own,
            f"smtpd(8) waits {least or 0.0:g} s for an answer of {it.service.name}, which"
            f" takes up to {own:g} s (policy.timeout): {_SLOW}",
            f"timeout={own + 2:.0f}s in check_policy_service",
        ),
    )


def _judge_clients(it: PolicyService, asks: Sequence[Client]) -> list[Item]:
    name = it.service.name
    hard = [one for one in asks if not one.default_action.upper().startswith("DUNNO")]
    return said(
        first(
            ok(
                not asks,
                f"nothing in main.cf asks {name}; services with -o may",
            ),
            warn(
                hard,
                f"without an answer of {name}, smtpd(8) says"
                f" '{''.join(one.default_action for one in hard[:1])}': any trouble with"
                " it puts off all mail",
                "default_action=DUNNO in check_policy_service",
            ),
            ok(True, f"{name} is asked; without an answer mail goes on"),
        )
    )
