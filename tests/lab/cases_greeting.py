"""Cases: what can stand between the SYN and the first MAIL."""

from .case import (
    AT_ONCE,
    FIRST_PATIENCE,
    GOOD,
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
    sent_by,
)
from .firewall import Treatment
from .smtp_host import Behaviour, Step

CLOSES = Behaviour({"CONNECT": Step(end="close")})
SILENT = Behaviour({"CONNECT": Step(end="hush")})
GREETS_421 = Behaviour(
    {"CONNECT": Step("421 4.3.2 {name} too busy"), "QUIT": Step(end="close")}
)
GREETS_554 = Behaviour({"CONNECT": Step("554 5.3.2 {name} no SMTP service here")})
# What a proxy or a web server on port 25 says, unasked.
HTTP = Behaviour(
    {
        "CONNECT": Step(
            "HTTP/1.1 400 Bad Request\r\nServer: firewall\r\nContent-Length: 4\r\n\r\n"
            "Bad!",
            end="close",
        )
    }
)
NO_ESMTP = Step("500 5.5.1 Command unrecognized")

KEYWORDS = Behaviour().keywords
TLS_KEYWORDS = ("STARTTLS", *KEYWORDS)

# To a faulty first MX, and the same for both transports: the next one, at once.
NEXT_AT_ONCE = either(sent("mx2"))
NEXT_AFTER_PATIENCE = ours(sent("mx2", FIRST_PATIENCE[1], FIRST_PATIENCE[0]))


def first_fails(
    name: str,
    story: str,
    behaviour: Behaviour = GOOD,
    firewall: Treatment = "",
    *,
    mxpolicy: float = 2.5,
    smtp: float = 2.5,
) -> Case:
    """The first MX has a fault that both transports pass, each in its own time."""
    hosts = (Host("mx1", 10, behaviour, firewall), Host("mx2", 20))
    return Case(name, story, hosts, sent_by("mx2", mxpolicy=mxpolicy, smtp=smtp))


CONNECT: tuple[Case, ...] = (
    Case(
        "good",
        "Nothing is in the way: the first MX gets it.",
        (Host("mx1", 10), Host("mx2", 20)),
        sent_by("mx1", mxpolicy=2.5, smtp=2.5),
    ),
    first_fails(
        "dropped",
        "The firewall drops every packet to the first MX.",
        firewall="drop",
        mxpolicy=2.5,
        smtp=32.0,
    ),
    first_fails("reset", "The firewall answers with RST.", firewall="reset"),
    first_fails(
        "prohibited",
        "The firewall answers with ICMP administratively prohibited.",
        firewall="prohibit",
    ),
    first_fails(
        "not-listening",
        "Nothing listens at the first MX.",
        Behaviour(listens=False),
    ),
    first_fails("closed", "The first MX accepts and closes.", CLOSES),
    first_then_good(
        "reset-on-accept",
        "The first MX, or what answers in its stead, accepts and resets.",
        Behaviour({"CONNECT": Step(end="reset")}),
        NEXT_AT_ONCE,
    ),
    first_fails(
        "silent",
        "The first MX accepts and says nothing.",
        SILENT,
        mxpolicy=10.0,
        smtp=302.0,
    ),
)

