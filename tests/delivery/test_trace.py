from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.delivery import events
from mxpolicy.delivery.trace import Trace
from mxpolicy.routing.candidate import Candidate

if TYPE_CHECKING:
    from mxpolicy.delivery.events import Event

MX = Candidate("mx.example.com", "192.0.2.1", 25)


class Clock:
    """Seconds that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_event_carries_its_message_and_the_seconds_since_it_was_taken_in_hand() -> None:
    clock, told = Clock(), list[object]()
    trace = Trace("4bXyz1", clock, told.append)
    clock.now += 1.5
    trace.tell(events.CandidateStarted, MX)
    trace.tell(events.StrayReply, MX, text="250 ok")
    assert told == [
        events.CandidateStarted(1.5, MX, "4bXyz1"),
        events.StrayReply(1.5, MX, "250 ok", "4bXyz1"),
    ]


def test_learners_are_told_first_and_in_the_same_time() -> None:
    clock, told = Clock(), list[str]()
    trace = Trace("Q", clock, lambda event: told.append(f"observer {event.at}"))
    clock.now += 2
    learning = trace.with_learners(
        lambda event: told.append(f"first {event.at}"),
        lambda event: told.append(f"second {event.at}"),
    )
    learning.tell(events.CandidateStarted, MX)
    assert told == ["first 2.0", "second 2.0", "observer 2.0"]
    trace.tell(events.CandidateStarted, MX)
    assert told[3:] == ["observer 2.0"]


def test_learner_that_raises_is_our_trouble_and_keeps_no_other_from_learning() -> None:
    told: list[Event] = []
    learned: list[Event] = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError("a bug")

    trace = Trace("Q", Clock(), told.append).with_learners(broken, learned.append)
    trace.tell(events.CandidateStarted, MX)
    assert [type(one) for one in learned] == [events.CandidateStarted]
    trouble, started = told
    assert isinstance(trouble, events.Trouble)
    assert trouble.queue_id == "Q"
    assert "ZeroDivisionError: a bug" in trouble.text
    assert isinstance(started, events.CandidateStarted)


def test_observer_that_raises_does_no_harm() -> None:
    seen: list[Event] = []

    def broken(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("a full disk")

    trace = Trace("Q", Clock(), broken)
    trace.tell(events.CandidateStarted, MX)
    trace.trouble(ValueError("x"))
    assert [type(one) for one in seen] == [events.CandidateStarted, events.Trouble]


def test_trouble_that_cannot_be_put_into_words_does_no_harm() -> None:
    class Unspeakable(Exception):
        is_mute = True

        @property
        def __cause__(self) -> BaseException | None:  # type: ignore[override]
            if self.is_mute:
                raise MemoryError
            return None

    told: list[Event] = []

    def broken(event: Event) -> None:
        raise Unspeakable

    trace = Trace("Q", Clock(), told.append).with_learners(broken)
    try:
        trace.tell(events.CandidateStarted, MX)
    finally:
        Unspeakable.is_mute = False  # pytest has to speak of it
    assert [type(one) for one in told] == [events.CandidateStarted]


def test_what_neither_observer_nor_learner_heeds_is_not_made() -> None:
    told: list[Event] = []
    learned: list[Event] = []
    made: list[float] = []

    def kind(at: float, queue_id: str = "") -> Event:
        made.append(at)
        return events.Notice(at, "", queue_id)

    trace = Trace("Q", Clock(), told.append, heeded={events.StrayReply})
    trace.tell(kind)
    trace.tell(events.CandidateStarted, MX)
    trace.tell(events.StrayReply, MX, "250 ok")
    assert not made
    learning = trace.with_learners(learned.append)
    learning.tell(events.CandidateStarted, MX)
    learning.tell(events.StrayReply, MX, "250 ok")
    started, stray = learned
    assert isinstance(started, events.CandidateStarted)
    assert told == [stray, stray]
    trace.trouble(ValueError("x"))
    assert isinstance(told[-1], events.Trouble)
