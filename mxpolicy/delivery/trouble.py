"""What goes wrong, and what it means: the rules, and how a session or a message fails.

Each has a scope, as in Postfix's smtp_trouble: this recipient, the message, the host, or
ourselves (site). Callers say what failed, never what to do about it.

* Of all that a host says, only a 5yz reply to MAIL, RCPT, DATA or the final dot bounces.
  It does so only when no better host is still to be heard (`Race.has_better_pending`) or
  to be looked up (`mxpolicy.routing.unresolved`). Two exceptions: a 5yz greeting that the
  operator has made final, and a message that the EHLO replies of *all* hosts rule out.
* Before any host is asked, DNS may bounce (`mxpolicy.routing.selection`). So does an
  address that fits no command, and a message that goes in circles.
* A 5yz may be about our session: we greeted wrongly, gave a command that the host does
  not know, or came without TLS. It says nothing about the mail, and the next host is
  asked. It is the answer (RFC 5321 §4.2.1) when all other hosts were heard, and none has
  taken the mail or put it off. A host that puts it off accepts our session.
* "Too many recipients" is no refusal: a second transaction (RFC 5321 §4.5.3.1.10).
* Anything else defers. When in doubt, defer.

`judge_finding` and `judge_misfit` judge one thing each, here;
`mxpolicy.delivery.refusals.judge_reply` judges a reply. What no host has decided is in
`mxpolicy.delivery.own_outcomes`. `mxpolicy.delivery.failures` combines what one recipient
has met. Pure: nothing here waits or looks at a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from mxpolicy.options import GreetingPolicy
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.protocol.extensions import Extensions
from mxpolicy.reply import EnhancedStatus, Reply, printable
from mxpolicy.routing.candidate import Finding, Scope, Verdict, shown_of

__all__ = [
    "BAD_CONNECTION",
    "MAX_OUTCOME_TEXT",
    "OWN_TROUBLE",
    "UNREACHABLE",
    "VERDICTS",
    "Judgement",
    "Misfit",
    "NextStep",
    "delivered",
    "in_doubt",
    "judge_finding",
    "judge_misfit",
    "misfit",
    "one_line",
    "soft",
    "status_of",
    "told",
    "with_doubts",
]

# The mail server's answer is one line under 1,000 bytes, status and all.
MAX_OUTCOME_TEXT = 950

UNREACHABLE = EnhancedStatus(4, 4, 1)  # RFC 3463 §3.5: no answer from host
OWN_TROUBLE = EnhancedStatus(4, 3, 0)  # §3.4: other or undefined mail system status
BAD_CONNECTION = EnhancedStatus(4, 4, 2)  # §3.5: bad connection

# The most hosts that a bounce names because they may have the message. A name has 253
# characters at most.
_MAX_DOUBTED = 2


class NextStep(Enum):
    """What to do next for all in the judgement's scope."""

    SETTLE = "settle"  # final, unless a better host is still to be heard
    NEXT_HOST = "next_host"  # another host may take it; defer if none does
    LAST_RESORT = "last_resort"  # the same; final if none does and all were heard
    AGAIN_HERE = "again_here"  # a second transaction in the same session


class Judgement(NamedTuple):
    """What one reply or failure means.

    Attributes:
        scope: What it is about.
        next_step: What to do.
        outcome: The outcome if no host does better. `Bounced` only with
            `NextStep.SETTLE` and `NextStep.LAST_RESORT`, or for a `Misfit`.
    """

    scope: Scope
    next_step: NextStep
    outcome: Deferred | Bounced


# --- failures

