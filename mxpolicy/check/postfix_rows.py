"""What is said of the Postfix of this machine: facts, and the tables about them. Pure.

`mxpolicy.check.postfix` gathers the facts. A sentence says what would happen, and the
line beside it is the ``postconf`` command that mends it.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.configuration import SHORT_DEADLINE, TOO_SHORT
from mxpolicy.check.master_cf import words
from mxpolicy.check.report import Table, fail, first, ok, otherwise, warn
from mxpolicy.options import Options
from mxpolicy.pipe import ALARM_INTERVAL, ALARM_SLACK, DOT_TIME, time_needed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.access import Account
    from mxpolicy.check.master_cf import Service
    from mxpolicy.pipe import Arguments

__all__ = [
    "ACCIDENTS",
    "FILTER",
    "FILTERED",
    "FILTER_NAME",
    "PLACES",
    "REFUSAL",
    "TIME",
    "TRANSPORT",
    "WHOLE",
    "Places",
    "Timing",
    "Transport",
    "Whole",
    "parse_time",
    "timing",
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

FILTER_NAME = "pipe_delivery_status_filter"

# As in contrib/postfix/main.cf.
FILTER = "regexp:{ {/^5(\\.3\\.[0-5] (Command (died|time limit exceeded).*))/ 4$$1} }"

# pipe(8)'s words for ends that we never choose: a Python that does not start, a
# missing module, no memory, a file that went away.
ACCIDENTS = (
    '5.3.0 Command died with status 1: "mxpolicy"',
    '5.3.0 Command died with status 127: "mxpolicy"',
    '5.3.0 Command time limit exceeded: "mxpolicy"',
)

# An end that we do choose.
REFUSAL = "5.1.1 no such user"

_HARMFUL, _FOR_MAILBOXES = "FB.>", "DOR"


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
        cannot_run: Why that account may not run the program; empty when it may.
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
        cannot_read: Why the account may not read it; empty when it may.
        other_file: What this check was told to look at, where that is another file.
    """

    service: Service
    settings: Mapping[str, str]
    memory: int
    account: Account | None = None
    cannot_run: str = ""
    filtered: Mapping[str, str] = {}
    filter_as_written: str = ""
    filter_unseen: str = ""
    command: tuple[str, ...] = ()
    unknown: str = ""
    usage_error: str = ""
    arguments: Arguments | None = None
    file: str = ""
    mistakes: str = ""
    cannot_read: str = ""
    other_file: str = ""

    @property
    def command_line(self) -> str:
        return " ".join(self.service.argv)

    @property
    def is_chrooted(self) -> bool:
        level = re.match(r"\d+", self.settings["compatibility_level"] or "0")
        by_default = level is not None and level[0] == "0"
        return self.service.chroot == "y" or (by_default and self.service.chroot == "-")

    @property
    def processes(self) -> int:
        """How many there may be at once; 0 is any number."""
        limit = self.service.process_limit
        if limit == "-":
            limit = self.settings["default_process_limit"] or "100"
        return int(limit) if limit.isdigit() else 0

    @property
    def fitting(self) -> int:
        """How many processes there may be without harm."""
        return max(1, min(Options().limits.processes, self.memory // 2 // PROCESS))

    @property
    def user(self) -> str:
        return self.service.attributes.get("user", "")

    @property
    def is_refused(self) -> bool:
        """Whether pipe(8) does not run a command as *user*, ``name`` or ``name:group``."""
        owner = self.settings["mail_owner"] or "postfix"
        return self.user.partition(":")[0] in {"", "root", owner}

    @property
    def flags(self) -> str:
        return self.service.attributes.get("flags", "")

    @property
    def harmful(self) -> str:
        return "".join(one for one in _HARMFUL if one in self.flags)

    @property
    def for_mailboxes(self) -> str:
        return "".join(one for one in _FOR_MAILBOXES if one in self.flags)

    @property
    def null_sender(self) -> str:
        return self.service.attributes.get("null_sender", "MAILER-DAEMON")

    @property
    def limit_name(self) -> str:
        return f"{self.service.name}_destination_recipient_limit"

    @property
    def recipient_limit(self) -> str:
        return self.settings[self.limit_name] or "unknown"

    @property
    def entry_mend(self) -> str:
        """The line that gives the entry the attributes that it should have.

        One line for all of them: each alone would undo what the others mend.
        """
        kept = "".join(x for x in self.flags if x not in f"{_HARMFUL}u{_FOR_MAILBOXES}")
        wanted = {"flags": kept if "q" in kept else f"{kept}q", "null_sender": ""}
        if self.is_refused:
            wanted["user"] = "mxpolicy"
        before, argv, after = self.service.command.partition("argv=")
        for name, value in wanted.items():
            if self.service.attributes.get(name) != value:
                old = re.compile(rf"(?<=\s){name}=\S*(?=\s)")
                before, count = old.subn(f"{name}={value}", before, count=1)
                before += "" if count else f"{name}={value} "
        command = f"{self.service.place}/command={before}{argv}{after}"
        return f"postconf -F {shlex.quote(command)}"

    @property
    def filter_tables(self) -> list[str]:
        """The tables of the delivery status filter, in the order of the question."""
        usual = self.settings[FILTER_NAME]
        return words(self.service.overrides.get(FILTER_NAME, usual), " \t,")

    @property
    def hard_accident(self) -> str:
        """What bounces mail although no host refused it."""
        hard = (x for x in ACCIDENTS if not self.filtered.get(x, "").startswith("4"))
        return next(hard, "").partition(" ")[2]

    @property
    def filter_mend(self) -> str:
        if FILTER_NAME in self.service.overrides:
            return f"postconf -PX {self.service.place}/{FILTER_NAME}"
        # Ours first: it is the narrower.
        value = ", ".join(filter(None, (FILTER, self.filter_as_written)))
        return f"postconf -e {shlex.quote(f'{FILTER_NAME} = {value}')}"


_RECIPIENT = re.compile(r"recipient}|\$recipient|\(recipient")

TRANSPORT: Table[Transport] = (
    ok(otherwise, "transport {service.name} runs {command_line}"),
    fail(
        lambda it: it.service.unprivileged != "n",
        "{service.name} has no 'n' in the column unpriv: pipe(8) cannot become another user, and"
        " all mail is deferred",
        "postconf -F {service.place}/unprivileged=n",
    ),
    fail(
        lambda it: it.is_chrooted,
        "{service.name} runs in a chroot, where there is no Python: all mail is deferred",
        "postconf -F {service.place}/chroot=n",
    ),
    first(
        warn(
            lambda it: not it.processes,
            "{service.name}: any number of processes of 30 MB may run at once, more than half of"
            " this machine's memory",
            "postconf -F {service.place}/process_limit={fitting}",
        ),
        warn(
            lambda it: it.processes * PROCESS > it.memory / 2,
            "{service.name}: up to {processes} processes of 30 MB may run at once, more than half"
            " of this machine's memory",
            "postconf -F {service.place}/process_limit={fitting}",
        ),
        ok(otherwise, "{service.name}: at most {processes} processes at once"),
    ),
    first(
        fail(
            lambda it: not it.user,
            "{service.name} has no user=: pipe(8) ends, and all mail is deferred",
            "{entry_mend}",
        ),
        fail(
            lambda it: it.is_refused,
            "{service.name} has user={user}, which pipe(8) refuses: all mail is deferred",
            "{entry_mend}",
        ),
        fail(
            lambda it: it.account is None,
            "{service.name} has user={user}, which is not known here: all mail is deferred",
            "adduser --system --group --no-create-home mxpolicy",
        ),
        warn(
            lambda it: not it.service.argv[0].startswith("/"),
            "{service.name} runs {service.argv[0]} without a path; pipe(8) looks for it in"
            " /usr/bin and /bin only",
        ),
        fail(
            lambda it: it.cannot_run,
            "{service.name} cannot run its program ({cannot_run}): all mail is deferred",
        ),
    ),
    fail(
        lambda it: it.harmful,
        "{service.name} has the flags {harmful}, which change the message: signatures (DKIM)"
        " break",
        "{entry_mend}",
    ),
    warn(
        lambda it: "u" in it.flags,
        "{service.name} has the flag u: local parts arrive in lower case, and hosts that tell A"
        " from a refuse them",
        "{entry_mend}",
    ),
    warn(
        lambda it: it.for_mailboxes,
        "{service.name} has the flags {for_mailboxes}, which add header fields (Delivered-To,"
        " X-Original-To, Return-Path) that are for mailboxes, and tell the recipient"
        " what he need not know",
        "{entry_mend}",
    ),
    warn(
        lambda it: "q" not in it.flags,
        "{service.name} lacks the flag q: a local part with blanks or quotes cannot be told from"
        " another one",
        "{entry_mend}",
    ),
    first(
        ok(
            lambda it: it.null_sender == "",
            "{service.name}: the sender of a bounce stays empty",
        ),
        warn(
            lambda it: it.null_sender == "MAILER-DAEMON",
            "{service.name} lacks null_sender=: the empty sender of a bounce arrives as a name,"
            " by default MAILER-DAEMON; mxpolicy takes that one, and no other one, for"
            " the empty sender",
            "{entry_mend}",
        ),
        fail(
            otherwise,
            "{service.name} has null_sender={null_sender}: bounces leave with that sender, and"
            " can loop",
            "{entry_mend}",
        ),
    ),
    warn(
        lambda it: it.limit_name in it.service.overrides,
        "-o {limit_name} in master.cf has no effect: the queue manager reads main.cf",
        "postconf -PX {service.place}/{limit_name}",
    ),
    first(
        ok(
            lambda it: it.recipient_limit == "1",
            "{service.name}: one recipient for each run",
        ),
        warn(
            otherwise,
            "{limit_name} is {recipient_limit}, not 1: while one recipient of a message"
            " is deferred, all of that run are, and a refusal of one bounces them all",
            "postconf -e {limit_name}=1",
        ),
    ),
    fail(
        lambda it: it.unknown,
        "{service.name}: pipe(8) does not know ${{{unknown}}}: all mail is deferred",
    ),
    first(
        fail(
            lambda it: it.command[:1] != ("pipe",),
            "{service.name} runs mxpolicy without 'pipe' as its first word: all mail is deferred",
        ),
        fail(
            lambda it: it.usage_error,
            "{service.name}: all mail is deferred: {usage_error}",
        ),
    ),
    warn(
        lambda it: it.arguments and not it.arguments.nexthop,
        "{service.name} does not pass --nexthop ${{nexthop}}: a host given in transport_maps or"
        " relayhost has no effect",
    ),
    warn(
        lambda it: it.arguments and not it.arguments.queue_id,
        "{service.name} does not pass --queue-id ${{queue_id}}: log lines do not say which"
        " message they are about",
    ),
    fail(
        lambda it: it.arguments and not _RECIPIENT.search(it.command_line),
        "{service.name} does not pass ${{recipient}}: mail goes astray",
    ),
    first(
        fail(
            lambda it: it.mistakes,
            "{service.name}: all mail is deferred (4.3.5): {mistakes}",
        ),
        fail(
            lambda it: it.cannot_read,
            "{service.name}: all mail is deferred (4.3.5): {file}: {cannot_read}",
            "chmod a+r {file}",
        ),
    ),
    warn(
        lambda it: it.other_file,
        "{service.name} reads {file}, not {other_file}, which was looked at here",
    ),
)

FILTERED: Table[Transport] = (
    first(
        warn(
            lambda it: it.settings.get("soft_bounce") == "yes",
            "soft_bounce is yes: nothing bounces, whatever hosts say, until"
            " maximal_queue_lifetime",
            "postconf -e soft_bounce=no",
        ),
        warn(
            lambda it: it.filter_unseen,
            f"{FILTER_NAME} could not be asked: {{filter_unseen}}",
        ),
        fail(
            lambda it: it.hard_accident,
            f"{FILTER_NAME} does not soften '{{hard_accident}}': when Python does not"
            " start, or a file is missing, mail is bounced, not deferred",
            "{filter_mend}",
        ),
        ok(
            otherwise,
            f"{{service.name}}: accidents of the command are deferred ({FILTER_NAME})",
        ),
    ),
    warn(
        lambda it: it.filtered.get(REFUSAL, "").startswith("4"),
        f"{FILTER_NAME} softens 5.1.1: what a host refuses for good stays in the queue",
    ),
)


# Its time


class Timing(NamedTuple):
    """How long a delivery may take, to us and to Postfix; in seconds.

    Attributes:
        service: The entry.
        written: Its time limit, as in main.cf or master.cf.
        limit: The same: when Postfix kills. None when it cannot be understood.
        watchdog: When Postfix gives up on the service; None as before.
        given: What ``--deadline`` says, None without it.
        options: From the configuration file.
    """

    service: Service
    written: str
    limit: float | None
    watchdog: float | None
    given: float | None
    options: Options

    @property
    def limit_name(self) -> str:
        return f"{self.service.name}_time_limit"

    @property
    def source(self) -> str:
        return "--deadline" if self.given else "the option deadline"

    @property
    def deadline(self) -> float:
        return self.given or self.options.deadline

    @property
    def needed(self) -> float:
        return time_needed(self.given, self.options)

    @property
    def last_end(self) -> float:
        """When the end of a message must have left."""
        return self.needed - DOT_TIME

    @property
    def longest(self) -> float:
        return max(self.limit or 0.0, self.deadline)

    @property
    def limit_mend(self) -> str:
        setting = f"{self.limit_name}={self.deadline + DOT_TIME + MARGIN:.0f}s"
        if self.limit_name in self.service.overrides:
            return f"postconf -P {self.service.place}/{setting}"
        return f"postconf -e {setting}"

    @property
    def watchdog_mend(self) -> str:
        return f"postconf -e daemon_timeout={self.longest * 2:.0f}s"


def timing(
    service: Service, settings: Mapping[str, str], given: float | None, options: Options
) -> Timing:
    """Return how long a delivery by *service* may take."""
    name = f"{service.name}_time_limit"
    written = service.overrides.get(name) or settings[name]
    limit, watchdog = parse_time(written), parse_time(settings["daemon_timeout"])
    return Timing(service, written, limit, watchdog, given, options)


TIME: Table[Timing] = (
    first(
        warn(
            lambda it: it.limit is None,
            "{limit_name} cannot be understood: {written}",
        ),
        fail(
            lambda it: (it.limit or 0.0) < it.needed + LEAST_MARGIN,
            "{limit_name} is {limit:.0f} s, {source} {deadline:.0f} s, and a host may"
            f" take {DOT_TIME:.0f} s more to answer the end of a message: Postfix kills"
            " a delivery that is still under way, and the message is bounced or arrives"
            " twice",
            "{limit_mend}",
        ),
        ok(
            lambda it: it.last_end < it.deadline,
            "{service.name}: without --deadline a message must have left after {last_end:.0f} s,"
            " or Postfix might kill the delivery while its end is answered",
        ),
        ok(
            otherwise,
            "{service.name}: deferred after {needed:.0f} s at the latest, killed by Postfix after"
            " {limit:.0f} s",
        ),
    ),
    fail(
        lambda it: it.limit is not None and it.deadline < SHORT_DEADLINE,
        f"{{service.name}}: {{source}} is {{deadline:.0f}} s: {TOO_SHORT}",
    ),
    fail(
        lambda it: (
            it.limit is not None
            and it.watchdog is not None
            and it.watchdog <= it.longest
        ),
        "daemon_timeout is {watchdog:.0f} s: Postfix gives up on {service.name} before"
        " {limit_name} has passed, and tries again beside it",
        "{watchdog_mend}",
    ),
)


# All services together


class Places(NamedTuple):
    """How many deliveries may run at once.

    Attributes:
        places: As ``limits.processes`` says; 0 is any number.
        processes: As master.cf says for all services; 0 is any number.
    """

    places: int
    processes: int

    @property
    def allowed(self) -> str:
        return str(self.processes or "any number")

    @property
    def mend(self) -> str:
        return f"limits: {{processes: {self.processes}}}" if self.processes else ""


PLACES: Table[Places] = (
    first(
        warn(
            lambda it: not it.places,
            "limits.processes is 0: a destination that does not answer can take all"
            " processes, and then all other mail waits for it",
            "{mend}",
        ),
        warn(
            lambda it: it.places == it.processes < FEWEST_PLACES,
            "limits.processes is {places}, as in master.cf: with less than"
            f" {FEWEST_PLACES}, a destination that does not answer takes all of them, and"
            " then all other mail waits for it",
        ),
        ok(
            lambda it: it.places == it.processes,
            "limits.processes is {places}, as in master.cf: a destination that does not"
            " answer cannot take all of them",
        ),
        warn(
            lambda it: not 0 < it.processes < it.places,
            "limits.processes is {places}, master.cf allows {allowed}: mail for a"
            " destination that does not answer is put off sooner than it need be",
            "{mend}",
        ),
        warn(
            otherwise,
            "limits.processes is {places}, master.cf allows {allowed}: a destination that"
            " does not answer can take all of them, and then all other mail waits for it",
            "{mend}",
        ),
    ),
)


class Whole(NamedTuple):
    """What concerns all mail of this Postfix.

    Attributes:
        transports: Names of those that run mxpolicy.
        settings: Of main.cf; one that is not there is empty.
        options: As this check understood them.
        helo: What mxpolicy calls itself.
    """

    transports: frozenset[str]
    settings: Mapping[str, str]
    options: Options
    helo: str

    @property
    def myhostname(self) -> str:
        return self.settings["myhostname"].lower()

    @property
    def all_names(self) -> str:
        return ", ".join((*self.options.own_names, self.myhostname))

    @property
    def unknown_proxies(self) -> str:
        proxies = words(self.settings["proxy_interfaces"], " \t,")
        return ", ".join(x for x in proxies if x not in self.options.own_addresses)

    @property
    def transport(self) -> str:
        """Where mail that leaves goes when no table says otherwise."""
        return self.settings["default_transport"].partition(":")[0]

    @property
    def relay(self) -> str:
        nexthop = self.settings["default_transport"].partition(":")[2]
        return nexthop or self.settings["relayhost"]

    @property
    def is_ours(self) -> bool:
        return self.transport in self.transports


def _is_short(lifetime: str) -> bool:
    seconds = parse_time(lifetime, "d")
    return seconds is not None and seconds < DAY


WHOLE: Table[Whole] = (
    warn(
        lambda it: (
            it.myhostname
            and it.myhostname not in (it.helo.lower(), *it.options.own_names)
        ),
        "Postfix is called {myhostname}, mxpolicy {helo}: an MX of Postfix's name is not"
        " taken for ourselves, and its mail may loop",
        "own_names: [{all_names}]",
    ),
    warn(
        lambda it: it.unknown_proxies,
        "Postfix has proxy_interfaces {unknown_proxies}, mxpolicy does not know of it: an"
        " MX of that address is not taken for ourselves",
        "own_addresses: [{unknown_proxies}]",
    ),
    first(
        ok(
            lambda it: not it.is_ours,
            "default_transport is {settings[default_transport]}: mxpolicy gets what transport_maps,"
            " a filter or another table sends its way",
        ),
        ok(
            otherwise,
            "default_transport is {settings[default_transport]}: all mail that leaves goes by"
            " mxpolicy",
        ),
    ),
    warn(
        lambda it: it.is_ours and it.relay,
        "all of it is aimed at {relay}, no MX is looked up for it",
        "postconf -e default_transport={transport}: relayhost=",
    ),
    warn(
        lambda it: it.is_ours and it.settings["sender_dependent_relayhost_maps"],
        "senders in {settings[sender_dependent_relayhost_maps]} have a relay of their own, which is the nexthop then",
    ),
    first(
        warn(
            lambda it: _is_short(it.settings["maximal_queue_lifetime"]),
            "maximal_queue_lifetime is {settings[maximal_queue_lifetime]}: a message that cannot be"
            " delivered is given up within a day (RFC 5321 4.5.4.1 asks for four to"
            " five)",
            "postconf -e maximal_queue_lifetime=5d",
        ),
        ok(
            lambda it: (
                parse_time(it.settings["maximal_queue_lifetime"], "d") is not None
            ),
            "maximal_queue_lifetime is {settings[maximal_queue_lifetime]}: so long is a message tried"
            " again",
        ),
    ),
    first(
        warn(
            lambda it: _is_short(it.settings["bounce_queue_lifetime"]),
            "bounce_queue_lifetime is {settings[bounce_queue_lifetime]}: a bounce that cannot be"
            " delivered is given up within a day (RFC 5321 4.5.4.1 asks for four to"
            " five)",
            "postconf -e bounce_queue_lifetime=5d",
        ),
        ok(
            lambda it: (
                parse_time(it.settings["bounce_queue_lifetime"], "d") is not None
            ),
            "bounce_queue_lifetime is {settings[bounce_queue_lifetime]}: so long is a bounce tried again",
        ),
    ),
    warn(
        lambda it: (parse_time(it.settings["maximal_backoff_time"]) or 0.0) > DAY,
        "maximal_backoff_time is more than a day: a host that is back is not noticed",
        "postconf -e maximal_backoff_time=4000s",
    ),
)
