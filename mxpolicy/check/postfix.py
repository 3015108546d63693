"""The Postfix of this machine: every pipe(8) service that runs mxpolicy, and its limits.

`look` gathers the answers of Postfix's own programs, and what its entries refer to on
this machine. `transport_rows`, `status_filter`, `policy_service`, `policy_clients` and
`postfix_rows` say what follows from that. Tried with Postfix 3.7.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check import policy_clients, policy_service
from mxpolicy.check.access import account
from mxpolicy.check.command import gather
from mxpolicy.check.fallback_relay import RELAY, WAYS, Fallback, fallback, is_to_us
from mxpolicy.check.machine import HERE, Machine
from mxpolicy.check.master_cf import parse_services, substitute
from mxpolicy.check.own_client import PROBES, UNHEEDED, told_to_client, verified
from mxpolicy.check.policy_clients import judge_asking, judge_daemon
from mxpolicy.check.postfix_rows import (
    judge_all,
    judge_client,
    judge_fallback,
    judge_instance,
    judge_places,
    judge_probes,
    judge_to_daemon,
)
from mxpolicy.check.report import Level, tell
from mxpolicy.check.status_filter import FILTER_NAME, ask_filter, judge_filter
from mxpolicy.check.tls_level import LEVEL, LMTP_LEVEL, POLICY_MAPS
from mxpolicy.check.transport_rows import Transport, judge_transport
from mxpolicy.net.own_name import own_name
from mxpolicy.pipe_command import parse_arguments

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mxpolicy.check.access import Account
    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.policy_clients import Client
    from mxpolicy.check.postconf import Postconf
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options
    from mxpolicy.pipe_command import Arguments

__all__ = ["Postfix", "look", "see", "user_of"]

SETTINGS = (
    "mail_version",
    "myhostname",
    "mail_owner",
    "proxy_interfaces",
    "compatibility_level",
    "default_transport",
    "relay_domains",
    RELAY,
    *WAYS,
    "relayhost",
    "sender_dependent_relayhost_maps",
    "soft_bounce",
    LEVEL,
    POLICY_MAPS,
    PROBES,
    LMTP_LEVEL,
    "smtp_helo_name",
    "smtp_sasl_auth_enable",
    *UNHEEDED,
    FILTER_NAME,
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
_RELAY = re.compile(r"\[(?:ipv6:)?([^]\s]+)\]:(\d+)")


class Postfix(NamedTuple):
    """What was seen of it.

    Attributes:
        postconf: To ask further.
        services: Those that run mxpolicy.
        settings: Of main.cf.
        policy: The services that run ``mxpolicy policy``.
        asking: The ways in which smtpd(8) asks policy services, and which smtpd(8) does.
        to_daemon: The transport that delivers to the daemon as contrib has it.
        daemon_at: ``ADDRESS:PORT`` where it does; empty when another setting says where.
        fallback: What comes to mxpolicy by ``smtp_fallback_relay``.
        verified: The words by which smtpd(8) has hosts asked for an address.
        to_client: Settings as they hold for Postfix's own client; empty where mail comes
            to mxpolicy by that client.
        lmtp_level: What the transport to the daemon demands of TLS.
    """

    postconf: Postconf
    services: tuple[Service, ...]
    settings: Mapping[str, str]
    policy: tuple[Service, ...] = ()
    asking: Mapping[Client, Sequence[Service]] = {}
    to_daemon: str = ""
    daemon_at: str = ""
    fallback: Fallback = Fallback()
    verified: Sequence[str] = ()
    to_client: Mapping[str, str] = {}
    lmtp_level: str = ""


def see(postconf: Postconf) -> Postfix:
    """Ask for all that is to be judged.

    Raises:
        ProgramError: Postfix does not say.
    """
    text = postconf.services()
    ours, policy = (
        tuple(one for one in parse_services(text, agent) if one.arguments is not None)
        for agent in ("pipe", "spawn")
    )
    names = [*SETTINGS, *policy_clients.SETTINGS, *policy_service.settings_of(policy)]
    for one in ours:
        names += [f"{one.name}_destination_recipient_limit", f"{one.name}_time_limit"]
    settings = postconf.settings(list(dict.fromkeys(names)))
    asking = policy_clients.asking(
        [one.filled(postconf.filled) for one in parse_services(text, "smtpd")], settings
    )
    by_lmtp = [one for one in parse_services(text, "lmtp") if one.name == LMTP][:1]
    relay = "".join(one.overrides.get("lmtp_fallback_relay", "") for one in by_lmtp)
    at = _RELAY.fullmatch(relay)
    is_ours = is_to_us(text, settings, {one.name for one in ours})
    return Postfix(
        postconf,
        ours,
        settings,
        policy,
        asking,
        "".join(one.name for one in by_lmtp),
        ":".join(at.groups()) if at else "",
        fallback(text, settings) if is_ours else Fallback(),
        verified(text, settings),
        {} if is_ours else told_to_client(text, settings),
        "".join(one.settings(settings)[LMTP_LEVEL] for one in by_lmtp),
    )


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
    sockets: Collection[str] = (),
    is_alone: bool = True,
) -> list[Item]:
    """Judge *postfix*.

    Args:
        postfix: From `see`.
        options: As understood by this check.
        config: The file that was named to it.
        machine: This one.
        sockets: Of the daemon's policy service.
        is_alone: Whether no other mail server runs mxpolicy.
    """
    settings = postfix.settings
    items = judge_instance(settings)
    of_policy = _judge_policy(postfix, options, sockets, machine)
    items += of_policy
    if postfix.to_daemon:
        items += judge_to_daemon(postfix.to_daemon, postfix.lmtp_level)
    if not postfix.services:
        text = f"Postfix {settings['mail_version']} is here; no pipe(8) service of it"
        text += " runs mxpolicy"
        is_needed = is_alone and not of_policy and not postfix.to_daemon
        wanting = tell(Level.WARN, text, "mxpolicy setup postfix")
        return [*items, wanting if is_needed else tell(Level.OK, text)]
    for service in postfix.services:
        items += judge_transport(_gather(service, postfix, config, machine))
        filtered = ask_filter(service, settings, postfix.postconf)
        items += judge_filter(service, settings, filtered)
    each = [one.most(settings) for one in postfix.services]
    items += judge_places(options.limits.processes, each)
    items += judge_fallback(postfix.fallback)
    names = {one.name for one in postfix.services} | {postfix.to_daemon} - {""}
    items += judge_probes(postfix.verified, names, settings)
    items += judge_client(settings, postfix.to_client, options.helo or own_name())
    return items + judge_all(names, settings, options, options.helo or own_name())


def _judge_policy(
    postfix: Postfix, options: Options, sockets: Collection[str], machine: Machine
) -> list[Item]:
    items, settings = [], postfix.settings
    left = {
        one: policy_clients.looked_at(one, services, settings)
        for one, services in postfix.asking.items()
    }
    for service in postfix.policy:
        socket = os.path.join(settings["queue_directory"], "private", service.name)
        asks = [one for one, where in left.items() if socket in where]
        left = {one: where for one, where in left.items() if one not in asks}
        seen = policy_service.look(service, settings, asks, machine)
        items += policy_service.judge(seen)
    for one in left:
        item = judge_daemon(one, postfix.asking[one], settings, sockets, machine)
        if item:
            name = f"the daemon at {one.at}"
            items += [item, *judge_asking(name, [one], options.policy.timeout)]
    return items


def _gather(
    service: Service, postfix: Postfix, config: str | None, machine: Machine
) -> Transport:
    user = machine.account(service.attributes.get("user", ""))
    given, unknown = substitute(service.arguments or ())
    program = service.argv[0]
    command = gather("pipe", program, given, user, _parse, machine)
    file = command.file if command.options else ""
    is_other = config and file and os.path.realpath(config) != os.path.realpath(file)
    return Transport(
        service,
        service.settings(postfix.settings),
        machine.memory,
        command,
        unknown="".join(unknown[:1]),
        other_file=config if config and is_other else "",
    )


def _parse(argv: Sequence[str]) -> tuple[Arguments, str | None]:
    found = parse_arguments(argv, {})
    return found, found.config