VERDICTS: dict[Verdict, tuple[EnhancedStatus, str]] = {
    Verdict.FILTERED: (UNREACHABLE, "did not answer the connection attempt"),
    Verdict.REFUSED: (UNREACHABLE, "refused the connection"),
    Verdict.PROHIBITED: (UNREACHABLE, "may not be reached, says a firewall or router"),
    Verdict.NO_ROUTE: (UNREACHABLE, "cannot be reached from here"),
    Verdict.PROXY_FAILED: (UNREACHABLE, "was not reached by the proxy"),
    Verdict.CLOSED: (BAD_CONNECTION, "ended the connection"),
    Verdict.SILENT: (BAD_CONNECTION, "was silent"),
    Verdict.STALLED: (BAD_CONNECTION, "does not acknowledge what is sent"),
    # RFC 3463 §3.6: x.5.0, the protocol, and no other code says it better.
    Verdict.NOT_SMTP: (EnhancedStatus(4, 5, 0), "does not speak SMTP"),
    Verdict.GREETING_4XX: (EnhancedStatus(4, 0, 0), "refused to talk to us"),
    Verdict.GREETING_5XX: (EnhancedStatus(4, 0, 0), "refused to talk to us"),
    Verdict.EHLO_REFUSED: (EnhancedStatus(4, 0, 0), "refused our EHLO and HELO"),
    Verdict.LOOPS_TO_MYSELF: (EnhancedStatus(4, 4, 6), "is this mail system itself"),
    Verdict.STARTTLS_MISSING: (EnhancedStatus(4, 7, 4), "does not offer STARTTLS"),
    Verdict.STARTTLS_REFUSED: (EnhancedStatus(4, 7, 4), "refused STARTTLS"),
    Verdict.TLS_FAILED: (EnhancedStatus(4, 7, 5), "failed in the TLS handshake"),
    Verdict.TLS_SILENT: (EnhancedStatus(4, 7, 5), "was silent in the TLS handshake"),
    Verdict.CERTIFICATE_REJECTED: (EnhancedStatus(4, 7, 5), "has no valid certificate"),
    Verdict.TRANSIENT: (EnhancedStatus(4, 0, 0), "put us off"),
    Verdict.PERMANENT: (EnhancedStatus(4, 0, 0), "refused"),
    Verdict.UNFIT: (EnhancedStatus(4, 0, 0), "does not take this"),
}
"""Status, and the words after ``host[address]:port``; REFERENCE.md has them as a table."""


def judge_finding(
    finding: Finding,
    relay: str,
    reply: Reply | None = None,
    greeting_5xx: GreetingPolicy = GreetingPolicy.NEXT,
) -> Judgement:
    """Judge a session that ended, or never began, without settling the mail.

    Args:
        finding: With `Scope.SITE` it is our own trouble: 4.3.0, or 4.4.2 with the
            verdict ``silent``, when we left ourselves too little time.
        relay: The other end, a candidate's key as text.
        reply: What the host said with it, if anything. It gives the status but decides
            nothing: a firewall may have said it.
        greeting_5xx: Whether a 5yz greeting is final.
    """
    if finding.scope is Scope.SITE:
        late = finding.verdict is Verdict.SILENT
        status = BAD_CONNECTION if late else OWN_TROUBLE
        text = one_line(f"local trouble: {finding.text or finding.verdict.value}")
        return Judgement(
            Scope.SITE, NextStep.NEXT_HOST, Deferred(status, text, None, relay)
        )
    status, words = VERDICTS[finding.verdict]
    after = f" ({finding.phase.word}, {finding.waited:.1f}s)"
    said = reply.text if reply else finding.text
    text = one_line(f"{shown_of(relay)} {words}{after}" + (f": {said}" if said else ""))
    if (
        reply
        and finding.verdict is Verdict.GREETING_5XX
        and greeting_5xx is GreetingPolicy.BOUNCE
    ):
        outcome = Bounced(status_of(reply, 5), text, reply, relay)
        return Judgement(Scope.HOST, NextStep.SETTLE, outcome)
    if reply and not reply.is_positive:
        status = status_of(reply, 4)
    return Judgement(
        Scope.HOST, NextStep.NEXT_HOST, Deferred(status, text, reply, relay)
    )


def in_doubt(finding: Finding, relay: str) -> Deferred:
    """Return the outcome of a recipient whose final dot is out and was not answered.

    It is final for this attempt: the host may well have the message, so another host
    would get a second copy.
    """
    words = VERDICTS[finding.verdict][1]
    text = (
        f"{shown_of(relay)} {words} after the end of data, {finding.waited:.0f}s: "
        f"message may be sent more than once"
    )
    more = f": {finding.text}" if finding.text else ""
    return Deferred(BAD_CONNECTION, one_line(text + more), None, relay, True)


