"""Cases: who is asked when, and how often, where a domain has several hosts."""

from .case import (
    AT_ONCE,
    FIRST_PATIENCE,
    Case,
    Expected,
    Host,
    alone,
    bounced,
    deferred,
    either,
    ours,
    sent,
)
from .cases_greeting import SILENT
from .smtp_host import Behaviour, Step


def greets_after(seconds: float) -> Behaviour:
    """Greet late, as postscreen and many others do on purpose."""
    return Behaviour({"CONNECT": Step("220 {name} ESMTP", delay=seconds)})


def refuses_everybody(reply: str) -> Behaviour:
    """Answer every RCPT so."""
    return Behaviour({"RCPT": Step(reply)})


def greylisted(name: str, story: str, reply: str, dsn: str, visits: int) -> Case:
    """Four MX that share what they know; only *visits* of them may be asked."""
    step = Step(reply, end="close" if reply.startswith("421") else "")
    hosts = tuple(
        Host(f"mx{n}", 10 * n, Behaviour({"RCPT": step})) for n in range(1, 5)
    )
    seen = {f"mx{n}": int(n <= visits) for n in range(1, 5)}
    return Case(name, story, hosts, ours(deferred(dsn, visits=seen)))


STALE = refuses_everybody("550 5.1.1 No such user here")

SEVERAL_FAULTS: tuple[Case, ...] = (
    Case(
        "all-dropped",
        "The firewall drops every packet to every MX.",
        (Host("mx1", 10, firewall="drop"), Host("mx2", 20, firewall="drop")),
        {
            "mxpolicy": deferred("4.4.1", 45.0),
            "smtp": deferred("4.4.1", 62.0, 55.0),
        },
    ),
    Case(
        "all-reset",
        "The firewall answers with RST for every MX.",
        (Host("mx1", 10, firewall="reset"), Host("mx2", 20, firewall="reset")),
        either(deferred("4.4.1")),
    ),
    Case(
        "twelve-dropped",
        "The firewall drops every packet to twelve MX; the thirteenth is good.",
        (
            *(Host(f"mx{n}", 10 * n, firewall="drop") for n in range(1, 13)),
            Host("mx13", 130),
        ),
        {
            "mxpolicy": sent("mx13", 30.0),
            "smtp": deferred("4.4.1", 155.0, 140.0),
        },
    ),
    Case(
        "two-dropped-one-silent",
        "Two MX are dropped, the third accepts and is silent, the fourth is good.",
        (
            Host("mx1", 10, firewall="drop"),
            Host("mx2", 20, firewall="drop"),
            Host("mx3", 30, SILENT),
            Host("mx4", 40),
        ),
        ours(sent("mx4", 16.0, 10.5)),
    ),
    Case(
        "eight-silent",
        "Eight MX accept and are silent; the ninth is good.",
        (*(Host(f"mx{n}", 10 * n, SILENT) for n in range(1, 9)), Host("mx9", 90)),
        ours(sent("mx9", 76.0, 55.0)),
    ),
)

FAMILIES: tuple[Case, ...] = (
    Case(
        "ipv6-broken",
        "The firewall drops IPv6; the same host is good over IPv4.",
        (Host("mx1", 10, firewall="drop", families="46", firewalled="6"),),
        ours(sent("mx1")),
    ),
    Case(
        "ipv4-broken",
        "The firewall drops IPv4; the same host is good over IPv6.",
        (Host("mx1", 10, firewall="drop", families="46", firewalled="4"),),
        ours(sent("mx1")),
    ),
    Case(
        "ipv4-reset",
        "The firewall resets IPv4 only, for both hosts.",
        (
            Host("mx1", 10, firewall="reset", families="46", firewalled="4"),
            Host("mx2", 20, firewall="reset", families="46", firewalled="4"),
        ),
        either(sent("mx1")),
    ),
    Case(
        "ipv6-only",
        "The only MX has only an IPv6 address.",
        (Host("mx1", 10, families="6"),),
        either(sent("mx1")),
    ),
    Case(
        "ipv6-only-dropped",
        "The first MX has only an IPv6 address, and it is dropped.",
        (Host("mx1", 10, firewall="drop", families="6"), Host("mx2", 20)),
        ours(sent("mx2")),
    ),
)

FIVE = ("mx1", "mx2", "mx3", "mx4", "mx5")

