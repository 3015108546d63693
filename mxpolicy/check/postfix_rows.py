"""What is said of the Postfix of this machine: a pure function of what was gathered.

`mxpolicy.check.postfix` gathers. Each row is a condition, a sentence about what would
happen, and the ``postconf`` line that mends it.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.configuration import SHORT_DEADLINE, TOO_SHORT
from mxpolicy.check.installation import Obstacle
from mxpolicy.check.master_cf import words
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.check.status_filter import judge_filter
from mxpolicy.options import Options
from mxpolicy.pipe import ALARM_INTERVAL
from mxpolicy.pipe_command import ALARM_SLACK, DOT_TIME, time_needed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mxpolicy.check.access import Account
    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.report import Item
    from mxpolicy.pipe_command import Arguments

__all__ = [
    "Transport",
    "judge_all",
    "judge_instance",
    "judge_places",
    "judge_time",
    "judge_transport",
    "parse_time",
    "processes",
]

# Seconds between the last reply that is waited for and Postfix's limit: contrib's, and
# the least, in which the last alarm rings.
MARGIN = 100.0
LEAST_MARGIN = ALARM_SLACK + 2 * ALARM_INTERVAL

DAY = 86400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}
_TIME = re.compile(r"(\d+)([smhdw]?)")

# With fewer, no place can be kept for other mail.
FEWEST_PLACES = 4

# Bytes of memory that one delivery takes.
PROCESS = 30 * 1024 * 1024

_RECIPIENT = re.compile(r"recipient}|\$recipient|\(recipient")


def parse_time(text: str, unit: str = "s") -> float | None:
    """Return the seconds of a time in main.cf, None if it is none.

    Args:
        text: ``3600s``, ``5d``, ``0``.
        unit: What a bare number means.
    """
    found = _TIME.fullmatch(text)
    return float(found[1]) * _UNITS[found[2] or unit] if found else None


# One service


class Transport(NamedTuple):
    """A pipe(8) service that runs mxpolicy, and what its entry refers to.

    Attributes:
        service: The entry.
        settings: Of main.cf; one that is not there is empty.
        memory: Of this machine, in bytes.
        account: Of ``user=``; None when there is none.
        cannot_run: What keeps that account from running the program.
        filtered: What the delivery status filter makes of each of `ACCIDENTS` and of
            `REFUSAL`; empty when it leaves that alone. Nothing with soft_bounce.
        filter_as_written: With its ``$$``.
        filter_unseen: Why the filter could not be asked.
        command: The words after the program, with macros filled in.
        unknown: The first macro that pipe(8) does not have; empty when it has all.
        usage_error: What mxpolicy says of the command; empty when it takes it.
        arguments: As it understands them; None when it does not.
        file: The configuration file that it reads.
        mistakes: In that file; empty when there are none.
        options: In that file; None when there are mistakes.
        cannot_read: What keeps the account from reading it.
        other_file: What this check was told to look at, where that is another file.
    """

    service: Service
    settings: Mapping[str, str]
    memory: int
    account: Account | None = None
    cannot_run: Obstacle = Obstacle()
    filtered: Mapping[str, str] = {}
    filter_as_written: str = ""
    filter_unseen: str = ""
    command: tuple[str, ...] = ()
    unknown: str = ""
    usage_error: str = ""
    arguments: Arguments | None = None
    file: str = ""
    mistakes: str = ""
    options: Options | None = None
    cannot_read: Obstacle = Obstacle()
    other_file: str = ""


def judge_transport(it: Transport) -> list[Item]:
    """Return what is said of one service."""
    # One line for all of them: each alone would undo what the others mend.
    mend = _entry_mend(it.service, is_refused=_is_refused(it.service, it.settings))
    items = [*_judge_process(it), *_judge_user(it, mend), *_judge_flags(it, mend)]
    items += [*_judge_recipients(it), *_judge_command(it)]
    if it.arguments and it.options:
        deadline = it.arguments.deadline
        items += judge_time(it.service, it.settings, deadline, it.options)
    return [*items, *judge_filter(it)]


def _judge_process(it: Transport) -> list[Item]:
    name, place, settings = it.service.name, it.service.place, it.settings
    level = re.match(r"\d+", settings["compatibility_level"] or "0")
    old_default = it.service.chroot == "-" and level is not None and level[0] == "0"
    most = processes(it.service, settings)
    fitting = max(1, min(Options().limits.processes, it.memory // 2 // PROCESS))
    return said(
        ok(True, f"transport {name} runs {' '.join(it.service.argv)}"),
        fail(
            it.service.unprivileged != "n",
            f"{name} has no 'n' in the column unpriv: pipe(8) cannot become another"
            " user, and all mail is deferred",
            f"postconf -F {place}/unprivileged=n",
        ),
        fail(
            it.service.chroot == "y" or old_default,
            f"{name} runs in a chroot, where there is no Python: all mail is deferred",
            f"postconf -F {place}/chroot=n",
        ),
        first(
            warn(
                not most,
                f"{name}: any number of processes of 30 MB may run at once, more than"
                " half of this machine's memory",
                f"postconf -F {place}/process_limit={fitting}",
            ),
            warn(
                most * PROCESS > it.memory / 2,
                f"{name}: up to {most} processes of 30 MB may run at once, more than"
                " half of this machine's memory",
                f"postconf -F {place}/process_limit={fitting}",
            ),
            ok(True, f"{name}: at most {most} processes at once"),
        ),
    )


def processes(service: Service, settings: Mapping[str, str]) -> int:
    """Return how many processes *service* may have at once; 0 is any number."""
    limit = service.process_limit
    if limit == "-":
        limit = settings["default_process_limit"] or "100"
    return int(limit) if limit.isdigit() else 0


def _is_refused(service: Service, settings: Mapping[str, str]) -> bool:
    """Whether pipe(8) does not run a command as ``user=``, ``name`` or ``name:group``."""
    user = service.attributes.get("user", "").partition(":")[0]
    return user in {"", "root", settings["mail_owner"] or "postfix"}


def _judge_user(it: Transport, mend: str) -> list[Item]:
    name, program = it.service.name, it.service.argv[0]
    user = it.service.attributes.get("user", "")
    return said(
        first(
            fail(
                not user,
                f"{name} has no user=: pipe(8) ends, and all mail is deferred",
                mend,
            ),
            fail(
                _is_refused(it.service, it.settings),
                f"{name} has user={user}, which pipe(8) refuses: all mail is deferred",
                mend,
            ),
            fail(
                it.account is None,
                f"{name} has user={user}, which is not known here: all mail is deferred",
                "adduser --system --group --no-create-home mxpolicy",
            ),
            warn(
                not program.startswith("/"),
                f"{name} runs {program} without a path; pipe(8) looks for it in /usr/bin"
                " and /bin only",
            ),
            fail(
                it.cannot_run.why,
                f"{name} cannot run its program ({it.cannot_run.why}): all mail is deferred",
                it.cannot_run.mend,
            ),
        )
    )


def _judge_flags(it: Transport, mend: str) -> list[Item]:
    name, flags = it.service.name, it.service.attributes.get("flags", "")
    harmful = "".join(one for one in "FB.>" if one in flags)
    added = "".join(one for one in "DOR" if one in flags)
    null_sender = it.service.attributes.get("null_sender", "MAILER-DAEMON")
    return said(
        fail(
            harmful,
            f"{name} has the flags {harmful}, which change the message: signatures"
            " (DKIM) break",
            mend,
        ),
        warn(
            "u" in flags,
            f"{name} has the flag u: local parts arrive in lower case, and hosts that"
            " tell A from a refuse them",
            mend,
        ),
        warn(
            added,
            f"{name} has the flags {added}, which add header fields (Delivered-To,"
            " X-Original-To, Return-Path) that are for mailboxes, and tell the recipient"
            " too much",
            mend,
        ),
        warn(
            "q" not in flags,
            f"{name} lacks the flag q: a local part with blanks or quotes cannot be told"
            " from another one",
            mend,
        ),
        first(
            ok(null_sender == "", f"{name}: the sender of a bounce stays empty"),
            warn(
                null_sender == "MAILER-DAEMON",
                f"{name} lacks null_sender=: the empty sender of a bounce arrives as a"
                " name, by default MAILER-DAEMON; mxpolicy takes that one, and no other"
                " one, for the empty sender",
                mend,
            ),
            fail(
                True,
                f"{name} has null_sender={null_sender}: bounces leave with that sender,"
                " and can loop",
                mend,
            ),
        ),
    )


def _entry_mend(service: Service, *, is_refused: bool) -> str:
    """Return the line that gives the entry the attributes that it should have."""
    flags = service.attributes.get("flags", "")
    kept = "".join(one for one in flags if one not in "FB.>uDOR")
    wanted = {"flags": kept if "q" in kept else f"{kept}q", "null_sender": ""}
    if is_refused:
        wanted["user"] = "mxpolicy"
    before, argv, after = service.command.partition("argv=")
    for name, value in wanted.items():
        if service.attributes.get(name) != value:
            old = re.compile(rf"(?<=\s){name}=\S*(?=\s)")
            before, count = old.subn(f"{name}={value}", before, count=1)
            before += "" if count else f"{name}={value} "
    return (
        f"postconf -F {shlex.quote(f'{service.place}/command={before}{argv}{after}')}"
    )


def _judge_recipients(it: Transport) -> list[Item]:
    name = f"{it.service.name}_destination_recipient_limit"
    limit = it.settings[name]
    return said(
        warn(
            name in it.service.overrides,
            f"-o {name} in master.cf has no effect: the queue manager reads main.cf",
            f"postconf -PX {it.service.place}/{name}",
        ),
        first(
            ok(limit == "1", f"{it.service.name}: one recipient for each run"),
            warn(
                True,
                f"{name} is {limit or 'unknown'}, not 1: while one recipient of a"
                " message is deferred, all of that run are, and a refusal of one bounces"
                " them all",
                f"postconf -e {name}=1",
            ),
        ),
    )


def _judge_command(it: Transport) -> list[Item]:
    name, arguments = it.service.name, it.arguments
    return said(
        fail(
            it.unknown,
            f"{name}: pipe(8) does not know ${{{it.unknown}}}: all mail is deferred",
        ),
        first(
            fail(
                it.command[:1] != ("pipe",),
                f"{name} runs mxpolicy without 'pipe' as its first word: all mail is"
                " deferred",
            ),
            fail(it.usage_error, f"{name}: all mail is deferred: {it.usage_error}"),
        ),
        warn(
            arguments and not arguments.nexthop,
            f"{name} does not pass --nexthop ${{nexthop}}: a host given in"
            " transport_maps or relayhost has no effect",
        ),
        warn(
            arguments and not arguments.queue_id,
            f"{name} does not pass --queue-id ${{queue_id}}: log lines do not say which"
            " message they are about",
        ),
        fail(
            arguments and not _RECIPIENT.search(" ".join(it.service.argv)),
            f"{name} does not pass ${{recipient}}: mail goes astray",
        ),
        first(
            fail(it.mistakes, f"{name}: all mail is deferred (4.3.5): {it.mistakes}"),
            fail(
                it.cannot_read.why,
                f"{name}: all mail is deferred (4.3.5): {it.file}:"
                f" {it.cannot_read.why}",
                it.cannot_read.mend,
            ),
        ),
        warn(
            it.other_file,
            f"{name} reads {it.file}, not {it.other_file}, which was looked at here",
        ),
    )


def judge_time(
    service: Service, settings: Mapping[str, str], given: float | None, options: Options
) -> list[Item]:
    """Judge whether a delivery ends before Postfix kills it, and bounces the message.

    Args:
        service: The entry.
        settings: Of main.cf.
        given: What ``--deadline`` says, None without it.
        options: From the configuration file that the command reads.
    """
    name = f"{service.name}_time_limit"
    written = service.overrides.get(name) or settings[name]
    limit = parse_time(written)
    if limit is None:
        return said(warn(True, f"{name} cannot be understood: {written}"))
    source = "--deadline" if given else "the option deadline"
    deadline, needed = given or options.deadline, time_needed(given, options)
    longest = max(limit, deadline)
    watchdog = parse_time(settings["daemon_timeout"])
    setting = f"{name}={deadline + DOT_TIME + MARGIN:.0f}s"
    return said(
        first(
            fail(
                limit < needed + LEAST_MARGIN,
                f"{name} is {limit:.0f} s, {source} {deadline:.0f} s, and a host may"
                f" take {DOT_TIME:.0f} s more to answer the end of a message: Postfix"
                " kills a delivery that is still under way, and the message is bounced"
                " or arrives twice",
                f"postconf -P {service.place}/{setting}"
                if name in service.overrides
                else f"postconf -e {setting}",
            ),
            ok(
                needed < deadline + DOT_TIME,
                f"{service.name}: without --deadline a message must have left after"
                f" {needed - DOT_TIME:.0f} s, or Postfix might kill the delivery while"
                " its end is answered",
            ),
            ok(
                True,
                f"{service.name}: deferred after {needed:.0f} s at the latest, killed by"
                f" Postfix after {limit:.0f} s",
            ),
        ),
        fail(
            deadline < SHORT_DEADLINE,
            f"{service.name}: {source} is {deadline:.0f} s: {TOO_SHORT}",
        ),
        fail(
            watchdog is not None and watchdog <= longest,
            f"daemon_timeout is {watchdog or 0.0:.0f} s: Postfix gives up on {service.name}"
            f" before {name} has passed, and tries again beside it",
            f"postconf -e daemon_timeout={longest * 2:.0f}s",
        ),
    )


# All services together


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
        warn(
            is_ours and maps,
            f"senders in {maps} have a relay of their own, which is the nexthop then",
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
