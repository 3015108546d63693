from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.errors import LocalProtocolError, RemoteProtocolError
from mxpolicy.protocol.extensions import MailDsn, RcptDsn
from mxpolicy.protocol.smtp_client import MAX_IN_FLIGHT, MAX_STRAYS, SmtpClient
from mxpolicy.protocol.smtp_events import (
    BodyRefused,
    Closing,
    DataAnswered,
    DotAnswered,
    Event,
    MailAnswered,
    RcptAnswered,
    StrayReply,
)
from mxpolicy.protocol.smtp_states import COMMANDS, TRANSITIONS, State, Verb
from mxpolicy.reply import Reply
from tests.protocol import dialog
from tests.protocol.feeding import cut_up

HELLO = b"220 mx.example ESMTP\r\n"
OK = b"250 ok\r\n"


def client_after(*served: bytes) -> SmtpClient:
    """A client that has said EHLO; *served* are the keywords it was answered."""
    client = SmtpClient("client.example")
    client.receive_data(HELLO)
    client.ehlo()
    client.data_to_send()
    client.receive_data(
        b"".join(b"250-%b\r\n" % line for line in (b"mx", *served)) + OK
    )
    return client


def say(client: SmtpClient, command: Callable[[], None], *answers: bytes) -> SmtpClient:
    """Give a command, let it leave, and feed the answers."""
    command()
    assert client.data_to_send()
    for answer in answers:
        client.receive_data(answer)
    return client


def greeting() -> SmtpClient:
    return SmtpClient("client.example")


def greeted() -> SmtpClient:
    client = greeting()
    client.receive_data(HELLO)
    return client


def ready() -> SmtpClient:
    return client_after(b"STARTTLS", b"PIPELINING", b"SMTPUTF8", b"SIZE", b"DSN")


def rcpt() -> SmtpClient:
    client = ready()
    say(client, lambda: client.mail("a@client.example"), OK)
    return say(client, lambda: client.rcpt("b@mx.example"), OK)


def body() -> SmtpClient:
    client = rcpt()
    return say(client, client.data, b"354 go\r\n")


def behind_a_refused_mail() -> SmtpClient:
    client = ready()
    client.mail("a@client.example")
    client.rcpt("b@mx.example")
    client.data_to_send()
    client.receive_data(b"550 no\r\n")
    return client


def after(start: Callable[[], SmtpClient], command: str) -> Callable[[], SmtpClient]:
    """Return how to make a client that waits for the reply to *command*."""

    def make() -> SmtpClient:
        client = start()
        dialog.give(client, command)
        client.data_to_send()
        return client

    return make


def closed() -> SmtpClient:
    client = after(ready, "QUIT")()
    client.receive_data(b"221 bye\r\n")
    return client


def helo_due() -> SmtpClient:
    client = after(greeted, "EHLO x")()
    client.receive_data(b"502 what\r\n")
    return client


def handshake() -> SmtpClient:
    client = after(ready, "STARTTLS")()
    client.receive_data(b"220 go\r\n")
    return client


# Every (state, command whose reply is awaited), None for "nothing is awaited".
SITUATIONS: dict[tuple[State, Verb | None], Callable[[], SmtpClient]] = {
    (State.GREETING, Verb.CONNECT): greeting,
    (State.EHLO, None): greeted,
    (State.EHLO, Verb.EHLO): after(greeted, "EHLO x"),
    (State.HELO, None): helo_due,
    (State.HELO, Verb.HELO): after(helo_due, "HELO x"),
    (State.STARTTLS, Verb.STARTTLS): after(ready, "STARTTLS"),
    (State.TLS_HANDSHAKE, None): handshake,
    (State.READY, None): ready,
    (State.READY, Verb.RCPT): behind_a_refused_mail,
    (State.MAIL, Verb.MAIL): after(ready, "MAIL FROM:<a@client.example>"),
    (State.RCPT, None): rcpt,
    (State.RCPT, Verb.RCPT): after(rcpt, "RCPT TO:<c@mx.example>"),
    (State.DATA, Verb.DATA): after(rcpt, "DATA"),
    (State.BODY, None): body,
    (State.DOT, Verb.DOT): after(body, "."),
    (State.RSET, Verb.RSET): after(rcpt, "RSET"),
    (State.MAIL, Verb.RSET): after(
        after(ready, "RSET"), "MAIL FROM:<a@client.example>"
    ),
    (State.QUIT, None): lambda: refused_at_the_door(),
    (State.QUIT, Verb.QUIT): after(ready, "QUIT"),
    (State.QUIT, Verb.RCPT): after(behind_a_refused_mail, "QUIT"),
    (State.QUIT, Verb.MAIL): lambda: behind_a_refused_rset(),
    (State.RCPT, Verb.DATA): lambda: with_data_behind("MAIL", b"250 ok\r\n" * 2),
    (State.READY, Verb.DATA): lambda: with_data_behind("MAIL", b"550 no\r\n" * 2),
    (State.QUIT, Verb.DATA): lambda: with_data_behind("RSET", b"500 no\r\n" * 3),
    (State.CLOSED, None): closed,
}


