"""What works on a message: a process, and a delivery of it.

Rows of the store name their `Owner`: a claim of the journal, a place that is taken. A row
counts only while its owner works, and each reader decides that by itself. The owner's
process may have been killed, or could not delete the row when it had finished.

=====================  =======================================================
owner                  it works
=====================  =======================================================
of this process        while its delivery is under way (`Calls`)
of another process     while that process lives (`is_alive`)
of another machine or  as long as the row says: a claim ends some minutes after
container              its delivery's deadline
=====================  =======================================================

BUGS: A process that lives for weeks may leave a row that it could not delete. Other
processes of the machine see only that it lives. To them the row counts as long as it says.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.processes import look_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["NO_OWNER", "Calls", "Owner", "is_alive", "is_own_process", "myself"]

_MACHINE_ID = "/etc/machine-id"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Owner(NamedTuple):
    """One delivery of one process.

    Attributes:
        machine: The machine's id (machine-id(5)), empty where there is none.
        boot: The kernel's boot id, empty where there is none.
        namespace: That of its process ids: a number means nothing in another.
        pid: Process id.
        started: When it started, in clock ticks since boot (proc(5)).
        call: Tells apart the deliveries of one process.
    """

    machine: str
    boot: str
    namespace: str
    pid: int
    started: int
    call: str

    @classmethod
    def parse(cls, words: Sequence[str]) -> Owner:
        """Return the owner of which *words* are all attributes as text.

        Raises:
            ValueError: They are something else.
        """
        machine, boot, namespace, pid, started, call = words
        return cls(machine, boot, namespace, int(pid), int(started), call)

    @property
    def process(self) -> Owner:
        """The process, whichever delivery it was."""
        return self._replace(call="")


# The owner of an entry that no process works on any more.
NO_OWNER = Owner("", "", "", 0, 0, "")
_NO_CLAIM = NO_OWNER, 0.0


def myself() -> Owner:
    """Return this process, for one delivery."""
    return _process(os.getpid())._replace(call=os.urandom(6).hex())


def is_own_process(owner: Owner) -> bool:
    """Return whether *owner* is, or was, a delivery of this process."""
    return owner.process == _process(os.getpid())


def is_alive(owner: Owner) -> bool:
    """Return whether the process may still be at work; when in doubt, it is.

    No process outlives a reboot of this machine. A process of another machine that
    shares the store, or of another namespace of process ids (a container), cannot be
    looked up. It counts as alive until its claim ends.
    """
    machine, boot, namespace = _own_machine()
    if owner.boot != boot:
        return not machine or owner.machine != machine
    if not boot or owner.namespace != namespace:
        return True
    return _started(owner.pid) == owner.started


class Calls:
    """The deliveries of this process that are under way, each an owner of its own.

    All contexts of a process share one, or they take each other's deliveries for dead.

    Args:
        owner: Returns this process, for one delivery.
        lives: Whether another process may still be at work.
        keeps_claims: Whether this process keeps its claims in its memory. That is for
            one that delivers many messages: a retry comes to it, too. Where another
            process has the same message, the note before the final dot decides which of
            them sends it (`mxpolicy.delivery.claims`).
    """

    def __init__(
        self,
        owner: Callable[[], Owner] = myself,
        lives: Callable[[Owner], bool] = is_alive,
        *,
        keeps_claims: bool = False,
    ) -> None:
        self._owner = owner
        self._lives = lives
        self.keeps_claims = keeps_claims
        self._under_way: dict[Owner, list[str]] = {}  # what each has claimed
        self._process: Owner | None = None
        self._claims: dict[str, tuple[Owner, float]] = {}  # by key; until when

    def begin(self) -> Owner:
        """Return the owner of a delivery that begins; call `end` when it has ended."""
        owner = self._owner()
        self._process = owner.process
        self._under_way[owner] = []
        return owner

    def end(self, owner: Owner) -> None:
        """The delivery does nothing any more; may be told twice."""
        self.release_all(owner)
        self._under_way.pop(owner, None)

    def claim(self, key: str, owner: Owner, until: float, now: float) -> bool:
        """Claim *key* for *owner*; return False while another delivery has it.

        Args:
            key: An entry's of the journal.
            owner: A delivery of this process; it may claim a key again.
            until: UTC seconds. The claim ends then, or when its delivery does.
            now: UTC seconds.
        """
        holder, holds_until = self._claims.get(key, (owner, until))
        if holder != owner and holder in self._under_way and now < holds_until:
            return False
        if holder != owner or key not in self._claims:
            self._under_way[owner].append(key)
        self._claims[key] = owner, until
        return True

    def release(self, key: str, owner: Owner) -> None:
        """Give up the claim of *owner* on *key*, if it has one."""
        if self._claims.get(key, _NO_CLAIM)[0] == owner:
            del self._claims[key]

    def release_all(self, owner: Owner) -> None:
        """Give up all claims of *owner*."""
        keys = self._under_way.get(owner, [])
        while keys:
            self.release(keys.pop(), owner)

    def lives(self, owner: Owner) -> bool:
        """Return whether *owner* may still be at work.

        One of this process that is not under way is not: its row could not be deleted.
        """
        if owner.process == self._process:
            return owner in self._under_way
        return self._lives(owner)


@cache
def _process(pid: int) -> Owner:
    return Owner(*_own_machine(), pid, _started(pid) or 0, "")


@cache
def _own_machine() -> tuple[str, str, str]:
    """Return machine, boot and namespace of process ids; they stay while we run."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return _line(_MACHINE_ID), _line(_BOOT_ID), namespace


def _line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(100).strip()
    except (OSError, ValueError):
        return ""


def _started(pid: int) -> int | None:
    """Return the start time of a process that lives, else None."""
    seen = look_at(pid)
    return seen.started if seen and not seen.is_ending else None