BANNERS: tuple[Case, ...] = (
    first_fails("greets-421", "The first MX greets with 421.", GREETS_421),
    first_fails("greets-554", "The first MX greets with 554.", GREETS_554),
    Case(
        "all-greet-421",
        "Every MX greets with 421.",
        (Host("mx1", 10, GREETS_421), Host("mx2", 20, GREETS_421)),
        either(deferred("4.3.2", text="too busy")),
    ),
    Case(
        "all-greet-554",
        "Every MX greets with 554; it may be the firewall that speaks.",
        (Host("mx1", 10, GREETS_554), Host("mx2", 20, GREETS_554)),
        either(deferred("4.3.2", text="no SMTP service here")),
    ),
    first_then_good(
        "endless-banner",
        "The first MX greets with 220- lines that never end.",
        Behaviour({"CONNECT": Step("220-and more\r\n" * 50, endless=True)}),
        NEXT_AFTER_PATIENCE | ours(sent("mx2", FIRST_PATIENCE[1])),
    ),
    first_then_good(
        "endless-line",
        "The first MX greets with a line that never ends.",
        Behaviour({"CONNECT": Step("220 and on and on" * 50, endless=True)}),
        ours(sent("mx2", FIRST_PATIENCE[1])),
    ),
    first_then_good(
        "binary-banner",
        "The first MX greets with bytes that are no text.",
        Behaviour({"CONNECT": Step("\x00\xff\xfb\x01\x16\x03\x01\x1b[2J\x7f")}),
        ours(sent("mx2", FIRST_PATIENCE[1])),
    ),
    first_then_good(
        "binary-half-line",
        "The first MX answers as TLS does, and with no end of line; then nothing.",
        Behaviour({"CONNECT": Step("\x15\x03\x01\x00\x02", pace=0.05, end="hush")}),
        ours(sent("mx2", FIRST_PATIENCE[1])),
    ),
    first_then_good(
        "dripped-banner",
        "The first MX greets with a byte a second: bytes are no progress.",
        Behaviour({"CONNECT": Step("220 {name} takes its time", pace=1.0)}),
        NEXT_AFTER_PATIENCE,
    ),
    alone(
        "dripped-banner-alone",
        "The only MX greets with a byte a second, and there is no hurry.",
        Behaviour({"CONNECT": Step("220 here we go", pace=1.0)}),
        ours(sent("mx1", 26.0, 14.0)),
    ),
    first_then_good(
        "half-banner",
        "The first MX closes in the middle of its greeting.",
        Behaviour({"CONNECT": Step("220-wait for it", end="close")}),
        NEXT_AT_ONCE,
    ),
    first_then_good(
        "http-answer", "The first MX answers in HTTP.", HTTP, ours(sent("mx2"))
    ),
    Case(
        "all-http",
        "Every MX answers in HTTP: a firewall's page, and no reason to bounce.",
        (Host("mx1", 10, HTTP), Host("mx2", 20, HTTP)),
        ours(deferred("4.5.0", text="does not speak SMTP")),
    ),
    first_then_good(
        "masked-banner",
        "A firewall that rewrites SMTP masks the banner; it takes no pipelining.",
        Behaviour({"CONNECT": Step("220 " + "*" * 40 + "2" + "*" * 20)}, lockstep=True),
        either(sent("mx1")),
    ),
    first_then_good(
        "masked-ehlo",
        "It masks the banner and refuses EHLO.",
        Behaviour({"CONNECT": Step("220 " + "*" * 40), "EHLO": NO_ESMTP}),
        either(sent("mx1")),
    ),
    first_then_good(
        "masked-keywords",
        "It lets only keywords pass that it knows.",
        Behaviour(keywords=("XXXXXXXA", "SIZE 104857600", "8BITMIME", "XXXB")),
        either(sent("mx1", tls=False)),
    ),
)