EQUALS: tuple[Case, ...] = (
    Case(
        "five-equal",
        "Five MX of one preference, all good: exactly one gets it.",
        tuple(Host(name, 10) for name in FIVE),
        either(Expected("sent", "2.0.0", AT_ONCE, one_of=FIVE)),
    ),
    Case(
        "five-equal-one-dropped",
        "Five MX of one preference, one dropped.",
        (
            Host("mx1", 10, firewall="drop"),
            *(Host(name, 10) for name in FIVE[1:]),
        ),
        ours(Expected("sent", "2.0.0", AT_ONCE, one_of=FIVE[1:])),
    ),
    Case(
        "five-equal-four-dropped",
        "Five MX of one preference, four dropped.",
        (*(Host(name, 10, firewall="drop") for name in FIVE[:4]), Host("mx5", 10)),
        ours(sent("mx5", 10.0)),
    ),
)

SLOW: tuple[Case, ...] = (
    alone(
        "greeter-9s",
        "The only MX greets after 9 s.",
        greets_after(9.0),
        ours(sent("mx1", 15.0, 9.0)),
    ),
    alone(
        "greeter-30s",
        "The only MX greets after 30 s.",
        greets_after(30.0),
        ours(sent("mx1", 38.0, 30.0, visits={"mx1": 1})),
    ),
    Case(
        "greeter-6s",
        "The first MX greets after 6 s, as postscreen does: the backup is left alone.",
        (Host("mx1", 10, greets_after(6.0)), Host("mx2", 20)),
        ours(sent("mx1", 12.0, 6.0, visits={"mx1": 1, "mx2": 0})),
    ),
    Case(
        "greeter-9s-backup",
        "The first MX greets after 9 s; one of the two gets it, once.",
        (Host("mx1", 10, greets_after(9.0)), Host("mx2", 20)),
        ours(
            Expected(
                "sent",
                "2.0.0",
                FIRST_PATIENCE[1],
                after=FIRST_PATIENCE[0],
                one_of=("mx1", "mx2"),
            )
        ),
    ),
    Case(
        "greeter-30s-backup-dropped",
        "The first MX greets after 30 s, its backup is dropped.",
        (Host("mx1", 10, greets_after(30.0)), Host("mx2", 20, firewall="drop")),
        ours(sent("mx1", 38.0, 30.0, visits={"mx1": 1})),
    ),
    Case(
        "greeter-30s-backup",
        "The first MX greets after 30 s; its backup gets it.",
        (Host("mx1", 10, greets_after(30.0)), Host("mx2", 20)),
        ours(sent("mx2", FIRST_PATIENCE[1], FIRST_PATIENCE[0])),
    ),
)

BACKUPS: tuple[Case, ...] = (
    Case(
        "stale-backup",
        "The primary is slow, and its backup does not know the user: no bounce.",
        (Host("mx1", 10, greets_after(14.0)), Host("mx2", 20, STALE)),
        ours(sent("mx1", 24.0, 14.0, visits={"mx1": 1})),
    ),
    Case(
        "stale-backup-alone",
        "The primary is dropped, and its backup does not know the user: patience, too, "
        "would bounce it.",
        (Host("mx1", 10, firewall="drop"), Host("mx2", 20, STALE)),
        {
            "mxpolicy": bounced("5.1.1", 45.0),
            "smtp": bounced("5.1.1", 35.0, 25.0),
        },
    ),
    Case(
        "stale-backup-reset",
        "The primary refuses the connection, its backup the user.",
        (Host("mx1", 10, firewall="reset"), Host("mx2", 20, STALE)),
        either(bounced("5.1.1")),
    ),
    Case(
        "unwilling-backup",
        "The primary is slow, and its backup says to come back later.",
        (
            Host("mx1", 10, greets_after(14.0)),
            Host("mx2", 20, refuses_everybody("450 4.2.0 Greylisted")),
        ),
        ours(sent("mx1", 24.0, 14.0, visits={"mx1": 1})),
    ),
)

VISITS: tuple[Case, ...] = (
    greylisted(
        "greylisted",
        "Four MX greylist: two are asked, not four.",
        "450 4.2.0 Greylisted, try again in 300 seconds",
        "4.2.0",
        2,
    ),
    greylisted(
        "greylisted-421",
        "Four MX say 421 to RCPT: two are asked.",
        "421 4.7.0 Too many connections from you",
        "4.7.0",
        2,
    ),
    greylisted(
        "greylisted-policy",
        "Four MX defer for reasons of policy: two are asked.",
        "450 4.7.1 Your address is new here",
        "4.7.1",
        2,
    ),
)

CASES = (*SEVERAL_FAULTS, *FAMILIES, *EQUALS, *SLOW, *BACKUPS, *VISITS)
