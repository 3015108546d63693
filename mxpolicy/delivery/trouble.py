"""What a reply or a failure means: the one place that decides it.

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

`judge_reply`, `judge_finding` and `judge_misfit` judge one thing each.
`mxpolicy.delivery.failures` combines what one recipient has met. Pure: nothing here
waits or looks at a clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from mxpolicy.address import AddressError, UnsupportedDomain
from mxpolicy.options import GreetingPolicy
from mxpolicy.outcome import Bounced, Deferred, Delivered, Outcome
from mxpolicy.protocol.extensions import Extensions
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import EnhancedStatus, Reply, printable
from mxpolicy.routing.candidate import (
    Candidate,
    Finding,
    Phase,
    Scope,
    Verdict,
    shown_of,
)
from mxpolicy.routing.places import OverLimit

__all__ = [
    "MAX_OUTCOME_TEXT",
    "UNREACHABLE",
    "VERDICTS",
    "Judgement",
    "Misfit",
    "NextStep",
    "awaited",
    "bad_nexthop",
    "bad_recipient",
    "bad_sender",
    "cancelled",
    "delivered",
    "ending",
    "in_doubt",
    "is_about_the_session",
    "is_too_many_recipients",
    "judge_finding",
    "judge_misfit",
    "judge_reply",
    "misfit",
    "no_place",
    "one_line",
    "own_trouble",
    "soft",
    "too_many_hops",
    "under_way",
    "verdict_of",
    "wants_tls",
    "with_doubts",
]

# The mail server's answer is one line under 1,000 bytes, status and all.
MAX_OUTCOME_TEXT = 950

UNREACHABLE = EnhancedStatus(4, 4, 1)  # RFC 3463 §3.5: no answer from host
_BAD_CONNECTION = EnhancedStatus(4, 4, 2)  # §3.5: bad connection
_OWN_TROUBLE = EnhancedStatus(4, 3, 0)  # §3.4: other or undefined mail system status
_SYSTEM_BUSY = EnhancedStatus(4, 3, 2)  # §3.4: system not accepting messages
_CONGESTED = EnhancedStatus(4, 4, 5)  # §3.5: mail system congestion
_OWN_MISTAKE = EnhancedStatus(4, 3, 5)  # §3.4: system incorrectly configured

# RFC 3207 §4: 530, STARTTLS first; RFC 4954 §6: 538, encryption required.
_TLS_CODES = frozenset({530, 538})

# RFC 3463 §3.8, RFC 7817's registry: X.7.10 encryption needed, X.7.11 the same for
# authentication. We came in clear, perhaps because its TLS had failed.
_TLS_DETAILS = frozenset({(7, 10), (7, 11)})

# RFC 5321 §4.2.4: syntax, command, sequence, parameter. And to have come in clear.
_SESSION_CODES = frozenset({500, 501, 502, 503, 504}) | _TLS_CODES

# What refusals say. Compiled where it is needed: most messages meet no refusal.

# "550 5.7.1 <x>: Helo command rejected", "550 Access denied - Invalid HELO name". The
# word, not a part of another name (HELO_DYNAMIC), of a mailbox (helo@example.com) or of
# a URL (?p=helo), nor the label of a fact (helo=mx.example.net).
_HELO_WORD = r"(?i)(?<![\w.@/=-])(?:helo|ehlo)(?![\w-]*@|\.?\w|-\w|=)"

# Where TLS may be named without being meant: URLs, addresses and names of hosts.
_NAMES = r"(?i)\S*(?:://|@)\S*|[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\S*"

# "Must issue a STARTTLS command first", "TLSv1.2 required", "wasn't sent with TLS/SSL",
# "523 Encryption Needed", "Session encryption is required", "Unencrypted connection". An
# encrypted attachment is none of it.
_TLS_WORDS = (
    r"(?i)(?<![\w-])(?:(?:START[ -]?)?TLS(?:v?1(?:\.\d)?)?|SSL)(?![\w-])"
    r"|\b(?:requir|need|must|mandatory|session|connection).*\bencryption\b"
    r"|\bencryption\b.*\b(?:requir|need|must|mandatory|session|connection)"
    r"|\b(?:un)?encrypted (?:\w+ )?(?:session|connection|channel|transport|transmission)"
)

_TOO_MANY = r"(?i)too many"

# The most hosts that a bounce names because they may have the message. A name has 253
# characters at most.
_MAX_DOUBTED = 2

_COMMAND_WORDS = {
    Verb.MAIL: "MAIL command",
    Verb.RCPT: "RCPT command",
    Verb.DATA: "DATA command",
    Verb.DOT: "end of data",
}


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


# --- replies


def judge_reply(
    verb: Verb, reply: Reply, relay: str, *, sole_recipient: bool = False
) -> Judgement:
    """Judge a refusal of MAIL, RCPT, DATA or the final dot.

    Args:
        verb: What was refused. A refusal in the middle of the mail data counts as one
            of DATA or of the final dot: it makes no difference.
        reply: The reply.
        relay: The host that sent it, a candidate's key as text.
        sole_recipient: No other recipient was offered in this session.
    """
    scope = Scope.RECIPIENT if verb is Verb.RCPT else Scope.MESSAGE
    text = f"host {shown_of(relay)} said: {reply.text} (in reply to {_COMMAND_WORDS[verb]})"
    deferred = Deferred(_status(reply, 4), one_line(text), reply, relay)
    if reply.code == 421 or reply.is_positive:
        # A 2yz where a 3yz is due makes no sense: Postfix bounces it, we defer.
        return Judgement(Scope.HOST, NextStep.NEXT_HOST, deferred)
    bounced = Bounced(_status(reply, 5), deferred.text, reply, relay)
    if is_about_the_session(verb, reply):
        return Judgement(Scope.HOST, NextStep.LAST_RESORT, bounced)
    # With no other recipient, a 552 that names no reason is a full mailbox (§4.2.3).
    is_full = (
        sole_recipient
        and reply.code == 552
        and _said_status(reply) is None
        and not re.search(_TOO_MANY, reply.text)
    )
    if is_too_many_recipients(verb, reply) and not is_full:
        return Judgement(scope, NextStep.AGAIN_HERE, deferred)
    if reply.is_permanent:
        return Judgement(scope, NextStep.SETTLE, bounced)
    return Judgement(scope, NextStep.NEXT_HOST, deferred)


def is_about_the_session(verb: Verb, reply: Reply) -> bool:
    """Is this 5yz to *verb* about our session, and not about the mail?

    Some codes and statuses are, by their definition. So is a text with words about HELO
    or EHLO. Our own name in it proves nothing: it is often the sender's domain, which
    refusals by DMARC, SPF and spam filters quote. After the mail data a refusal is about
    them. An enhanced status x.1.z is about an address (RFC 3463 §3.2) whatever the code:
    Postfix says ``501 5.1.3 Bad recipient address syntax``.
    """
    if verb is Verb.DOT or not reply.is_permanent:
        return False
    status = _said_status(reply)
    if status is not None and status.subject == 1:
        return False
    if status is not None and (status.subject, status.detail) in _TLS_DETAILS:
        return True
    return reply.code in _SESSION_CODES or bool(re.search(_HELO_WORD, reply.text))


def wants_tls(reply: Reply) -> bool:
    """Does this refusal, which was said in clear, ask for TLS?

    By its code, its status (x.7.10, x.7.11) or its text: "550 5.7.1 must issue a
    STARTTLS command first", "421 4.7.29 … wasn't sent over a TLS connection".
    """
    status = _said_status(reply)
    if reply.is_positive or (status is not None and status.subject == 1):
        return False
    if status is not None and (status.subject, status.detail) in _TLS_DETAILS:
        return True
    said = re.sub(_NAMES, " ", reply.text)
    return reply.code in _TLS_CODES or bool(re.search(_TLS_WORDS, said))


def is_too_many_recipients(verb: Verb, reply: Reply) -> bool:
    """Does this refuse a recipient only because there are others beside it?

    RFC 5321 §4.5.3.1.10: 452, and 552 "in this case" means the same. Both may also
    mean a full mailbox or disk (x.2.2, x.3.1). A code without a status leaves that open,
    and a second transaction costs little. With x.2.z (RFC 3463 §3.3) there are too many
    of something else in a mailbox.
    """
    if verb is not Verb.RCPT or reply.code == 421:
        return False
    status = _said_status(reply)
    if status is not None and (status.subject, status.detail) == (5, 3):
        return True
    if reply.code not in (452, 552) or (status is not None and status.subject == 2):
        return False
    return status is None or bool(re.search(_TOO_MANY, reply.text))


def delivered(reply: Reply, relay: str) -> Delivered:
    """Return the outcome of *relay*'s 2yz after the final dot."""
    return Delivered(_status(reply, 2), one_line(reply.text), reply, relay)


