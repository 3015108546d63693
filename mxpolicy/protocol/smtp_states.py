"""The states of an SMTP session as the client sees it (RFC 5321 §4.1.4), as data.

The two tables here decide where a conversation goes; `mxpolicy.protocol.smtp_client` acts
on them.
"""

# Theory of operation
#
# The state is where the conversation is, by the server's answers. It is also what we
# wait for, so it has a timeout and words for the log (_FACTS). It changes in two ways,
# each with its table:
#
#   COMMANDS     (state, command) -> state, when we give a command
#   TRANSITIONS  (state, command, first digit) -> state, when its reply comes
#
# What is not in COMMANDS raises LocalProtocolError and changes nothing. What is not in
# TRANSITIONS raises RemoteProtocolError and ends the session. Only the first digit
# counts: RFC 5321 §4.3.2 lets servers invent codes. After EHLO any answer but 2yz means
# HELO: servers that do not know EHLO answer with any code.
#
#   GREETING -> EHLO -> READY -> MAIL -> RCPT -> DATA -> BODY -> DOT -> READY
#                |       |        |       |       |
#      not 2yz:  v       |        v       |       v
#               HELO     |      READY     |     RCPT, and then RSET or QUIT
#                |       |                |
#                v       v                v
#              READY  STARTTLS          RSET -> READY
#                        |
#                        v
#                  TLS_HANDSHAKE -> EHLO, and all that was heard is forgotten
#
# Three things are above the tables:
#
# 1. 421 closes, whenever it comes (RFC 5321 §3.8): event `Closing`. It is then
#    the answer to the oldest command that has none, if there is one.
# 2. A reply that came before a command had left does not answer it. A client that
#    takes it for the answer is out of step for ever, and loses mail. If it refuses
#    (4yz, 5yz) it ends the session: event `BodyRefused` for the message in hand, else
#    `Closing`. Any other is dropped: event `StrayReply`. Behind a group of commands
#    it ends the session too, for any earlier reply may have been the superfluous one.
#    So do bytes that wait behind the 220 to STARTTLS: they would count as protected
#    by TLS (CVE-2011-0411).
# 3. RCPT, MAIL behind RSET, and QUIT without a transaction, may be given while replies
#    are still due. They queue. With PIPELINING they leave at once, else one by one as replies come.
#    DATA may be given behind RCPT, and closes the group. Every other command waits until
#    all commands before it were answered (RFC 2920 §3.1).
#
# When MAIL is refused, commands behind it that have not left are dropped. The
# replies to those that have left are ignored, as there is no transaction. That is the
# row (READY, RCPT).
#
# A refusal in BODY, or before the server has the dot, counts: it comes too early, but it
# is about the message. It ends the session, as the two sides may disagree on what is
# mail data and what is a command. A 2yz there does not count: some servers say 250 when
# they have the body, and 554 to the dot.

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = [
    "COMMANDS",
    "DOT_TIME",
    "MAY_QUEUE",
    "TRANSITIONS",
    "Facts",
    "State",
    "Verb",
    "facts",
]


class State(Enum):
    """Where the conversation is, named for what is awaited or due."""

    GREETING = "greeting"
    EHLO = "ehlo"  # greeted: EHLO is due, or its reply
    HELO = "helo"  # EHLO was not taken: HELO is due, or its reply
    STARTTLS = "starttls"
    TLS_HANDSHAKE = "tls_handshake"  # the shell's turn, then tls_established()
    READY = "ready"  # no transaction is open
    MAIL = "mail"
    RCPT = "rcpt"  # a transaction is open: replies to RCPT, more RCPT, or DATA
    DATA = "data"
    BODY = "body"  # the shell writes the mail data, then dot()
    DOT = "dot"
    RSET = "rset"
    QUIT = "quit"  # only QUIT is left, or its reply
    CLOSED = "closed"

    # By identity: `Enum` computes it from the name, at each look into a table.
    __hash__ = object.__hash__


