"""Which messages go the fast path, over which session, and what is asked there first.

The beginning of `mxpolicy.delivery.fast_path`, in its order: `destination_of` as soon as
the message is known, the others once its mail data is there. Each answers for one
`Delivery`. Where one says no, the message goes the ordinary way, and nothing is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.address import AddressError, parse_mailbox, parse_reverse_path
from mxpolicy.delivery import trouble
from mxpolicy.delivery.message import Envelope
from mxpolicy.delivery.plan import destination
from mxpolicy.errors import LocalProtocolError
from mxpolicy.protocol.smtp_states import DOT_TIME
from mxpolicy.routing.reuse import Stage

if TYPE_CHECKING:
    from mxpolicy.delivery.delivery import Delivery
    from mxpolicy.delivery.destinations import Destination
    from mxpolicy.delivery.dialogue import Listener
    from mxpolicy.delivery.session import Session

__all__ = [
    "LIMIT",
    "MOST_RECIPIENTS",
    "content_of",
    "destination_of",
    "fits",
    "give_back",
    "give_commands",
    "is_late",
    "take_session",
]

# Bytes of a message: it is written to the session in one piece.
LIMIT = 64 * 1024
# Recipients of one: all commands leave together (`smtp_client.MAX_IN_FLIGHT`).
MOST_RECIPIENTS = 50


def destination_of(delivery: Delivery) -> Destination | None:
    """Return where all recipients go, and note the envelope; None where it is not known."""
    context, request = delivery.context, delivery.request
    if context.destinations is None or len(request.recipients) > MOST_RECIPIENTS:
        return None
    try:
        reverse_path = parse_reverse_path(request.sender)
        recipients = {
            number: parse_mailbox(text)
            for number, text in enumerate(request.recipients)
        }
    except AddressError:
        return None
    aims = {destination(request.nexthop, one.domain) for one in recipients.values()}
    delivery.envelope = Envelope(
        reverse_path, recipients, request.dsn, request.recipients_dsn
    )
    if len(aims) != 1 or delivery.envelope.needs_smtputf8(recipients):
        return None
    return context.destinations.find(*aims.pop(), context.clock())


def content_of(delivery: Delivery) -> bytes | None:
    """Return all mail data; None where it is too large, broken, or in a mail loop."""
    mail_data, limits = delivery.mail_data, delivery.context.options.limits
    content = mail_data.content()
    if content is None or mail_data.received_count >= limits.hops:
        return None
    return content


def is_late(delivery: Delivery) -> bool:
    """Return whether it is too late for a dot."""
    request = delivery.request
    last_dot = min(request.deadline, request.ends - DOT_TIME)
    return delivery.trace.now() >= last_dot


def take_session(
    delivery: Delivery, found: Destination, listener: Listener
) -> Session | None:
    """Return a session with one of the best hosts that waits, to be given back.

    It counts as a connection of the message. None where no session waits, where another
    message waits for its turn, or where it is too late.
    """
    context = delivery.context
    if context.clock() >= found.until or is_late(delivery):
        return None
    connections = context.connections
    may_wait = not delivery.request.has_process
    for candidate, approach in found.usable:
        if connections is not None and not connections.take_idle(
            candidate, may_wait=may_wait
        ):
            continue
        session = context.sessions.take_idle(candidate, approach, listener)
        if session is not None:
            return session
        if connections is not None:
            connections.give_idle(candidate)
    return None


def give_back(delivery: Delivery, found: Destination, session: Session) -> None:
    """Let *session* wait for another message, if it may."""
    context = delivery.context
    context.sessions.give_back(session, found.known_until)
    if context.connections is not None:
        context.connections.give_idle(session.candidate)


def fits(delivery: Delivery, session: Session) -> bool:
    """Return whether all recipients fit into one transaction of *session*."""
    limits, envelope = session.extensions.limits, delivery.envelope
    domains = [one.domain for one in envelope.recipients.values()]
    misfit = trouble.misfit(
        session.extensions,
        size=delivery.mail_data.size,
        needs_smtputf8=False,
        masked=session.is_masked,
    )
    batch = limits.next_batch(domains, session.domains)
    mailmax = limits.mailmax
    has_room = mailmax is None or session.transactions < mailmax
    return misfit is None and has_room and len(batch) == len(domains)


def give_commands(delivery: Delivery, session: Session) -> Stage | None:
    """Give RSET, MAIL, RCPT and DATA, which are to be sent; return how far it has come.

    To a host that takes one command at a time, DATA is given later. None where one of
    them cannot be given: the ordinary way says what that means.
    """
    envelope, mail_data = delivery.envelope, delivery.mail_data
    smtp = session.dialogue.smtp
    session.begin_again()
    session.domains.update(one.domain for one in envelope.recipients.values())
    try:
        smtp.mail(
            envelope.sender,
            size=mail_data.size,
            body8bit=mail_data.has_8bit,
            dsn=envelope.dsn,
        )
        for number, mailbox in envelope.recipients.items():
            smtp.rcpt(mailbox.wire, dsn=envelope.recipients_dsn.get(number))
        if not smtp.pipelining:
            return Stage.ASKED
        smtp.data()
    except LocalProtocolError:
        return None
    return Stage.ASKED_ALL
