"""Cases: what can go wrong from MAIL to QUIT, and what hosts can and cannot take."""

from collections.abc import Mapping

from .case import (
    AT_ONCE,
    SILENCE,
    Case,
    Expected,
    Host,
    Mail,
    alone,
    bounced,
    deferred,
    either,
    first_then_good,
    ours,
    sent,
)
from .cases_greeting import KEYWORDS
from .smtp_host import Behaviour, Step
from .transports import HASTY, MANY

USER_UNKNOWN = Behaviour({"RCPT": Step("550 5.1.1 User unknown")})
LOST_AT_THE_DOT = deferred("4.4.2", copies={"mx1": 1}, text="more than once")

LARGE = Mail(data=b"Subject: large\n\n" + b"a line of text, dot. \n" * 50_000)
"""Enough to be on its way for a while: 1 MB."""
HUGE = Mail(data=b"Subject: huge\n\n" + b"a line of text, dot. \n" * 500_000)
"""More than all buffers on the way hold: 10 MB."""

VERBS = {"MAIL": "MAIL", "RCPT": "RCPT", "DATA": "DATA", "DOT": "the final dot"}


def without(keyword: str, *others: str) -> Behaviour:
    """Offer the usual without *keyword*, and *others* beside it."""
    kept = [one for one in KEYWORDS if one.split()[0] != keyword]
    return Behaviour(keywords=(*kept, *others))


def refusals(step: str) -> list[Case]:
    """The first MX answers one command of a transaction in every wrong way."""
    verb, name = VERBS[step], step.lower()

    def case(
        kind: str, story: str, fault: Step, expected: Mapping[str, Expected]
    ) -> Case:
        behaviour = Behaviour({step: fault})
        return first_then_good(f"{name}-{kind}", story, behaviour, expected)

    cases = [
        case(
            "4xx",
            f"The first MX answers {verb} with 451: the next may take it.",
            Step("451 4.3.0 Try again later"),
            either(sent("mx2", visits={"mx1": 1})),
        ),
        case(
            "5xx",
            f"The first MX answers {verb} with 554: the next is not asked.",
            Step("554 5.6.0 We do not want this"),
            either(
                bounced(
                    "5.6.0", text="We do not want this", visits={"mx1": 1, "mx2": 0}
                )
            ),
        ),
        case(
            "421",
            f"The first MX answers {verb} with 421 and closes: it shuts down.",
            Step("421 4.3.2 Shutting down", end="close"),
            either(sent("mx2")),
        ),
    ]
    if step == "DOT":
        return cases
    return [
        *cases,
        case(
            "hung",
            f"The first MX never answers {verb}.",
            Step(end="hush"),
            ours(sent("mx2", SILENCE[1], SILENCE[0])),
        ),
        case(
            "closed",
            f"The first MX closes on {verb}.",
            Step(end="close"),
            either(sent("mx2")),
        ),
        case(
            "garbage",
            f"The first MX answers {verb} with what is no reply.",
            Step("\x1b[7mOk\x07"),
            # Behind MAIL comes RCPT; else one reply is due, and may come after that.
            ours(sent("mx2", *(() if step == "MAIL" else reversed(SILENCE)))),
        ),
    ]


COMMANDS: tuple[Case, ...] = (
    first_then_good(
        "user-unknown",
        "The first MX refuses the recipient; the second would not, and is not asked.",
        USER_UNKNOWN,
        either(bounced("5.1.1", 2.5, text="User unknown")),
    ),
    *refusals("MAIL"),
    *refusals("RCPT"),
    *refusals("DATA"),
    *refusals("DOT"),
    first_then_good(
        "quit-hung",
        "QUIT is never answered.",
        Behaviour({"QUIT": Step(end="hush")}),
        either(sent("mx1", visits={"mx1": 1, "mx2": 0})),
    ),
    first_then_good(
        "quit-refused",
        "QUIT is answered 421, and the message was taken before that.",
        Behaviour({"QUIT": Step("421 4.4.2 Too late", end="reset")}),
        either(sent("mx1", visits={"mx1": 1, "mx2": 0})),
    ),
    first_then_good(
        "helo-objected",
        "The first MX dislikes our HELO name: about us, not about the mail.",
        Behaviour({"RCPT": Step("550 5.7.1 <mail.lab.test>: Helo command rejected")}),
        ours(sent("mx2")),
    ),
    first_then_good(
        "helo-named",
        "The first MX refuses the mail, and the name that it refuses is in our HELO too.",
        Behaviour({"RCPT": Step("550 5.7.26 mail from mail.lab.test fails DMARC")}),
        either(bounced("5.7.26", visits={"mx2": 0})),
    ),
)

# The dot waits a round trip: until the host's kernel has acknowledged the mail data. On a
# busy machine no host does anything within that time, and what it says behind the dot is
# an answer to it. So the acknowledgement is lost (`hold`) until the host has done it, some
# time after the mail data has come, and the dot still waits then.
SOME_TIME = 0.1

