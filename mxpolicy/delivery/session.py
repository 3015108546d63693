"""One SMTP session with one candidate: from a connected stream to *ready*, and its end.

Until *ready* the time is the race's, which ends a slow session by cancelling its task.
Only TLS has a limit of its own, because the same host is tried in clear after it. Mail
goes over a session by `mxpolicy.delivery.transaction`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.body import Body
from mxpolicy.delivery.dialogue import Dialogue, Listener
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.errors import RemoteProtocolError, TLSError
from mxpolicy.net import tls
from mxpolicy.net.stream import Stream
from mxpolicy.protocol.extensions import Extensions
from mxpolicy.protocol.smtp_events import (
    EhloAnswered,
    Greeted,
    HeloAnswered,
    QuitAnswered,
    RsetAnswered,
    StartTlsRefused,
    TlsReady,
)
from mxpolicy.protocol.smtp_states import State
from mxpolicy.reply import Reply, printable
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.reuse import Course
from mxpolicy.routing.tls_requirement import Level

__all__ = ["Session"]

# Seconds from STARTTLS to the EHLO reply under TLS, for a host that answers EHLO at
# once: the full time of a phase in the race. No host needs so long for a ClientHello, but
# some middleboxes swallow one. In small segments its size is no reason for that.
_HANDSHAKE_TIME = 30.0
_SMALL_SEGMENTS_HANDSHAKE_TIME = 10.0


class Session:
    """An SMTP session over *stream*, which it owns from now on.

    Args:
        stream: Connected.
        candidate: What it is connected to.
        approach: How *stream* was dialled, and what is asked of the session.
        listener: Is told what happens.
        helo: Our name for EHLO.
        is_myself: Whether a name given in an EHLO reply is ours (a loop).
        clock: Seconds, monotonic.

    Attributes:
        candidate: As given.
        approach: As given.
        listener: As given; another one may take its place.
        dialogue: Sends and receives.
        body: Sends the mail data over it, and the final dot.
        is_secured: Whether it is under TLS.
        tls: Protocol and cipher, ``TLSv1.3/TLS_AES_256_GCM_SHA384``; empty in clear.
        tls_seconds: How long STARTTLS, handshake and EHLO took; 0 without TLS, and for
            the next user.
        began: When it was connected, on the clock.
        last_used: When its last transaction began, on the clock.
        transactions: How many transactions have begun on it.
        domains: Those of all recipients that were named in it.
        is_reused: Whether an earlier message was sent over it.
        is_old: Whether it has had a transaction before this one, perhaps of the same
            message. It may have ended, or be out of step (`mxpolicy.routing.reuse`).
        course: How its last transaction goes, or went.
    """

    def __init__(
        self,
        stream: Stream,
        candidate: Candidate,
        approach: Approach,
        listener: Listener,
        *,
        helo: str,
        is_myself: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self.candidate = candidate
        self.approach = approach
        self.listener = listener
        self.dialogue = Dialogue(
            stream, helo, clock, lambda reply: self.listener.ignored(reply)
        )
        self.body = Body(self.dialogue, clock)
        self.is_secured = False
        self.tls = ""
        self.tls_seconds = 0.0
        self.began = self.last_used = clock()
        self.transactions = 0
        self.domains: set[str] = set()
        self.is_reused = self.is_old = False
        self.course = Course()
        self._owes_rset = False
        self._clock = clock
        self._is_myself = is_myself

    @property
    def extensions(self) -> Extensions:
        """What the last EHLO reply offered."""
        return self.dialogue.smtp.extensions

    @property
    def is_masked(self) -> bool:
        """Whether a firewall overwrites what the host says."""
        return self.dialogue.smtp.banner_masked or self.extensions.starttls_masked

    @property
    def might_have_tls(self) -> bool:
        """Whether this session is in clear and another one may be under TLS.

        TLS failed, was left out or put off by the host, or is hidden by a firewall.
        """
        reasons = (
            self.approach.had_to_be_in_clear,
            self.extensions.starttls,
            self.is_masked,
        )
        is_possible = not self.is_secured and not self.approach.tls.is_ruled_out
        return is_possible and any(reasons)

    # -- to ready ---------------------------------------------------------

    async def open(self) -> None:
        """Go from the connected stream to *ready*, telling of each phase.

        Raises:
            SessionFailed: The host does not get us there. The stream is closed,
                after any exception.
        """
        try:
            self._enter(Phase.GREETING)
            await self._hear_greeting()
            self._enter(Phase.EHLO)
            hello_seconds = await self._say_hello()
            level = self.approach.tls.level
            is_offered = self.extensions.starttls
            if level is Level.ENCRYPT or (level is Level.MAY and is_offered):
                self._enter(Phase.TLS)
                await self._secure(hello_seconds)
            self._enter(Phase.READY)
        except BaseException as exc:
            if isinstance(exc, SessionFailed) and exc.reply is not None:
                self.quit()  # it speaks SMTP, and may wait for QUIT (RFC 5321 §3.1)
            else:
                self.abort()
            raise

    def _enter(self, phase: Phase) -> None:
        self.dialogue.phase.enter(phase)
        self.listener.entered(phase)

    async def _hear_greeting(self) -> None:
        reply = (await self.dialogue.next(Greeted)).reply
        if reply.is_transient:
            raise self.dialogue.phase.failed(Verdict.GREETING_4XX, reply=reply)
        if reply.is_permanent:
            raise self.dialogue.phase.failed(Verdict.GREETING_5XX, reply=reply)

    async def _say_hello(self) -> float:
        """Give EHLO and check the answer; return how many seconds that took."""
        began = self._clock()
        reply = await self._hello()
        seconds = self._clock() - began
        if not _is_completion(reply):
            raise self.dialogue.phase.failed(Verdict.EHLO_REFUSED, reply=reply)
        # A host that calls itself by our name is this mail system only on port 25. On
        # another port it is a second instance on this machine (as in Postfix).
        name = self.dialogue.smtp.ehlo_name
        if self.candidate.port == 25 and self._is_myself(name):
            raise self.dialogue.phase.failed(Verdict.LOOPS_TO_MYSELF, reply=reply)
        return seconds

    async def _hello(self) -> Reply:
        """Say EHLO, and HELO after any answer but 2yz and 421; return the last answer.

        RFC 5321 §3.2 has HELO for hosts that do not know EHLO. Some of them answer with
        a 4yz or a code of their own, and smtp(8) delivers to them.
        """
        dialogue = self.dialogue
        dialogue.heed_the_end()
        dialogue.smtp.ehlo()
        refusal = (await dialogue.next(EhloAnswered)).reply
        if _is_completion(refusal):
            return refusal
        dialogue.heed_the_end()
        dialogue.smtp.helo()
        try:
            return (await dialogue.next(HeloAnswered)).reply
        except SessionFailed as failed:
            if failed.finding.verdict is not Verdict.CLOSED:
                raise
            return refusal  # it hung up: its answer to EHLO stands

    async def _secure(self, hello_seconds: float) -> None:
        """Give STARTTLS (RFC 3207); if the host puts it off, go on in clear, if allowed."""
        if not self.extensions.starttls:
            raise self.dialogue.phase.failed(Verdict.STARTTLS_MISSING)
        began = self._clock()
        is_small = self.approach.segment_size is not None
        patience = _SMALL_SEGMENTS_HANDSHAKE_TIME if is_small else _HANDSHAKE_TIME
        # A host that is slow to answer EHLO is as slow at STARTTLS and EHLO again.
        patience += 2 * hello_seconds
        try:
            async with asyncio.timeout(patience):
                if not await self._start_tls():
                    return
                reply = await self._hello()
        except TimeoutError:
            failed = self.dialogue.phase.out_of_patience(patience, Verdict.TLS_SILENT)
            is_out = self.dialogue.smtp.state is not State.STARTTLS
            failed.client_hello_is_unanswered = is_out
            raise failed from None
        except (TLSError, RemoteProtocolError) as exc:
            text = printable(str(exc))
            raise self.dialogue.phase.failed(Verdict.TLS_FAILED, text) from exc
        if not _is_completion(reply):
            raise self.dialogue.phase.failed(Verdict.TLS_FAILED, reply=reply)
        self.is_secured = True
        self.tls = self.dialogue.stream.tls_words()
        self.tls_seconds = self._clock() - began

    async def _start_tls(self) -> bool:
        """Do the handshake; return False when the host refuses it after all."""
        dialogue = self.dialogue
        dialogue.heed_the_end()
        dialogue.smtp.starttls()
        event: TlsReady | StartTlsRefused
        event = await dialogue.next(TlsReady, StartTlsRefused)
        if isinstance(event, StartTlsRefused):
            if self.approach.tls.level is Level.ENCRYPT:
                raise dialogue.phase.failed(Verdict.STARTTLS_REFUSED, reply=event.reply)
            return False
        await dialogue.stream.start_tls(tls.opportunistic(), self.candidate.host)
        dialogue.smtp.tls_established()
        return True

    # -- between transactions ---------------------------------------------

    async def make_ready(self, timeout: float) -> None:  # noqa: ASYNC109
        """Make it ready for the next MAIL, by RSET where a transaction is still open.

        In an earlier message's session RSET leaves with MAIL; then call `hear_reset`.

        Args:
            timeout: Seconds for the reply to RSET.

        Raises:
            SessionFailed: The host takes no more mail over it.
        """
        self.dialogue.phase.enter(Phase.TRANSACTION)
        self.course = Course()
        self.is_old = self.transactions > 0
        mailmax = self.extensions.limits.mailmax
        if mailmax is not None and self.transactions >= mailmax:
            text = f"takes {self.transactions} messages a session"
            raise self.dialogue.phase.failed(Verdict.UNFIT, text)
        if self.transactions:
            await self._reset(timeout)
        self.transactions += 1
        self.last_used = self._clock()

    async def _reset(self, timeout: float) -> None:  # noqa: ASYNC109
        dialogue = self.dialogue
        dialogue.heed_the_end()
        if dialogue.smtp.state is State.CLOSED:
            raise dialogue.phase.failed(
                Verdict.CLOSED, "nothing more after its refusal"
            )
        if self._owes_rset:
            dialogue.smtp.rset()
        elif dialogue.smtp.state is not State.READY:
            dialogue.smtp.rset()
            await self._hear_reset(timeout)

    async def hear_reset(self, timeout: float) -> None:  # noqa: ASYNC109
        """Hear the answer to the RSET that has left with MAIL, if one has.

        Raises:
            SessionFailed: The host takes no more mail over it.
        """
        if self._owes_rset:
            self._owes_rset = False
            await self._hear_reset(timeout)

    async def _hear_reset(self, timeout: float) -> None:  # noqa: ASYNC109
        reply = (await self.dialogue.next(RsetAnswered, timeout=timeout)).reply
        self.listener.progressed()
        if not reply.is_positive:
            raise self.dialogue.phase.failed(Verdict.CLOSED, reply=reply)

    # -- from one message to the next -------------------------------------

    def lend(self, listener: Listener) -> None:
        """Prepare it for another message; the first command will be RSET.

        A reply that answers no command ends it from now on, until 354.
        """
        self.listener = listener
        self.is_reused = self.is_old = True
        self.tls_seconds = 0.0
        self._owes_rset = True
        self.dialogue.bears_strays = False

    def begin_again(self) -> None:
        """Give RSET, after `lend`, and count the transaction; nothing is waited for.

        MAIL and RCPT may follow at once. `reset_is_heard` is due when RSET was answered.
        """
        self.dialogue.phase.enter(Phase.TRANSACTION)
        self.course = Course()
        self.dialogue.smtp.rset()
        self.transactions += 1
        self.last_used = self._clock()

    def reset_is_heard(self) -> None:
        """RSET was answered well."""
        self._owes_rset = False

    def heard_data_reply(self, code: int) -> None:
        """Take note of the reply to DATA; after 354 a stray one is dropped again."""
        seconds = self._clock() - self.last_used
        self.course = self.course._replace(data=code, seconds=seconds)
        if self.course.is_in_step:
            self.dialogue.bears_strays = True

    async def is_in_step(self, timeout: float) -> bool:  # noqa: ASYNC109
        """End it by QUIT, and return whether the host says 221 in *timeout* seconds.

        Only QUIT is answered so. Then each reply was the answer to its command, and none
        was one too many.
        """
        self.dialogue.smtp.quit()
        try:
            reply = (await self.dialogue.next(QuitAnswered, timeout=timeout)).reply
        except SessionFailed:
            return False
        return reply.code == 221

    # -- the end ----------------------------------------------------------

    def quit(self) -> None:
        """Say QUIT and let go; see `Dialogue.quit`. May be called after the end."""
        self.dialogue.quit()

    def abort(self) -> None:
        """Reset the connection; see `Dialogue.abort`."""
        self.dialogue.abort()


def _is_completion(reply: Reply) -> bool:
    """2yz (RFC 5321 §4.2.1), and not the 3yz that `Reply.is_positive` lets pass too."""
    return 200 <= reply.code < 300
