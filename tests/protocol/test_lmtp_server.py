from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.errors import LocalProtocolError
from mxpolicy.protocol.dot_stuffing import FINAL_DOT, DotStuffer
from mxpolicy.protocol.lmtp_server import (
    MAX_LINE,
    MAX_RECIPIENTS,
    MAX_REPLY,
    MAX_SHORT_REPLY,
    DataBegun,
    DataCame,
    DataEnded,
    Left,
    LmtpReply,
    Offers,
    RecipientNamed,
    TransactionDropped,
)
from mxpolicy.protocol.lmtp_states import (
    READS_COMMANDS,
    TRANSITIONS,
    LmtpInput,
    LmtpState,
)
from mxpolicy.reply import EnhancedStatus
from tests.protocol.feeding import cut_up, every_way
from tests.protocol.lmtp_dialog import DIALOGS, Player, bytewise, parse, play, whole

if TYPE_CHECKING:
    from pathlib import Path

OK = LmtpReply(250, EnhancedStatus(2, 1, 5), "Ok")
NO = LmtpReply(550, EnhancedStatus(5, 1, 1), "no")

HELLO = b"LHLO client.example\r\n"
MAIL = b"MAIL FROM:<a@b.example>\r\n"
RCPT = b"RCPT TO:<c@d.example>\r\n"


def in_data(**how: object) -> Player:
    """Return a server with one recipient, to which mail data is about to come."""
    player = Player(**how)  # type: ignore[arg-type]
    player.feed(HELLO + MAIL + RCPT)
    player.answer(0, OK)
    player.feed(b"DATA\r\n")
    assert player.said()[-1].startswith("354 ")
    player.events.clear()
    return player


def data_of(player: Player) -> bytes:
    """Return the mail data that the server has told of."""
    came = [one.data for one in player.events if isinstance(one, DataCame)]
    return b"".join(came)


# -- dialogs ----------------------------------------------------------------


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
def test_dialog(path: Path, cut: object) -> None:
    play(path.read_text(), cut)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
@given(st.data())
def test_dialog_cut_anywhere(path: Path, data: st.DataObject) -> None:
    play(path.read_text(), lambda wire: data.draw(cut_up(wire)))


# -- the states ---------------------------------------------------------------

LINES = {
    LmtpInput.LHLO: b"LHLO x\r\n",
    LmtpInput.MAIL: MAIL,
    LmtpInput.RCPT: RCPT,
    LmtpInput.DATA: b"DATA\r\n",
    LmtpInput.RSET: b"RSET\r\n",
    LmtpInput.NOOP: b"NOOP\r\n",
    LmtpInput.VRFY: b"VRFY x\r\n",
    LmtpInput.XFORWARD: b"XFORWARD IDENT=1\r\n",
    LmtpInput.QUIT: b"QUIT\r\n",
}
WAYS = {
    LmtpState.LHLO: b"",
    LmtpState.READY: HELLO,
    LmtpState.MAIL: HELLO + MAIL,
    LmtpState.RCPT: HELLO + MAIL + RCPT,
}


def in_state(state: LmtpState) -> Player:
    player = Player()
    player.feed(WAYS[state])
    for _ in player.all(RecipientNamed):
        player.answer(0, OK)
    player.said()
    assert player.server.state is state
    return player


@pytest.mark.parametrize("what", LINES, ids=lambda what: what.value)
@pytest.mark.parametrize("state", WAYS, ids=lambda state: state.value)
def test_every_command_in_every_state(state: LmtpState, what: LmtpInput) -> None:
    player = in_state(state)
    player.feed(LINES[what])
    following = TRANSITIONS.get((state, what))
    assert player.server.state is (following or state)
    if following is None:
        (line,) = player.said()
        assert line.startswith("503 5.5.1 ")
    elif what is LmtpInput.RCPT:
        assert player.said() == []
        player.answer(player.all(RecipientNamed)[-1].number, NO)  # type: ignore[union-attr]
        assert player.said() == ["550 5.1.1 no"]
    else:
        assert player.said()[0][0] in "23"


def test_all_states_that_read_commands_are_tried() -> None:
    assert set(WAYS) == READS_COMMANDS
    assert set(LINES) == set(LmtpInput) - {
        LmtpInput.ACCEPTED,
        LmtpInput.END,
        LmtpInput.ANSWERED,
    }


