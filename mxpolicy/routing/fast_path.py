"""The fast path: one message over a session that waits, as a machine. Pure.

A message for a destination that took mail a moment ago needs no plan, no race and no
tasks: it goes from MAIL to the dot over a session that is ready, as replies come. This
module says what follows from what. `mxpolicy.delivery.fast_path` does it.
"""

# Theory of operation
#
# Only what is ordinary is done here: each RCPT is answered 2yz, DATA 354, the dot 250,
# each within a moment. Everything else is left to the ordinary way: another reply, the
# end of the session, silence, a cancel. The ordinary way *goes on* with the session at
# the `mxpolicy.routing.reuse.Stage` that it has reached. It hears the reply that could
# not be used here. So no host is asked twice, and a reply means what it always means.
#
# Before the dot its record must be in the journal. It is written while the host answers.
# If there is another entry already, another delivery has the message. Then the session
# ends without a dot, and the message begins anew, the ordinary way. A message that is to
# leave waits in the state LEAVING until it is known whether the record is written.
#
#                 ACCEPTED         GO_AHEAD            ACKNOWLEDGED    TAKEN
#   ASKING        ------> DATA          ------> HELD_UP
#     | RECORDED           | RECORDED             | RECORDED
#     v                    v                      v
#   ASKING_RECORDED ----> DATA_RECORDED ------> BODY      ------> DOT ----> OVER

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.known_hosts import KnownHosts

__all__ = ["TABLE", "Action", "Input", "State", "Step", "usable_hosts"]


class State(Enum):
    """What is awaited."""

    ASKING = "asking"  # the replies to RSET, MAIL, RCPT, and the record
    ASKING_RECORDED = "asking, recorded"
    DATA = "data"  # the reply to DATA, and the record
    DATA_RECORDED = "data, recorded"
    HELD_UP = "held up"  # the record only
    BODY = "body"  # the acknowledgement of the mail data
    DOT = "dot"  # the reply to the dot
    LEAVING = "leaving"  # the record; then the ordinary way goes on
    OVER = "over"

    __hash__ = object.__hash__  # `Enum` computes it from the name, at each look


class Input(Enum):
    """What has happened."""

    ACCEPTED = "accepted"  # RSET, MAIL and every RCPT are answered well
    GO_AHEAD = "go ahead"  # 354
    RECORDED = "recorded"  # the dot is in the journal
    NOT_RECORDED = (
        "not recorded"  # another delivery has the message, or the store has failed
    )
    ACKNOWLEDGED = "acknowledged"  # the host's kernel has the mail data
    TAKEN = "taken"  # 250 to the dot
    OTHER = "other"  # anything else, silence and a cancel included

    __hash__ = object.__hash__


class Action(Enum):
    """What is to be done."""

    WAIT = "wait"
    GIVE_DATA = "give DATA"
    SEND_BODY = "send the mail data"
    SEND_DOT = "send the dot"
    SETTLE = "settle"  # every recipient is delivered to
    HAND_OVER = "hand over"  # the ordinary way goes on with the session
    BEGIN_ANEW = "begin anew"  # the ordinary way, without the session

    __hash__ = object.__hash__


class Step(NamedTuple):
    """What follows."""

    state: State
    action: Action


_WAIT_TO_LEAVE = Step(State.LEAVING, Action.WAIT)
_HAND_OVER = Step(State.OVER, Action.HAND_OVER)
_BEGIN_ANEW = Step(State.OVER, Action.BEGIN_ANEW)

# state -> input -> what follows. Any other input is a bug of ours.
TABLE: Mapping[State, Mapping[Input, Step]] = {
    State.ASKING: {
        Input.ACCEPTED: Step(State.DATA, Action.GIVE_DATA),
        Input.RECORDED: Step(State.ASKING_RECORDED, Action.WAIT),
        Input.NOT_RECORDED: _BEGIN_ANEW,
        Input.OTHER: _WAIT_TO_LEAVE,
    },
    State.ASKING_RECORDED: {
        Input.ACCEPTED: Step(State.DATA_RECORDED, Action.GIVE_DATA),
        Input.OTHER: _HAND_OVER,
    },
    State.DATA: {
        Input.GO_AHEAD: Step(State.HELD_UP, Action.WAIT),
        Input.RECORDED: Step(State.DATA_RECORDED, Action.WAIT),
        Input.NOT_RECORDED: _BEGIN_ANEW,
        Input.OTHER: _WAIT_TO_LEAVE,
    },
    State.DATA_RECORDED: {
        Input.GO_AHEAD: Step(State.BODY, Action.SEND_BODY),
        Input.OTHER: _HAND_OVER,
    },
    State.HELD_UP: {
        Input.RECORDED: Step(State.BODY, Action.SEND_BODY),
        Input.NOT_RECORDED: _BEGIN_ANEW,
        Input.OTHER: _WAIT_TO_LEAVE,
    },
    State.BODY: {
        Input.ACKNOWLEDGED: Step(State.DOT, Action.SEND_DOT),
        Input.OTHER: _HAND_OVER,
    },
    State.DOT: {
        Input.TAKEN: Step(State.OVER, Action.SETTLE),
        Input.OTHER: _HAND_OVER,
    },
    State.LEAVING: {
        Input.RECORDED: _HAND_OVER,
        Input.NOT_RECORDED: _BEGIN_ANEW,
        Input.OTHER: _WAIT_TO_LEAVE,
    },
    State.OVER: {},
}


def usable_hosts(
    order: Sequence[Candidate], known: KnownHosts
) -> tuple[Candidate, ...]:
    """Return the candidates whose session another message may use without a plan.

    Those are the first one, and its equals. Only while nothing is wrong with them: then
    the ordinary way would ask one of them first. Probes that are due are begun by the
    ordinary way only.

    Args:
        order: The candidates in the order in which they are asked.
        known: What is remembered of them.
    """
    if known.due:
        return ()
    return tuple(
        one
        for one in order
        if one.rank == order[0].rank
        and all(
            one not in records or records[one].verdict is None
            for records in (known.of_host, known.of_nexthop)
        )
    )
