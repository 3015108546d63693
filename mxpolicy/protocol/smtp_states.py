"""The states of an SMTP session as the client sees it (RFC 5321 §4.1.4), as data.

Everything that decides where a conversation goes is in the two tables here;
`mxpolicy.protocol.smtp_client` looks it up and does it.
"""

# Theory of operation
#
# The state says where the conversation is, by what the server has answered; it
# is also what we wait for, so timeouts and words for the log hang on it (_FACTS).
# It changes in two ways, each with its table:
#
#   COMMANDS     (state, command) -> state, when we give a command
#   TRANSITIONS  (state, command, first digit) -> state, when its reply comes
#
# What is not in COMMANDS raises LocalProtocolError and leaves everything as it
# was. What is not in TRANSITIONS raises RemoteProtocolError and ends the session.
# Only the first digit counts: RFC 5321 §4.3.2 lets servers invent codes. To EHLO
# any answer but 2yz means HELO; servers that do not know it say what they like.
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
# 2. A reply that came before a command had left is no answer to it. A client
#    that takes it for one is out of step for ever, and that is how mail is lost. If it
#    refuses (4yz, 5yz) it is the server's last word: event `BodyRefused` for the
#    message in hand, else `Closing`. Anything else is dropped: event `StrayReply`.
#    Behind a group of commands it ends the session, for any of the replies
#    before it may have been the one too many. So do bytes that wait behind the
#    220 to STARTTLS: they would be read as if TLS had protected them
#    (CVE-2011-0411).
# 3. RCPT, and QUIT when nothing can depend on it, may be given while replies are
#    still due. They queue. With PIPELINING they leave at once, else one by one
#    as replies come. Every other command closes a group (RFC 2920 §3.1): the
#    caller waits until all before it has been answered.
#
# When MAIL is refused, RCPT commands behind it that have not left are dropped,
# and the replies to those that have are swallowed: whatever they say, there
# is no transaction. That is the row (READY, RCPT).
#
# A refusal in BODY, or before the server has the dot, counts: the server must not
# speak, but it has judged the message. It ends the session, for no two ends agree any
# more on what is mail data and what is a command. "Accepted" cannot be true there:
# some servers say 250 when they have the body, and 554 to the dot.

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["COMMANDS", "MAY_QUEUE", "TRANSITIONS", "Facts", "State", "Verb", "facts"]


class State(Enum):
    """Where the conversation is; named for what is awaited or due."""

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
    (State.BODY, Verb.DOT): State.DOT,
    (State.READY, Verb.RSET): State.RSET,
    (State.RCPT, Verb.RSET): State.RSET,
    # Not in BODY, where it would be mail data, and not before the greeting.
    (State.EHLO, Verb.QUIT): State.QUIT,
    (State.HELO, Verb.QUIT): State.QUIT,
    (State.READY, Verb.QUIT): State.QUIT,
    (State.RCPT, Verb.QUIT): State.QUIT,
    (State.QUIT, Verb.QUIT): State.QUIT,
}

# Those that need not wait for the replies to what was asked before (RFC 2920).
MAY_QUEUE = {
    (State.MAIL, Verb.RCPT),
    (State.RCPT, Verb.RCPT),
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
    # The transaction may still be open: RSET or QUIT is next.
    (State.DATA, Verb.DATA, 4): State.RCPT,
    (State.DATA, Verb.DATA, 5): State.RCPT,
    (State.DOT, Verb.DOT, 2): State.READY,
    (State.DOT, Verb.DOT, 4): State.READY,  # §4.1.1.4: the buffers are cleared
    (State.DOT, Verb.DOT, 5): State.READY,
    (State.RSET, Verb.RSET, 2): State.READY,
    (State.RSET, Verb.RSET, 4): State.QUIT,
    (State.RSET, Verb.RSET, 5): State.QUIT,
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


# Where §4.5.3.2 says nothing (EHLO, STARTTLS, RSET) a reply costs the server no
# more than that to MAIL. Nothing depends on the reply to QUIT.
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