class Verb(Enum):
    """What the server was asked; connecting asks for the greeting."""

    CONNECT = "CONNECT"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    DOT = "."
    RSET = "RSET"
    QUIT = "QUIT"

    __hash__ = object.__hash__  # see `State`


# (state, command) -> state while its reply is awaited.
COMMANDS: dict[tuple[State, Verb], State] = {
    (State.EHLO, Verb.EHLO): State.EHLO,
    (State.EHLO, Verb.HELO): State.HELO,
    (State.HELO, Verb.HELO): State.HELO,
    (State.READY, Verb.STARTTLS): State.STARTTLS,
    (State.READY, Verb.MAIL): State.MAIL,
    (State.MAIL, Verb.RCPT): State.MAIL,  # pipelined, or queued
    (State.RCPT, Verb.RCPT): State.RCPT,
    (State.RCPT, Verb.DATA): State.DATA,
    (State.MAIL, Verb.DATA): State.MAIL,  # pipelined, or queued
    (State.BODY, Verb.DOT): State.DOT,
    (State.READY, Verb.RSET): State.RSET,
    (State.RCPT, Verb.RSET): State.RSET,
    (State.RSET, Verb.MAIL): State.MAIL,  # pipelined, or queued
    # Not in BODY, where it would be mail data, and not before the greeting.
    (State.EHLO, Verb.QUIT): State.QUIT,
    (State.HELO, Verb.QUIT): State.QUIT,
    (State.READY, Verb.QUIT): State.QUIT,
    (State.RCPT, Verb.QUIT): State.QUIT,
    (State.QUIT, Verb.QUIT): State.QUIT,
}

# Commands that need not wait for the replies to earlier ones (RFC 2920).
MAY_QUEUE = {
    (State.MAIL, Verb.RCPT),
    (State.MAIL, Verb.DATA),
    (State.RCPT, Verb.RCPT),
    (State.RSET, Verb.MAIL),
    (State.READY, Verb.QUIT),
}