def with_data_behind(first: str, replies: bytes) -> SmtpClient:
    """Return one that has given all commands to DATA at once, and heard *replies*."""
    client = ready()
    if first == "RSET":
        client.rset()
    client.mail("a@client.example")
    client.rcpt("b@mx.example")
    client.data()
    client.data_to_send()
    client.receive_data(replies)
    return client


def behind_a_refused_rset() -> SmtpClient:
    client = SITUATIONS[State.MAIL, Verb.RSET]()
    client.receive_data(b"500 no\r\n")
    return client


def refused_at_the_door() -> SmtpClient:
    client = greeting()
    client.receive_data(b"554 no\r\n")
    return client


Situation = tuple[State, Verb | None]


def each(wanted: Callable[[Situation], bool]) -> pytest.MarkDecorator:
    """Parametrize over the situations that are *wanted*."""
    return pytest.mark.parametrize(
        "situation",
        [
            pytest.param(key, id=f"{key[0].value}-{key[1]}")
            for key in SITUATIONS
            if wanted(key)
        ],
    )


situations = each(lambda situation: True)
asked = each(lambda situation: situation[1] is not None)
idle = each(lambda situation: situation[1] is None)


# -- the tables ---------------------------------------------------------------


def test_every_state_has_a_situation() -> None:
    assert {state for state, _ in SITUATIONS} == set(State)


def test_every_row_of_the_tables_can_be_reached() -> None:
    answered = {(state, verb) for state, verb in SITUATIONS if verb}
    assert {(state, verb) for state, verb, _ in TRANSITIONS} == answered
    assert {state for state, _ in COMMANDS} <= {state for state, _ in SITUATIONS}


@situations
def test_a_situation_is_what_it_is_named(situation: tuple[State, Verb | None]) -> None:
    client = SITUATIONS[situation]()
    assert (client.state, client.awaits) == situation
    assert client.data_to_send() == b""


@asked
@pytest.mark.parametrize("digit", range(10))
def test_a_reply_leads_where_the_table_says_or_ends_the_session(
    situation: tuple[State, Verb | None], digit: int
) -> None:
    state, verb = situation
    assert verb is not None
    client = SITUATIONS[situation]()
    following = TRANSITIONS.get((state, verb, digit))
    wire = b"%d99 x\r\n" % digit
    if following is None:
        with pytest.raises(RemoteProtocolError):
            client.receive_data(wire)
        assert client.state is State.CLOSED
        with pytest.raises(RemoteProtocolError):
            client.receive_data(OK)
    else:
        client.receive_data(wire)
        assert client.state is following


@idle
@pytest.mark.parametrize("digit", range(10))
def test_a_reply_to_nothing_is_a_goodbye_or_is_dropped(
    situation: tuple[State, Verb | None], digit: int
) -> None:
    state, _ = situation
    client = SITUATIONS[situation]()
    wire, reply = b"%d99 x\r\n" % digit, Reply(100 * digit + 99, ("x",))
    if state is State.CLOSED:
        assert client.receive_data(wire) == []
    elif state is State.TLS_HANDSHAKE:
        with pytest.raises(LocalProtocolError):
            client.receive_data(wire)
    elif digit in (4, 5):
        in_message = state is State.BODY
        event = BodyRefused(reply) if in_message else Closing(reply, None)
        assert client.receive_data(wire) == [event]
        assert client.state is State.CLOSED
    else:
        assert client.receive_data(wire) == [StrayReply(reply)]
        assert client.state is state


