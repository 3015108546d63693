"""What one delivery knows of one entry of the journal. No I/O, no clock.

Only this module changes it, and one table says how.

Theory of operation
    What is known of an entry (`Known`), in words: an Enum would cost each process for
    one message a million instructions.

    nothing   no entry is supposed to be there
    left      read: an earlier delivery has left it, and we may replace it
    ours      written by us, perhaps: the store may not have answered
    unsent    the same, for a dot that was not sent
    settled   read: the recipient has an outcome, which is not ours

    What may happen to it (`Input`):

    left      read: there is one that we may replace
    outcome   read: the recipient has one
    write     we begin to write
    record    the same, of a dot that is sent only once it is written
    recorded  that is written
    dropped   deleted, if it was ours

    A claim in the memory of this process (`mxpolicy.delivery.owner.Calls`) is no entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from mxpolicy.delivery.journal import NO_PAST, Entry, Past, meaning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mxpolicy.delivery.owner import Owner
    from mxpolicy.outcome import Outcome

    # What `journal.meaning` returns.
    Meaning = Past | Outcome | None

__all__ = ["TRANSITIONS", "Input", "Known", "KnownEntry"]


Known = Literal["nothing", "left", "ours", "unsent", "settled"]
Input = Literal["left", "outcome", "write", "record", "recorded", "dropped"]

# known -> input -> known. Any other input is a bug of ours.
TRANSITIONS: Mapping[Known, Mapping[Input, Known]] = {
    "nothing": {
        "left": "left",
        "outcome": "settled",
        "write": "ours",
        "record": "unsent",
    },
    "left": {
        "left": "left",
        "outcome": "settled",
        "write": "ours",
        "dropped": "nothing",
    },
    "ours": {
        "left": "ours",
        "outcome": "settled",
        "write": "ours",
        "recorded": "ours",
        "dropped": "ours",  # what we have written may still come
    },
    "unsent": {
        "left": "unsent",
        "outcome": "settled",
        "write": "ours",
        "recorded": "ours",
        "dropped": "unsent",
    },
    "settled": dict.fromkeys(get_args(Input), "settled"),
}


class KnownEntry:
    """What *me*, a delivery, knows of an entry.

    Attributes:
        known: How far that goes.
        value: The bytes that the store has, as far as we know; None are none.
        dot_at: When we noted a dot last, UTC seconds.
    """

    __slots__ = ("_me", "dot_at", "known", "value")

    def __init__(self, me: Owner) -> None:
        self._me = me
        self.known: Known = "nothing"
        self.value: bytes | None = None
        self.dot_at = 0.0

    def take(self, what: Input) -> None:
        """Go on to what is known after *what*; `value` stays."""
        self.known = TRANSITIONS[self.known][what]

    def read(
        self, value: bytes | None, now: float, lives: Callable[[Owner], bool]
    ) -> Meaning:
        """Return what *value* means to us, which the store has.

        Args:
            value: None is no entry.
            now: UTC seconds.
            lives: Whether the owner of an entry may be at work.
        """
        entry = Entry.decode(value) if value is not None else None
        if entry is None:
            return NO_PAST
        if entry.owner == self._me and self.known == "unsent":
            return NO_PAST
        found = meaning(entry, self._me, now, alive=lives(entry.owner))
        if found is not None and not isinstance(found, Past):
            self.value = value
            self.take("outcome")
        return found

    def left(self, value: bytes) -> None:
        """What the store has is *value*, and ours to replace."""
        self.value = value
        self.take("left")

    def is_ours(self, value: bytes | None) -> bool:
        """Return whether *value*, which the store has, is our entry, or none.

        It may be one that we wrote and that came late.
        """
        if value is None or value == self.value:
            return True
        entry = Entry.decode(value)
        return entry is None or entry.owner == self._me