EHLO: tuple[Case, ...] = (
    first_then_good(
        "helo-only",
        "The first MX knows only HELO.",
        Behaviour({"EHLO": NO_ESMTP}),
        either(sent("mx1", visits={"mx1": 1})),
    ),
    first_then_good(
        "ehlo-hung",
        "EHLO is never answered.",
        Behaviour({"EHLO": Step(end="hush")}),
        NEXT_AFTER_PATIENCE,
    ),
    first_then_good(
        "ehlo-closed",
        "The first MX closes on EHLO.",
        Behaviour({"EHLO": Step(end="close")}),
        NEXT_AT_ONCE,
    ),
    first_then_good(
        "ehlo-421",
        "EHLO is answered 421.",
        Behaviour({"EHLO": Step("421 4.3.2 Going down", end="close")}),
        NEXT_AT_ONCE,
    ),
    first_then_good(
        "ehlo-4xx",
        "EHLO is answered 451.",
        Behaviour({"EHLO": Step("451 4.3.0 Not now"), "HELO": Step("451 4.3.0 No")}),
        NEXT_AT_ONCE,
    ),
    first_then_good(
        "ehlo-5xx",
        "Neither EHLO nor HELO is taken: about us, not about the mail.",
        Behaviour({"EHLO": NO_ESMTP, "HELO": Step("550 5.7.1 Not for you")}),
        {
            "mxpolicy": sent("mx2"),
            "smtp": bounced("5.7.1", visits={"mx2": 0}),
        },
    ),
    first_then_good(
        "ehlo-garbage",
        "EHLO is answered by no reply at all.",
        Behaviour({"EHLO": Step("\x1b]0;pwned\x07\xff\xfe hello there")}),
        ours(sent("mx2", FIRST_PATIENCE[1])),
    ),
    first_then_good(
        "helo-after-4xx",
        "EHLO is answered 451, and HELO is taken.",
        Behaviour({"EHLO": Step("451 4.3.0 No ESMTP today")}),
        either(sent("mx1", visits={"mx1": 1})),
    ),
    first_then_good(
        "ehlo-long",
        "The answer to EHLO has 1,000 lines, and the keyword that counts is the last.",
        Behaviour(
            keywords=(*KEYWORDS, *(f"XWORD{one}" for one in range(1000)), "SMTPUTF8")
        ),
        ours(sent("mx1", visits={"mx1": 1})),
        Mail(local_parts=("grüße",), options=("SMTPUTF8",)),
    ),
    first_then_good(
        "ehlo-endless",
        "The answer to EHLO never ends.",
        Behaviour({"EHLO": Step("250-SIZE 99\r\n" * 50, endless=True)}),
        ours(sent("mx2", FIRST_PATIENCE[1])),
    ),
)

WANTS_BROKEN_TLS = Behaviour(
    {
        "TLS": Step(end="close"),
        "MAIL": Step("550 5.7.1 Must issue a STARTTLS command first"),
    },
    keywords=TLS_KEYWORDS,
)

