"""What is said of a whole Postfix: a pure function of what was gathered.

`mxpolicy.check.postfix` gathers; `transport_rows` and `policy_service` are about one entry
of master.cf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.check.fallback_relay import RELAY
from mxpolicy.check.master_cf import words
from mxpolicy.check.own_client import PROBES, unheeded
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.check.time_limit import DAY, parse_time
from mxpolicy.check.tls_level import DEMANDING, LMTP_LEVEL, demand

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mxpolicy.check.fallback_relay import Fallback
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options

__all__ = ["judge_all", "judge_client", "judge_fallback", "judge_instance"]
__all__ += ["judge_places", "judge_probes", "judge_to_daemon"]

# With fewer, no place can be kept for other mail.
FEWEST_PLACES = 4


def judge_instance(settings: Mapping[str, str]) -> list[Item]:
    """Say which of several Postfix instances is judged (MULTI_INSTANCE_README)."""
    here, others = settings["config_directory"], settings["multi_instance_directories"]
    others = ", ".join(words(others, " \t,"))
    another = "MAIL_CONFIG=DIRECTORY mxpolicy check"
    return said(
        first(
            ok(
                others,
                f"the Postfix of {here} is judged here, not those of {others}: {another}"
                " judges another one",
            ),
            ok(
                settings["multi_instance_name"],
                f"the Postfix of {here} is judged here, one of several: {another} judges"
                " another one",
            ),
        )
    )


def judge_places(places: int, each: Collection[int]) -> list[Item]:
    """Judge whether ``limits.processes`` is what master.cf says.

    Args:
        places: The option; 0 is any number.
        each: How many processes each service may have; 0 is any number.
    """
    most = sum(each) if all(each) else 0
    allowed = most or "any number"
    mend = f"limits: {{processes: {most}}}" if most else ""
    return said(
        first(
            warn(
                not places,
                "limits.processes is 0: a destination that does not answer can take all"
                " processes, and then all other mail waits for it",
                mend,
            ),
            warn(
                places == most < FEWEST_PLACES,
                f"limits.processes is {places}, as in master.cf: with less than"
                f" {FEWEST_PLACES}, a destination that does not answer takes all of"
                " them, and then all other mail waits for it",
            ),
            ok(
                places == most,
                f"limits.processes is {places}, as in master.cf: a destination that does"
                " not answer cannot take all of them",
            ),
            warn(
                not 0 < most < places,
                f"limits.processes is {places}, master.cf allows {allowed}: mail for a"
                " destination that does not answer is put off sooner than it need be",
                mend,
            ),
            warn(
                True,
                f"limits.processes is {places}, master.cf allows {allowed}: a"
                " destination that does not answer can take all of them, and then all"
                " other mail waits for it",
                mend,
            ),
        )
    )


def judge_fallback(it: Fallback) -> list[Item]:
    """Judge what comes to mxpolicy by ``smtp_fallback_relay`` of main.cf."""
    effect = "when the host there does not answer, its mail goes by mxpolicy: past a"
    effect += (
        " filter, or for a domain of our own to its MX, where it bounces as a loop"
    )
    empty = " ".join(f"{one}/{RELAY}=" for one in it.clients)
    mend = f"postconf -P {empty}"
    return said(
        fail(
            it.ways,
            f"{RELAY} holds for {' and '.join(it.ways)}, too: {effect}",
            mend,
        ),
        warn(
            it.clients and not it.ways,
            f"{RELAY} holds for {', '.join(it.clients)}, too: {effect}",
            mend,
        ),
        fail(
            it.ways_of_world,
            f"{RELAY} holds for {' and '.join(it.ways_of_world)}, too: {effect}; give it"
            f" a client of its own in master.cf, with -o {RELAY}=",
        ),
    )


def judge_client(
    settings: Mapping[str, str], to_client: Mapping[str, str], helo: str
) -> list[Item]:
    """Judge what Postfix's own client does otherwise than mxpolicy.

    Args:
        settings: Of main.cf.
        to_client: As they hold for it alone.
        helo: What mxpolicy calls itself.
    """
    name, usual = settings["smtp_helo_name"], settings["myhostname"]
    return said(
        warn(
            name.lower() not in {usual.lower(), helo.lower()},
            f"smtp_helo_name is {name}: mail that goes by mxpolicy says EHLO {helo}",
            f"helo: {name}",
        ),
        *(warn(True, one) for one in unheeded(to_client)),
    )


def judge_probes(
    verified: Sequence[str], transports: Collection[str], settings: Mapping[str, str]
) -> list[Item]:
    """Judge how hosts are asked whether an address exists.

    Args:
        verified: The words by which smtpd(8) has them asked.
        transports: Names of those that lead to mxpolicy.
        settings: Of main.cf.
    """
    by = settings[PROBES].partition(":")[0]
    return said(
        warn(
            verified and by in transports,
            f"{' and '.join(verified)} asks by {by}, where Postfix asks no host: each"
            " address is taken for a good one",
            f"postconf -e {PROBES}=smtp:",
        ),
    )


def judge_to_daemon(name: str, level: str) -> list[Item]:
    """Judge a transport that delivers to the daemon, and what it demands of TLS."""
    return said(
        ok(True, f"transport {name} delivers to the daemon"),
        fail(
            level in DEMANDING,
            f"{name}: {LMTP_LEVEL} is {level}, and the daemon speaks no TLS: all mail that"
            " goes that way is deferred",
            f"postconf -P {name}/unix/{LMTP_LEVEL}=none",
        ),
    )


def judge_all(
    transports: Collection[str],
    settings: Mapping[str, str],
    options: Options,
    helo: str,
) -> list[Item]:
    """Judge what concerns all mail of this Postfix.

    Args:
        transports: Names of those that run mxpolicy.
        settings: Of main.cf.
        options: As this check understood them.
        helo: What mxpolicy calls itself.
    """
    name, names = settings["myhostname"].lower(), options.own_names
    proxies = words(settings["proxy_interfaces"], " \t,")
    unknown = ", ".join(one for one in proxies if one not in options.own_addresses)
    default = settings["default_transport"]
    transport, _, nexthop = default.partition(":")
    is_ours, aim = transport in transports, nexthop or settings["relayhost"]
    maps = settings["sender_dependent_relayhost_maps"]
    backoff = parse_time(settings["maximal_backoff_time"]) or 0.0
    return said(
        warn(
            name and name not in (helo.lower(), *names),
            f"Postfix is called {name}, mxpolicy {helo}: an MX of Postfix's name is not"
            " taken for ourselves, and its mail may loop",
            f"own_names: [{', '.join((*names, name))}]",
        ),
        warn(
            unknown,
            f"Postfix has proxy_interfaces {unknown}, mxpolicy does not know of it: an"
            " MX of that address is not taken for ourselves",
            f"own_addresses: [{unknown}]",
        ),
        first(
            ok(
                not is_ours,
                f"default_transport is {default}: mxpolicy gets what transport_maps, a"
                " filter or another table sends its way",
            ),
            ok(
                True,
                f"default_transport is {default}: all mail that leaves goes by mxpolicy",
            ),
        ),
        warn(
            is_ours and aim,
            f"all of it is aimed at {aim}, no MX is looked up for it",
            f"postconf -e default_transport={transport}: relayhost=",
        ),
        fail(
            is_ours and aim and settings["smtp_sasl_auth_enable"] == "yes",
            f"smtp_sasl_auth_enable is yes, and mxpolicy does not log in: where {aim} wants"
            " that, it refuses all mail, which bounces",
            "postconf -e default_transport=smtp:",
        ),
        warn(
            is_ours and maps,
            f"senders in {maps} have a relay of their own, which is the nexthop then",
        ),
        warn(
            demands := demand(settings),
            f"{demands}: mail that goes by mxpolicy is encrypted only where the host"
            " offers that, and no certificate is checked",
        ),
        _judge_lifetime("maximal_queue_lifetime", "a message", settings),
        _judge_lifetime("bounce_queue_lifetime", "a bounce", settings),
        warn(
            backoff > DAY,
            "maximal_backoff_time is more than a day: a host that is back is not noticed",
            "postconf -e maximal_backoff_time=4000s",
        ),
    )


def _judge_lifetime(name: str, what: str, settings: Mapping[str, str]) -> Item | None:
    written = settings[name]
    lifetime = parse_time(written, "d")
    return first(
        warn(
            lifetime is not None and lifetime < DAY,
            f"{name} is {written}: {what} that cannot be delivered is given up within a"
            " day (RFC 5321 4.5.4.1 asks for four to five)",
            f"postconf -e {name}=5d",
        ),
        ok(
            lifetime is not None,
            f"{name} is {written}: so long is {what} tried again",
        ),
    )