def with_doubts(refusal: Bounced, hosts: Iterable[str]) -> Bounced:
    """Return *refusal*, which also names the *hosts* that may have the message."""
    names = sorted(hosts)
    if not names:
        return refusal
    more = f" and {len(names) - _MAX_DOUBTED} more" * (len(names) > _MAX_DOUBTED)
    note = "; but may have been delivered by " + ", ".join(names[:_MAX_DOUBTED]) + more
    text = printable(refusal.text, MAX_OUTCOME_TEXT - len(note))
    return refusal._replace(text=one_line(text + note))


# --- messages that a host cannot take


class Misfit(Enum):
    """Why a host's EHLO reply rules a message out before MAIL is sent."""

    TOO_LARGE = "message too large"  # RFC 1870 §6.1
    NO_SMTPUTF8 = "SMTPUTF8 is required, but not offered"  # RFC 6531 §3.2
    SMTPUTF8_MASKED = "SMTPUTF8 is required, and a firewall masks what is offered"


# The status, if every host says so.
_MISFITS = {
    Misfit.TOO_LARGE: EnhancedStatus(5, 3, 4),
    Misfit.NO_SMTPUTF8: EnhancedStatus(5, 6, 7),
    # The firewall said it, and not the host, so it does not bounce.
    Misfit.SMTPUTF8_MASKED: EnhancedStatus(4, 6, 7),
}


def misfit(
    extensions: Extensions,
    *,
    size: int | None,
    needs_smtputf8: bool,
    masked: bool = False,
) -> Misfit | None:
    """Return why a host with these *extensions* cannot take the message, if so.

    *masked*: a firewall overwrites what the host says. *size*: None when it is unknown.

    8-bit data without 8BITMIME is no misfit and is sent as it is: every host of this
    century passes it on, and a conversion would break signatures.
    """
    if needs_smtputf8 and "SMTPUTF8" not in extensions:
        return Misfit.SMTPUTF8_MASKED if masked else Misfit.NO_SMTPUTF8
    if extensions.size and size is not None and size > extensions.size:
        return Misfit.TOO_LARGE
    return None


def judge_misfit(why: Misfit, relay: str) -> Judgement:
    """Judge a message that one host's EHLO reply rules out: another may take it."""
    text = one_line(f"{why.value} (EHLO reply of host {shown_of(relay)})")
    status = _MISFITS[why]
    outcome = Bounced if status.class_ == 5 else Deferred
    return Judgement(
        Scope.MESSAGE, NextStep.NEXT_HOST, outcome(status, text, None, relay)
    )


# --- what all outcomes share


def status_of(reply: Reply, class_: int) -> EnhancedStatus:
    """Return the reply's own status, with another class where we defer a 5yz.

    Where there is none, or one that contradicts the code, no detail is invented: a bare
    550 does not mean 5.1.1.
    """
    said = reply.enhanced
    return said._replace(class_=class_) if said else EnhancedStatus(class_, 0, 0)


def delivered(reply: Reply, relay: str) -> Delivered:
    """Return the outcome of *relay*'s 2yz after the final dot."""
    return Delivered(status_of(reply, 2), one_line(reply.text), reply, relay)


def told(outcome: Outcome) -> Outcome:
    """Return *outcome* as the mail server is told of it: a delivery, too, names the host."""
    if not isinstance(outcome, Delivered) or not outcome.relay:
        return outcome
    return outcome._replace(text=f"{shown_of(outcome.relay)} said: {outcome.text}")


def one_line(text: str) -> str:
    """Return *text* as the one bounded line that an outcome may have."""
    return printable(text, MAX_OUTCOME_TEXT)


def soft(outcome: Deferred | Bounced) -> Deferred:
    """Return a refusal that is not final as a deferral."""
    return Deferred(outcome.status._replace(class_=4), *outcome[1:])
