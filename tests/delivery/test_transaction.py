"""`mxpolicy.delivery.transaction` against scripted hosts: from MAIL to the dot."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
import trustme
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mxpolicy.address import Mailbox
from mxpolicy.delivery.message import Envelope
from mxpolicy.delivery.session_phase import SessionFailed
from mxpolicy.errors import LocalProtocolError, LocalTrouble
from mxpolicy.net.dial import dial
from mxpolicy.options import LongLines, TlsLevel
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.routing.candidate import Candidate, Phase, Verdict
from tests.delivery.attempts import envelope, mail_data, run
from tests.delivery.conversations import (
    BIG,
    FIVE,
    Owner,
    Result,
    Told,
    converse,
    offered,
    opened,
    session_over,
    transaction,
)
from tests.helpers.scripted_smtp import EXTENSIONS, End, ScriptedHost
from tests.helpers.socket_loop import run_with_sockets

if TYPE_CHECKING:
    from mxpolicy.net.stream import Stream
    from tests.helpers.scripted_smtp import Answer, Script


# --- what goes over the wire


def test_parameters_are_given_as_offered() -> None:
    host = ScriptedHost()
    offered(host, message=b"caf\xc3\xa9\n")
    assert host.commands[1] == "MAIL FROM:<alice@example.net> SIZE=7 BODY=8BITMIME"


def test_8_bit_data_goes_as_it_is_to_a_host_without_8bitmime() -> None:
    host = ScriptedHost(extensions=[])
    offered(host, message=b"caf\xc3\xa9\n")
    assert host.commands[1] == "MAIL FROM:<alice@example.net>"
    assert host.taken[0].mail_data == b"caf\xc3\xa9\r\n"


def test_null_reverse_path_is_two_brackets() -> None:
    host = ScriptedHost(extensions=[])
    opened(host, to=envelope("a@example.com", sender="<>"))
    assert host.commands[1:3] == ["MAIL FROM:<>", "RCPT TO:<a@example.com>"]


@pytest.mark.parametrize("evil", ["x\r\nRCPT TO:<eve", "x\nDATA", "x\0", "x\r"])
def test_control_characters_in_an_address_never_reach_the_wire(evil: str) -> None:
    # parse_mailbox refuses them long before; this is the second lock.
    host = ScriptedHost()
    to = Envelope(None, {0: Mailbox(evil, "example.com")})
    with pytest.raises(LocalProtocolError):
        opened(host, to=to)
    assert not [line for line in host.commands if "RCPT" in line]


SMUGGLERS = [
    b"a\n.\nMAIL FROM:<eve@example.com>\n",
    b"a\r.\rb",
    b"a\r\n.\rb\n",
    b"a\n.\r\nb",
    b"a\r\r\n.\r\r\nb",
    b".\r\nb",
    b".",
    b"\n",
]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\0"])).map(b"".join))
@example(b"a" * 65535 + b"\r\n.\r\n")
def test_nothing_in_the_mail_data_can_end_it(data: bytes) -> None:
    check_wire(data)


@pytest.mark.parametrize("data", SMUGGLERS)
def test_known_ways_of_smuggling_end_as_text(data: bytes) -> None:
    check_wire(data)


def check_wire(data: bytes) -> None:
    host = ScriptedHost()
    told = offered(host, message=data)
    assert set(told.result.delivered) == {0}
    wire = bytes(host.raw[0]).partition(b"DATA\r\n")[2]
    text, end, rest = wire.partition(b"\r\n.\r\n")
    assert (end, rest) in ((b"\r\n.\r\n", b"QUIT\r\n"), (b"", b""))
    assert wire.endswith(b".\r\nQUIT\r\n")
    for line in text.split(b"\r\n"):
        assert b"\r" not in line
        assert b"\n" not in line
    assert len(host.messages) == 1


# --- several transactions in a session


def commands(host: ScriptedHost) -> list[str]:
    """Return the verbs of the only session after EHLO."""
    (visit,) = host.visits
    return [line.partition(" ")[0] for line in visit[1:]]


def test_those_there_were_too_many_of_get_a_second_transaction() -> None:
    host = ScriptedHost(
        {
            "RCPT b@example.com": ["452 4.5.3 too many", "250 ok"],
            "RCPT c@example.com": ["552 too many recipients", "452 too many", "250 ok"],
        }
    )
    told = offered(host, *FIVE[:3])
    assert set(told.result.delivered) == {0, 1, 2}
    assert not told.refused
    assert [one.forward_paths for one in host.taken] == [
        (FIVE[0],),
        (FIVE[1],),
        (FIVE[2],),
    ]
    assert told.accepted == [{0}, {0, 1}, {0, 1, 2}]
    assert len(host.visits) == 1


def test_those_there_were_too_many_of_stay_refused_when_nobody_was_taken() -> None:
    host = ScriptedHost({"RCPT": "452 4.5.3 too many"})
    told = offered(host, *FIVE[:2])
    assert told.refused == {0: (Verb.RCPT, 452), 1: (Verb.RCPT, 452)}
    assert commands(host) == ["MAIL", "RCPT", "RCPT", "QUIT"]


LIMITED = (*EXTENSIONS, "LIMITS RCPTMAX=2")


def test_limit_of_recipients_is_kept() -> None:
    host = ScriptedHost(extensions=LIMITED)
    told = offered(host, *FIVE)
    assert set(told.result.delivered) == {0, 1, 2, 3, 4}
    assert [len(one.forward_paths) for one in host.taken] == [2, 2, 1]


@pytest.mark.parametrize(
    ("script", "refused", "between"),
    [
        pytest.param(
            {f"RCPT {one}": "550 no" for one in FIVE[:2]},
            (Verb.RCPT, 550),
            ["RSET"],
            id="RCPT",
        ),
        pytest.param(
            {"DATA": ["554 no", "354 go"]},
            (Verb.DATA, 554),
            ["DATA", "RSET"],
            id="DATA",
        ),
        pytest.param({".": ["554 no", "250 ok"]}, (Verb.DOT, 554), ["DATA"], id="dot"),
    ],
)
def test_refusal_of_some_is_none_of_those_beyond_the_limit(
    script: Script, refused: tuple[Verb, int], between: list[str]
) -> None:
    host = ScriptedHost(script, extensions=LIMITED)
    told = offered(host, *FIVE[:3])
    assert told.refused == {0: refused, 1: refused}
    assert set(told.result.delivered) == {2}
    first = ["MAIL", "RCPT", "RCPT", *between]
    assert commands(host) == [*first, "MAIL", "RCPT", "DATA", "QUIT"]


def test_refusal_of_the_sender_is_one_of_those_beyond_the_limit() -> None:
    host = ScriptedHost({"MAIL": "550 5.1.8 no"}, extensions=LIMITED)
    told = offered(host, *FIVE[:3])
    assert told.refused == dict.fromkeys(range(3), (Verb.MAIL, 550))
    assert not told.accepted
    assert [verb for verb in commands(host) if verb == "MAIL"] == ["MAIL"]


def test_limit_of_transactions_is_kept() -> None:
    host = ScriptedHost(extensions=[*EXTENSIONS, "LIMITS RCPTMAX=2 MAILMAX=1"])
    told = offered(host, *FIVE)
    assert set(told.result.delivered) == {0, 1}
    assert told.failed == ("unfit", "transaction")
    assert not told.refused


@pytest.mark.parametrize(
    ("script", "failed"),
    [
        ({".": ("250 ok", "421 enough")}, ("transient", "transaction")),
        ({".": ("250 ok", End.CLOSE)}, ("closed", "transaction")),
        ({"MAIL": ["250 ok", End.SILENT]}, ("silent", "transaction")),
        ({"DATA": ["354 go", End.RESET]}, ("closed", "transaction")),
    ],
    ids=str,
)
def test_what_was_taken_stays_taken_when_the_next_transaction_fails(
    script: Script, failed: tuple[str, str]
) -> None:
    host = ScriptedHost(script, extensions=LIMITED)
    told = offered(host, *FIVE[:3])
    assert set(told.result.delivered) == {0, 1}
    assert told.failed == failed
    assert not told.result.in_doubt
    assert not told.refused


def test_only_the_second_dot_is_in_doubt() -> None:
    host = ScriptedHost({".": ["250 ok", End.CLOSE]}, extensions=LIMITED)
    told = offered(host, *FIVE[:3])
    assert set(told.result.delivered) == {0, 1}
    assert told.result.in_doubt == {2}
    assert told.failed == ("closed", "dot")


@pytest.mark.parametrize(
    ("script", "failed"),
    [
        ({"DATA": "554 no", "RSET": "554 no"}, ("closed", "transaction")),
        ({"DATA": "554 no", "RSET": End.CLOSE}, ("closed", "transaction")),
        ({"DATA": ("354 go", "554 no")}, ("closed", "transaction")),
        ({"DATA": ("554 no", "421 no")}, ("transient", "transaction")),
    ],
    ids=str,
)
def test_session_that_cannot_go_on_leaves_those_beyond_the_limit_open(
    script: Script, failed: tuple[str, str]
) -> None:
    told = offered(ScriptedHost(script, extensions=LIMITED), *FIVE[:3])
    assert set(told.refused) == {0, 1}
    assert told.failed == failed


# --- replies in the wrong place


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_421_ends_the_session_wherever_it_comes(verb: str) -> None:
    told = offered(ScriptedHost({verb: "421 4.3.2 bye"}))
    assert told.failed == ("transient", "transaction")
    assert not told.refused


@pytest.mark.parametrize(
    ("reply", "behind"),
    [("MAIL", "421 bye"), ("RCPT", "421 bye")],
)
def test_421_behind_another_reply_ends_the_session(reply: str, behind: str) -> None:
    host = ScriptedHost({reply: ("250 ok", behind)}, extensions=[])
    told = offered(host)
    assert told.failed == ("transient", "transaction")
    assert "DATA" not in host.commands


STRAYS = ("250 hm", "220 hm", "354 hm", "999 hm", "250-h\n250 m")


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize(
    ("verb", "usual"),
    [
        ("CONNECT", "220 hi"),
        ("EHLO", "250 mx.example.com"),
        ("MAIL", "250 ok"),
        ("RCPT", "250 ok"),
        ("DATA", "354 go"),
    ],
)
def test_reply_that_nobody_asked_for_is_dropped(
    verb: str, usual: str, stray: str
) -> None:
    host = ScriptedHost({verb: [(usual, stray)]}, extensions=())
    told = offered(host, FIVE[0])
    assert told.failure is None
    assert set(told.result.delivered) == {0}
    assert len(host.messages) == 1
    assert told.strays == [stray.replace("250-h\n250 m", "250 h m")]


@pytest.mark.parametrize("goodbye", ["450 4.3.2 bye", "554 5.3.2 bye", "421 bye"])
@pytest.mark.parametrize(
    ("verb", "usual", "phase"),
    [
        ("CONNECT", "220 hi", "ehlo"),
        ("EHLO", "250 mx.example.com", "transaction"),
        ("MAIL", "250 ok", "transaction"),
        ("RCPT", "250 ok", "transaction"),
    ],
)
def test_refusal_that_nobody_asked_for_is_a_goodbye(
    verb: str, usual: str, phase: str, goodbye: str
) -> None:
    host = ScriptedHost({verb: [(usual, goodbye)]}, extensions=())
    told = offered(host, FIVE[0])
    assert told.failed[1] == phase
    assert told.failure is not None
    assert told.failure.reply is not None
    assert told.failure.reply.text == goodbye
    assert not told.refused
    assert not host.messages


def test_one_reply_too_many_to_pipelined_commands_ends_the_session() -> None:
    # Which of them it was nobody can say: each may have the answer to the one before.
    for verb in ("MAIL", "RCPT"):
        host = ScriptedHost({verb: [("250 ok", "250 hm")]})
        assert offered(host, FIVE[0]).failed == ("closed", "transaction")
        assert not host.messages


@pytest.fixture(scope="module")
def certified() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example.com").configure_cert(made)
    return made


@pytest.fixture(params=["clear", "tls"])
def context(
    request: pytest.FixtureRequest, certified: ssl.SSLContext
) -> ssl.SSLContext | None:
    return certified if request.param == "tls" else None


# While the journal is written the host can say more than it should.
SLOW = 0.5


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("dot", ["554 5.7.1 no", "250 taken"])
def test_250_before_the_dot_is_no_answer_to_it(
    dot: str, stray: str, context: ssl.SSLContext | None
) -> None:
    host = ScriptedHost({"BODY": stray, ".": dot}, context=context)
    told = offered(host, owner=Owner(journal=SLOW))
    assert told.strays == [stray.replace("250-h\n250 m", "250 h m")]
    assert not told.result.in_doubt
    assert told.refused == ({} if dot[0] == "2" else {0: (Verb.DOT, 554)})
    assert set(told.result.delivered) == ({0} if dot[0] == "2" else set())
    assert [message.answered for message in host.messages] == [int(dot[:3])]


@pytest.mark.parametrize("stray", ["250 hm", "354 hm"])
def test_host_with_a_stray_reply_behind_each_354_gets_each_message_once(
    stray: str, context: ssl.SSLContext | None
) -> None:
    listed = [*EXTENSIONS, "LIMITS RCPTMAX=1"]
    host = ScriptedHost({"DATA": ("354 go", stray)}, extensions=listed, context=context)
    told = offered(host, *FIVE)
    assert told.failure is None
    assert set(told.result.delivered) == {0, 1, 2, 3, 4}
    assert [one.forward_paths for one in host.messages] == [(one,) for one in FIVE]
    assert told.strays == [stray] * 5


@pytest.mark.parametrize("refusal", ["554 5.7.1 no", "452 4.3.1 full", "421 4.3.2 bye"])
def test_refusal_while_the_journal_is_written_counts_and_no_dot_is_sent(
    refusal: str, context: ssl.SSLContext | None
) -> None:
    host = ScriptedHost({"BODY": refusal}, context=context)
    told = offered(host, owner=Owner(journal=SLOW))
    assert told.refused == {0: (Verb.DOT, int(refusal[:3]))}
    assert told.failure is None
    assert not host.messages
    if not refusal.startswith("421"):  # there the host has hung up itself
        assert host.was_reset == [True]


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, ("250 hm", End.CLOSE)])
def test_host_that_leaves_before_the_dot_leaves_no_doubt(
    end: Answer, context: ssl.SSLContext | None
) -> None:
    host = ScriptedHost({"BODY": end}, context=context)
    told = offered(host, owner=Owner(journal=SLOW))
    assert told.failed[0] == "closed"
    assert not told.result.in_doubt
    assert not told.result.delivered
    assert not host.messages


def test_reply_that_began_before_the_dot_is_heard_to_its_end_first() -> None:
    host = ScriptedHost({"BODY": (b"25", 2.0, b"0 hm\r\n"), ".": "554 no"})
    told = offered(host, owner=Owner(journal=SLOW))
    assert told.strays == ["250 hm"]
    assert told.refused == {0: (Verb.DOT, 554)}
    host = ScriptedHost({"BODY": (b"55", 2.0, b"4 no\r\n", End.SILENT)})
    told = offered(host, owner=Owner(journal=SLOW))
    assert told.refused == {0: (Verb.DOT, 554)}
    assert not host.messages


@pytest.mark.parametrize("said", [b"25", b"250-hm\r\n", b"554", b"rubbish"])
def test_reply_without_an_end_before_the_dot_keeps_it_back(said: bytes) -> None:
    host = ScriptedHost({"BODY": (said, End.SILENT)})
    told = offered(host, owner=Owner(journal=SLOW))
    assert told.failed == ("silent", "dot")
    assert told.seconds < 20
    assert not told.result.in_doubt
    assert not host.messages


def test_host_that_talks_without_end_is_left_before_the_dot() -> None:
    for said in (b"250 hm\r\n" * 100, b"250-hm\r\n" * 200_000, b"x" * 2_000_000):
        host = ScriptedHost({"DATA": b"354 go\r\n" + said})
        told = offered(host)
        assert told.failed[0] == "closed"
        assert not told.result.in_doubt
        assert not host.messages


def test_blank_lines_are_nothing() -> None:
    blank = b"\r\n\n"
    host = ScriptedHost(
        {
            "CONNECT": b"\r\n220 hi\r\n\r\n",
            "EHLO": b"250-mx.example.com\r\n\r\n250 DSN\r\n" + blank,
            "DATA": b"354 go\r\n" + blank,
            ".": blank + b"250 ok\r\n",
        }
    )
    told = offered(host)
    assert told.failure is None
    assert set(told.result.delivered) == {0}
    assert not told.strays


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        pytest.param(
            {"DATA": ("354 go", "552 5.3.4 big")}, (Verb.DOT, 552), id="at once"
        ),
        pytest.param({"DATA": ("354 go", "421 4.3.0 bye")}, (Verb.DOT, 421), id="421"),
        pytest.param({"BODY": "552 5.3.4 big"}, (Verb.DOT, 552), id="goes on reading"),
        pytest.param(
            {"BODY": ("552 5.3.4 big", End.RESET)}, (Verb.DOT, 552), id="then resets"
        ),
        pytest.param(
            {"BODY": ("552 5.3.4 big", End.CLOSE)}, (Verb.DOT, 552), id="then closes"
        ),
        pytest.param(
            {"BODY": ("552 5.3.4 big", End.DEAF)}, (Verb.DOT, 552), id="then deaf"
        ),
        pytest.param(
            {"BODY": (b"552-5.3.4 b", 2.0, b"ig\r\n552 \r\n", End.DEAF)},
            (Verb.DOT, 552),
            id="in pieces",
        ),
    ],
)
def test_refusal_before_the_dot_counts_and_no_dot_is_sent(
    script: Script, refused: tuple[Verb, int]
) -> None:
    host = ScriptedHost(script)
    told = offered(host, message=BIG)
    assert told.refused == {0: refused}
    assert told.failure is None
    assert not host.messages


def test_host_that_refuses_in_the_body_gets_no_end_of_it() -> None:
    host = ScriptedHost({"BODY": ("452 4.3.1 full", End.SILENT)})
    told = offered(host, message=BIG)
    assert told.refused == {0: (Verb.DOT, 452)}
    assert host.was_reset == [True]


@pytest.mark.parametrize("rest", [b"25", b"250-", b"250-ok\r\n", b"rubbish"])
def test_dot_that_never_left_leaves_no_doubt(rest: bytes) -> None:
    host = ScriptedHost({"DATA": b"354 go\r\n" + rest})
    told = offered(host)
    assert told.failure is not None
    assert not told.result.in_doubt
    assert not told.result.delivered
    assert not host.messages


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(("250 ok", End.DEAF), id="positive"),
        pytest.param((b"55", End.DEAF), id="never ends"),
        pytest.param(End.CLOSE, id="closed"),
        pytest.param(End.DEAF, id="reads no more"),
    ],
)
def test_trouble_in_the_body_is_no_refusal_and_no_doubt(answer: Answer) -> None:
    host = ScriptedHost({"BODY": answer})
    told = offered(host, message=BIG)
    assert told.failed[1] == "transaction"
    assert not told.refused
    assert not told.result.in_doubt
    assert not host.messages
    assert told.seconds < 20


# --- the dot


@pytest.mark.parametrize("answer", [End.CLOSE, End.RESET, End.SILENT, "999 x", "354 x"])
def test_dot_without_a_reply_is_in_doubt(answer: Answer) -> None:
    told = offered(ScriptedHost({".": answer}))
    assert told.result.in_doubt == {0}
    assert told.failed[1] == "dot"
    assert not told.refused


@pytest.mark.parametrize("piece", [b"2", b"250-x\r\n", b"\r\n", b"rubbish\r\n"])
def test_bytes_renew_no_time_of_the_reply_to_the_dot(piece: bytes) -> None:
    host = ScriptedHost({".": (piece, 100.0) * 20})
    told = offered(host)
    assert told.result.in_doubt == {0}
    assert told.failed == ("silent", "dot")
    assert told.seconds == pytest.approx(600, abs=1)


def test_421_is_a_reply_to_the_dot() -> None:
    told = offered(ScriptedHost({".": "421 4.3.0 bye"}))
    assert told.refused == {0: (Verb.DOT, 421)}
    assert not told.result.in_doubt


@pytest.mark.parametrize(
    ("last_words", "refused"),
    [
        pytest.param(b"", {}, id="in silence"),
        pytest.param(b"552 5.3.4 big\r\n", {0: (Verb.DOT, 552)}, id="with a refusal"),
        pytest.param(b"250 ok\r\n", {}, id="with a reply to what it never got"),
    ],
)
def test_dot_that_could_not_be_sent_is_not_in_doubt(
    last_words: bytes, refused: dict[int, tuple[Verb, int]]
) -> None:
    host = ScriptedHost()
    told = offered(host, owner=Owner(at_dot=lambda: host.hang_up(last_words)))
    assert not told.result.in_doubt
    assert not told.result.delivered
    assert told.refused == refused
    assert not host.messages


def test_dot_is_not_sent_when_its_owner_forbids_it() -> None:
    def forbid() -> None:
        raise LocalTrouble("no")

    host = ScriptedHost()
    told = Told()
    with pytest.raises(LocalTrouble):
        run(
            host,
            work=lambda: converse(
                host, told, to=envelope(*FIVE), owner=Owner(at_dot=forbid)
            ),
        )
    assert not told.result.in_doubt
    assert not host.messages
    assert host.was_reset == [True]


def test_body_ends_when_the_time_for_the_dot_is_up() -> None:
    def forbid() -> None:
        raise LocalTrouble("too late")

    host = ScriptedHost({"BODY": End.DEAF})
    with pytest.raises(LocalTrouble, match="too late"):
        offered(host, message=BIG, owner=Owner(3.0, forbid))
    told = offered(host, message=BIG, owner=Owner(3.0))
    assert told.failed == ("silent", "transaction")
    assert told.seconds == pytest.approx(3.0, abs=0.1)


# --- a dot that never left ------------------------------------------------------------

GREETED = b"220 mx.example.com\r\n", b"250 mx.example.com\r\n"
TAKEN = (b"250 ok\r\n", b"250 ok\r\n", b"354 go on\r\n")


async def with_a_small_window() -> tuple[Stream, socket.socket, Candidate]:
    """Connect to a host that has room for few bytes; return its end, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.setblocking(False)
        candidate = Candidate("mx", "127.0.0.1", listener.getsockname()[1], 10)
        stream = await dial(candidate)
        peer, _ = await asyncio.get_running_loop().sock_accept(listener)
    return stream, peer, candidate