def _status(reply: Reply, class_: int) -> EnhancedStatus:
    """Return the reply's own status, with another class where we defer a 5yz.

    Where there is none, or one that contradicts the code, no detail is invented: a bare
    550 does not mean 5.1.1.
    """
    said = reply.enhanced
    return said._replace(class_=class_) if said else EnhancedStatus(class_, 0, 0)


def _said_status(reply: Reply) -> EnhancedStatus | None:
    """Return the status as the host wrote it, even if its class contradicts the code."""
    return EnhancedStatus.parse(reply.lines[0]) if reply.lines else None


# --- failures

VERDICTS: dict[Verdict, tuple[EnhancedStatus, str]] = {
    Verdict.FILTERED: (UNREACHABLE, "did not answer the connection attempt"),
    Verdict.REFUSED: (UNREACHABLE, "refused the connection"),
    Verdict.PROHIBITED: (UNREACHABLE, "may not be reached, says a firewall or router"),
    Verdict.NO_ROUTE: (UNREACHABLE, "cannot be reached from here"),
    Verdict.PROXY_FAILED: (UNREACHABLE, "was not reached by the proxy"),
    Verdict.CLOSED: (_BAD_CONNECTION, "ended the connection"),
    Verdict.SILENT: (_BAD_CONNECTION, "was silent"),
    Verdict.STALLED: (_BAD_CONNECTION, "does not acknowledge what is sent"),
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
        status = _BAD_CONNECTION if late else _OWN_TROUBLE
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
        outcome = Bounced(_status(reply, 5), text, reply, relay)
        return Judgement(Scope.HOST, NextStep.SETTLE, outcome)
    if reply and not reply.is_positive:
        status = _status(reply, 4)
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
    return Deferred(_BAD_CONNECTION, one_line(text + more), None, relay, True)


def awaited(relay: str, since: str) -> Deferred:
    """Return the outcome while the reply to an earlier attempt's dot may still come.

    Args:
        relay: What the dot was sent to.
        since: When it was sent, as RFC 3339 says.
    """
    text = f"waits for the reply of {shown_of(relay)} to the final dot since {since}"
    return Deferred(_BAD_CONNECTION, one_line(text), None, relay, True)


def with_doubts(refusal: Bounced, hosts: Iterable[str]) -> Bounced:
    """Return *refusal*, which also names the *hosts* that may have the message."""
    names = sorted(hosts)
    if not names:
        return refusal
    more = f" and {len(names) - _MAX_DOUBTED} more" * (len(names) > _MAX_DOUBTED)
    note = "; but may have been delivered by " + ", ".join(names[:_MAX_DOUBTED]) + more
    text = printable(refusal.text, MAX_OUTCOME_TEXT - len(note))
    return refusal._replace(text=one_line(text + note))


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


def ending(
    refusals: Iterable[tuple[Verb, Reply]],
    *,
    waited: float,
    sole_recipient: bool,
) -> Finding:
    """Sum up a transaction that ended with recipients refused and unsettled.

    Args:
        refusals: What those recipients were answered; at least one.
        waited: Seconds that the transaction took.
        sole_recipient: As in `judge_reply`.

    Returns:
        What `Race.resume` wants.
    """
    judged = [
        (
            verdict_of(
                reply, judge_reply(verb, reply, "", sole_recipient=sole_recipient)
            ),
            reply,
        )
        for verb, reply in refusals
    ]
    # The one that promises most decides: 4yz, then our session, then 5yz.
    verdict, reply = min(judged, key=lambda pair: _HOPE.index(pair[0]))
    return Finding(verdict, Phase.TRANSACTION, waited, Scope.MESSAGE, text=reply.text)


_HOPE = (Verdict.TRANSIENT, Verdict.UNFIT, Verdict.PERMANENT)


def verdict_of(reply: Reply, judgement: Judgement) -> Verdict:
    """Return the word for a refusal in a transaction."""
    if judgement.next_step is NextStep.SETTLE:
        return Verdict.PERMANENT
    return Verdict.TRANSIENT if reply.is_transient else Verdict.UNFIT


# --- before any host was asked


def bad_recipient(error: AddressError) -> Deferred | Bounced:
    """Return the outcome of a forward-path that is no address: X.1.3 (RFC 3463 §3.2)."""
    text = one_line(f"bad recipient address {error}")
    if isinstance(error, UnsupportedDomain):
        return Deferred(_OWN_MISTAKE, text)
    return Bounced(EnhancedStatus(5, 1, 3), text)


def bad_sender(error: AddressError) -> Bounced:
    """Return the outcome of a reverse-path that fits no command: X.1.7 (RFC 3463 §3.2)."""
    return Bounced(EnhancedStatus(5, 1, 7), one_line(f"bad sender address {error}"))


def too_many_hops(count: int) -> Bounced:
    """Return the outcome of a message that goes in circles: X.4.6 (RFC 3463 §3.5)."""
    text = f"mail loop: {count} Received: fields, one for each mail server passed"
    return Bounced(EnhancedStatus(5, 4, 6), text)


def bad_nexthop(error: Exception) -> Deferred:
    """Return the outcome when the operator's nexthop cannot be understood."""
    return Deferred(_OWN_MISTAKE, one_line(str(error)))


def own_trouble(error: BaseException) -> Deferred:
    """Return the outcome when our own machine or program failed."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = str(error) or type(error).__name__
    return Deferred(_OWN_TROUBLE, one_line(f"local trouble: {said}"))


def cancelled(why: str) -> Deferred:
    """Return the outcome of a recipient for which no host's answer was due."""
    return Deferred(_SYSTEM_BUSY, one_line(f"the delivery was cancelled: {why}"))


def under_way() -> Deferred:
    """Return the outcome of a recipient that another process is delivering to."""
    return Deferred(_OWN_TROUBLE, "another delivery of this message is under way")


def no_place(over: OverLimit, now: float) -> Deferred:
    """Return the outcome where most of our processes wait for the same destination.

    Args:
        over: How many do, and for what.
        now: Seconds since the epoch, UTC.
    """
    text = (
        f"{over.taken} of {over.limit} processes are in use,"
        f" {over.waiting} of them by mail for {over.aim} that "
    )
    if over.longest is None:
        text += "has not gone through lately"
    else:
        waited = max(0.0, now - over.longest.since)
        text += f"waits, {waited:.0f}s for {over.longest.waits_for}"
    return Deferred(_SYSTEM_BUSY, one_line(f"{text}; others come first"))


def no_connection(limit: int, waited: float) -> Deferred:
    """Return the outcome where all *limit* connections of this machine stay in use."""
    text = f"all {limit} connections are in use, waited {waited:.0f}s"
    return Deferred(_SYSTEM_BUSY, text)


def no_turn(candidate: Candidate, limit: int, waited: float) -> Deferred:
    """Return the outcome where all *limit* connections with a host stay in use."""
    text = f"all {limit} connections with {candidate} are in use, waited {waited:.0f}s"
    return Deferred(_CONGESTED, one_line(text), relay=str(candidate.key))


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
