"""Every way in which a hand-over can go: a model of mail server, client and daemon.

All that these three may do, in every order, with each of them killed, and the daemon
stopped, at every point. (The script is not killed: it is what ends last, and takes next to
no memory.) The steps of both protocol sides are those of the code (`next_phase` of
`mxpolicy.handover`, or that of handover.pl; `mxpolicy.protocol.handover_request.Handover`).
The pipe holds half a message, so that its writer has to wait for a reader.

What holds in every state:

- Never two readers: when the client delivers by itself, the daemon reads nothing.
- No final dot leaves without the whole message, and none after the mail server's death
  in the middle of it.

And in every state that is the last:

- Never none: the mail server could write all of its message, and has one answer.
- "Delivered" is answered only for a message that a host has.
- Without any trouble it is delivered.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from mxpolicy.errors import RemoteProtocolError
from mxpolicy.handover import (
    ALONE,
    ANSWERED,
    ASKED,
    COMMITTED,
    GAVE_UP,
    next_phase,
)
from mxpolicy.protocol.handover_request import Handover, HandoverState
from tests.helpers.handing_over import PERL, PYTHON, in_perl

# Phases of the client that only the model needs: not connected yet; killed, and the
# script is there still; both have left.
NEW, KILLED, LEFT = -1, -2, -3

WHOLE = 2  # halves of a message
DELIVERED, LATER = 0, 75

REQUEST = b"mxpolicy pipe 1 0\n"


class World(NamedTuple):
    """All that there is.

    Attributes:
        written: Halves that the mail server has written, or that nobody wanted.
        in_pipe: Halves that wait there.
        client: Its phase.
        up, down: What is on its way to the daemon, and to the client.
        client_open, daemon_open: The ends of the connection.
        daemon: Its state in the protocol.
        running, daemon_lives: A daemon that lives may be stopped.
        holds: The daemon has the descriptor.
        alone_read, daemon_read: Halves that each has read to deliver them.
        alone_end, daemon_end: It has seen the end of the pipe.
        asked_at_end: The open question was asked at the end of the message.
        may_send: An answer to such a question has come.
        is_cancelled: The daemon delivers no more; a final dot that is out has its end.
        alone_dot, daemon_dot: 1 has left, 2 is taken by the host.
        answer: What the mail server has heard.
        calm: Nobody was killed or stopped, nobody was late, nothing was refused.
    """

    server_lives: bool = True
    written: int = 0
    in_pipe: int = 0
    client: int = NEW
    up: tuple[bytes, ...] = ()
    down: tuple[bytes, ...] = ()
    client_open: bool = False
    daemon_open: bool = False
    daemon: HandoverState = HandoverState.REQUEST
    running: bool = True
    daemon_lives: bool = True
    holds: bool = False
    alone_read: int = 0
    daemon_read: int = 0
    alone_end: bool = False
    daemon_end: bool = False
    asked_at_end: bool = False
    may_send: bool = False
    is_cancelled: bool = False
    alone_dot: int = 0
    daemon_dot: int = 0
    answer: int | None = None
    calm: bool = True

    @property
    def has_reader(self) -> bool:
        """Whether anybody has the pipe open to read, or it is on its way to the daemon."""
        return self.client != LEFT or self.holds or b"@" in self.up

    @property
    def is_at_end(self) -> bool:
        """Whether who reads the pipe now sees its end."""
        is_closed = self.written == WHOLE or not self.server_lives
        return not self.in_pipe and is_closed


Moves = Iterator[tuple[str, World]]


def moves(now: World) -> Moves:
    """Yield everything that can happen next."""
    yield from server_moves(now)
    yield from client_moves(now)
    if now.daemon_lives:
        yield from daemon_moves(now)


# -- the mail server ----------------------------------------------------------------


def server_moves(now: World) -> Moves:
    if not now.server_lives:
        return
    if now.written < WHOLE:
        if not now.has_reader:
            yield "nobody reads: EPIPE", now._replace(written=WHOLE)
        elif not now.in_pipe:
            yield "writes", now._replace(written=now.written + 1, in_pipe=1)
    if now.answer is None:
        yield "mail server killed", now._replace(server_lives=False, calm=False)


# -- the client -----------------------------------------------------------------------


def client_moves(now: World) -> Moves:
    if now.client == LEFT:
        return
    if now.client != KILLED:
        killed = close_client(now._replace(client=KILLED, calm=False))
        yield "client killed", killed
    if now.client == NEW:
        if now.daemon_lives:
            connected = now._replace(client=ASKED, up=(REQUEST,))
            yield "connects", connected._replace(client_open=True, daemon_open=True)
        yield "nobody is there", now._replace(client=ALONE, calm=False)
    elif now.client in (ASKED, COMMITTED):
        if now.down:
            said = now._replace(down=now.down[1:])
            yield f"client hears {now.down[0]!r}", client_hears(said, now.down[0])
        elif not now.daemon_open:
            yield "client sees the end", client_hears(now, b"")
        yield "client waits no more", client_hears(now._replace(calm=False), b"")
    elif now.client == ALONE:
        yield from alone_moves(now)
    elif now.client in (GAVE_UP, KILLED):  # it, or the script, reads the rest
        if now.in_pipe:
            yield "client drains", now._replace(in_pipe=0)
        elif now.is_at_end:
            yield "client leaves", client_leaves(now, LATER)


def client_hears(now: World, said: bytes) -> World:
    """Return what comes of a line of the daemon's; none is its end, or too late."""
    phase = next_phase(now.client, said)
    if phase == COMMITTED and now.client == ASKED:
        if not now.daemon_open:  # the send fails, and nothing has been sent
            return close_client(now._replace(client=ALONE, calm=False))
        return now._replace(client=phase, up=(*now.up, b"@"))
    if phase == COMMITTED:
        if not now.server_lives:
            return close_client(now._replace(client=GAVE_UP))
        if not now.daemon_open:
            return close_client(now._replace(client=GAVE_UP, calm=False))
        return now._replace(up=(*now.up, b"!"))
    if phase == ANSWERED:
        status = int(said[1:].split()[0])
        return client_leaves(now._replace(client=phase), status)
    return close_client(now._replace(client=phase, calm=False))