async def with_the_dot_on_its_way(early: bytes, then: bytes) -> Told:
    """Offer a message to a host that reads none of it before it has said *early*.

    Then it reads all, dot and all, and says *then*. Our kernel holds the dot until
    there is room in the host's window.
    """
    loop = asyncio.get_running_loop()
    stream, peer, candidate = await with_a_small_window()
    told, spooled = Told(), mail_data(b"y" * 78 + b"\r\n" + b"x" * 20_000)
    session = session_over(
        stream, candidate, told, tls=TlsLevel.NONE, waits_for_body=False
    )

    async def answer() -> None:
        await loop.sock_sendall(peer, GREETED[0])
        for reply in (GREETED[1], *TAKEN):
            await loop.sock_recv(peer, 4096)
            await loop.sock_sendall(peer, reply)
        await asyncio.sleep(1)  # until the dot is out
        await loop.sock_sendall(peer, early)
        await asyncio.sleep(1)  # until that has been heard
        read = b""
        with suppress(ConnectionResetError):
            while not read.endswith(b"\r\n.\r\n"):
                if not (data := await loop.sock_recv(peer, 65536)):
                    return
                read += data
            await loop.sock_sendall(peer, then)

    answering = asyncio.create_task(answer())
    with peer, closing(spooled):
        await session.open()
        try:
            await transaction(
                session,
                envelope(FIVE[0]),
                [0],
                spooled,
                Owner(),
                told.result,
                long_lines=LongLines.PASS,
            ).run()
            session.quit()
        except SessionFailed as failure:
            told.failure = failure
            session.abort()
        await answering
    return told