DOT: tuple[Case, ...] = (
    first_then_good(
        "dot-closed",
        "The first MX closes on the final dot: it may have the message.",
        Behaviour({"DOT": Step(end="close")}),
        {
            "mxpolicy": LOST_AT_THE_DOT,
            # smtp(8) makes a duplicate of what the first host has.
            "smtp": Expected("sent", "2.0.0", AT_ONCE, {"mx1": 1, "mx2": 1}),
        },
    ),
    first_then_good(
        "dot-reset",
        "The first MX resets on the final dot: it may have the message.",
        Behaviour({"DOT": Step(end="reset")}),
        ours(LOST_AT_THE_DOT),
    ),
    first_then_good(
        "dot-slow",
        "The first MX answers the final dot after 20 s.",
        Behaviour({"DOT": Step(delay=20.0)}),
        ours(sent("mx1", 30.0, 20.0, visits={"mx2": 0})),
    ),
    first_then_good(
        "dot-garbage",
        "The first MX answers the final dot with what is no reply: it may be a yes.",
        Behaviour({"DOT": Step("\x1b[7mOk\x07", end="close")}),
        ours(LOST_AT_THE_DOT),
    ),
    first_then_good(
        "dot-long",
        "The final dot is answered 250 with a line of 3,000 bytes.",
        Behaviour({"DOT": Step(f"250 2.0.0 <{'x' * 3000}@example.net> Queued")}),
        either(sent("mx1", visits={"mx1": 1, "mx2": 0})),
    ),
    first_then_good(
        "dot-many-lines",
        "The final dot is answered 250 with 121 lines.",
        Behaviour({"DOT": Step("250-2.0.0 line\r\n" * 120 + "250 2.0.0 Queued")}),
        either(sent("mx1", visits={"mx1": 1, "mx2": 0})),
    ),
    first_then_good(
        "dot-stray",
        "The first MX says a 250 of its own behind each 354.",
        Behaviour({"DATA": Step("354 Go on\r\n250 2.0.0 Ok")}),
        either(sent("mx1", visits={"mx1": 1, "mx2": 0})),
    ),
    first_then_good(
        "dot-early-250",
        "The first MX says 250 when it has the body, and 554 to the final dot.",
        Behaviour(
            {
                "BODY": Step("250 2.1.5 Ok", delay=SOME_TIME),
                "DOT": Step("554 5.6.0 We do not want this"),
            }
        ),
        ours(bounced("5.6.0", visits={"mx1": 1, "mx2": 0})),
        firewall="hold",
    ),
)

CLOSES_LATER = Behaviour({"BODY": Step(end="close", delay=SOME_TIME)})

BODY: tuple[Case, ...] = (
    first_then_good(
        "body-closed",
        "The connection is closed in the middle of the mail data.",
        Behaviour({"BODY": Step(end="close")}),
        either(sent("mx2", data=r"dot\. \r\n\Z")),
        LARGE,
    ),
    first_then_good(
        "body-reset",
        "The connection is reset in the middle of the mail data.",
        Behaviour({"BODY": Step(end="reset")}),
        either(sent("mx2", data=r"dot\. \r\n\Z")),
        LARGE,
    ),
    first_then_good(
        "body-closed-at-its-end",
        "The first MX closes when it has the body, and before the final dot.",
        CLOSES_LATER,
        ours(sent("mx2")),
        firewall="hold",
    ),
    alone(
        "body-closed-alone",
        "The only MX closes when it has the body: it cannot have the message.",
        CLOSES_LATER,
        ours(deferred("4.4.2", text=r"\A(?!.*more than once)")),
        firewall="hold",
    ),
    first_then_good(
        "body-stalled",
        "The first MX reads nothing after its 354.",
        Behaviour({"BODY": Step(end="stall")}),
        {HASTY: sent("mx2", 20.0, 3.0)},
        HUGE,
    ),
    first_then_good(
        "body-refused",
        "The first MX refuses the message in the middle of the mail data.",
        Behaviour({"BODY": Step("552 5.3.4 Too much of it", end="hush")}),
        ours(bounced("5.3.4", text="Too much", visits={"mx2": 0})),
        HUGE,
    ),
    first_then_good(
        "body-421",
        "The first MX says 421 in the middle of the mail data, and closes.",
        Behaviour({"BODY": Step("421 4.3.2 Shutting down", end="close")}),
        ours(sent("mx2")),
        LARGE,
    ),
)

