"""Whole attempts at hosts that do anything: no message lost, doubled or bounced wrongly.

Hosts are scripted by the input. What they do before the mail data may be any
nonsense, and in the mail data they may say what nobody has asked. Then they give one
answer, to the final dot, or none: so it is known who has the message. What they say
in the mail data they say before the dot leaves, for the journal takes its time.
"""

from __future__ import annotations

from collections.abc import Sequence

from mxpolicy.delivery import events
from mxpolicy.outcome import Bounced, Delivered
from tests.delivery.attempts import Journal, Played, deliver
from tests.fuzz.choices import Choices
from tests.helpers.scripted_smtp import Answer, End, Script, ScriptedHost, Step

__all__ = ["attempts"]

RECIPIENTS = ("bob@example.com", "carol@example.com", "dan@example.com")
BEFORE_MAIL = ("CONNECT", "EHLO", "HELO")
KEYS = (*BEFORE_MAIL, "MAIL", "RCPT", "RCPT carol@example.com", "DATA", "BODY", "RSET")
EXTENSIONS = (
    "PIPELINING",
    "SIZE 100",
    "SIZE 5",
    "LIMITS RCPTMAX=1",
    "LIMITS MAILMAX=1",
)
# More than the kernels hold: hosts are heard while it is being written.
LARGE = b"Subject: large\r\n\r\n" + b"A line of the message.\r\n" * 200_000

ANSWERS: tuple[Step, ...] = (
    "250 2.0.0 Ok",
    "220 mx.example.com ESMTP",
    "354 go ahead",
    "421 4.3.2 bye",
    "450 4.2.1 later",
    "451 4.7.1 greylisted",
    "452 4.5.3 too many recipients",
    "500 5.5.1 what?",
    "550 5.1.1 no such user",
    "552 5.3.4 too large",
    "554 5.7.1 HELO rejected",
    b"250 ok\r\n250 ok\r\n",
    b"250-ok\r\n550 no\r\n",
    b"450",
    b"\x1b[2J\r\n",
    b"x" * 3000,
    b"250-x\r\n" * 200,
    b"250-x\r\n" * 200 + b"250 2.0.0 Ok\r\n",
    b"250 " + b"x" * 3000 + b"\r\n",
    b"\r\n250 2.0.0 Ok\r\n",
    End.SILENT,
    End.CLOSE,
    End.RESET,
    End.DEAF,
    0.5,
    9.0,
    70.0,
)
IN_BODY: tuple[Answer, ...] = (
    "250 2.0.0 Ok",
    "354 go on",
    "550 5.7.1 spam",
    "451 4.3.0 later",
    "421 4.3.2 bye",
    b"\r\nwell\r\n",
    b"250 o",
    (b"25", 2.0, b"0 Ok\r\n"),
    ("250 2.0.0 Ok", End.CLOSE),
    End.SILENT,
    End.CLOSE,
    End.RESET,
    End.DEAF,
    0.5,
    70.0,
    400.0,
)
AT_DOT: tuple[Answer, ...] = (
    "250 2.0.0 taken",
    "251 taken",
    "421 4.3.2 bye",
    "450 4.2.1 later",
    "452 4.3.1 full",
    "550 5.7.1 spam",
    "552 5.3.4 too large",
    End.SILENT,
    End.CLOSE,
    End.RESET,
    (30.0, "250 late"),
    ("250 taken", End.CLOSE),
    b"250 " + b"x" * 3000 + b"\r\n",
    b"250-x\r\n" * 200 + b"250 x\r\n",
    b"\r\n250 x\r\n",
    b"550-no\r\n250 yes\r\n",
    b"250-yes\r\n550 no\r\n",
    ("550 no", End.RESET),
)


def attempts(data: bytes) -> None:
    """Play one attempt at one to three hosts, and compare what hosts and outcomes say."""
    choices = Choices(data)
    recipients = RECIPIENTS[: 1 + choices.number(3)]
    equal = choices.number(3) == 1
    large = choices.number(8) == 1
    hosts = [_host(choices) for _ in range(1 + choices.number(3))]
    played = deliver(
        *hosts,
        recipients=recipients,
        preferences=[10] * len(hosts) if equal else None,
        journal=Journal(seconds=0.5),
        **({"data": LARGE} if large else {}),
    )
    _check(played, hosts, recipients)


def _host(choices: Choices) -> ScriptedHost:
    script: Script = {}
    for _ in range(choices.number(4)):
        key = choices.of(KEYS)
        if key == "BODY":
            script[key] = choices.of(IN_BODY)
            continue
        script[key] = [_steps(choices), *([_steps(choices)] * choices.number(2))]
    script["."] = [choices.of(AT_DOT) for _ in range(1 + choices.number(3))]
    extensions = [one for one in EXTENSIONS if choices.number(4) == 1]
    return ScriptedHost(script, extensions=extensions)


def _steps(choices: Choices) -> tuple[Step, ...]:
    """One thing to do, perhaps after a while."""
    step = choices.of(ANSWERS)
    return (step, choices.of(ANSWERS[:11])) if isinstance(step, float) else (step,)


def _check(
    played: Played, hosts: Sequence[ScriptedHost], recipients: Sequence[str]
) -> None:
    assert not played.all(events.Trouble), played.all(events.Trouble)
    for recipient, outcome in zip(recipients, played.outcomes, strict=True):
        codes = [
            message.answered
            for host in hosts
            for message in host.messages
            if recipient in message.forward_paths
        ]
        has_it = [code for code in codes if not 400 <= code < 600]
        assert len(has_it) <= 1, f"{recipient} may have {len(has_it)} copies"
        taken = any(200 <= code < 300 for code in has_it)
        assert taken == isinstance(outcome, Delivered), (recipient, codes, outcome)
        if isinstance(outcome, Bounced):
            assert not has_it
            assert outcome.reply is None or outcome.reply.is_permanent
    assert played.seconds < 900 + 600 + 1  # the dot has its time beyond the deadline
