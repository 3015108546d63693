"""The Postfix of this machine: every pipe(8) service that runs mxpolicy, and its limits.

Each thing that would bite is one sentence about what would happen, and the
``postconf`` line that mends it. Tried with Postfix 3.7.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import EXECUTE, READ, account, objection
from mxpolicy.check.configuration import SHORT_DEADLINE, TOO_SHORT
from mxpolicy.check.master_cf import Service, parse_services, substitute, words
from mxpolicy.check.postconf import PostfixUnseen
from mxpolicy.check.report import fail, ok, warn
from mxpolicy.config import DEFAULT_PATH, load
from mxpolicy.errors import ConfigError, UsageError
from mxpolicy.net.own_name import own_name
from mxpolicy.options import Options
from mxpolicy.pipe import (
    ALARM_INTERVAL,
    ALARM_SLACK,
    DOT_TIME,
    parse_arguments,
    time_needed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mxpolicy.check.access import Account
    from mxpolicy.check.postconf import Postconf
    from mxpolicy.check.report import Item
    from mxpolicy.pipe import Arguments

__all__ = [
    "FILTER",
    "Postfix",
    "judge_places",
    "judge_time",
    "look",
    "parse_time",
    "see",
    "user_of",
]

# Between the last reply that is waited for and the limit at which Postfix kills:
# contrib's, and the least that there must be, until the last alarm has rung.
MARGIN = 100.0
LEAST_MARGIN = ALARM_SLACK + 2 * ALARM_INTERVAL

DAY = 86400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}
_TIME = re.compile(r"(\d+)([smhdw]?)")

# With fewer there is no place that could be kept for other mail.
FEWEST_PLACES = 4

# What a message under way takes; more of them than fit is the end of this machine.
PROCESS = 30 * 1024 * 1024

# As in contrib/postfix/main.cf.
FILTER = "regexp:{ {/^5(\\.3\\.[0-5] (Command (died|time limit exceeded).*))/ 4$$1} }"

# pipe(8)'s words for ends that we never choose: a Python that does not start, a
# missing module, no memory, a file that went away.
_ACCIDENTS = (
    'Command died with status 1: "mxpolicy"',
    'Command died with status 127: "mxpolicy"',
    'Command time limit exceeded: "mxpolicy"',
)

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
    "minimal_backoff_time",
    "maximal_backoff_time",
)


class Postfix(NamedTuple):
    """What was seen of it.

    Attributes:
        postconf: To ask further.
        services: Those that run mxpolicy.
        settings: Of main.cf.
    """

    postconf: Postconf
    services: tuple[Service, ...]
    settings: Mapping[str, str]


def see(postconf: Postconf) -> Postfix:
    """Ask for all that is to be judged.

    Raises:
        PostfixUnseen: Postfix does not say.
    """
    pipes = parse_services(postconf.services())
    ours = tuple(one for one in pipes if one.arguments is not None)
    names = list(SETTINGS)
    for one in ours:
        names += [f"{one.name}_destination_recipient_limit", f"{one.name}_time_limit"]
    return Postfix(postconf, ours, postconf.settings(names))


def user_of(postfix: Postfix) -> Account | None:
    """Return the account that deliveries run as, by the first service that has one."""
    users = (one.attributes.get("user", "") for one in postfix.services)
    return next(filter(None, map(account, filter(None, users))), None)


def look(postfix: Postfix, options: Options, config: str | None) -> list[Item]:
    """Judge *postfix*.

    Args:
        postfix: From `see`.
        options: As understood by this check.
        config: The file that was named to it.
    """
    if not postfix.services:
        text = f"Postfix {postfix.settings.get('mail_version', '')} is here; no pipe(8)"
        return [warn(f"{text} service of it runs mxpolicy: see contrib/postfix")]
    items: list[Item] = []
    for service in postfix.services:
        items += _judge_service(service, postfix, config)
    items.append(judge_places(postfix.services, postfix.settings, options))
    items += _judge_identity(postfix, options)
    items += _judge_routing(postfix)
    items += _judge_queue(postfix)
    return items


# One service


def _judge_service(
    service: Service, postfix: Postfix, config: str | None
) -> Iterator[Item]:
    yield ok(f"transport {service.name} runs {' '.join(service.argv)}")
    yield from _judge_process(service, postfix)
    # One line for all of them: each alone would undo what the others mend.
    mend = _command_mend(service, _attributes_wanted(service, postfix))
    yield from _judge_user(service, postfix, mend)
    yield from _judge_flags(service, mend)
    yield _judge_null_sender(service, mend)
    yield from _judge_recipients(service, postfix)
    yield from _judge_command(service, postfix, config)
    yield from _judge_filter(service, postfix)


def _judge_process(service: Service, postfix: Postfix) -> Iterator[Item]:
    place = f"{service.name}/{service.kind}"
    if service.unprivileged != "n":
        text = f"{service.name} has no 'n' in the column unpriv: pipe(8) cannot become"
        text += " another user, and all mail is deferred"
        yield fail(text, f"postconf -F {place}/unprivileged=n")
    level = re.match(r"\d+", postfix.settings.get("compatibility_level", "0"))
    old_default = service.chroot == "-" and level is not None and level[0] == "0"
    if service.chroot == "y" or old_default:
        text = f"{service.name} runs in a chroot, where there is no Python: all mail is"
        yield fail(f"{text} deferred", f"postconf -F {place}/chroot=n")
    most = _processes(service, postfix.settings)
    if not most or most * PROCESS > _memory() / 2:
        many = f"up to {most}" if most else "any number of"
        text = f"{service.name}: {many} processes of 30 MB may run at once, more than"
        text += " half of this machine's memory"
        fitting = max(1, min(Options().limits.processes, _memory() // 2 // PROCESS))
        yield warn(text, f"postconf -F {place}/process_limit={fitting}")
    else:
        yield ok(f"{service.name}: at most {most} processes at once")


def _processes(service: Service, settings: Mapping[str, str]) -> int:
    """Return how many processes a service may have; 0 is any number."""
    limit = service.process_limit
    if limit == "-":
        limit = settings.get("default_process_limit", "100")
    return int(limit) if limit.isdigit() else 0


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _judge_user(service: Service, postfix: Postfix, mend: str) -> Iterator[Item]:
    user = service.attributes.get("user", "")
    if not user:
        text = f"{service.name} has no user=: pipe(8) ends, and all mail is deferred"
        yield fail(text, mend)
        return
    if _is_refused(user, postfix):
        text = f"{service.name} has user={user}, which pipe(8) refuses: all mail is"
        yield fail(f"{text} deferred", mend)
        return
    who = account(user)
    if who is None:
        text = f"{service.name} has user={user}, which is not known here: all mail is"
        mend = "adduser --system --group --no-create-home mxpolicy"
        yield fail(f"{text} deferred", mend)
        return
    program = service.argv[0]
    if not program.startswith("/"):
        text = f"{service.name} runs {program} without a path; pipe(8) looks for it in"
        yield warn(f"{text} /usr/bin and /bin only")
    elif why_not := objection(who, program, READ | EXECUTE):
        text = (
            f"{service.name} cannot run its program ({why_not}): all mail is deferred"
        )
        yield fail(text)


def _judge_flags(service: Service, mend: str) -> Iterator[Item]:
    flags = service.attributes.get("flags", "")
    harmful = [one for one in "FB.>" if one in flags]
    if harmful:
        text = f"{service.name} has the flags {''.join(harmful)}, which change the"
        text += " message: signatures (DKIM) break"
        yield fail(text, mend)
    if "u" in flags:
        text = f"{service.name} has the flag u: local parts arrive in lower case, and"
        text += " hosts that tell A from a refuse them"
        yield warn(text, mend)
    added = [one for one in "DOR" if one in flags]
    if added:
        text = f"{service.name} has the flags {''.join(added)}, which add header fields"
        text += (
            " (Delivered-To, X-Original-To, Return-Path) that are for mailboxes, and"
        )
        text += " tell the recipient what he need not know"
        yield warn(text, mend)
    if "q" not in flags:
        text = f"{service.name} lacks the flag q: a local part with blanks or quotes"
        text += " cannot be told from another one"
        yield warn(text, mend)


def _judge_null_sender(service: Service, mend: str) -> Item:
    if service.attributes.get("null_sender") == "":
        return ok(f"{service.name}: the sender of a bounce stays empty")
    text = f"{service.name} lacks null_sender=: the empty sender of a bounce arrives as"
    text += " a name, by default MAILER-DAEMON; mxpolicy takes that one, and no other"
    text += " one, for the empty sender"
    if service.attributes.get("null_sender", "MAILER-DAEMON") == "MAILER-DAEMON":
        return warn(text, mend)
    text = f"{service.name} has null_sender={service.attributes['null_sender']}:"
    return fail(f"{text} bounces leave with that sender, and can loop", mend)


def _judge_recipients(service: Service, postfix: Postfix) -> Iterator[Item]:
    name = f"{service.name}_destination_recipient_limit"
    if name in service.overrides:
        text = f"-o {name} in master.cf has no effect: the queue manager reads main.cf"
        yield warn(text, f"postconf -PX {service.name}/{service.kind}/{name}")
    limit = postfix.settings.get(name, "")
    if limit == "1":
        yield ok(f"{service.name}: one recipient for each run")
        return
    text = f"{name} is {limit or 'unknown'}, not 1: while one recipient of a message is"
    text += " deferred, all of that run are, and a refusal of one bounces them all"
    yield warn(text, f"postconf -e {name}=1")


def _judge_command(
    service: Service, postfix: Postfix, config: str | None
) -> Iterator[Item]:
    words_given, unknown = substitute(service.arguments or ())
    if unknown:
        text = f"{service.name}: pipe(8) does not know ${{{unknown[0]}}}: all mail is"
        yield fail(f"{text} deferred")
    if words_given[:1] != ("pipe",):
        text = (
            f"{service.name} runs mxpolicy without 'pipe' as its first word: all mail"
        )
        yield fail(f"{text} is deferred")
        return
    try:
        arguments = parse_arguments(words_given[1:], {})
    except UsageError as error:
        yield fail(f"{service.name}: all mail is deferred: {error}")
        return
    raw = " ".join(service.argv)
    if not arguments.nexthop:
        text = f"{service.name} does not pass --nexthop ${{nexthop}}: a host given in"
        yield warn(f"{text} transport_maps or relayhost has no effect")
    if not arguments.queue_id:
        text = (
            f"{service.name} does not pass --queue-id ${{queue_id}}: log lines do not"
        )
        yield warn(f"{text} say which message they are about")
    if "recipient}" not in raw and "$recipient" not in raw and "(recipient" not in raw:
        yield fail(f"{service.name} does not pass ${{recipient}}: mail goes astray")
    yield from _judge_config(service, arguments, config)
    yield from judge_time(service, arguments, postfix)


def _judge_config(
    service: Service, arguments: Arguments, config: str | None
) -> Iterator[Item]:
    file = arguments.config or DEFAULT_PATH
    try:
        load(arguments.config, {})
    except ConfigError as error:
        text = f"{service.name}: all mail is deferred (4.3.5): "
        yield fail(text + "; ".join(error.mistakes))
        return
    who = account(service.attributes.get("user", ""))
    if who and os.path.exists(file) and (why_not := objection(who, file, READ)):
        text = f"{service.name}: all mail is deferred (4.3.5): {file}: {why_not}"
        yield fail(text, f"chmod a+r {file}")
    if config and os.path.realpath(config) != os.path.realpath(file):
        text = f"{service.name} reads {file}, not {config}, which was looked at here"
        yield warn(text)


def judge_time(
    service: Service, arguments: Arguments, postfix: Postfix
) -> Iterator[Item]:
    """Judge whether a delivery ends before Postfix kills it, and bounces the message."""
    name = f"{service.name}_time_limit"
    written = service.overrides.get(name) or postfix.settings.get(name, "")
    limit = parse_time(written, "s")
    try:
        options = load(arguments.config, {})
    except ConfigError:
        return  # said already
    source = "--deadline" if arguments.deadline else "the option deadline"
    deadline = arguments.deadline or options.deadline
    needed = time_needed(arguments.deadline, options)
    if limit is None:
        yield warn(f"{name} cannot be understood: {written}")
        return
    if limit < needed + LEAST_MARGIN:
        text = (
            f"{name} is {limit:.0f} s, {source} {deadline:.0f} s, and a host may take"
        )
        text += (
            f" {DOT_TIME:.0f} s more to answer the end of a message: Postfix kills a"
        )
        text += " delivery that is still under way, and the message is bounced or"
        text += " arrives twice"
        yield fail(text, _set(service, name, f"{deadline + DOT_TIME + MARGIN:.0f}s"))
    elif needed < deadline + DOT_TIME:
        text = f"{service.name}: without --deadline a message must have left after"
        text += f" {needed - DOT_TIME:.0f} s, or Postfix might kill the delivery while"
        yield ok(f"{text} its end is answered")
    else:
        text = f"{service.name}: deferred after {needed:.0f} s at the latest, killed"
        yield ok(f"{text} by Postfix after {limit:.0f} s")
    if deadline < SHORT_DEADLINE:
        yield fail(f"{service.name}: {source} is {deadline:.0f} s: {TOO_SHORT}")
    watchdog = parse_time(postfix.settings.get("daemon_timeout", ""), "s")
    if watchdog is not None and watchdog <= max(limit, deadline):
        text = f"daemon_timeout is {watchdog:.0f} s: Postfix gives up on {service.name}"
        text += f" before {name} has passed, and tries again beside it"
        mend = f"postconf -e daemon_timeout={max(limit, deadline) * 2:.0f}s"
        yield fail(text, mend)


def _judge_filter(service: Service, postfix: Postfix) -> Iterator[Item]:
    name = "pipe_delivery_status_filter"
    if postfix.settings.get("soft_bounce") == "yes":
        text = "soft_bounce is yes: nothing bounces, whatever hosts say, until"
        yield warn(f"{text} maximal_queue_lifetime", "postconf -e soft_bounce=no")
        return
    tables = words(service.overrides.get(name, postfix.settings.get(name, "")), " \t,")
    try:
        bad = [one for one in _ACCIDENTS if not _softens(postfix, tables, one)]
        refusals = _softens(postfix, tables, "no such user", "5.1.1")
    except PostfixUnseen as error:
        yield warn(f"{name} could not be asked: {error}")
        return
    if bad:
        text = (
            f"{name} does not soften '{bad[0]}': when Python does not start, or a file"
        )
        text += " is missing, mail is bounced, not deferred"
        yield fail(text, _filter_mend(service, postfix, tables))
    else:
        yield ok(f"{service.name}: accidents of the command are deferred ({name})")
    if refusals:
        text = f"{name} softens 5.1.1: what a host refuses for good stays in the queue"
        yield warn(text)


def _softens(
    postfix: Postfix, tables: list[str], text: str, status: str = "5.3.0"
) -> bool:
    for table in tables:
        found = postfix.postconf.look_up(f"{status} {text}", table)
        if found is not None:
            return found.startswith("4")
    return False


def _filter_mend(service: Service, postfix: Postfix, tables: list[str]) -> str:
    name = "pipe_delivery_status_filter"
    if name in service.overrides:
        return f"postconf -PX {service.name}/{service.kind}/{name}"
    value = FILTER
    if tables:
        # As it is written, so that its $$ stay. Ours first: it is the narrower.
        value = f"{FILTER}, {postfix.postconf.raw(name)}"
    return f"postconf -e {shlex.quote(f'{name} = {value}')}"


def _set(service: Service, name: str, value: str) -> str:
    if name in service.overrides:
        return f"postconf -P {service.name}/{service.kind}/{name}={value}"
    return f"postconf -e {name}={value}"


def _is_refused(user: str, postfix: Postfix) -> bool:
    """Whether pipe(8) does not run a command as *user*, ``name`` or ``name:group``."""
    owner = postfix.settings.get("mail_owner", "postfix")
    return user.partition(":")[0] in {"", "root", owner}


def _attributes_wanted(service: Service, postfix: Postfix) -> dict[str, str]:
    """Return the attributes of the entry as they should be, where they are not."""
    flags = service.attributes.get("flags", "")
    kept = "".join(one for one in flags if one not in "FB.>uDOR")
    wanted = {"flags": kept if "q" in kept else f"{kept}q", "null_sender": ""}
    if _is_refused(service.attributes.get("user", ""), postfix):
        wanted["user"] = "mxpolicy"
    return {
        name: value
        for name, value in wanted.items()
        if service.attributes.get(name) != value
    }


def _command_mend(service: Service, wanted: Mapping[str, str]) -> str:
    """Return the line that gives the entry in master.cf the attributes *wanted*."""
    before, argv, after = service.command.partition("argv=")
    for name, value in wanted.items():
        old = re.compile(rf"(?<=\s){name}=\S*(?=\s)")
        if old.search(before):
            before = old.sub(f"{name}={value}", before, count=1)
        else:
            before += f"{name}={value} "
    command = f"{service.name}/{service.kind}/command={before}{argv}{after}"
    return f"postconf -F {shlex.quote(command)}"


# All of them together


def judge_places(
    services: Sequence[Service], settings: Mapping[str, str], options: Options
) -> Item:
    """Judge whether ``limits.processes`` is what master.cf says."""
    places = options.limits.processes
    each = [_processes(one, settings) for one in services]
    most = sum(each) if all(each) else 0
    if not places:
        text = "limits.processes is 0: a destination that does not answer can take all"
        text += " processes, and then all other mail waits for it"
    elif places == most and places < FEWEST_PLACES:
        text = f"limits.processes is {places}, as in master.cf: with less than"
        text += f" {FEWEST_PLACES}, a destination that does not answer takes all of"
        text += " them, and then all other mail waits for it"
        return warn(text)
    elif places == most:
        text = f"limits.processes is {places}, as in master.cf: a destination that does"
        return ok(f"{text} not answer cannot take all of them")
    elif not most or most > places:
        text = f"limits.processes is {places}, master.cf allows {most or 'any number'}:"
        text += " mail for a destination that does not answer is put off sooner than"
        text += " it need be"
    else:
        text = f"limits.processes is {places}, master.cf allows {most}: a destination"
        text += " that does not answer can take all of them, and then all other mail"
        text += " waits for it"
    return warn(text, f"limits: {{processes: {most}}}" if most else "")


def _judge_identity(postfix: Postfix, options: Options) -> Iterator[Item]:
    name = postfix.settings.get("myhostname", "").lower()
    helo = options.helo or own_name()
    if name and name not in (helo.lower(), *options.own_names):
        text = f"Postfix is called {name}, mxpolicy {helo}: an MX of Postfix's name is"
        text += " not taken for ourselves, and its mail may loop"
        yield warn(text, f"own_names: [{', '.join((*options.own_names, name))}]")
    known = set(options.own_addresses)
    proxies = words(postfix.settings.get("proxy_interfaces", ""), " \t,")
    unknown = [one for one in proxies if one not in known]
    if unknown:
        text = f"Postfix has proxy_interfaces {', '.join(unknown)}, mxpolicy does not"
        text += " know of it: an MX of that address is not taken for ourselves"
        yield warn(text, f"own_addresses: [{', '.join(unknown)}]")


def _judge_routing(postfix: Postfix) -> Iterator[Item]:
    default = postfix.settings.get("default_transport", "")
    transport, _, nexthop = default.partition(":")
    if transport not in {one.name for one in postfix.services}:
        text = f"default_transport is {default}: mxpolicy gets what transport_maps, a"
        yield ok(f"{text} filter or another table sends its way")
        return
    yield ok(f"default_transport is {default}: all mail that leaves goes by mxpolicy")
    relay = postfix.settings.get("relayhost", "")
    if nexthop or relay:
        text = f"all of it is aimed at {nexthop or relay}, no MX is looked up for it"
        yield warn(text, f"postconf -e default_transport={transport}: relayhost=")
    if maps := postfix.settings.get("sender_dependent_relayhost_maps", ""):
        text = f"senders in {maps} have a relay of their own, which is the nexthop then"
        yield warn(text)


def _judge_queue(postfix: Postfix) -> Iterator[Item]:
    for name, who in (
        ("maximal_queue_lifetime", "a message"),
        ("bounce_queue_lifetime", "a bounce"),
    ):
        written = postfix.settings.get(name, "")
        lifetime = parse_time(written, "d")
        if lifetime is None:
            continue
        if lifetime < DAY:
            text = f"{name} is {written}: {who} that cannot be delivered is given up"
            text += " within a day (RFC 5321 4.5.4.1 asks for four to five)"
            yield warn(text, f"postconf -e {name}=5d")
        else:
            yield ok(f"{name} is {written}: so long is {who} tried again")
    backoff = parse_time(postfix.settings.get("maximal_backoff_time", ""), "s")
    if backoff is not None and backoff > DAY:
        text = "maximal_backoff_time is more than a day: a host that is back is not"
        yield warn(f"{text} noticed", "postconf -e maximal_backoff_time=4000s")


def parse_time(text: str, unit: str) -> float | None:
    """Return the seconds of a time in main.cf, None if it is none.

    Args:
        text: ``3600s``, ``5d``, ``0``.
        unit: What a bare number means.
    """
    found = _TIME.fullmatch(text)
    return float(found[1]) * _UNITS[found[2] or unit] if found else None
