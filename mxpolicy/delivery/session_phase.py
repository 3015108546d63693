"""How far a session has come, and what a failure in that phase is called.

A session that cannot go on raises `SessionFailed`. `SessionPhase` makes them, by the phase
and by what is awaited. `mxpolicy.delivery.trouble` says what they mean for the mail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.errors import MxPolicyError
from mxpolicy.net.ack_watch import StreamStalled
from mxpolicy.net.channel import StreamClosed
from mxpolicy.protocol.smtp_events import Closing
from mxpolicy.protocol.smtp_states import State, facts
from mxpolicy.reply import printable
from mxpolicy.routing.candidate import Awaited, Finding, Phase, Scope, Verdict, Wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.errors import RemoteProtocolError
    from mxpolicy.net.ack_watch import StreamSilent
    from mxpolicy.protocol.smtp_client import SmtpClient
    from mxpolicy.protocol.smtp_events import Event
    from mxpolicy.reply import Reply

__all__ = ["AWAITED", "SessionFailed", "SessionPhase"]

AWAITED: dict[State, Awaited] = {
    State.GREETING: Awaited.GREETING,
    State.EHLO: Awaited.EHLO,
    State.HELO: Awaited.EHLO,
    State.STARTTLS: Awaited.TLS,
    State.TLS_HANDSHAKE: Awaited.TLS,
    State.READY: Awaited.MAIL,
    State.RSET: Awaited.MAIL,
    State.MAIL: Awaited.MAIL,
    State.RCPT: Awaited.RCPT,
    State.DATA: Awaited.DATA,
    State.BODY: Awaited.BODY,
    State.DOT: Awaited.BODY,
    State.QUIT: Awaited.MAIL,
    State.CLOSED: Awaited.BODY,
}
"""What we wait for in each state.

A transaction after RSET begins with MAIL. While a dot has not left, only the body is
awaited.
"""

# The verdict when the host says goodbye, or speaks no SMTP, in a phase before *ready*.
_GOODBYE = {
    Phase.GREETING: Verdict.GREETING_4XX,
    Phase.EHLO: Verdict.EHLO_REFUSED,
    Phase.TLS: Verdict.STARTTLS_REFUSED,
}
_NONSENSE = {
    Phase.GREETING: Verdict.NOT_SMTP,
    Phase.TLS: Verdict.TLS_FAILED,  # a reply in clear that must not be believed
}


class SessionFailed(MxPolicyError):
    """The session cannot be used any more.

    Attributes:
        finding: Verdict, phase, and how long that phase had lasted.
        reply: What the host said, None when it said nothing.
        client_hello_is_unanswered: It failed in waiting for the answer to a ClientHello
            (RFC 8446 §4.1.2), the first packet of a session that may be large. The
            answer may be large, too.
    """

    def __init__(self, finding: Finding, reply: Reply | None = None) -> None:
        super().__init__(finding, reply)
        self.finding = finding
        self.reply = reply
        self.client_hello_is_unanswered = False

    def add_remark(self, remark: str) -> None:
        """Append *remark* to the text."""
        text = "; ".join(filter(None, (self.finding.text, remark)))
        self.finding = self.finding._replace(text=printable(text))

    def __str__(self) -> str:
        return f"{self.finding.verdict.value} {self.finding.text}".rstrip()


class SessionPhase:
    """The phase of one session, from its greeting to its end.

    Args:
        smtp: The session's protocol: its state says what is awaited.
        clock: Seconds, monotonic.

    Attributes:
        now: The phase.
    """

    def __init__(self, smtp: SmtpClient, clock: Callable[[], float]) -> None:
        self._smtp = smtp
        self._clock = clock
        self.now = Phase.GREETING
        self._began = clock()

    def enter(self, phase: Phase) -> None:
        """Begin *phase*: any failure from now on is a failure in it."""
        self.now, self._began = phase, self._clock()

    def seconds(self) -> float:
        """Return how long it has lasted."""
        return self._clock() - self._began

    def doing(self) -> str:
        """Return what we are doing, in words for the log."""
        # The rest says what that means for the message; `trouble` has its own words.
        return facts(self._smtp.state).log_words.partition(";")[0]

    # -- what has failed --------------------------------------------------

    def failed(
        self, verdict: Verdict, text: str = "", *, reply: Reply | None = None
    ) -> SessionFailed:
        """Make the exception for a failure now."""
        finding = Finding(
            verdict,
            self.now,
            self.seconds(),
            Scope.HOST,
            text=reply.text if reply else text,
            is_transient=reply is not None and reply.is_transient,
        )
        return SessionFailed(finding, reply)

    def out_of_patience(
        self, seconds: float, verdict: Verdict = Verdict.SILENT, text: str = ""
    ) -> SessionFailed:
        """Make the exception for a host that was waited for *seconds* in vain."""
        failed = self.failed(verdict, text or self.doing())
        wait = Wait(AWAITED[self._smtp.state], seconds)
        failed.finding = failed.finding._replace(wait=wait)
        return failed

    def unheard(self, error: StreamSilent) -> SessionFailed:
        """Make the exception for data that the host does not take."""
        stalled = isinstance(error, StreamStalled)
        verdict = Verdict.STALLED if stalled else Verdict.SILENT
        return self.out_of_patience(error.seconds, verdict, str(error))

    def broken(self, error: StreamClosed | RemoteProtocolError) -> SessionFailed:
        """Make the exception for a session that the host has closed or broken."""
        if not isinstance(error, StreamClosed):
            verdict = _NONSENSE.get(self.now, Verdict.CLOSED)
            return self.failed(verdict, printable(str(error)))
        if self.now is Phase.GREETING and (said := self._smtp.skipped):
            return self.failed(Verdict.NOT_SMTP, f"not an SMTP reply: {said!r}")
        is_tls = self.now is Phase.TLS
        verdict = Verdict.TLS_FAILED if is_tls else Verdict.CLOSED
        return self.failed(verdict, str(error))

    def unexpected(self, event: Event) -> SessionFailed:
        """Make the exception for an event that answers no command: a goodbye."""
        assert isinstance(event, Closing), f"{event!r} is no answer"
        reply = event.reply
        usual = Verdict.TRANSIENT if reply.is_transient else Verdict.CLOSED
        return self.failed(_GOODBYE.get(self.now, usual), reply=reply)
