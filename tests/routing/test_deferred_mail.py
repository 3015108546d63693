"""`mxpolicy.routing.deferred_mail`: which mail waits for which host."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mxpolicy.options import MemoryOptions
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from mxpolicy.routing.deferred_mail import (
    FIRST_LOOK,
    HOSTS_EACH,
    LOOK_AGAIN,
    DeferredMail,
    Next,
    Waiting,
)
from mxpolicy.routing.host_record import NOTHING, HostRecord

NOW = 1_800_000_000.0
OPTIONS = MemoryOptions()
ONE, OTHER = (Candidate(f"mx{n}.example.com", f"192.0.2.{n}", 25) for n in (1, 2))


def failed(since: float = NOW, pause: float = 60.0) -> HostRecord:
    return HostRecord(Verdict.FILTERED, Phase.CONNECT, True, since, pause)


def to(queue_id: str, recipient: str = "bob@example.com") -> Waiting:
    return Waiting(queue_id, recipient)


def waiting(*queue_ids: str) -> DeferredMail:
    """Return mail that waits for ONE, whose failure has been seen."""
    mail = DeferredMail()
    for queue_id in queue_ids:
        mail.deferred(to(queue_id), [ONE], NOW)
    assert mail.look(ONE, failed(), NOW, OPTIONS) is Next.WAIT
    return mail


@pytest.mark.parametrize(
    ("record", "age", "follows"),
    [
        pytest.param(failed(), 0.0, Next.WAIT, id="in its pause"),
        pytest.param(failed(), 59.9, Next.WAIT, id="at its end"),
        pytest.param(failed(), 60.0, Next.PROBE, id="due"),
        pytest.param(failed(), 1e6, Next.PROBE, id="older than the memory looks"),
        pytest.param(failed(NOW + 1e6), 0.0, Next.PROBE, id="clock set back"),
        pytest.param(NOTHING, 0.0, Next.READY, id="verdict is gone"),
        pytest.param(HostRecord(last_ready=NOW), 0.0, Next.READY, id="was ready"),
    ],
)
def test_what_follows_from_a_look(
    record: HostRecord, age: float, follows: Next
) -> None:
    assert waiting("A").look(ONE, record, NOW + age, OPTIONS) is follows


def test_host_whose_failure_is_not_remembered_keeps_no_mail() -> None:
    # Else its mail would be released again as soon as it is deferred again, for ever.
    mail = DeferredMail()
    mail.deferred(to("A"), [ONE], NOW)
    mail.deferred(to("B"), [ONE, OTHER], NOW)
    assert mail.look(ONE, NOTHING, NOW + FIRST_LOOK, OPTIONS) is Next.FORGET
    assert list(mail.release(ONE)) == []
    assert len(mail) == 1
    assert mail.look(OTHER, failed(), NOW, OPTIONS) is Next.WAIT
    assert list(mail.release(OTHER)) == ["B"]


def test_verdict_is_looked_for_when_it_has_been_written() -> None:
    mail = DeferredMail()
    assert mail.next_look(NOW) is None
    mail.deferred(to("A"), [ONE], NOW)
    assert mail.next_look(NOW) == NOW + FIRST_LOOK
    assert mail.due(NOW) == []
    assert mail.due(NOW + FIRST_LOOK) == [ONE]


def test_host_is_looked_at_when_its_pause_is_over() -> None:
    mail = waiting("A")
    now = NOW
    looks = []
    while now < NOW + 100:
        at = mail.next_look(now)
        assert at is not None
        assert at > now, "it would look without end"
        now = at
        for one in mail.due(now):
            looks.append(now - NOW)
            mail.look(one, failed(), now, OPTIONS)
    assert looks[0] == 60.0
    assert {later - sooner for sooner, later in pairwise(looks)} == {LOOK_AGAIN}


def test_ready_host_is_looked_at_soon() -> None:
    mail = waiting("A")
    mail.ready(OTHER, NOW)
    mail.ready(ONE, NOW + 10)
    assert mail.due(NOW + 10 + FIRST_LOOK) == [ONE]


def test_mail_is_released_once_in_the_order_of_its_deferral() -> None:
    mail = waiting("B", "A", "C")
    mail.settled(to("A"))
    mail.settled(to("never seen"))
    assert list(mail.release(ONE)) == ["B", "C"]
    assert list(mail.release(ONE)) == []
    assert mail.next_look(NOW) is None


def test_message_of_several_hosts_is_released_by_the_first_that_is_back() -> None:
    mail = DeferredMail()
    mail.deferred(to("A"), [ONE, OTHER], NOW)
    assert list(mail.release(OTHER)) == ["A"]
    assert len(mail) == 0
    assert mail.look(ONE, failed(), NOW, OPTIONS) is Next.FORGET


def test_two_names_of_one_address_are_one_host() -> None:
    mail = waiting("A")
    mail.deferred(to("B"), [ONE._replace(host="alias.example.net")], NOW)
    assert list(mail.release(ONE)) == ["A", "B"]


def test_deferred_again_it_waits_for_its_new_hosts_only() -> None:
    mail = waiting("A")
    mail.deferred(to("A"), [OTHER], NOW)
    assert list(mail.release(ONE)) == []
    assert list(mail.release(OTHER)) == ["A"]


def test_what_is_kept_is_bounded() -> None:
    mail = DeferredMail(recipients=3)
    many = [ONE._replace(address=f"198.51.100.{n}") for n in range(100)]
    for number in range(10):
        mail.deferred(to(str(number)), many, NOW)
    assert len(mail) == 3
    assert len(mail.due(NOW + FIRST_LOOK)) == HOSTS_EACH
    assert list(mail.release(many[0])) == ["7", "8", "9"]


def test_hosts_of_what_is_kept_are_bounded() -> None:
    mail = DeferredMail(hosts=10)
    for number in range(10):
        many = [ONE._replace(address=f"198.51.{number}.{n}") for n in range(4)]
        mail.deferred(to(str(number)), many, NOW)
    assert len(mail) == 2
    assert len(mail.due(NOW + FIRST_LOOK)) == 8


def test_recipient_that_has_it_takes_nothing_from_the_others_of_its_message() -> None:
    mail = DeferredMail()
    for recipient in ("bob@example.com", "eve@example.com", "kim@example.com"):
        mail.deferred(to("A", recipient), [ONE], NOW)
    mail.settled(to("A"))
    eve, kim = to("A", "eve@example.com"), to("A", "kim@example.com")
    assert mail.release(ONE) == {"A": [eve, kim]}, "one message, told of once"
    assert len(mail) == 0


def test_looks_come_back_with_a_clock_that_is_set_back() -> None:
    mail = waiting("A")
    assert mail.due(NOW + 5.0) == []
    day = 86_400.0
    at = mail.next_look(NOW + 5.0)
    assert at == NOW + 60.0
    assert mail.next_look(NOW + 5.0 - day) == at - day
    now = NOW + 5.0 - 2 * day  # and once more
    mail.deferred(to("B"), [OTHER], now)
    assert mail.due(now + FIRST_LOOK) == [OTHER]
    assert mail.due(at - 2 * day) == [ONE, OTHER]
