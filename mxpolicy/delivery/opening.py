"""From a candidate to a session that is ready: dial, open, and the second ways to try.

Two things stand between us and a host that a second connection gets around: TLS that
fails, which at level ``may`` means in clear, and a path that swallows large packets,
which means small segments. The race knows one candidate, whatever is tried here.

And a third one: a firewall that passes the body and drops the bare acknowledgements
for it looks like one that drops the body. To somebody who sends the dot regardless,
the reply comes through. So that, last and with nobody else to ask, is what we do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from functools import partial

from mxpolicy.delivery.context import Context
from mxpolicy.delivery.dialogue import SessionFailed
from mxpolicy.delivery.session import HANDSHAKE_TIME, Session
from mxpolicy.errors import ConnectError
from mxpolicy.options import TlsLevel
from mxpolicy.reply import Reply, printable
from mxpolicy.routing.candidate import Candidate, Finding, Phase

__all__ = ["SMALL_SEGMENT", "TlsUse", "Way", "open_session"]

# Bytes. What every host must take (RFC 9293 §3.7.1), so every path lets it pass.
SMALL_SEGMENT = 536

# Seconds for the second handshake: the first one had `session.HANDSHAKE_TIME`.
_SECOND_HANDSHAKE_TIME = 10.0


class Way(Enum):
    """How a connection is made, and what is asked of it before the final dot."""

    ORDINARY = "ordinary"
    SMALL_SEGMENTS = "small segments"
    DOT_UNSEEN = "the dot is sent before the body is acknowledged"


class TlsUse(Enum):
    """What STARTTLS is for, at level ``may``."""

    LEFT_OUT = "left out"  # it is known to be broken
    TRIED = "tried"  # in clear where it fails
    ONLY = "only"  # the host wants it: not in clear again


async def open_session(
    context: Context,
    candidate: Candidate,
    on_phase: Callable[[Phase], None],
    way: Way = Way.ORDINARY,
    tls: TlsUse = TlsUse.TRIED,
    *,
    on_stray: Callable[[Reply], None] = lambda reply: None,
) -> Session:
    """Connect to *candidate* and go on to ready.

    A ClientHello that is not answered may be one that was too large for the path, or
    the answer was (both grow with every new kind of key): then once more with small
    segments. TLS that fails otherwise, or again, is left out if it may be.

    Args:
        on_phase: Called for each phase, again on a second connection.
        way: Of a second or third connection to the same host, or of the first where
            the ordinary one is known to fail.
        tls: What STARTTLS is for; it is left out where the operator says so.
        on_stray: See `Session`.

    Raises:
        SessionFailed: The host does not get us there.
        LocalTrouble: We do not get there.
    """
    open_once = partial(_open_once, context, candidate, on_phase, on_stray)
    if context.options.tls.default is TlsLevel.NONE:
        tls = TlsUse.LEFT_OUT
    try:
        return await _open_in_two_ways(open_once, way, tls)
    except SessionFailed as failed:
        if tls is TlsUse.ONLY or failed.finding.phase is not Phase.TLS:
            raise
        of_tls = failed
    try:
        # As asked for: that small segments did not help TLS says nothing for them.
        session = await open_once(way, TlsUse.LEFT_OUT)
    except SessionFailed as failed:
        raise _with_remark(of_tls, f"then in clear: {failed}") from failed
    session.had_to_be_in_clear = True
    return session


async def _open_in_two_ways(
    open_once: Callable[[Way, TlsUse], Awaitable[Session]], way: Way, tls: TlsUse
) -> Session:
    try:
        return await open_once(way, tls)
    except SessionFailed as failed:
        if way is not Way.ORDINARY or not failed.client_hello_was_sent:
            raise
        first = failed
    try:
        return await open_once(Way.SMALL_SEGMENTS, tls)
    except SessionFailed as failed:
        raise _with_remark(first, f"then with small segments: {failed}") from failed


def _with_remark(failed: SessionFailed, remark: str) -> SessionFailed:
    """Return *failed*, a failure in TLS, with what became of the next connection.

    TLS stays what has failed: a host may refuse the second connection for the sake of
    the first, and the first may have failed for the sake of a name that anybody can
    give a host. That is not to be kept for all mail.
    """
    text = "; ".join(filter(None, (failed.finding.text, remark)))
    failed.finding = failed.finding._replace(text=printable(text))
    return failed


async def _open_once(
    context: Context,
    candidate: Candidate,
    on_phase: Callable[[Phase], None],
    on_stray: Callable[[Reply], None],
    way: Way,
    tls: TlsUse,
) -> Session:
    began = context.clock()
    egress = context.egresses[candidate.egress]
    small = way is Way.SMALL_SEGMENTS
    try:
        stream = await egress.dial(candidate, mss=SMALL_SEGMENT if small else None)
    except ConnectError as error:
        waited = context.clock() - began
        raise SessionFailed(
            Finding(error.verdict, Phase.CONNECT, waited, text=str(error))
        ) from error
    try:
        session = Session(
            stream,
            candidate,
            helo=egress.helo,
            is_myself=context.identity.has_name,
            use_tls=tls is not TlsUse.LEFT_OUT,
            needs_tls=tls is TlsUse.ONLY,
            clock=context.clock,
            has_small_segments=small,
            sends_dot_unseen=way is Way.DOT_UNSEEN,
            handshake_time=_SECOND_HANDSHAKE_TIME if small else HANDSHAKE_TIME,
            on_stray=on_stray,
        )
    except BaseException:
        stream.abort()
        raise
    await session.open(on_phase)
    return session