@situations
def test_421_closes_from_everywhere(situation: tuple[State, Verb | None]) -> None:
    state, verb = situation
    if state in (State.TLS_HANDSHAKE, State.CLOSED):
        return
    client = SITUATIONS[situation]()
    awaited = Verb.DOT if state is State.BODY else verb
    event = Closing(Reply(421, ("bye",)), awaited)
    assert client.receive_data(b"421 bye\r\n250 noise\r\n") == [event]
    assert (client.state, client.awaits) == (State.CLOSED, None)


LINES = {
    Verb.EHLO: "EHLO x",
    Verb.HELO: "HELO x",
    Verb.STARTTLS: "STARTTLS",
    Verb.MAIL: "MAIL FROM:<a@client.example>",
    Verb.RCPT: "RCPT TO:<c@mx.example>",
    Verb.DATA: "DATA",
    Verb.DOT: ".",
    Verb.RSET: "RSET",
    Verb.QUIT: "QUIT",
}

# What may be given while replies are due.
QUEUED = {
    (State.MAIL, Verb.MAIL, Verb.RCPT),
    (State.RCPT, Verb.RCPT, Verb.RCPT),
    (State.RSET, Verb.RSET, Verb.MAIL),
    (State.MAIL, Verb.RSET, Verb.RCPT),
    (State.READY, Verb.RCPT, Verb.QUIT),
}


@situations
@pytest.mark.parametrize("verb", LINES)
def test_a_command_is_given_where_the_table_says_or_changes_nothing(
    situation: tuple[State, Verb | None], verb: Verb
) -> None:
    state, awaited = situation
    client = SITUATIONS[situation]()
    following = COMMANDS.get((state, verb))
    if awaited and (state, awaited, verb) not in QUEUED:
        following = None
    if following is None:
        with pytest.raises(LocalProtocolError):
            dialog.give(client, LINES[verb])
        assert (client.state, client.awaits) == situation
        assert client.data_to_send() == b""
    else:
        dialog.give(client, LINES[verb])
        assert (client.state, client.awaits) == (following, awaited or verb)
        assert client.data_to_send().startswith(verb.value.encode())


@situations
@pytest.mark.parametrize("cut", [0, 4, 8])
def test_what_came_before_a_command_left_is_no_answer_to_it(
    situation: tuple[State, Verb | None], cut: int
) -> None:
    state, awaited = situation
    stray = b"250 hm\r\n"
    for verb, line in LINES.items():
        if awaited or (state, verb) not in COMMANDS:
            continue
        client = SITUATIONS[situation]()
        before = client.receive_data(stray[:cut])
        dialog.give(client, line)
        before += client.receive_data(stray[cut : cut + 1])
        assert client.data_to_send()
        before += client.receive_data(stray[cut + 1 :])
        assert before == [StrayReply(Reply(250, ("hm",)))]
        assert client.is_asking
        (event,) = client.receive_data(b"421 yes\r\n")
        assert event == Closing(Reply(421, ("yes",)), verb)


def test_data_leaves_behind_rcpt_and_closes_the_group() -> None:
    client = ready()
    client.mail("a@client.example")
    with pytest.raises(LocalProtocolError):
        client.data()
    client.rcpt("b@mx.example")
    client.data()
    with pytest.raises(LocalProtocolError):
        client.rcpt("c@mx.example")
    assert client.data_to_send().endswith(b"\r\nDATA\r\n")
    client.receive_data(b"250 ok\r\n550 no\r\n")
    assert client.receive_data(b"354 go\r\n") == [DataAnswered(Reply(354, ("go",)))]
    assert client.state is State.BODY  # for no recipient: the session is to be reset


@pytest.mark.parametrize("code", [b"452", b"554"])
@pytest.mark.parametrize("when", ["dot queued", "dot out", "begun before it"])
def test_a_refusal_before_the_server_has_the_dot_counts(code: bytes, when: str) -> None:
    client, wire = body(), code + b" no\r\n"
    if when == "begun before it":
        assert client.receive_data(wire[:3]) == []
        wire = wire[3:]
    client.dot()
    if when != "dot queued":
        client.data_to_send()
    refused = BodyRefused(Reply(int(code), ("no",)))
    assert client.receive_data(wire, is_early=when == "dot out") == [refused]
    assert client.state is State.CLOSED
    assert client.receive_data(b"250 taken\r\n") == []