# (state, command, first digit of its reply) -> next state.
TRANSITIONS: dict[tuple[State, Verb, int], State] = {
    (State.GREETING, Verb.CONNECT, 2): State.EHLO,
    (State.GREETING, Verb.CONNECT, 4): State.QUIT,
    (State.GREETING, Verb.CONNECT, 5): State.QUIT,  # §3.1: wait for our QUIT
    **{(State.EHLO, Verb.EHLO, digit): State.HELO for digit in range(10)},  # §3.2
    (State.EHLO, Verb.EHLO, 2): State.READY,
    (State.HELO, Verb.HELO, 2): State.READY,
    (State.HELO, Verb.HELO, 4): State.QUIT,
    (State.HELO, Verb.HELO, 5): State.QUIT,
    (State.STARTTLS, Verb.STARTTLS, 2): State.TLS_HANDSHAKE,
    (State.STARTTLS, Verb.STARTTLS, 4): State.READY,
    (State.STARTTLS, Verb.STARTTLS, 5): State.READY,
    (State.MAIL, Verb.MAIL, 2): State.RCPT,
    (State.MAIL, Verb.MAIL, 4): State.READY,
    (State.MAIL, Verb.MAIL, 5): State.READY,
    (State.RCPT, Verb.RCPT, 2): State.RCPT,
    (State.RCPT, Verb.RCPT, 4): State.RCPT,
    (State.RCPT, Verb.RCPT, 5): State.RCPT,
    (State.READY, Verb.RCPT, 2): State.READY,  # behind a refused MAIL
    (State.READY, Verb.RCPT, 4): State.READY,
    (State.READY, Verb.RCPT, 5): State.READY,
    (State.QUIT, Verb.RCPT, 2): State.QUIT,  # the same, and QUIT behind it
    (State.QUIT, Verb.RCPT, 4): State.QUIT,
    (State.QUIT, Verb.RCPT, 5): State.QUIT,
    (State.DATA, Verb.DATA, 3): State.BODY,
    (State.RCPT, Verb.DATA, 3): State.BODY,  # it was pipelined behind RCPT
    (State.RCPT, Verb.DATA, 4): State.RCPT,
    (State.RCPT, Verb.DATA, 5): State.RCPT,
    (State.READY, Verb.DATA, 4): State.READY,  # the same, behind a refused MAIL
    (State.READY, Verb.DATA, 5): State.READY,
    (State.QUIT, Verb.DATA, 4): State.QUIT,  # behind a refused RSET
    (State.QUIT, Verb.DATA, 5): State.QUIT,
    # The transaction may still be open: RSET or QUIT is next.
    (State.DATA, Verb.DATA, 4): State.RCPT,
    (State.DATA, Verb.DATA, 5): State.RCPT,
    (State.DOT, Verb.DOT, 2): State.READY,
    (State.DOT, Verb.DOT, 4): State.READY,  # §4.1.1.4: the buffers are cleared
    (State.DOT, Verb.DOT, 5): State.READY,
    (State.RSET, Verb.RSET, 2): State.READY,
    (State.RSET, Verb.RSET, 4): State.QUIT,
    (State.RSET, Verb.RSET, 5): State.QUIT,
    (State.MAIL, Verb.RSET, 2): State.MAIL,  # and MAIL behind it
    (State.MAIL, Verb.RSET, 4): State.QUIT,
    (State.MAIL, Verb.RSET, 5): State.QUIT,
    (State.QUIT, Verb.MAIL, 2): State.QUIT,
    (State.QUIT, Verb.MAIL, 4): State.QUIT,
    (State.QUIT, Verb.MAIL, 5): State.QUIT,
    (State.QUIT, Verb.QUIT, 2): State.CLOSED,
    (State.QUIT, Verb.QUIT, 4): State.CLOSED,
    (State.QUIT, Verb.QUIT, 5): State.CLOSED,
}


class Facts(NamedTuple):
    """What a state means while it lasts.

    Attributes:
        timeout: Seconds after which RFC 5321 §4.5.3.2 lets a client give up.
        log_words: What we were doing, after "timed out" or "lost connection".
    """

    timeout: float
    log_words: str


# §4.5.3.2 says nothing of EHLO, STARTTLS and RSET: a reply costs the server no more than
# the one to MAIL. Nothing depends on the reply to QUIT.
_FACTS: dict[State, Facts] = {
    State.GREETING: Facts(300, "waiting for the greeting"),
    State.EHLO: Facts(300, "waiting for the reply to EHLO"),
    State.HELO: Facts(300, "waiting for the reply to HELO"),
    State.STARTTLS: Facts(300, "waiting for the reply to STARTTLS"),
    State.TLS_HANDSHAKE: Facts(300, "in the TLS handshake"),
    State.READY: Facts(300, "between two transactions"),
    State.MAIL: Facts(300, "waiting for the reply to MAIL"),
    State.RCPT: Facts(300, "waiting for the reply to RCPT"),
    State.DATA: Facts(120, "waiting for the reply to DATA"),
    State.BODY: Facts(180, "sending the mail data"),
    State.DOT: Facts(
        600,
        "waiting for the reply to the final dot; message may be sent more than once",
    ),
    State.RSET: Facts(300, "waiting for the reply to RSET"),
    State.QUIT: Facts(10, "waiting for the reply to QUIT"),
    State.CLOSED: Facts(0, "after the end of the session"),
}


def facts(state: State) -> Facts:
    """Return the timeout and the words for the log that belong to *state*."""
    return _FACTS[state]


DOT_TIME = _FACTS[State.DOT].timeout
"""Seconds for the reply to the final dot. A sender that gives up sooner makes duplicates
(RFC 5321 §4.5.3.2.6)."""
