"""The Postfix of this machine: every pipe(8) service that runs mxpolicy, and its limits.

`look` gathers the answers of Postfix's own programs, and what its entries refer to on
this machine. `mxpolicy.check.postfix_rows` says what follows from that. Tried with Postfix
3.7.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check import policy_service
from mxpolicy.check.access import EXECUTE, READ, account, objection
from mxpolicy.check.installation import Obstacle, obstacle
from mxpolicy.check.master_cf import parse_services, substitute
from mxpolicy.check.postconf import PostfixUnseen
from mxpolicy.check.postfix_rows import (
    Transport,
    judge_all,
    judge_instance,
    judge_places,
    judge_transport,
    processes,
)
from mxpolicy.check.report import Level, tell
from mxpolicy.check.status_filter import ACCIDENTS, FILTER_NAME, REFUSAL, filter_tables
from mxpolicy.config import DEFAULT_PATH, load
from mxpolicy.errors import ConfigError, UsageError
from mxpolicy.net.own_name import own_name
from mxpolicy.pipe_command import parse_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mxpolicy.check.access import Account
    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.postconf import Postconf
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options

__all__ = ["HERE", "Machine", "Postfix", "look", "see", "user_of"]

SETTINGS = (
    "mail_version",
    "myhostname",
    "mail_owner",
    "proxy_interfaces",
    "compatibility_level",
    "default_transport",
    "relayhost",
    "sender_dependent_relayhost_maps",
    "soft_bounce",
    "pipe_delivery_status_filter",
    "default_process_limit",
    "daemon_timeout",
    "maximal_queue_lifetime",
    "bounce_queue_lifetime",
    "maximal_backoff_time",
    "config_directory",
    "multi_instance_name",
    "multi_instance_directories",
)


# The transport of contrib/postfix/all-mail and of ``mxpolicy setup postfix --lmtp``.
LMTP = "mxlmtp"

# Where it delivers by TCP, as a relay: ADDRESS, PORT.
_RELAY = re.compile(r"lmtp_fallback_relay=\[(?:ipv6:)?([^]\s]+)\]:(\d+)")


class Machine(NamedTuple):
    """What entries of master.cf refer to: accounts, files, memory.

    Attributes:
        memory: In bytes.
        account: The account of a ``user=``, None when it is unknown.
        objection: Why an account may not do something with a file; see `access.objection`.
        obstacle: What keeps an account from running a program.
        exists: Whether a file does.
        load: The options in the file that ``--config`` names, or in the usual one.
    """

    memory: int
    account: Callable[[str], Account | None]
    objection: Callable[[Account, str, int], str]
    obstacle: Callable[[Account, str], Obstacle]
    exists: Callable[[str], bool]
    load: Callable[[str | None], Options]

    def unreadable(self, user: Account, file: str) -> Obstacle:
        """Return what keeps *user* from the configuration *file*, which may be missing.

        A directory that it may not enter defers all mail though there is no file in it:
        that there is none cannot be seen then.
        """
        directory = os.path.dirname(file)
        for path, wanted, mend in ((directory, EXECUTE, "a+x"), (file, READ, "a+r")):
            if self.exists(path) and (why := self.objection(user, path, wanted)):
                return Obstacle(why, f"chmod {mend} {path}")
        return Obstacle()


HERE = Machine(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    account,
    objection,
    obstacle,
    os.path.exists,
    lambda path: load(path, {}),
)


class Postfix(NamedTuple):
    """What was seen of it.

    Attributes:
        postconf: To ask further.
        services: Those that run mxpolicy.
        settings: Of main.cf.
        policy: The services that run ``mxpolicy policy``.
        policy_settings: Of main.cf, for those.
        to_daemon: The transport that delivers to the daemon as contrib has it.
        daemon_at: ``ADDRESS:PORT`` where it does; empty when another setting says where.
    """

    postconf: Postconf
    services: tuple[Service, ...]
    settings: Mapping[str, str]
    policy: tuple[Service, ...] = ()
    policy_settings: Mapping[str, str] = {}
    to_daemon: str = ""
    daemon_at: str = ""


def see(postconf: Postconf) -> Postfix:
    """Ask for all that is to be judged.

    Raises:
        PostfixUnseen: Postfix does not say.
    """
    text = postconf.services()
    pipes = parse_services(text)
    spawned = parse_services(text, "spawn")
    policy = tuple(one for one in spawned if one.arguments is not None)
    ours = tuple(one for one in pipes if one.arguments is not None)
    names = list(SETTINGS)
    for one in ours:
        names += [f"{one.name}_destination_recipient_limit", f"{one.name}_time_limit"]
    by_lmtp = (one for one in text.splitlines() if one.split()[:1] == [LMTP])
    line = next(by_lmtp, "")
    relay = _RELAY.search(line)
    seen = Postfix(
        postconf,
        ours,
        postconf.settings(names),
        to_daemon=LMTP if line else "",
        daemon_at=":".join(relay.groups()) if relay else "",
    )
    if policy:
        asked = postconf.settings(policy_service.settings_of(policy))
        seen = seen._replace(policy=policy, policy_settings=asked)
    return seen


def user_of(postfix: Postfix) -> Account | None:
    """Return the account of the first service that has one: deliveries run as it."""
    services = (*postfix.services, *postfix.policy)
    users = (one.attributes.get("user", "") for one in services)
    return next(filter(None, map(account, filter(None, users))), None)


def look(
    postfix: Postfix,
    options: Options,
    config: str | None,
    machine: Machine = HERE,
    *,
    is_alone: bool = True,
) -> list[Item]:
    """Judge *postfix*.

    Args:
        postfix: From `see`.
        options: As understood by this check.
        config: The file that was named to it.
        machine: This one.
        is_alone: Whether no other mail server runs mxpolicy.
    """
    settings = postfix.settings
    items = judge_instance(settings)
    for service in postfix.policy:
        seen = policy_service.look(service, postfix.policy_settings, machine)
        items += policy_service.judge(seen)
    if postfix.to_daemon:
        text = f"transport {postfix.to_daemon} delivers to the daemon"
        items.append(tell(Level.OK, text))
    if not postfix.services:
        text = f"Postfix {settings['mail_version']} is here; no pipe(8) service of it"
        text += " runs mxpolicy"
        is_needed = is_alone and not postfix.policy and not postfix.to_daemon
        wanting = tell(Level.WARN, text, "mxpolicy setup postfix")
        return [*items, wanting if is_needed else tell(Level.OK, text)]
    for service in postfix.services:
        items += judge_transport(_gather(service, postfix, config, machine))
    each = [processes(one, settings) for one in postfix.services]
    items += judge_places(options.limits.processes, each)
    names = {one.name for one in postfix.services}
    return items + judge_all(names, settings, options, options.helo or own_name())


def _gather(
    service: Service, postfix: Postfix, config: str | None, machine: Machine
) -> Transport:
    user = machine.account(service.attributes.get("user", ""))
    command, unknown = substitute(service.arguments or ())
    it = _ask_filter(Transport(service, postfix.settings, machine.memory), postfix)
    it = it._replace(
        account=user,
        cannot_run=machine.obstacle(user, service.argv[0]) if user else Obstacle(),
        command=command,
        unknown="".join(unknown[:1]),
    )
    if command[:1] != ("pipe",):
        return it
    try:
        arguments = parse_arguments(command[1:], {})
    except UsageError as error:
        return it._replace(usage_error=str(error))
    file = arguments.config or DEFAULT_PATH
    it = it._replace(arguments=arguments, file=file)
    try:
        it = it._replace(options=machine.load(arguments.config))
    except ConfigError as error:
        return it._replace(mistakes="; ".join(error.mistakes))
    if user:
        it = it._replace(cannot_read=machine.unreadable(user, file))
    if config and os.path.realpath(config) != os.path.realpath(file):
        it = it._replace(other_file=config)
    return it


def _ask_filter(it: Transport, postfix: Postfix) -> Transport:
    """Return *it* with what the delivery status filter makes of some ends."""
    if it.settings["soft_bounce"] == "yes":
        return it
    ask, tables = postfix.postconf, filter_tables(it.service, it.settings)
    try:
        ends = {end: ask.filtered(end, tables) for end in (*ACCIDENTS, REFUSAL)}
        # As it was written, with each $$.
        written = ask.raw(FILTER_NAME) if tables else ""
    except PostfixUnseen as error:
        return it._replace(filter_unseen=str(error))
    return it._replace(filtered=ends, filter_as_written=written)