def test_what_came_before_the_server_had_the_dot_is_no_answer_to_it() -> None:
    client = after(body, ".")()
    assert client.receive_data(b"250 a\r\n354 b\r\n25", is_early=True) == [
        StrayReply(Reply(250, ("a",))),
        StrayReply(Reply(354, ("b",))),
    ]
    # The rest of what had begun too early, and then the answer.
    assert client.receive_data(b"0 c\r\n554 no\r\n") == [
        StrayReply(Reply(250, ("c",))),
        DotAnswered(Reply(554, ("no",))),
    ]


def test_a_server_that_goes_on_saying_what_was_not_asked_is_left() -> None:
    client = body()
    assert len(client.receive_data(OK * MAX_STRAYS)) == MAX_STRAYS
    with pytest.raises(RemoteProtocolError, match="more and more"):
        client.receive_data(OK)
    client = body()
    client.receive_data(OK * MAX_STRAYS)
    client.dot()
    client.data_to_send()
    client.receive_data(OK)
    assert client.receive_data(OK) == [StrayReply(Reply(250, ("ok",)))]


@pytest.mark.parametrize("stray", [b"250 ok\r\n", b"354 ok\r\n", b"550 no\r\n"])
def test_one_reply_too_many_to_a_group_of_commands_ends_the_session(
    stray: bytes,
) -> None:
    # It may be the first of them that answered nothing: then all have slipped.
    client = ready()
    client.mail("a@client.example")
    client.rcpt("b@mx.example")
    client.data_to_send()
    assert len(client.receive_data(OK * 2)) == 2
    client.data()
    with pytest.raises(RemoteProtocolError, match="a reply to nothing"):
        client.receive_data(stray)
    assert client.state is State.CLOSED


def test_a_group_that_is_answered_is_forgotten_with_the_next_command() -> None:
    client = ready()
    client.mail("a@client.example")
    client.rcpt("b@mx.example")
    client.data_to_send()
    client.receive_data(OK * 2)
    say(client, client.data, b"354 go\r\n")
    assert client.receive_data(OK) == [StrayReply(Reply(250, ("ok",)))]


# -- pipelining ---------------------------------------------------------------


def test_commands_leave_one_by_one_without_pipelining() -> None:
    client = client_after(b"SIZE 1000")
    client.mail("a@client.example")
    client.rcpt("b@mx.example")
    client.rcpt("c@mx.example")
    for line in (b"MAIL FROM:<a@client.example>", b"RCPT TO:<b@mx.example>"):
        assert client.data_to_send() == line + b"\r\n"
        assert client.data_to_send() == b""
        client.receive_data(OK)
    assert client.data_to_send() == b"RCPT TO:<c@mx.example>\r\n"
    assert client.receive_data(OK) == [RcptAnswered(1, Reply(250, ("ok",)))]
    assert client.awaits is None


def test_a_reply_to_a_command_that_has_not_left_is_a_reply_to_nothing() -> None:
    client = client_after()
    client.mail("a@client.example")
    assert client.receive_data(OK) == [StrayReply(Reply(250, ("ok",)))]
    assert client.awaits is Verb.MAIL


def test_421_before_a_command_has_left_answers_nothing() -> None:
    client = client_after()
    client.mail("a@client.example")
    assert client.receive_data(b"421 x\r\n") == [Closing(Reply(421, ("x",)), None)]


def test_recipients_that_have_not_left_are_dropped_when_mail_is_refused() -> None:
    client = client_after()
    client.mail("a@client.example")
    client.rcpt("b@mx.example")
    client.data_to_send()
    client.receive_data(b"550 no\r\n")
    assert (client.state, client.awaits) == (State.READY, None)
    assert client.data_to_send() == b""


def test_no_more_commands_are_in_flight_than_both_sides_can_buffer() -> None:
    client = client_after(b"PIPELINING")
    client.mail("a@client.example")
    for number in range(250):
        client.rcpt(f"{number}@mx.example")
    sizes = []
    while leaving := client.data_to_send():
        sizes.append(leaving.count(b"\r\n"))
        client.receive_data(OK * sizes[-1])
    assert sizes == [MAX_IN_FLIGHT, MAX_IN_FLIGHT, 51]
    assert client.awaits is None