STARTTLS: tuple[Case, ...] = (
    first_then_good(
        "starttls",
        "STARTTLS is offered, and works; nobody looks at the certificate.",
        Behaviour(keywords=TLS_KEYWORDS),
        ours(sent("mx1", tls=True)),
    ),
    first_then_good(
        "starttls-large",
        "A larger message through TLS.",
        Behaviour(keywords=TLS_KEYWORDS),
        ours(sent("mx1", tls=True, data=r"\r\nthe end\r\n\Z")),
        Mail(data=b"Subject: large\n\n" + b"a line of text\n" * 5000 + b"the end\n"),
    ),
    first_then_good(
        "starttls-refused",
        "STARTTLS is offered, and refused: in clear, in the same session.",
        Behaviour(
            {"STARTTLS": Step("454 4.7.0 TLS not available")}, keywords=TLS_KEYWORDS
        ),
        ours(sent("mx1", tls=False, visits={"mx1": 1})),
    ),
    first_then_good(
        "starttls-5xx",
        "STARTTLS is offered, and refused for good: in clear, in the same session.",
        Behaviour({"STARTTLS": Step("554 5.7.0 Not with you")}, keywords=TLS_KEYWORDS),
        ours(sent("mx1", tls=False, visits={"mx1": 1})),
    ),
    first_then_good(
        "starttls-421",
        "STARTTLS is answered 421: once more, in clear.",
        Behaviour(
            {"STARTTLS": Step("421 4.7.0 TLS trouble", end="close")},
            keywords=TLS_KEYWORDS,
        ),
        ours(sent("mx1", tls=False, visits={"mx1": 2})),
    ),
    first_then_good(
        "starttls-hung",
        "STARTTLS is never answered.",
        Behaviour({"STARTTLS": Step(end="hush")}, keywords=TLS_KEYWORDS),
        NEXT_AFTER_PATIENCE,
    ),
    first_then_good(
        "starttls-closed",
        "The first MX closes on STARTTLS: once more, in clear.",
        Behaviour({"STARTTLS": Step(end="close")}, keywords=TLS_KEYWORDS),
        ours(sent("mx1", tls=False, visits={"mx1": 2})),
    ),
    first_then_good(
        "starttls-injected",
        "Somebody puts a reply in clear behind the 220: that session is not used.",
        Behaviour(
            {"STARTTLS": Step("220 2.0.0 Go\r\n250-mx1\r\n250 INJECTED")},
            keywords=TLS_KEYWORDS,
        ),
        ours(Expected("sent", "2.0.0", AT_ONCE, one_of=("mx1", "mx2"))),
    ),
    first_then_good(
        "handshake-broken",
        "No TLS behind the 220: the same host once more, in clear.",
        Behaviour({"TLS": Step("500 what is this?")}, keywords=TLS_KEYWORDS),
        ours(sent("mx1", tls=False, visits={"mx1": 2})),
    ),
    first_then_good(
        "handshake-closed",
        "The first MX closes on the handshake: once more, in clear.",
        Behaviour({"TLS": Step(end="close")}, keywords=TLS_KEYWORDS),
        ours(sent("mx1", tls=False, visits={"mx1": 2})),
    ),
    first_then_good(
        "handshake-reset",
        "The first MX resets on the handshake: once more, in clear.",
        Behaviour({"TLS": Step(end="reset")}, keywords=TLS_KEYWORDS),
        ours(sent("mx1", tls=False, visits={"mx1": 2})),
    ),
    first_then_good(
        "handshake-hung",
        "The handshake is never answered.",
        Behaviour({"TLS": Step(end="hush")}, keywords=TLS_KEYWORDS),
        NEXT_AFTER_PATIENCE,
    ),
    first_then_good(
        "tls-wanted-and-broken",
        "The first MX wants TLS, and closes on each handshake.",
        WANTS_BROKEN_TLS,
        ours(sent("mx2", visits={"mx1": 3})),
    ),
    Case(
        "tls-wanted-and-broken-alone",
        "The only MX wants TLS, and closes on each handshake: no bounce.",
        (Host("mx1", 10, WANTS_BROKEN_TLS),),
        ours(deferred("4.7.5", text="Must issue a STARTTLS", visits={"mx1": 3})),
    ),
)

HOSTILE = "\x1b[31m\x1b]0;owned\x07\r\x00\x7f\x9b\xff %s%n `id` $(id) \"'<>"

HOSTILE_WORDS: tuple[Case, ...] = (
    alone(
        "hostile-greeting",
        "A greeting for the terminal of whoever reads the log.",
        Behaviour({"CONNECT": Step(f"554 5.3.2 {HOSTILE}" + "A" * 1500)}),
        ours(deferred("4.3.2")),
    ),
    alone(
        "hostile-refusal",
        "A refusal for the terminal of whoever reads the bounce.",
        Behaviour({"RCPT": Step(f"550-5.1.1 {HOSTILE}\r\n550 5.1.1 {HOSTILE}")}),
        ours(bounced("5.1.1")),
    ),
    alone(
        "hostile-length",
        "A refusal of ninety long lines.",
        Behaviour(
            {
                "RCPT": Step(
                    "\r\n".join(["550-5.1.1 " + "no " * 200] * 90) + "\r\n550 5.1.1 no"
                )
            }
        ),
        ours(bounced("5.1.1")),
    ),
    alone(
        "hostile-status",
        "A refusal that contradicts itself: pipe(8) would believe its 4.7.1.",
        Behaviour({"RCPT": Step("550 4.7.1 2.0.0 status=sent (250 Ok)")}),
        ours(bounced("5.0.0")),
    ),
)

CASES = (*CONNECT, *BANNERS, *EHLO, *STARTTLS, *HOSTILE_WORDS)
