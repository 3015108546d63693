"""What it means that a host refuses a command of a transaction, or the mail data.

A reply is judged by its code, its enhanced status, and a few words that refusals use.
`mxpolicy.delivery.trouble` has the rules. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mxpolicy.delivery.trouble import Judgement, NextStep, one_line, status_of
from mxpolicy.outcome import Bounced, Deferred
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.routing.candidate import Finding, Phase, Scope, Verdict, shown_of

__all__ = [
    "ending",
    "is_about_the_session",
    "is_too_many_recipients",
    "judge_reply",
    "verdict_of",
    "wants_tls",
]

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

_COMMAND_WORDS = {
    Verb.MAIL: "MAIL command",
    Verb.RCPT: "RCPT command",
    Verb.DATA: "DATA command",
    Verb.DOT: "end of data",
}


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
    deferred = Deferred(status_of(reply, 4), one_line(text), reply, relay)
    if reply.code == 421 or reply.is_positive:
        # A 2yz where a 3yz is due makes no sense: Postfix bounces it, we defer.
        return Judgement(Scope.HOST, NextStep.NEXT_HOST, deferred)
    bounced = Bounced(status_of(reply, 5), deferred.text, reply, relay)
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


def _said_status(reply: Reply) -> EnhancedStatus | None:
    """Return the status as the host wrote it, even if its class contradicts the code."""
    return EnhancedStatus.parse(reply.lines[0]) if reply.lines else None


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