def test_a_masked_banner_turns_pipelining_off() -> None:
    banners = {
        b"220 ****2***0* ***": True,
        b"220-***\r\n220 ***": True,
        b"220 *": True,
        b"220": False,
        b"220 20 02": False,
        b"220 mx.example ***": False,
        b"554 ****": False,
    }
    for banner, masked in banners.items():
        client = greeting()
        client.receive_data(banner + b"\r\n")
        assert client.banner_masked is masked
        if client.state is State.EHLO:
            client.ehlo()
            client.data_to_send()
            client.receive_data(b"250-mx\r\n250 PIPELINING\r\n")
            assert client.pipelining is not masked


# -- order, errors, injection ---------------------------------------------------


def test_good_replies_count_before_an_error_behind_them() -> None:
    client = ready()
    client.mail("a@client.example")
    client.rcpt("b@mx.example")
    client.rcpt("c@mx.example")
    client.data_to_send()
    assert client.receive_data(b"250 ok\r\nrubbish\r\n") == [
        MailAnswered(Reply(250, ("ok",)))
    ]
    assert client.state is State.CLOSED
    client.quit()  # no effect, no error
    with pytest.raises(RemoteProtocolError, match="rubbish"):
        client.data_to_send()
    with pytest.raises(RemoteProtocolError, match="rubbish"):
        client.receive_data(OK)


@pytest.mark.parametrize("line", [b"", b"rubbish", b"250_ok", b"25", b"\0", b" 250 x"])
@pytest.mark.parametrize(
    ("start", "reply"),
    [
        pytest.param(greeting, HELLO, id="greeting"),
        pytest.param(after(greeted, "EHLO x"), b"250-mx\r\n250 DSN\r\n", id="EHLO"),
        pytest.param(after(helo_due, "HELO x"), OK, id="HELO"),
        pytest.param(after(rcpt, "RCPT TO:<c@mx.example>"), OK, id="a_lone_RCPT"),
        pytest.param(after(body, "."), OK, id="dot"),
    ],
)
def test_a_line_that_is_no_reply_is_skipped_while_one_reply_is_outstanding(
    start: Callable[[], SmtpClient], reply: bytes, line: bytes
) -> None:
    (expected,) = start().receive_data(reply)
    rubbish = line + b"\r\n"
    for wire in (rubbish * 3 + reply, rubbish.join(reply.splitlines(keepends=True))):
        (event,) = start().receive_data(wire)
        assert repr(event) == repr(expected)


@pytest.mark.parametrize("answered", [0, 1])
def test_a_line_that_is_no_reply_is_an_error_while_several_are_outstanding(
    answered: int,
) -> None:
    client = ready()
    client.mail("a@client.example")
    for one in "bcd":
        client.rcpt(f"{one}@mx.example")
    client.data_to_send()
    client.receive_data(OK * answered)
    with pytest.raises(RemoteProtocolError, match="not an SMTP reply"):
        client.receive_data(b"\r\n")


def test_extensions_beyond_what_is_kept_of_other_replies_are_understood() -> None:
    filler = [b"X%d some words" % number for number in range(1000)]
    client = client_after(b"X" + b"y" * 3000, *filler, b"PIPELINING", b"SIZE 77")
    assert client.pipelining
    assert client.extensions.size == 77


@pytest.mark.parametrize(
    "reply",
    [
        b"250 2.6.0 <" + b"x" * 3000 + b"@mx.example> queued\r\n",
        b"250-2.0.0 line\r\n" * 120 + b"250 2.0.0 queued\r\n",
        b"250-" + b"x" * 900_000 + b"\r\n250 ok\r\n",
        b"550-no\r\n250 yes after all\r\n",
        b"250 bare\n",
        b"250 \xe4\x00\x1b\r\n",
        b"250\r\n",
    ],
    ids=["long", "many", "longer", "mixed", "bare_lf", "unprintable", "bare_code"],
)
def test_a_250_to_the_dot_is_one_however_it_is_written(reply: bytes) -> None:
    (event,) = after(body, ".")().receive_data(reply)
    assert isinstance(event, DotAnswered)
    assert event.reply.code == 250


