"""From a candidate to a session that is ready: dial, open, and what to try next.

A second connection gets around two obstacles. Where TLS fails, it is in clear, at level
``may``. Where the path swallows large packets, it has small segments. For the race it is
one candidate, whatever is tried here.

===================  ==============================  ==============================
what was tried       what failed                     what is tried next
===================  ==============================  ==============================
as asked             the ClientHello is unanswered   as asked, with small segments
as asked             TLS in another way              as asked, in clear
with small segments  anything                        as asked, in clear
anything             anything else                   nothing
===================  ==============================  ==============================

Small segments are tried where the ones asked for are ordinary, and clear text where
the TLS level is ``may``. `next_approach` is this table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.session import Session
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.net.dial import ConnectError
from mxpolicy.net.stream import Stream
from mxpolicy.routing.candidate import Candidate, Finding, Phase
from mxpolicy.routing.tls_requirement import Level

__all__ = ["Dial", "Egress", "connect", "next_approach"]


class Dial(Protocol):
    """How a candidate is connected to: `mxpolicy.net.dial.dial`."""

    async def __call__(
        self, candidate: Candidate, /, *, mss: int | None = None
    ) -> Stream:
        """Return the connected stream, or raise what `mxpolicy.net.dial.dial` does."""
        ...


class Egress(NamedTuple):
    """One way out, and our name there.

    Attributes:
        dial: Connects to a candidate.
        helo: Our name for EHLO.
        is_myself: Whether a name given in an EHLO reply is ours (a loop).
        clock: Seconds, monotonic.
    """

    dial: Dial
    helo: str
    is_myself: Callable[[str], bool]
    clock: Callable[[], float]


async def connect(
    egress: Egress, candidate: Candidate, asked: Approach, listener: Listener
) -> Session:
    """Connect to *candidate* and go on to ready, by *asked* or the approaches after it.

    The first failure is the one that is raised, with the later ones as remarks in its
    text. A host may refuse the second connection because of the first. The first may have
    failed because of a name, and any domain can give one to a host. So a later failure
    must not be remembered for all mail.

    Args:
        egress: The one of *candidate*.
        listener: Is told of each phase, again on a second connection.

    Raises:
        SessionFailed: The host does not get us to ready.
        LocalTrouble: We do not get there.
    """
    approach, first = asked, None
    while True:
        try:
            return await _connect_once(egress, candidate, approach, listener)
        except SessionFailed as failed:
            if first is None:
                first = failed
            else:
                first.add_remark(f"then {_words(approach)}: {failed}")
            following = next_approach(asked, approach, failed)
            if following is None:
                raise first from None
            approach = following


async def _connect_once(
    egress: Egress,
    candidate: Candidate,
    approach: Approach,
    listener: Listener,
) -> Session:
    began = egress.clock()
    try:
        stream = await egress.dial(candidate, mss=approach.segment_size)
    except ConnectError as error:
        finding = Finding(
            error.verdict, Phase.CONNECT, egress.clock() - began, text=str(error)
        )
        raise SessionFailed(finding) from error
    try:
        session = Session(
            stream,
            candidate,
            approach,
            listener,
            helo=egress.helo,
            is_myself=egress.is_myself,
            clock=egress.clock,
        )
    except BaseException:
        stream.abort()
        raise
    await session.open()
    return session


def next_approach(
    asked: Approach, tried: Approach, failed: SessionFailed
) -> Approach | None:
    """Return what is tried after *tried*; None when nothing is. See the module's table.

    Args:
        asked: What was tried first.
        failed: How *tried* has failed.
    """
    is_first = tried == asked
    if is_first and asked.is_ordinary and failed.client_hello_is_unanswered:
        return asked.with_small_segments()
    is_tls_broken = not is_first or failed.finding.phase is Phase.TLS
    if is_tls_broken and tried.tls.level is Level.MAY:
        return asked.in_clear()
    return None


def _words(approach: Approach) -> str:
    return "in clear" if approach.had_to_be_in_clear else "with small segments"