def close_client(now: World) -> World:
    return now._replace(client_open=False, down=())


def client_leaves(now: World, status: int) -> World:
    now = close_client(now._replace(client=LEFT))
    return now._replace(answer=status) if now.server_lives else now


def alone_moves(now: World) -> Moves:
    if not now.alone_end:
        if now.in_pipe:
            read = now.alone_read + 1
            yield "alone reads", now._replace(alone_read=read, in_pipe=0)
        elif now.is_at_end:
            yield "alone sees the end", now._replace(alone_end=True)
    elif not now.alone_dot:
        if now.server_lives:
            yield "alone sends the dot", now._replace(alone_dot=1)
        else:
            yield "alone defers", client_leaves(now, LATER)
    elif now.alone_dot == 1:
        yield "host answers", client_leaves(now._replace(alone_dot=2), DELIVERED)


# -- the daemon -----------------------------------------------------------------------


def daemon_moves(now: World) -> Moves:
    killed = now._replace(daemon_lives=False, running=False, holds=False, calm=False)
    yield "daemon killed", close_daemon(killed)
    if not now.running:
        yield "daemon continues", now._replace(running=True)
        return
    yield "daemon stopped", now._replace(running=False, calm=False)
    if now.daemon_dot == 1:
        yield "host answers", now._replace(daemon_dot=2)
    if now.daemon_open:
        yield from connection_moves(now)
    yield from message_moves(now)


def in_state(state: HandoverState) -> Handover:
    daemon = Handover()
    daemon.state = state
    return daemon