@pytest.mark.parametrize(
    "behind", [b"2", b"250 injected\r\n", b"421 x\r\n", b"\x16\x03"]
)
def test_bytes_behind_the_reply_to_starttls_end_the_session(behind: bytes) -> None:
    client = after(ready, "STARTTLS")()
    with pytest.raises(RemoteProtocolError, match="behind the reply to STARTTLS"):
        client.receive_data(b"220 go\r\n" + behind)
    assert client.state is State.CLOSED
    with pytest.raises(LocalProtocolError):
        client.tls_established()


def test_what_was_said_before_tls_is_forgotten() -> None:
    client = handshake()
    client.tls_established()
    assert client.state is State.EHLO
    assert client.extensions == {}
    assert client.ehlo_name == ""
    say(client, client.ehlo, b"250-mx\r\n250 STARTTLS\r\n")
    with pytest.raises(LocalProtocolError, match="not offered"):
        client.starttls()


def test_starttls_is_only_asked_where_it_is_offered() -> None:
    with pytest.raises(LocalProtocolError, match="not offered"):
        client_after(b"XXXXXXXA").starttls()


def test_the_name_in_the_ehlo_reply_is_kept() -> None:
    for reply, name in {
        b"250 MX.Example at your service": "MX.Example",
        b"250": "",
    }.items():
        client = greeted()
        say(client, client.ehlo, reply + b"\r\n")
        assert client.ehlo_name == name
    client = helo_due()
    assert client.ehlo_name == ""
    say(client, client.helo, b"250 old.example\r\n")
    assert client.ehlo_name == "old.example"
    assert client.extensions == {}


def test_helo_can_be_said_in_place_of_ehlo() -> None:
    client = greeted()
    say(client, client.helo, OK)
    assert client.state is State.READY


def test_data_needs_an_accepted_recipient() -> None:
    client = ready()
    say(client, lambda: client.mail(""), OK)
    say(client, lambda: client.rcpt("b@mx.example"), b"550 no\r\n")
    with pytest.raises(LocalProtocolError, match="no recipient was accepted"):
        client.data()
    say(client, lambda: client.rcpt("c@mx.example"), b"251 will forward\r\n")
    client.data()
    assert client.data_to_send() == b"DATA\r\n"


def test_recipients_of_an_earlier_transaction_do_not_count() -> None:
    client = after(body, ".")()
    client.receive_data(OK)
    say(client, lambda: client.mail("a@client.example"), OK)
    with pytest.raises(LocalProtocolError, match="no recipient was accepted"):
        client.data()


def test_the_final_dot_leaves_alone() -> None:
    client = body()
    assert client.data_to_send() == b""
    client.dot()
    assert client.data_to_send() == b".\r\n"


# -- what goes out ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        ([], b"MAIL FROM:<a@b.example>"),
        ([b"SIZE"], b"MAIL FROM:<a@b.example> SIZE=9"),
        ([b"8BITMIME"], b"MAIL FROM:<a@b.example> BODY=8BITMIME"),
        ([b"DSN"], b"MAIL FROM:<a@b.example> RET=FULL ENVID=x+2By"),
        (
            [b"DSN", b"SIZE 5", b"8BITMIME", b"SMTPUTF8"],
            b"MAIL FROM:<a@b.example> SIZE=9 BODY=8BITMIME RET=FULL ENVID=x+2By",
        ),
    ],
)
def test_only_offered_parameters_are_sent(
    offered: list[bytes], expected: bytes
) -> None:
    client = client_after(*offered)
    client.mail("a@b.example", size=9, body8bit=True, dsn=MailDsn("FULL", "x+y"))
    assert client.data_to_send() == expected + b"\r\n"
    client.receive_data(OK)
    client.rcpt("c@mx.example", dsn=RcptDsn(("NEVER",)))
    notify = b" NOTIFY=NEVER" if b"DSN" in offered else b""
    assert client.data_to_send() == b"RCPT TO:<c@mx.example>" + notify + b"\r\n"


def test_parameters_that_were_not_said_are_not_sent() -> None:
    client = client_after(b"DSN", b"SIZE", b"8BITMIME", b"SMTPUTF8")
    client.mail("", dsn=MailDsn())
    assert client.data_to_send() == b"MAIL FROM:<>\r\n"
    client.receive_data(OK)
    client.rcpt("c@mx.example")
    assert client.data_to_send() == b"RCPT TO:<c@mx.example>\r\n"


