"""What each mail server, and mxpolicy, makes of a domain: whom it tries, in which order.

mxpolicy and Exim can be asked (`mxpolicy route --json`, `exim -bt`). Postfix cannot: it
gets a message for every domain, nobody listens anywhere, and its log shows each address
that it tried, in order, and what became of the message then.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from .exim import Exim
from .postfix import Delivery, Postfix
from .world import INSTALLED, World

TRANSPORT = "differ"

# smtp(8) with no bound on what it tries, and no patience with whoever drops packets.
POSTFIX_ENTRY = (
    "unix - - n - 40 smtp -o smtp_mx_address_limit=0 -o smtp_mx_session_limit=0 "
    "-o smtp_connect_timeout=2s"
)

_MESSAGE = b"Subject: who would take it\n\nNobody.\n"

# "postfix/smtp[4711]: connect to mx1.example.com[192.0.2.1]:25: Connection refused", or
# "... warning: host NAME[127.0.0.2]:25 greeted me with my own hostname mail.lab.test"
_ATTEMPT = re.compile(
    r"postfix/smtp\[(?P<pid>\d+)\]: (?:connect to|warning: host) "
    r"\S*\[(?P<address>\S+)\]:25(?:: | greeted me)"
)
_END = re.compile(r"postfix/smtp\[(?P<pid>\d+)\]: \w+: to=<(?P<recipient>.*?)>")

_ACTIONS = {
    "sent": "deliver",
    "routed": "deliver",
    "deferred": "defer",
    "bounced": "bounce",
}

# Runs as the pipe command would, but once for all: starting it anew for each takes long.
_ASK_MXPOLICY = """
import contextlib, io, json, sys
from mxpolicy import cli
answers = {}
for domain in sys.argv[1:]:
    sys.argv = ["mxpolicy", "route", "--json", domain]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = cli.main()
    answers[domain] = {**json.loads(out.getvalue()), "exit": status}
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Attempt:
    """An address that is tried, as an MX of this preference; None if that is not told."""

    address: str
    preference: int | None


@dataclass(frozen=True)
class Answer:
    """What becomes of mail for a domain: the `attempts` in order, or why there are none.

    `action` is "deliver" when there is somebody to try, "defer" or "bounce" when there
    is not; `status` the enhanced status code then, empty where it is not told.
    """

    action: str
    status: str
    attempts: tuple[Attempt, ...]
    text: str

    @property
    def addresses(self) -> tuple[str, ...]:
        """Who is tried, in order."""
        return tuple(one.address for one in self.attempts)


def ask_mxpolicy(world: World, domains: Sequence[str]) -> dict[str, Answer]:
    """Return mxpolicy's answer for each domain."""
    python = [f"{INSTALLED}/bin/python", "-I", "-c", _ASK_MXPOLICY]
    done = world.run("mta", [*python, *domains], user="mxpolicy", timeout=120)
    return {name: _planned(one) for name, one in json.loads(done.stdout).items()}


def _planned(answer: Mapping[str, object]) -> Answer:
    candidates = answer["candidates"]
    assert isinstance(candidates, list)
    action = str(answer["action"])
    assert answer["exit"] == {"deliver": 0, "defer": 75, "bounce": 69}[action]
    return Answer(
        action,
        str(answer.get("status", "")),
        tuple(_attempt(one["address"], one["preference"]) for one in candidates),
        str(answer.get("text", "")),
    )


def ask_exim(exim: Exim, domains: Sequence[str]) -> dict[str, Answer]:
    """Return Exim's answer for each domain."""
    routes = exim.routes([f"user@{domain}" for domain in domains])
    return {
        domain: Answer(
            _ACTIONS[route.status],
            "",
            tuple(_attempt(host.address, host.preference) for host in route.hosts),
            route.text,
        )
        for domain, route in zip(domains, routes, strict=True)
    }


def ask_postfix(
    postfix: Postfix, domains: Sequence[str], timeout: float
) -> dict[str, Answer]:
    """Return what Postfix did with a message for each domain.

    A recipient's connections are those that its smtp(8) process logged before the line
    that says what became of it: a process has one delivery at a time.
    """
    recipients = [f"user@{domain}" for domain in domains]
    # From nobody: what bounces goes nowhere then.
    queue_id = postfix.send(recipients, "", _MESSAGE)
    ends = postfix.await_deliveries(queue_id, timeout, len(recipients))
    tried = _tried(postfix.log())
    by_recipient = {end.recipient: end for end in ends}
    if missing := sorted(set(recipients) - set(by_recipient)):
        raise RuntimeError(f"no end after {timeout:.0f} s for {', '.join(missing)}")
    return {
        domain: _done(by_recipient[recipient], tried[recipient])
        for domain, recipient in zip(domains, recipients, strict=True)
    }


def _tried(log: Iterable[str]) -> dict[str, list[str]]:
    """Return the addresses tried for each recipient."""
    of_process: dict[str, list[str]] = defaultdict(list)
    found: dict[str, list[str]] = defaultdict(list)
    for line in log:
        if match := _ATTEMPT.search(line):
            of_process[match["pid"]].append(match["address"])
        elif match := _END.search(line):
            found[match["recipient"]] += of_process.pop(match["pid"], [])
    return found


def _done(end: Delivery, tried: Sequence[str]) -> Answer:
    attempts = tuple(_attempt(address) for address in tried)
    if tried and end.text.startswith("connect to "):
        return Answer("deliver", "", attempts, end.text)
    return Answer(_ACTIONS[end.status], end.dsn, attempts, end.text)


def _attempt(address: str, preference: int | None = None) -> Attempt:
    # Mapped addresses are written in two ways.
    return Attempt(str(ip_address(address)), preference)
