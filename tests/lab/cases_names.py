"""Cases: what DNS can say of a domain, and whom it must not make us dial."""

from .case import (
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
from .cases_transaction import USER_UNKNOWN
from .names import DEAD, LAME, MAIL_SERVER
from .smtp_host import Behaviour, Step

MYSELF = "mail.lab.test."

# A name server that is away costs its lookup's whole time (resolver.timeout, 15 s).
LOOKUP = 22.0

LOOPS = Behaviour({"EHLO": Step("250-mail.lab.test\r\n250 8BITMIME")})

RECORDS: tuple[Case, ...] = (
    Case(
        "null-mx",
        "The domain says that it takes no mail (RFC 7505).",
        (),
        {
            # RFC 7505 §4.2 gives it a code of its own; Postfix's does without.
            "mxpolicy": Expected("bounced", "5.1.10", 2.5, text="null MX"),
            "smtp": Expected("bounced", "5.1.0", 2.5, text="nullMX"),
        },
        records=("@ MX 0 .",),
    ),
    Case(
        "null-mx-beside-others",
        "A null MX strayed among real ones.",
        (Host("mx1", 10),),
        {"mxpolicy": sent("mx1"), "smtp": bounced("5.1.0", text="nullMX")},
        records=("@ MX 0 .",),
    ),
    Case(
        "implicit-mx",
        "The domain has an address and no MX record.",
        (Host("mx1", None),),
        either(sent("mx1")),
        records=("@ A {mx1}",),
    ),
    Case(
        "domain-cname",
        "The domain is an alias of one with MX records.",
        (Host("mx1", None),),
        either(sent("mx1")),
        records=("@ CNAME other.{domain}.", "other MX 10 mx1.{domain}."),
    ),
    Case(
        "mx-cname",
        "The MX record names an alias, which it must not.",
        (Host("mx1", None), Host("mx2", 20)),
        either(sent("mx1")),
        records=("@ MX 10 alias.{domain}.", "alias CNAME mx1.{domain}."),
    ),
    Case(
        "mx-literal",
        "The MX record names an address, which it must not.",
        (Host("mx1", None), Host("mx2", 20)),
        either(sent("mx1")),
        records=("@ MX 10 {mx1}.",),
    ),
    Case(
        "mx-missing",
        "The first MX has a name that does not exist.",
        (Host("mx2", 20),),
        either(sent("mx2")),
        records=("@ MX 10 nowhere.{domain}.",),
    ),
    Case(
        "mx-without-address",
        "The first MX has a name without addresses.",
        (Host("mx2", 20),),
        either(sent("mx2")),
        records=("@ MX 10 empty.{domain}.", 'empty TXT "no address"'),
    ),
    Case(
        "all-mx-missing",
        "No MX has a name that exists.",
        (),
        either(bounced("5.4.4")),
        records=("@ MX 10 nowhere.{domain}.", "@ MX 20 neither.{domain}."),
    ),
    Case(
        "nxdomain",
        "The domain does not exist.",
        (),
        {"mxpolicy": bounced("5.1.2"), "smtp": bounced("5.4.4")},
    ),
    Case(
        "nodata",
        "The domain exists, with neither MX nor address.",
        (),
        either(bounced("5.4.4")),
        records=('@ TXT "nothing here"',),
    ),
)

NAME_SERVERS: tuple[Case, ...] = (
    Case(
        "lame",
        "The domain's name server refuses to speak of it.",
        (),
        {
            "mxpolicy": deferred("4.4.3", LOOKUP),
            "smtp": deferred("4.4.3", 9.0),
        },
        records=("@ NS ns.{domain}.", f"ns A {LAME}"),
    ),
    Case(
        "name-server-dead",
        "The domain's name server does not answer.",
        (),
        # lmtp(8) asks it first, where each domain has a queue.
        {
            "mxpolicy": deferred("4.4.3", LOOKUP),
            "mxlmtp": deferred("4.4.3", 2 * LOOKUP),
        },
        records=("@ NS ns.{domain}.", f"ns A {DEAD}"),
    ),
    Case(
        "mx-name-server-lame",
        "The first MX is in a zone whose name server refuses to speak of it.",
        (Host("mx2", 20),),
        ours(sent("mx2", LOOKUP)),
        records=("@ MX 10 mx1.sub.{domain}.", "sub NS ns.{domain}.", f"ns A {LAME}"),
    ),
    Case(
        "mx-name-server-dead",
        "The first MX is in a zone whose name server does not answer.",
        (Host("mx2", 20),),
        ours(sent("mx2", LOOKUP)),
        records=("@ MX 10 mx1.sub.{domain}.", "sub NS ns.{domain}.", f"ns A {DEAD}"),
    ),
    Case(
        "mx-name-server-lame-others-refuse",
        "The first MX cannot be looked up, and the backup knows no such user.",
        (Host("mx2", 20, USER_UNKNOWN),),
        {
            "mxpolicy": deferred("4.1.1", LOOKUP, text="cannot be looked up: mx1.sub."),
            "smtp": bounced("5.1.1", LOOKUP),
        },
        records=("@ MX 10 mx1.sub.{domain}.", "sub NS ns.{domain}.", f"ns A {LAME}"),
    ),
    Case(
        "all-mx-name-servers-lame",
        "Every MX is in such a zone: perhaps tomorrow.",
        (),
        ours(deferred("4.4.3", LOOKUP)),
        records=("@ MX 10 mx1.sub.{domain}.", "sub NS ns.{domain}.", f"ns A {LAME}"),
    ),
    Case(
        "bogus",
        "The MX records have a wrong signature: not believed, and not bounced.",
        (Host("mx1", 10),),
        {
            "mxpolicy": deferred("4.4.3", LOOKUP),
            "smtp": deferred("4.4.3", 9.0),
        },
        forged=("@",),
    ),
    Case(
        "mx-bogus",
        "The first MX's address has a wrong signature.",
        (Host("mx1", 10), Host("mx2", 20)),
        ours(sent("mx2", LOOKUP, visits={"mx1": 0})),
        forged=("mx1",),
    ),
    Case(
        "all-mx-bogus",
        "Every MX's address has a wrong signature.",
        (Host("mx1", 10), Host("mx2", 20)),
        ours(deferred("4.4.3", LOOKUP, visits={"mx1": 0, "mx2": 0})),
        forged=("mx1", "mx2"),
    ),
)

NEVER_DIALLED: tuple[Case, ...] = (
    Case(
        "mx-loopback",
        "The first MX is at 127.0.0.1: not dialled, and not taken for us.",
        (Host("mx2", 20),),
        ours(sent("mx2")),
        records=("@ MX 10 loop.{domain}.", "loop A 127.0.0.1", "loop AAAA ::1"),
    ),
    Case(
        "all-mx-loopback",
        "The only MX is at 127.0.0.1.",
        (),
        ours(bounced("5.4.4")),
        records=("@ MX 10 loop.{domain}.", "loop A 127.0.0.1", "loop AAAA ::1"),
    ),
    Case(
        "mx-mapped-loopback",
        "Loopback in other clothes: another of its addresses, mapped, as a literal.",
        (Host("mx2", 50),),
        ours(sent("mx2")),
        records=(
            "@ MX 10 a.{domain}.",
            "@ MX 20 b.{domain}.",
            "@ MX 30 127.0.0.3.",
            "a A 127.0.0.2",
            "b AAAA ::ffff:127.0.0.1",
        ),
    ),
    Case(
        "mx-undialable",
        "Every MX is at an address that no mail server has.",
        (),
        ours(bounced("5.4.4")),
        records=(
            "@ MX 10 a.{domain}.",
            "@ MX 20 b.{domain}.",
            "a A 169.254.169.254",
            "a A 0.0.0.0",
            "a A 240.0.0.1",
            "b A 255.255.255.255",
            "b A 224.0.0.1",
            "b AAAA fe80::1",
        ),
    ),
)

MYSELF_AS_MX: tuple[Case, ...] = (
    Case(
        "myself-first",
        "The best MX is this mail server, by name.",
        (Host("mx2", 20),),
        either(bounced("5.4.6", text="loops back to myself", visits={"mx2": 0})),
        records=(f"@ MX 10 {MYSELF}",),
    ),
    Case(
        "myself-first-by-address",
        "The best MX is this mail server, by address.",
        (Host("mx2", 20),),
        either(bounced("5.4.6", text="loops back to myself", visits={"mx2": 0})),
        records=("@ MX 10 us.{domain}.", f"us A {MAIL_SERVER}"),
    ),
    Case(
        "myself-middle",
        "This mail server is the backup: what is worse is not asked.",
        (Host("mx1", 10, firewall="reset"), Host("mx3", 30)),
        either(deferred("4.4.1", visits={"mx3": 0})),
        records=(f"@ MX 20 {MYSELF}",),
    ),
    Case(
        "myself-middle-by-address",
        "The same, by address and with an equal beside it.",
        (Host("mx1", 10, firewall="reset"), Host("mx2", 20), Host("mx3", 30)),
        either(deferred("4.4.1", visits={"mx2": 0, "mx3": 0})),
        records=("@ MX 20 us.{domain}.", f"us A {MAIL_SERVER}"),
    ),
    Case(
        "myself-last",
        "This mail server is the last MX: the better ones are asked.",
        (Host("mx1", 10, firewall="reset"), Host("mx2", 20)),
        either(sent("mx2")),
        records=(f"@ MX 30 {MYSELF}",),
    ),
    alone(
        "loop-by-ehlo",
        "The only MX calls itself by our name.",
        LOOPS,
        {"mxpolicy": deferred("4.4.6"), "smtp": bounced("5.4.6")},
    ),
    Case(
        "loop-by-ehlo-first",
        "The first MX calls itself by our name: a translated address; the next is not.",
        (Host("mx1", 10, LOOPS), Host("mx2", 20)),
        ours(sent("mx2")),
    ),
)

CASES = (*RECORDS, *NAME_SERVERS, *NEVER_DIALLED, *MYSELF_AS_MX)