def test_addresses_beyond_ascii_need_smtputf8() -> None:
    with pytest.raises(LocalProtocolError, match="SMTPUTF8 is not offered"):
        client_after().mail("a@b.example", smtputf8=True)
    client = ready()
    with pytest.raises(LocalProtocolError, match="without SMTPUTF8"):
        client.mail("ä@b.example")
    client.mail("a@b.example")
    with pytest.raises(LocalProtocolError, match="without SMTPUTF8"):
        client.rcpt("ü@b.example")
    client = ready()
    client.mail("ä@b.example", smtputf8=True)
    client.rcpt("ü@b.example")
    assert "RCPT TO:<ü@b.example>\r\n".encode() in client.data_to_send()
    with pytest.raises(LocalProtocolError, match="no UTF-8"):
        client.rcpt("\udcff@b.example")


@pytest.mark.parametrize(
    "path",
    [
        "a\r\nRCPT TO:<evil@b.example",
        "a\n@b.example",
        "a\r@b.example",
        "a\x00@b.example",
        "a\x7f@b.example",
        '"a\r\nb"@b.example',
        '"a\\\nb"@b.example',
        "a@b.example> SIZE=1",
        "a@b.example>",
        "<a@b.example",
        "a b@b.example",
        "a@b.example\u2028",
        '"a b@b.example',
        'a"b@b.example',
    ],
)
def test_nothing_in_a_path_leaves_its_brackets(path: str) -> None:
    client = ready()
    client.mail("a@b.example", smtputf8=True)
    with pytest.raises(LocalProtocolError, match="no path"):
        client.rcpt(path)
    assert client.data_to_send().count(b"\r\n") == 1


@pytest.mark.parametrize(
    "path",
    [
        "a\r\nRCPT TO:<evil@b.example",
        "a\n@b.example",
        "a\r@b.example",
        "a\x00@b.example",
        '"a\r\nb"@b.example',
        '"a\\\nb"@b.example',
        "a@b.example> SIZE=1",
        "a@b.example>",
        "<a@b.example",
        '"a"<b"@b.example',
        '"a> SIZE=1',
        'a"b>',
        '"a\\"> SIZE=1',
    ],
)
def test_nothing_in_a_sender_leaves_its_brackets(path: str) -> None:
    client = ready()
    with pytest.raises(LocalProtocolError, match="no path"):
        client.mail(path, smtputf8=True)
    assert (client.state, client.data_to_send()) == (State.READY, b"")


@pytest.mark.parametrize(
    "path",
    [
        "root@host (none)",
        "root@483920174635",
        "@a.example:b@c.example",
        "a",
        'a"b@c.example',
        '"<>"@c.example',
        "a\x1b\x7f\t@c.example",
        "a\udce9@c.example",
        1000 * "a",
    ],
)
def test_any_other_sender_is_for_the_server_to_judge(path: str) -> None:
    client = ready()
    client.mail(path)
    wire = path.encode("utf-8", "surrogateescape")
    assert client.data_to_send() == b"MAIL FROM:<" + wire + b">\r\n"


@pytest.mark.parametrize(
    "path",
    [
        "a@b.example",
        "-oQ/tmp@b.example",
        '"a b"@b.example',
        '"<>\\" >"@b.example',
        '""@b.example',
        "a@[192.0.2.1]",
        "a@[IPv6:2001:db8::1]",
        "@one.example,@two.example:a@b.example",
        "postmaster",
    ],
)
def test_every_form_of_a_path_passes(path: str) -> None:
    client = ready()
    client.mail(path)
    assert client.data_to_send() == f"MAIL FROM:<{path}>\r\n".encode()


def test_a_recipient_cannot_be_empty() -> None:
    client = ready()
    client.mail("a@b.example")
    with pytest.raises(LocalProtocolError, match="no recipient"):
        client.rcpt("")


@pytest.mark.parametrize("helo", ["", "a b", "a\r\nb", "a\x00", "ä.example", "a\n"])
def test_our_own_name_is_one_word(helo: str) -> None:
    with pytest.raises(LocalProtocolError, match="no argument"):
        SmtpClient(helo)


@pytest.mark.parametrize("ret", ["FULL\r\nQUIT", "FULL SIZE=1", "FÜLL"])
def test_a_parameter_is_one_word(ret: str) -> None:
    with pytest.raises(LocalProtocolError, match="no argument"):
        ready().mail("a@b.example", dsn=MailDsn(ret))


