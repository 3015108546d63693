"""Which sessions are kept for another message, and what counts that is said over one. Pure.

A session whose transaction went well may wait for the next message to the same host. Two
things can be wrong with a session that has waited, and neither is the host's fault:

* It has ended. Hosts hang up after some seconds, and after some messages (RFC 5321
  §4.5.3.2.7), and a firewall may forget the connection.
* It is out of step. A host that answered the last dot twice is one reply ahead. Then each
  reply is taken for the answer to the command before it, and the wrong recipient is
  refused.

So an end of such a session is no finding, as long as the host cannot have the message:
the host is dialled anew. A refusal counts when the replies are known to be in step. That
is shown by 354 after DATA, or by 221 after QUIT: no other command is answered so.

The same holds for the second transaction of one message, with recipients that were too many
for the first one: such a session is *old*, too (`mxpolicy.delivery.session.Session`).
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

from mxpolicy.routing.candidate import Verdict

__all__ = [
    "LONGEST_AGE",
    "PATIENCE",
    "QUICK",
    "Counts",
    "Course",
    "Stage",
    "kept_until",
    "may_be_kept",
    "what_counts",
]

# Seconds from connecting after which a session is used no more. It lets us find a better
# address, and keeps below every host's limit (Postfix: smtp_connection_reuse_time_limit).
LONGEST_AGE = 300.0

# Seconds from MAIL to the reply to DATA in which a host is quick enough to be used again.
QUICK = 5.0

# Seconds for each reply before the mail data, over a session that had waited. A host that
# was quick a moment ago and now says nothing has lost the session.
PATIENCE = 10.0


class Course(NamedTuple):
    """How one transaction over a session went, as far as it came.

    Attributes:
        is_sender_refused: MAIL was refused.
        is_recipient_refused: One RCPT at least was refused.
        data: Code of the reply to DATA; 0 before it.
        seconds: From the beginning to that reply.
        dot: Code of the reply to the final dot; 0 before it.
    """

    is_sender_refused: bool = False
    is_recipient_refused: bool = False
    data: int = 0
    seconds: float = 0.0
    dot: int = 0

    @property
    def is_in_step(self) -> bool:
        """Whether every reply is known to answer its command."""
        return self.data == 354

    @property
    def is_plain_success(self) -> bool:
        """Whether nothing was refused, and no answer was out of the ordinary."""
        is_refused = self.is_sender_refused or self.is_recipient_refused
        return not is_refused and (self.data, self.dot) == (354, 250)


def may_be_kept(
    course: Course, *, transactions: int, most: int | None, strays: int
) -> bool:
    """Return whether a session may wait for another message.

    Args:
        course: How its last transaction went.
        transactions: How many it has had.
        most: How many it may have; None is any number.
        strays: How many replies of the host answered no command.
    """
    return (
        course.is_plain_success
        and course.seconds <= QUICK
        and (most is None or transactions < most)
        and not strays
    )


def kept_until(now: float, began: float, *, idle: float, known_until: float) -> float:
    """Return until when a session may wait that was given back *now*.

    Args:
        now: Seconds, as all times here.
        began: When it was connected.
        idle: How long a session may wait.
        known_until: When what has led to it may change: DNS, or a better host's pause.
    """
    return min(now + idle, began + LONGEST_AGE, known_until)


class Stage(IntEnum):
    """What a host has been given of a transaction, and has answered, on the fast path.

    The ordinary way goes on from there. What is awaited on the fast path itself, the
    journal included, is a `mxpolicy.routing.fast_path.State`.
    """

    NOT_BEGUN = 0
    ASKED = 1
    """RSET, MAIL and every RCPT are given."""
    ASKED_ALL = 2
    """DATA is given behind them, too."""
    ACCEPTED = 3
    """All but DATA are answered well. DATA is given."""
    GO_AHEAD = 4
    """354 is here."""
    BODY = 5
    """The mail data is sent, perhaps in part."""
    DOT = 6
    """The final dot is given."""


class Counts(Enum):
    """What counts of a transaction over an old session."""

    ALL = "all"
    """All of it, as over any other session."""
    IF_IN_STEP = "if in step"
    """All of it, if the host says 221 to QUIT; else what counts in `DIAL_ANEW`."""
    DIAL_ANEW = "dial anew"
    """What was refused before the last 354. The host is dialled anew for the others."""


def what_counts(
    course: Course, *, ended: Verdict | None, dot_is_out: bool = False
) -> Counts:
    """Return what counts of a transaction over an old session.

    Args:
        course: How it went.
        ended: How the session broke; None if it did not.
        dot_is_out: The host may have the message for a recipient, and has not answered.

    ================  ===================================  ===========
    so far            what happened                        counts
    ================  ===================================  ===========
    the dot is out    anything                             ALL
    354 was said      the host has closed the session      DIAL_ANEW
    354 was said      anything else                        ALL
    before 354        the session broke, in any way        DIAL_ANEW
    before 354        MAIL was refused                     DIAL_ANEW
    before 354        another refusal                      IF_IN_STEP
    ================  ===================================  ===========

    Hosts limit the messages of a session, and some say so by refusing MAIL.
    """
    if dot_is_out:
        return Counts.ALL
    if course.is_in_step:
        is_closed = ended is Verdict.CLOSED
        return Counts.DIAL_ANEW if is_closed else Counts.ALL
    if ended is not None or course.is_sender_refused:
        return Counts.DIAL_ANEW
    return Counts.IF_IN_STEP