def connection_moves(now: World) -> Moves:
    if now.up:
        yield f"daemon hears {now.up[0][:1]!r}", daemon_hears(now)
    elif not now.client_open:
        gone = now._replace(daemon=HandoverState.ENDED, may_send=False)
        if not (now.holds or now.daemon_dot):
            yield "daemon sees the end", close_daemon(gone)
        elif not now.is_cancelled:
            yield "daemon cancels", gone._replace(is_cancelled=True)
    if now.daemon is HandoverState.JUDGE:
        daemon = in_state(now.daemon)
        said = (*now.down, daemon.accept(990))
        yield "accepts", now._replace(daemon=daemon.state, down=said)
    if now.daemon in (HandoverState.JUDGE, HandoverState.COMMIT):
        daemon = in_state(now.daemon)
        said = (*now.down, daemon.refuse("full"))
        refused = now._replace(daemon=daemon.state, down=said, calm=False)
        yield "refuses", close_daemon(refused)
    if now.daemon is HandoverState.ASKED:
        # No word in time: what comes later is too late.
        late = now._replace(daemon=HandoverState.ENDED, is_cancelled=True, calm=False)
        yield "daemon waits no more", late


def daemon_hears(now: World) -> World:
    daemon = in_state(now.daemon)
    data, now = now.up[0], now._replace(up=now.up[1:])
    try:
        daemon.receive_data(data, int(data == b"@"))
    except RemoteProtocolError:  # it has given up, and this came too late
        assert now.daemon is HandoverState.ENDED
        return now
    now = now._replace(daemon=daemon.state)
    if data == b"@":
        return now._replace(holds=True)
    return now._replace(may_send=now.asked_at_end) if data == b"!" else now


def message_moves(now: World) -> Moves:
    """Yield what the daemon does with a message that it holds."""
    is_over = now.is_cancelled and now.daemon_dot != 1
    if now.holds and not now.is_cancelled and not now.daemon_end:
        if now.in_pipe:
            read = now.daemon_read + 1
            yield "daemon reads", now._replace(daemon_read=read, in_pipe=0)
        elif now.is_at_end:
            yield "daemon sees the pipe's end", now._replace(daemon_end=True)
    if (
        now.holds
        and now.daemon is HandoverState.WORK
        and not now.daemon_dot
        and not is_over
    ):
        if not now.may_send:
            daemon = in_state(now.daemon)
            said = say(now, daemon.ask())._replace(daemon=daemon.state)
            yield "asks", said._replace(asked_at_end=now.daemon_end)
        if now.may_send and now.daemon_end:
            yield "sends the dot", now._replace(daemon_dot=1)
    if now.holds and (is_over or now.daemon_dot == 2):
        done = now._replace(holds=False, is_cancelled=True)
        if now.daemon in (HandoverState.WORK, HandoverState.ASKED):
            daemon = in_state(now.daemon)
            status = DELIVERED if now.daemon_dot == 2 else LATER
            done = say(done, daemon.answer(status, b"x.0.0 text"))
            done = done._replace(daemon=daemon.state)
        yield "daemon ends", close_daemon(done)


def say(now: World, words: bytes) -> World:
    return now._replace(down=(*now.down, words)) if now.client_open else now


def close_daemon(now: World) -> World:
    """Close its end: what it has said may still be heard, what it was told is gone."""
    return now._replace(daemon_open=False, up=())


# -- what must hold -----------------------------------------------------------------


def check(now: World) -> None:
    """What holds in every state."""
    is_alone = now.client == ALONE or now.alone_read or now.alone_end
    assert not (is_alone and (now.holds or now.daemon_read)), "two readers"
    assert not (is_alone and b"@" in now.up), "two readers, soon"
    assert not (now.alone_dot and now.daemon_dot), "two dots"
    if now.alone_dot:
        assert now.alone_read == WHOLE, "part of a message"
    if now.daemon_dot:
        assert now.daemon_read == WHOLE, "part of a message"
    if now.answer == DELIVERED:
        assert 2 in (now.alone_dot, now.daemon_dot), "lost"


def check_last(now: World) -> None:
    """What holds when nothing happens any more, but that somebody is killed."""
    assert now.client == LEFT, "a client that waits for ever"
    assert not now.holds or not now.running, "a daemon that waits for ever"
    if now.server_lives:
        assert now.written == WHOLE, "a mail server that waits for ever"
        assert now.answer is not None, "no answer"