def test_a_parameter_of_a_recipient_is_one_word() -> None:
    client = ready()
    client.mail("a@b.example")
    with pytest.raises(LocalProtocolError, match="no argument"):
        client.rcpt("c@mx.example", dsn=RcptDsn(("NEVER X",)))


@given(
    st.text(max_size=30),
    st.sampled_from(["a@b.example", '"', "\r\n", "\x00", "", "\\"]),
)
@settings(max_examples=100)
def test_whatever_an_address_is_one_line_leaves_for_one_command(
    text: str, more: str
) -> None:
    client = ready()
    try:
        client.mail(text + more, smtputf8=True)
    except LocalProtocolError:
        assert client.data_to_send() == b""
        return
    wire = client.data_to_send()
    assert wire.endswith(b"> SMTPUTF8\r\n")
    assert not set(wire[:-2]) & {0, 10, 13}


# -- dialogs ------------------------------------------------------------------------


def whole(data: bytes) -> list[bytes]:
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def with_bare_lf(data: bytes) -> list[bytes]:
    return [data.replace(b"\r\n", b"\n")]


def with_nothing_between(data: bytes) -> list[bytes]:
    return [b"", data, b""]


@pytest.mark.parametrize(
    "cut", [whole, byte_by_byte, with_bare_lf, with_nothing_between]
)
@pytest.mark.parametrize("path", dialog.DIALOGS, ids=lambda path: path.stem)
def test_dialog(path: Path, cut: Callable[[bytes], list[bytes]]) -> None:
    client = dialog.play(path.read_text("utf-8"), cut)
    ended = client.state in (State.CLOSED, State.QUIT)
    assert ended, f"the dialog stops in {client.state}"


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("C: MAIL FROM:", "C: MAIL FROM: "),
        ("C: QUIT", "C: RSET"),
        ("C: ...etc.", "C: .etc."),
        ("E: QuitAnswered 221", "E: QuitAnswered 250"),
        ("E: QuitAnswered 221", "E: QuitAnswered 221\nE: Greeted 220"),
        ("E: ", "X: "),
        ("S: 354", "S: 554"),
    ],
)
def test_a_dialog_that_goes_another_way_is_seen(line: str, other: str) -> None:
    text = dialog.DIALOGS[-1].with_stem("rfc5321_d1_typical").read_text("utf-8")
    assert line in text
    with pytest.raises((AssertionError, LocalProtocolError, ValueError)):
        dialog.play(text.replace(line, other), whole)


# -- fuzz -----------------------------------------------------------------------------

served = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"250-mx\r\n250-PIPELINING\r\n250 STARTTLS\r\n",
                b"220 x\r\n",
                b"250 ok\r\n",
                b"354 go\r\n",
                b"421 bye\r\n",
                b"450 later\r\n",
                b"550 no\r\n",
                b"25",
                b"250-",
                b"\n",
                b"",
            ]
        ),
        st.binary(max_size=5),
    ),
    max_size=10,
)
steps = st.lists(st.sampled_from([*LINES.values(), "flush", "tls"]), max_size=5)


@given(st.lists(st.tuples(served, steps), max_size=8))
@settings(max_examples=200)
def test_no_server_and_no_caller_can_cause_another_error_or_lose_the_count(
    script: list[tuple[list[bytes], list[str]]],
) -> None:
    client = SmtpClient("client.example")
    sent, answered = 1, 0  # connecting asks for the greeting
    for replies, commands in script:
        try:
            for piece in replies:
                answered += sum(map(is_answer, client.receive_data(piece)))
                assert answered <= sent
            for line in commands:
                if line == "tls":
                    client.tls_established()
                elif line == "flush":
                    sent += client.data_to_send().count(b"\r\n")
                else:
                    dialog.give(client, line)
        except LocalProtocolError:
            pass
        except RemoteProtocolError:
            assert client.state is State.CLOSED
            assert client.awaits is None


def is_answer(event: Event) -> bool:
    """False for what comes without having been asked for."""
    return not isinstance(event, (Closing, BodyRefused, StrayReply))


@given(st.data(), st.sampled_from(dialog.DIALOGS))
@settings(max_examples=60)
def test_dialogs_do_not_depend_on_cuts(data: st.DataObject, path: Path) -> None:
    dialog.play(path.read_text("utf-8"), lambda wire: data.draw(cut_up(wire, 4)))
