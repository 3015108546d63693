"""The states of an LMTP session as the server sees it (RFC 2033), as data.

The table here decides where a conversation goes; `mxpolicy.protocol.lmtp_server` acts on
it.
"""

# Theory of operation
#
# The client's commands are inputs, and so are three things that happen to a transaction:
# a recipient is accepted, the mail data ends, and all recipients are answered. What is
# not in the table is answered 503 and changes nothing.
#
#   LHLO -> READY -> MAIL -> RCPT -> DATA -> ANSWERS -> READY
#
# Two rules of RFC 2033 §4.2 are rows of it. DATA needs a recipient that was accepted: it
# is a command of RCPT and not of MAIL. Behind the mail data there is a reply for each
# accepted recipient, in the order of the RCPT commands. No command has a row in ANSWERS,
# because none is read before the last of these replies.
#
# A recipient may take a while to answer. Until all are answered, only further RCPT
# commands are read, so that recipients named in one go are looked at together. DATA is
# then judged by all of their answers.
#
# HELO and EHLO have no row (§4.1), and an unknown command has none either. They
# have replies of their own.

from __future__ import annotations

from enum import Enum

__all__ = ["READS_COMMANDS", "TRANSITIONS", "LmtpInput", "LmtpState"]


class LmtpState(Enum):
    """Where the conversation is."""

    LHLO = "lhlo"  # greeted: LHLO is due
    READY = "ready"  # no transaction is open
    MAIL = "mail"  # a transaction is open, without a recipient
    RCPT = "rcpt"  # at least one recipient is accepted
    DATA = "data"  # mail data comes
    ANSWERS = "answers"  # it has come: recipients are being answered
    CLOSED = "closed"  # QUIT

    # By identity: `Enum` computes it from the name, at each look into a table.
    __hash__ = object.__hash__


class LmtpInput(Enum):
    """What may happen: the client's commands, and three more."""

    LHLO = "LHLO"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    RSET = "RSET"
    NOOP = "NOOP"
    VRFY = "VRFY"
    XFORWARD = "XFORWARD"
    QUIT = "QUIT"
    ACCEPTED = "accepted"  # 2yz to an RCPT
    END = "end"  # CRLF.CRLF
    ANSWERED = "answered"  # the last reply behind the mail data

    __hash__ = object.__hash__  # see `LmtpState`


READS_COMMANDS = frozenset(
    {LmtpState.LHLO, LmtpState.READY, LmtpState.MAIL, LmtpState.RCPT}
)
_GREETED = (LmtpState.READY, LmtpState.MAIL, LmtpState.RCPT)

TRANSITIONS: dict[tuple[LmtpState, LmtpInput], LmtpState] = {
    (LmtpState.LHLO, LmtpInput.LHLO): LmtpState.READY,
    **{
        (state, LmtpInput.LHLO): LmtpState.READY for state in _GREETED
    },  # RFC 5321 §4.1.4
    (LmtpState.LHLO, LmtpInput.RSET): LmtpState.LHLO,
    **{(state, LmtpInput.RSET): LmtpState.READY for state in _GREETED},
    **{(state, LmtpInput.NOOP): state for state in READS_COMMANDS},
    **{(state, LmtpInput.VRFY): state for state in READS_COMMANDS},
    **{(state, LmtpInput.QUIT): LmtpState.CLOSED for state in READS_COMMANDS},
    (LmtpState.READY, LmtpInput.XFORWARD): LmtpState.READY,
    (LmtpState.READY, LmtpInput.MAIL): LmtpState.MAIL,
    (LmtpState.MAIL, LmtpInput.RCPT): LmtpState.MAIL,
    (LmtpState.RCPT, LmtpInput.RCPT): LmtpState.RCPT,
    (LmtpState.MAIL, LmtpInput.ACCEPTED): LmtpState.RCPT,
    (LmtpState.RCPT, LmtpInput.ACCEPTED): LmtpState.RCPT,
    (LmtpState.RCPT, LmtpInput.DATA): LmtpState.DATA,
    (LmtpState.DATA, LmtpInput.END): LmtpState.ANSWERS,
    (LmtpState.ANSWERS, LmtpInput.ANSWERED): LmtpState.READY,
}