# Nothing of this need happen.
ACCIDENTS = {
    "mail server killed",
    "client killed",
    "daemon killed",
    "daemon stopped",
    "daemon continues",
}
# This happens in the end, but nobody waits for it where all goes well.
DELAYS = {"client waits no more", "daemon waits no more"}


def explore(begin: World) -> dict[World, tuple[World, str] | None]:
    """Return every state that can come, each with the one before, and check them all."""
    came_from: dict[World, tuple[World, str] | None] = {begin: None}
    queue = deque([begin])
    while queue:
        now = queue.popleft()
        try:
            check(now)
            following = list(moves(now))
            names = {name for name, _ in following} - ACCIDENTS
            if not names:
                check_last(now)
            if now.calm and not names - DELAYS:
                assert now.answer == DELIVERED, "delay without any trouble"
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{story(came_from, now)}") from error
        for name, world in following:
            if world not in came_from:
                came_from[world] = now, name
                queue.append(world)
    return came_from


def story(came_from: dict[World, tuple[World, str] | None], now: World) -> str:
    """Return how it came to *now*."""
    lines = [str(now)]
    while (before := came_from[now]) is not None:
        now, name = before
        lines.append(name)
    return "\n".join(reversed(lines))


def phases_of_perl() -> dict[tuple[int, str], int]:
    """Return the phase after each, by the first letter that the daemon says."""
    names = {"asked": ASKED, "committed": COMMITTED, "alone": ALONE}
    names |= {"answered": ANSWERED, "gave up": GAVE_UP}
    said = ["", *(f"{letter}1" for letter in "+-?=x")]
    does = "print join ',', map { next_phase(split /:/, $_, -1) } @ARGV"
    asked = [(name, one) for name in ("asked", "committed") for one in said]
    found = in_perl(does, [f"{name}:{one}" for name, one in asked]).decode().split(",")
    return {
        (names[name], one[:1]): names[then]
        for (name, one), then in zip(asked, found, strict=True)
    }


@pytest.mark.parametrize("client", [PERL, PYTHON])
def test_never_two_readers_and_never_none(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client == PERL:
        if not shutil.which("perl"):
            pytest.skip("needs Perl")
        phases = phases_of_perl()
        assert phases == {
            (phase, said): next_phase(phase, said.encode()) for phase, said in phases
        }
        monkeypatch.setitem(
            globals(),
            "next_phase",
            lambda phase, said: phases[phase, said[:1].decode()],
        )
    seen = explore(World())
    names = {came[1].split(" b'")[0] for came in seen.values() if came}
    assert {"alone sends the dot", "sends the dot", "client drains", "refuses"} <= names
    # Each end is reached in some way.
    ends = {(one.answer, one.alone_dot, one.daemon_dot) for one in seen}
    assert {(0, 2, 0), (0, 0, 2), (75, 0, 0), (75, 0, 1), (75, 0, 2)} <= ends
    assert len(seen) > 1000


@pytest.mark.parametrize(
    ("breaks", "what"),
    [
        pytest.param("fallback", "two readers", id="alone_after_the_commit"),
        pytest.param("no_drain", "waits for ever", id="no_drain"),
        pytest.param("no_question", "part of a message", id="dot_without_a_question"),
        pytest.param("early", "part of a message", id="question_before_the_end_counts"),
    ],
)
def test_the_model_sees_what_it_is_for(
    breaks: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(now: World) -> Moves:
        for name, world in moves_as_they_are(now):
            if breaks == "fallback" and world.client == GAVE_UP:
                yield name, world._replace(client=ALONE)
            elif breaks == "no_drain" and name == "client drains":
                yield name, client_leaves(now, LATER)
            elif breaks == "early" and name == "daemon hears b'!'":
                yield name, world._replace(may_send=True)
            else:
                yield name, world
        may_send = now.holds and now.daemon_end and now.running and not now.daemon_dot
        if breaks == "no_question" and may_send:
            yield "sends the dot", now._replace(daemon_dot=1)

    moves_as_they_are = moves
    monkeypatch.setitem(globals(), "moves", broken)
    with pytest.raises(AssertionError, match=what):
        explore(World())