def test_a_transaction_that_is_dropped_is_told() -> None:
    for line in (b"RSET\r\n", HELLO):
        player = in_state(LmtpState.RCPT)
        player.feed(line)
        assert player.events[-1] == TransactionDropped()
        player.feed(line)  # there is none any more
        assert len(player.all(TransactionDropped)) == 1


def test_after_quit_nothing_is_read() -> None:
    player = in_state(LmtpState.READY)
    player.feed(b"QUIT\r\nNOOP\r\n")
    assert player.said() == ["221 2.0.0 Bye"]
    assert player.events == [Left()]


# -- the envelope -------------------------------------------------------------


def test_the_message_has_what_the_commands_said() -> None:
    player = Player()
    player.feed(HELLO + b"XFORWARD NAME=x ADDR=[UNAVAILABLE]\r\n")
    player.feed(b"XFORWARD IDENT=4b+41 HELO=[UNAVAILABLE]\r\n")
    player.feed(b"MAIL FROM:<a@b.example> SIZE=7 BODY=8BITMIME SMTPUTF8\r\n")
    player.feed(b'RCPT TO:<one@d.example>\r\nRCPT TO:<"t w>o"@d.example>\r\n')
    player.answer(0, OK)
    player.answer(1, OK)
    player.feed(b"DATA\r\n")
    *named, begun = player.events
    assert [one.queue_id for one in named if isinstance(one, RecipientNamed)] == [
        "4bA",
        "4bA",
    ]
    assert isinstance(begun, DataBegun)
    assert begun.queue_id == "4bA"
    assert begun.sender.reverse_path == "a@b.example"
    assert begun.sender.size == 7
    paths = [one.forward_path for one in begun.recipients]
    assert paths == ["one@d.example", '"t w>o"@d.example']


def test_refused_recipients_are_not_of_the_message() -> None:
    player = Player()
    player.feed(HELLO + MAIL)
    for number, name in enumerate(("a", "b", "c", "d")):
        player.feed(f"RCPT TO:<{name}@x.example>\r\n".encode())
        player.answer(number, NO if name in "ac" else OK)
    player.feed(b"DATA\r\n")
    begun = player.events[-1]
    assert isinstance(begun, DataBegun)
    assert [one.forward_path for one in begun.recipients] == [
        "b@x.example",
        "d@x.example",
    ]


def test_the_queue_id_is_of_one_message_only() -> None:
    player = in_state(LmtpState.READY)
    player.feed(b"XFORWARD IDENT=1\r\n" + MAIL + RCPT)
    player.answer(0, OK)
    player.feed(b"DATA\r\n.\r\n")
    player.settle(0, OK)
    player.feed(MAIL + RCPT)
    named = player.all(RecipientNamed)
    assert [one.queue_id for one in named if isinstance(one, RecipientNamed)] == [
        "1",
        "",
    ]


def test_numbers_begin_anew_with_each_transaction() -> None:
    player = in_state(LmtpState.READY)
    for _ in range(3):
        player.feed(MAIL + RCPT + RCPT)
        player.answer(1, OK)
        player.answer(0, NO)
        player.feed(b"DATA\r\n.\r\n")
        player.settle(0, OK)
    numbers = [
        one.number
        for one in player.all(RecipientNamed)
        if isinstance(one, RecipientNamed)
    ]
    assert numbers == [0, 1] * 3


# -- replies --------------------------------------------------------------------


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("order", ORDERS)
def test_replies_leave_in_the_order_of_the_recipients(order: tuple[int, ...]) -> None:
    player = Player()
    player.feed(HELLO + MAIL + 3 * RCPT)
    player.said()
    for answer in (player.answer, player.settle):
        said: list[str] = []
        for count, number in enumerate(order, 1):
            answer(number, OK._replace(text=f"R{number}"))
            said += player.said()
            first_due = next((n for n in range(3) if n not in order[:count]), 3)
            assert said == [f"250 2.1.5 R{n}" for n in range(first_due)]
        if answer == player.answer:
            player.feed(b"DATA\r\nx\r\n.\r\n")
            assert player.said()[0].startswith("354 ")
    assert player.server.state is LmtpState.READY