@pytest.mark.parametrize(
    ("early", "rest"),
    [
        (b"250 hm\r\n", b""),
        (b"354 hm\r\n", b""),
        (b"25", b"0 hm\r\n"),
        (b"250-hm\r\n", b"250 hm\r\n"),
    ],
)
@pytest.mark.parametrize("then", ["554 5.7.1 no", "250 taken"])
def test_250_before_the_host_has_the_dot_is_no_answer_to_it(
    early: bytes, rest: bytes, then: str
) -> None:
    answer = rest + then.encode() + b"\r\n"
    told = run_with_sockets(with_the_dot_on_its_way(early, answer))
    assert told.failure is None
    assert len(told.strays) == 1
    assert set(told.result.delivered) == ({0} if then[0] == "2" else set())
    assert told.refused == ({} if then[0] == "2" else {0: (Verb.DOT, 554)})


@pytest.mark.parametrize("early", [b"554 no\r\n", b"452 no\r\n", b"421 no\r\n"])
def test_refusal_before_the_host_has_the_dot_counts(early: bytes) -> None:
    told = run_with_sockets(with_the_dot_on_its_way(early, b"250 taken\r\n"))
    assert told.failure is None
    assert told.refused == {0: (Verb.DOT, int(early[:3]))}
    assert not told.result.delivered
    assert not told.result.in_doubt


