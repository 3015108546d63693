"""What a failure is called in each phase: the whole of `SessionPhase`'s tables."""

from __future__ import annotations

import pytest

from mxpolicy.delivery.session_phase import AWAITED, SessionFailed, SessionPhase
from mxpolicy.errors import RemoteProtocolError
from mxpolicy.net.ack_watch import StreamSilent, StreamStalled
from mxpolicy.net.channel import StreamClosed
from mxpolicy.protocol.smtp_client import SmtpClient
from mxpolicy.protocol.smtp_events import Closing
from mxpolicy.protocol.smtp_states import State
from mxpolicy.reply import Reply
from mxpolicy.routing.candidate import Awaited, Phase, Scope, Verdict

# How a session ends in each phase: by a closed connection, by bytes that are no SMTP, by
# a goodbye of 421, and by one of 554.
ENDS = {
    Phase.CONNECT: "closed closed transient closed",
    Phase.GREETING: "closed not_smtp greeting_4xx greeting_4xx",
    Phase.EHLO: "closed closed ehlo_refused ehlo_refused",
    Phase.TLS: "tls_failed tls_failed starttls_refused starttls_refused",
    Phase.READY: "closed closed transient closed",
    Phase.TRANSACTION: "closed closed transient closed",
    Phase.DOT: "closed closed transient closed",
}


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def session_phase(phase: Phase, clock: Clock) -> SessionPhase:
    """Return a session's, five seconds after it entered *phase*."""
    made = SessionPhase(SmtpClient("us.example"), clock)
    clock.now += 100.0
    made.enter(phase)
    clock.now += 5.0
    return made


@pytest.mark.parametrize("phase", Phase)
def test_failure_has_its_name_by_the_phase(phase: Phase) -> None:
    made = session_phase(phase, Clock())
    ends = [
        made.broken(StreamClosed("reset")),
        made.broken(RemoteProtocolError("\x1b?")),
        made.unexpected(Closing(Reply(421, ("4.3.2 bye",)), None)),
        made.unexpected(Closing(Reply(554, ("5.3.2 no",)), None)),
    ]
    words = " ".join(one.finding.verdict.value for one in ends)
    assert words == ENDS[phase]
    for one in ends:
        assert one.finding.phase is phase
        assert one.finding.waited == 5.0
        assert one.finding.scope is Scope.HOST
        assert one.finding.text.isprintable()
    assert [one.finding.is_transient for one in ends] == [False, False, True, False]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (StreamSilent(7.0, 9), Verdict.SILENT),
        (StreamStalled(7.0, 9), Verdict.STALLED),
    ],
)
@pytest.mark.parametrize("state", State)
def test_vain_wait_says_what_was_awaited(
    state: State, error: StreamSilent, verdict: Verdict
) -> None:
    made = session_phase(Phase.TRANSACTION, Clock())
    made._smtp.state = state
    finding = made.unheard(error).finding
    assert finding.verdict is verdict
    assert finding.wait == (AWAITED[state], 7.0)


def test_bytes_in_place_of_a_greeting_are_named_where_the_host_closes() -> None:
    made = session_phase(Phase.GREETING, Clock())
    made._smtp.receive_data(b"login:\r\n")
    failed = made.broken(StreamClosed("closed"))
    assert failed.finding.verdict is Verdict.NOT_SMTP
    assert "login:" in failed.finding.text


def test_wait_for_a_greeting_is_one() -> None:
    made = SessionPhase(SmtpClient("us.example"), Clock())
    finding = made.out_of_patience(300.0).finding
    assert finding.phase is Phase.GREETING
    assert finding.wait == (Awaited.GREETING, 300.0)


def test_remark_is_added_in_one_line() -> None:
    failed = SessionFailed(
        session_phase(Phase.TLS, Clock()).failed(Verdict.TLS_FAILED).finding
    )
    failed.add_remark("then\nin clear")
    failed.add_remark("again")
    assert str(failed) == "tls_failed then?in clear; again"