def test_final_replies_before_the_end_of_the_data_wait_for_it() -> None:
    player = in_data()
    player.settle(0, NO)
    assert player.said() == []
    player.feed(b"text\r\n.\r\n")
    assert player.said() == ["550 5.1.1 no"]
    assert player.server.state is LmtpState.READY


def test_each_recipient_is_answered_once() -> None:
    player = Player()
    player.feed(HELLO + MAIL + RCPT)
    for number in (1, -1):
        with pytest.raises(LocalProtocolError):
            player.answer(number, OK)
    player.answer(0, OK)
    with pytest.raises(LocalProtocolError):
        player.answer(0, OK)
    with pytest.raises(LocalProtocolError):
        player.settle(0, OK)  # before DATA
    player.feed(b"DATA\r\n")
    for number in (1, -1):
        with pytest.raises(LocalProtocolError):
            player.settle(number, OK)
    player.settle(0, OK)
    with pytest.raises(LocalProtocolError):
        player.settle(0, OK)


def test_nothing_is_read_while_recipients_wait_for_their_verdict() -> None:
    player = in_data()
    player.feed(b".\r\nNOOP\r\n")
    assert player.said() == []
    assert player.server.owes
    assert player.server.buffered == len(b"NOOP\r\n")
    player.settle(0, OK)
    assert player.said() == ["250 2.1.5 Ok", "250 2.0.0 Ok"]
    assert not player.server.owes


@pytest.mark.parametrize(
    ("mail", "limit"),
    [
        pytest.param(b"MAIL FROM:<>\r\n", MAX_SHORT_REPLY, id="exim"),
        pytest.param(b"MAIL FROM:<> SIZE=1\r\n", MAX_REPLY, id="postfix"),
        pytest.param(b"XFORWARD IDENT=1\r\nMAIL FROM:<>\r\n", MAX_REPLY, id="xforward"),
    ],
)
def test_a_reply_fits_into_what_the_client_reads(mail: bytes, limit: int) -> None:
    player = Player()
    player.feed(HELLO + mail + RCPT)
    player.answer(0, OK)
    player.feed(b"DATA\r\n.\r\n")
    player.server.data_to_send()
    player.settle(0, NO._replace(text="x" * 2000))
    line = player.server.data_to_send()
    assert len(line) == limit
    assert line.startswith(b"550 5.1.1 xxx")
    assert line.endswith(b"xxx...\r\n")


def test_every_reply_to_exim_fits_into_its_buffer() -> None:
    name = "x" * 255
    player = Player(offers=Offers(name, 10**9, dsn=True))
    assert len(player.server.data_to_send()) <= MAX_SHORT_REPLY
    player.feed(HELLO)
    reply = player.server.data_to_send()
    assert len(reply) <= MAX_SHORT_REPLY
    assert reply.endswith(b"250 DSN\r\n")


# -- bounds ---------------------------------------------------------------------


def test_a_long_line_is_refused_and_takes_no_memory() -> None:
    player = in_state(LmtpState.READY)
    player.feed(b"MAIL FROM:<")
    for _ in range(100):
        player.feed(b"x" * 65536)
        assert player.server.buffered <= MAX_LINE + 1
    player.feed(b">\r\nNOOP\r\n")
    assert player.said() == ["500 5.5.2 line too long", "250 2.0.0 Ok"]
    longest = b"NOOP " + b"x" * (MAX_LINE - 5)
    player.feed(longest + b"\r\n" + longest + b"x\r\n")
    assert player.said() == ["250 2.0.0 Ok", "500 5.5.2 line too long"]


def test_recipients_are_bounded() -> None:
    player = in_state(LmtpState.MAIL)
    for number in range(MAX_RECIPIENTS):
        player.feed(RCPT)
        player.answer(number, OK)
    player.said()
    player.feed(RCPT)
    assert player.said() == ["452 4.5.3 too many recipients"]
    player.feed(b"DATA\r\n")
    begun = player.events[-1]
    assert isinstance(begun, DataBegun)
    assert len(begun.recipients) == MAX_RECIPIENTS


def test_recipients_without_an_answer_are_bounded() -> None:
    player = in_state(LmtpState.MAIL)
    player.feed(RCPT * (MAX_RECIPIENTS + 10))
    assert len(player.all(RecipientNamed)) == MAX_RECIPIENTS
    assert player.server.buffered == 10 * len(RCPT)
    player.answer(0, NO)
    assert len(player.all(RecipientNamed)) == MAX_RECIPIENTS + 1