async def to_the_dot(size: int) -> tuple[SessionFailed, Result, bytes]:
    """Offer *size* bytes to a host that reads nothing more after DATA.

    Returns how the session failed, its result, and what the host could read after that.
    """
    loop = asyncio.get_running_loop()
    stream, peer, candidate = await with_a_small_window()
    session = session_over(stream, candidate, Told(), tls=TlsLevel.NONE)
    result = Result()
    spooled = mail_data(b"x" * 78 + b"\r\n" + b"y" * (size - 82))

    async def answer() -> None:
        await loop.sock_sendall(peer, GREETED[0])
        for reply in (GREETED[1], *TAKEN):
            await loop.sock_recv(peer, 4096)
            await loop.sock_sendall(peer, reply)

    answering = asyncio.create_task(answer())
    with peer:
        await session.open()
        with pytest.raises(SessionFailed) as caught:
            await transaction(
                session,
                envelope(FIVE[0]),
                [0],
                spooled,
                Owner(),
                result,
                long_lines=LongLines.PASS,
            ).run()
        session.abort()
        await answering
        read = b""
        with suppress(ConnectionResetError):
            while data := await loop.sock_recv(peer, 65536):
                read += data
    return caught.value, result, read


def test_dot_that_the_kernel_still_has_leaves_no_doubt_and_never_arrives() -> None:
    # What just fits into the host's closed window is acknowledged, and the dot is not
    # sent; one byte more is not acknowledged, and many fewer leave room for the dot.
    fits, too_large = 100, 60_000
    ends = {}
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        failed, result, read = run_with_sockets(to_the_dot(size), is_patient=True)
        assert failed.finding.verdict is Verdict.SILENT
        if not result.in_doubt:
            assert not read.endswith(b"\r\n.\r\n")
        if failed.finding.phase is Phase.DOT:
            fits = size
            ends[size] = result.in_doubt
        else:
            assert not result.in_doubt
            too_large = size
    assert ends[fits] == set(), "the dot was there, and nobody can have read it"
    assert {0} in ends.values(), "with room for the dot there is doubt"