EXTENSIONS: tuple[Case, ...] = (
    Case(
        "size-small",
        "The message is too large for the first MX, not for the second.",
        (Host("mx1", 10, without("SIZE", "SIZE 5000")), Host("mx2", 20)),
        {"mxpolicy": sent("mx2"), "smtp": bounced("5.3.4", visits={"mx2": 0})},
        mail=LARGE,
    ),
    Case(
        "all-size-small",
        "The message is too large for every MX.",
        (
            Host("mx1", 10, without("SIZE", "SIZE 5000")),
            Host("mx2", 20, without("SIZE", "SIZE 6000")),
        ),
        either(bounced("5.3.4")),
        mail=LARGE,
    ),
    alone(
        "no-size",
        "The host does not say how much it takes, and is not told how much comes.",
        without("SIZE"),
        either(sent("mx1")),
    ),
    alone(
        "no-8bitmime",
        "8-bit mail data to a host without 8BITMIME: as it is.",
        without("8BITMIME"),
        {
            "mxpolicy": sent("mx1", data="\r\nGr\xc3\xbc\xc3\x9fe\r\n"),
            "smtp": sent("mx1", data="quoted-printable"),
        },
        Mail(
            options=("BODY=8BITMIME",),
            data="Subject: 8 bit\nMIME-Version: 1.0\nContent-Type: text/plain; "
            "charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nGrüße\n".encode(),
        ),
    ),
    alone(
        "no-pipelining",
        "A host without PIPELINING, which hangs up on whoever sends ahead.",
        without("PIPELINING"),
        {**either(sent("mx1")), MANY: sent("mx1")},
        Mail(local_parts=("one",)),
    ),
    alone(
        "no-extensions",
        "A host whose answer to EHLO offers nothing.",
        Behaviour(keywords=()),
        either(sent("mx1")),
    ),
    Case(
        "crowded",
        "A host that takes two recipients at a time: it is asked three times.",
        (Host("mx1", 10, Behaviour(recipients_max=2)), Host("mx2", 20)),
        {MANY: sent("mx1", visits={"mx1": 1, "mx2": 0})},
        mail=Mail(local_parts=("one", "two", "three", "four", "five")),
    ),
    Case(
        "crowded-in-lockstep",
        "The same without PIPELINING.",
        (
            Host(
                "mx1",
                10,
                Behaviour(
                    keywords=("8BITMIME", "ENHANCEDSTATUSCODES"), recipients_max=2
                ),
            ),
        ),
        {MANY: sent("mx1", visits={"mx1": 1})},
        mail=Mail(local_parts=("one", "two", "three")),
    ),
    Case(
        "many-at-second",
        "Several recipients; the first MX closes in the middle of the mail data.",
        (Host("mx1", 10, Behaviour({"BODY": Step(end="close")})), Host("mx2", 20)),
        {MANY: sent("mx2")},
        mail=Mail(("one", "two", "three"), data=LARGE.data),
    ),
)

UTF8 = Mail(local_parts=("grüße",), options=("SMTPUTF8",))

ADDRESSES: tuple[Case, ...] = (
    alone(
        "smtputf8",
        "A local part beyond ASCII, to a host that takes it.",
        Behaviour(keywords=(*KEYWORDS, "SMTPUTF8")),
        either(sent("mx1")),
        UTF8,
    ),
    Case(
        "smtputf8-second",
        "A local part beyond ASCII; only the second MX takes it.",
        (Host("mx1", 10), Host("mx2", 20, Behaviour(keywords=(*KEYWORDS, "SMTPUTF8")))),
        {"mxpolicy": sent("mx2"), "smtp": bounced("5.6.7", visits={"mx2": 0})},
        mail=UTF8,
    ),
    Case(
        "no-smtputf8",
        "A local part beyond ASCII, and no MX takes it.",
        (Host("mx1", 10), Host("mx2", 20)),
        either(bounced("5.6.7")),
        mail=UTF8,
    ),
    alone(
        "quoted-local-part",
        "A local part that must stay quoted.",
        Behaviour(),
        either(sent("mx1")),
        Mail(local_parts=('"two words"',)),
    ),
)

CONTENT: tuple[Case, ...] = (
    alone(
        "long-lines",
        "A line of 3000 characters: folded, as smtp(8) does.",
        Behaviour(),
        # After the header that Postfix puts before it, no line is over 998 bytes.
        either(sent("mx1", data=r"\A(?:[^\r\n]{0,998}\r\n)+\Z")),
        Mail(data=b"Subject: long\n\n" + b"x" * 3000 + b"\nthe end\n"),
    ),
    alone(
        "dots",
        "Lines that begin with dots, one that is only a dot, and none at the end.",
        Behaviour(),
        either(sent("mx1", data=r"\r\n\r\n\.\r\n\.\.\r\n\.one\r\ntwo\.\r\n\.\r\n\Z")),
        Mail(data=b"Subject: dots\n\n.\n..\n.one\ntwo.\n.\n"),
    ),
    alone(
        "empty-body",
        "A message without a body.",
        Behaviour(),
        either(sent("mx1", data=r"Subject: nothing\r\n")),
        Mail(data=b"Subject: nothing\n"),
    ),
)

CASES = (*COMMANDS, *DOT, *BODY, *EXTENSIONS, *ADDRESSES, *CONTENT)