def test_refused_recipients_leave_nothing_behind() -> None:
    player = in_state(LmtpState.MAIL)
    for number in range(2 * MAX_RECIPIENTS):
        player.feed(RCPT)
        player.answer(number, NO)
    assert player.said() == ["550 5.1.1 no"] * 2 * MAX_RECIPIENTS


# -- mail data --------------------------------------------------------------------


def test_mail_data_comes_as_it_was_before_dots_were_doubled() -> None:
    for pieces in every_way(b"one\r\n..two\r\n...\r\n.\r\n"):
        player = in_data()
        for piece in pieces:
            player.feed(piece)
        assert data_of(player) == b"one\r\n.two\r\n..\r\n"
        assert player.events[-1] == DataEnded()


def test_mail_data_is_told_of_while_it_comes() -> None:
    player = in_data()
    player.feed(b"one line\r\n")
    assert data_of(player) == b"one line"  # its end may be the beginning of the end
    player.feed(b"another")
    assert data_of(player) == b"one line\r\nanother"
    assert player.server.buffered == 0


# https://sec-consult.com/blog/detail/smtp-smuggling-spoofing-e-mails-worldwide/ and
# CVE-2023-51764, -51765, -51766: each is the end of the data to some reader.
NO_ENDS = [
    *(b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r"),
    *(b"\r\n.\r\r\n", b"\n\n.\r\n", b"\n\n.\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n"),
    *(b"\r\n. \r\n", b"\r\n .\r\n", b"\r\n..\r\n", b"\r\r\n.\r\r\n", b"\x85.\x85"),
]
SMUGGLED = b"MAIL FROM:<admin@b.example>\r\nRCPT TO:<v@x.example>\r\nDATA\r\nhello\r\n"


@pytest.mark.parametrize("end", NO_ENDS, ids=lambda end: end.decode("latin-1"))
def test_nothing_but_crlf_dot_crlf_ends_the_data(end: bytes) -> None:
    wire = b"text" + end + SMUGGLED + b".\r\n"
    seen = set()
    for pieces in every_way(wire):
        player = in_data()
        for piece in pieces:
            player.feed(piece)
        assert player.events[-1] == DataEnded()
        assert player.all(RecipientNamed) == []
        assert player.server.state is LmtpState.ANSWERS
        seen.add(data_of(player))
    (data,) = seen
    assert data == (b"text" + end + SMUGGLED).replace(b"\r\n.", b"\r\n")


@pytest.mark.parametrize("end", NO_ENDS, ids=lambda end: end.decode("latin-1"))
def test_what_a_host_is_sent_of_it_ends_nothing_either(end: bytes) -> None:
    player = in_data()
    player.feed(b"text" + end + SMUGGLED + b".\r\n")
    stuffer = DotStuffer()
    wire = stuffer.encode(data_of(player)) + stuffer.finish()
    assert b"\n" not in wire.replace(b"\r\n", b"")
    assert b"\r" not in wire.replace(b"\r\n", b"")
    assert b"\r\n.\r\n" not in wire


@given(st.binary(max_size=60), st.data())
def test_what_was_stuffed_comes_back(text: bytes, data: st.DataObject) -> None:
    stuffer = DotStuffer()
    wire = stuffer.encode(text) + stuffer.finish()
    player = in_data()
    for piece in data.draw(cut_up(wire + FINAL_DOT + b"NOOP\r\n")):
        player.feed(piece)
    assert player.events[-1] == DataEnded()
    expected = wire.replace(b"\r\n.", b"\r\n")
    assert data_of(player) == (expected[1:] if wire.startswith(b".") else expected)
    assert player.server.buffered == len(b"NOOP\r\n")


def test_commands_may_follow_the_data_at_once() -> None:
    player = in_data()
    player.feed(b"text\r\n.\r\n" + MAIL + RCPT)
    player.settle(0, OK)
    assert player.said() == ["250 2.1.5 Ok", "250 2.1.0 Ok"]
    assert isinstance(player.events[-1], RecipientNamed)


def test_parse_reads_a_reply() -> None:
    assert parse("3 550 5.1.1 no") == (3, NO)
