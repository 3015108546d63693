"""What must hold for every reader of a stranger's bytes.

A target takes an input of any bytes and raises AssertionError, or whatever else the
reader should not have raised. Each reads its input as it likes: most through
`Choices`, which makes decisions of bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from mxpolicy.address import AddressError, parse_mailbox, parse_reverse_path
from mxpolicy.config import parse
from mxpolicy.delivery import own_outcomes, refusals
from mxpolicy.delivery.events import CandidateFailed, Delays, RecipientSettled
from mxpolicy.delivery.failures import Failures
from mxpolicy.delivery.log_line import MAX_LINE, json_line, text_line
from mxpolicy.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from mxpolicy.net.dns_message import (
    MAX_ADDRESSES,
    MAX_CNAMES,
    Answer,
    Question,
    read_answer,
)
from mxpolicy.net.dns_wire import Reader as DnsReader
from mxpolicy.options import LongLines
from mxpolicy.outcome import EXIT_BOUNCE, EXIT_DEFER, Bounced, Deferred, Outcome
from mxpolicy.protocol.access_policy import RequestError, parse_request
from mxpolicy.protocol.access_policy import answer as access_answer
from mxpolicy.protocol.attributes import AttributeReader, Malformed
from mxpolicy.protocol.dot_stuffing import FINAL_DOT, MAX_TEXT_LINE, DotStuffer
from mxpolicy.protocol.lmtp_server import (
    MAX_LINE as MAX_LMTP_LINE,
)
from mxpolicy.protocol.lmtp_server import (
    MAX_REPLY as MAX_LMTP_REPLY,
)
from mxpolicy.protocol.lmtp_server import (
    DataBegun,
    DataCame,
    LmtpReply,
    LmtpServer,
    Offers,
    RecipientNamed,
)
from mxpolicy.protocol.lmtp_server import Event as LmtpEvent
from mxpolicy.protocol.pipe_answer import MAX_ANSWER, answer, answer_line
from mxpolicy.protocol.reply_reader import KEPT, MAX_REPLY, ReplyReader
from mxpolicy.protocol.smtp_client import SmtpClient
from mxpolicy.protocol.smtp_events import (
    BodyRefused,
    Closing,
    DotAnswered,
    Event,
    RcptAnswered,
    StrayReply,
)
from mxpolicy.protocol.smtp_states import State, Verb
from mxpolicy.reply import MAX_TEXT, EnhancedStatus, Reply
from mxpolicy.routing.candidate import Candidate, Finding, Phase, Verdict
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord, mail_exchangers
from mxpolicy.routing.nexthop import NexthopError, parse_nexthop
from mxpolicy.routing.race import GiveUpReason
from tests.fuzz.attempts import attempts
from tests.fuzz.choices import Choices

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], None]

CANDIDATE = Candidate("mx.example.com", "192.0.2.1", 25, 10)
VERBS = (Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.DOT)
REPLY_TEXTS = (b"", b"ok", b"5.1.1 no", b"\xff\x00", b"x" * 700, b"y" * 3000)
LMTP_OK = LmtpReply(250, EnhancedStatus(2, 1, 5), "Ok")
LMTP_NO = LmtpReply(550, EnhancedStatus(5, 1, 1), "no " * 500)
NO_REPLY_LINES = (b"", b"no reply", b"25", b"250_ok", b"\x00", b"z" * 3000)


def assert_shown(text: str, limit: int) -> None:
    """*text* does nothing to a terminal, ends no line, and is not long."""
    assert text.isascii(), text
    assert text.isprintable() or not text, text
    assert len(text) <= limit


# -- replies -------------------------------------------------------------------


def replies(data: bytes) -> None:
    """Replies are the same however they arrive, bounded, and fit to be shown."""
    pieces = Choices(data).pieces()
    for skip in (False, True):
        cut, cut_error = _read(pieces, skip=skip)
        whole, error = _read([b"".join(pieces)], skip=skip)
        assert cut == whole
        assert cut_error == error
        assert_shown(error, 500)
        _check_replies(whole)


def _check_replies(replies: Iterable[Reply]) -> None:
    for reply in replies:
        assert 0 <= reply.code <= 999
        assert 1 <= len(reply.lines) <= KEPT // len("250-")
        assert sum(map(len, reply.lines)) <= KEPT + MAX_TEXT
        for line in reply.lines:
            assert_shown(line, MAX_TEXT)
        assert_shown(reply.text, MAX_TEXT)
        short = reply.shortened()
        assert (short.code, short.text) == (reply.code, reply.text)
        assert sum(map(len, short.lines)) <= 2 * MAX_TEXT
        assert short.enhanced == reply.enhanced
        enhanced = reply.enhanced
        assert enhanced is None or enhanced.class_ == reply.code // 100


def long_replies(data: bytes) -> None:
    """A reply is read to its end, however long; the code of its last line is its own."""
    choices = Choices(data)
    skip, end = choices.number(2) == 1, choices.of((b"\r\n", b"\n"))
    lines = []
    for _ in range(choices.number(6)):
        line = _reply_line(choices, b"-")
        if skip and choices.number(3) == 1:
            line += end + choices.of(NO_REPLY_LINES)
        lines += [line] * choices.of((1, 3, 40, 150))
    last = _reply_line(choices, b" ")
    wire = end.join([*lines, last, b""])
    size = choices.of((1 << 16, 999, 61))
    if len(wire) > MAX_REPLY:
        return
    wire += b"421 bye\r\n"
    pieces = [wire[at : at + size] for at in range(0, len(wire), size)]
    found, error = _read(pieces, skip=skip)
    assert not error, error
    assert [reply.code for reply in found] == [int(last[:3]), 421]
    _check_replies(found)


def _reply_line(choices: Choices, separator: bytes) -> bytes:
    code = b"%d%02d" % (2 + choices.number(4), choices.number(100))
    return code + separator + choices.of(REPLY_TEXTS)


def _read(pieces: Iterable[bytes], *, skip: bool = False) -> tuple[list[Reply], str]:
    reader = ReplyReader()
    found = []
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while (reply := reader.next_reply(skip=skip)) is not None:
                found.append(reply)
    except RemoteProtocolError as error:
        return found, str(error)
    return found, ""


def judgements(data: bytes) -> None:
    """What a host says is shown harmlessly at every exit, and bounces only by a 5yz."""
    choices = Choices(data)
    verb = choices.of(VERBS)
    sole_recipient = choices.number(2) == 0
    for reply in _read([choices.rest()])[0]:
        if reply.is_positive and verb is not Verb.DATA:
            continue
        failures = Failures(lambda candidate: False)
        final = failures.refused(
            CANDIDATE, 0, verb, reply, waited=1.0, sole_recipient=sole_recipient
        )
        refusals.ending([(verb, reply)], waited=1.0, sole_recipient=sole_recipient)
        assert final is None or reply.is_permanent
        combined = final or failures.combine(0, GiveUpReason.EXHAUSTED)
        assert isinstance(combined, Deferred) or reply.is_permanent
        finding = Finding(Verdict.CLOSED, Phase.EHLO, 1.0, text=reply.text)
        _show(combined, failures.tried(0), finding)


def _show(outcome: Outcome, tried: tuple[str, ...], finding: Finding) -> None:
    """Take *outcome* to every exit."""
    recipient = "bob@example.com"
    status, text = answer([(recipient, outcome)])
    assert (status == EXIT_BOUNCE) == isinstance(outcome, Bounced)
    assert (status == EXIT_DEFER) == isinstance(outcome, Deferred)
    line = answer_line(status, text).decode("ascii")
    assert_shown(line.removesuffix("\n"), MAX_ANSWER - 1)
    assert re.match(r"[45]\.\d{1,3}\.\d{1,3} ", line), line
    assert (line[0] == "5") == (status == EXIT_BOUNCE)
    settled = RecipientSettled(1.0, recipient, outcome, Delays(), tried)
    for event in (settled, CandidateFailed(1.0, CANDIDATE, finding)):
        assert_shown(text_line(event), MAX_LINE)
        written = json_line(event, "2000-01-01T00:00:00Z")
        assert_shown(written, MAX_LINE)
        for one in _strings(json.loads(written)):
            assert_shown(one, MAX_LINE)


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


# -- the state table -----------------------------------------------------------


class _Caller:
    """Gives commands in any order and keeps count of what was asked and answered."""

    def __init__(self) -> None:
        self.client = SmtpClient("client.example.net")
        self._asked = 1  # connecting asks for the greeting
        self._dots = 0
        self._places: list[int] = []
        self._given = 0  # RCPT of this transaction
        self._is_over = False

    def give(self, number: int) -> None:
        """Give a command; the protocol may not allow it."""
        client = self.client
        match number:
            case 0:
                client.ehlo()
            case 1:
                client.helo()
            case 2:
                client.starttls()
            case 3:
                client.tls_established()
            case 4:
                before = client.state
                client.mail("a@example.net", size=1, body8bit=True)
                if before is not client.state:
                    self._places, self._given = [], 0
            case 5:
                client.rcpt("b@example.com")
                self._given += 1
            case 6:
                client.data()
            case 7:
                client.dot()
            case 8:
                client.rset()
            case _:
                client.quit()

    def send(self) -> None:
        """Let what may leave now leave."""
        wire = self.client.data_to_send()
        assert not wire or wire.endswith(b"\r\n")
        if wire == FINAL_DOT:
            self._dots += 1
        else:
            assert b"\r\n" + FINAL_DOT not in wire
            assert not wire.startswith(FINAL_DOT)
        self._asked += wire.count(b"\r\n")

    def receive(self, data: bytes) -> None:
        """Take bytes from the host."""
        for event in self.client.receive_data(data):
            self._note(event)

    def _note(self, event: Event) -> None:
        assert not self._is_over, "something happened after the end"
        if isinstance(event, StrayReply):
            assert event.reply.code // 100 not in (4, 5)
            return
        if isinstance(event, Closing | BodyRefused):  # nobody had asked
            self._is_over = True
            assert self.client.state is State.CLOSED
            return
        if isinstance(event, RcptAnswered):
            assert 0 <= event.position < self._given
            assert event.position not in self._places, "answered twice"
            self._places.append(event.position)
        if isinstance(event, DotAnswered):
            self._dots -= 1
            assert self._dots == 0, "an answer to a dot that was never sent"
        self._asked -= 1
        assert self._asked >= 0, "more answers than questions"


def states(data: bytes) -> None:
    """No host and no caller brings the client out of step, or out of its table."""
    choices = Choices(data)
    caller = _Caller()
    failed = False
    while choices:
        number = choices.number(15)
        try:
            if number < 10:
                caller.give(number)
                caller.send()
            else:
                caller.receive(choices.line() + b"\r\n")
            assert not failed or caller.client.state is State.CLOSED
        except LocalProtocolError:
            pass
        except RemoteProtocolError:
            failed = True
            assert caller.client.state is State.CLOSED
            assert caller.client.awaits is None


# -- what name servers, senders and operators write --------------------------------


def dns_answers(data: bytes) -> None:
    """A message says what dnspython reads in it, and so it does beside broken records."""
    choices = Choices(data)
    rdtype = choices.of(("MX", "A", "AAAA"))
    question = Question.of("example.com", rdtype)
    wire = _asking(question, choices.rest())
    found = read_answer(wire, question)
    assert found is not None
    _assert_bounded(found, rdtype)
    if not (expected := _by_dnspython(wire, rdtype)):
        return
    assert found.status is LookupStatus.FOUND
    assert set(found.records) == expected or len(expected) > MAX_ADDRESSES
    for damaged in _damaged(wire, question):
        again = read_answer(damaged, question)
        assert again is not None
        assert again.status is LookupStatus.FOUND
        assert again.records == found.records
    found = read_answer(_message(wire, question, 1, _broken(question)), question)
    assert found is not None
    assert found.status is LookupStatus.FAILED


def _asking(question: Question, wire: bytes) -> bytes:
    """Return *wire* with our question, and no other, in place of what is there."""
    query = question.to_wire(0)
    wire = wire.ljust(len(query), b"\0")
    return wire[:4] + query[4:6] + wire[6:12] + query[12:] + wire[len(query) :]


def _assert_bounded(found: Answer, rdtype: str) -> None:
    assert (found.status is LookupStatus.FOUND) == bool(found.records)
    assert 0 <= found.ttl < 1e6
    assert_shown(found.reason, 500)
    if rdtype != "MX":
        assert len(found.records) <= MAX_ADDRESSES
        return
    lookup = Lookup("example.com", "MX", found.status, found.records)
    for remark in mail_exchangers("example.com", lookup).remarks:
        assert_shown(remark, MAX_TEXT)
    for host in mail_exchangers("example.com", lookup).hosts:
        assert re.fullmatch(r"[a-z0-9._:-]{1,253}", host.name)


def _by_dnspython(wire: bytes, rdtype: str) -> set[MxRecord | str]:
    """Return the records in *wire*; none where it holds no answer, or is not perfect."""
    if re.search(rb"\xc0[\x00-\x0b]", wire):
        return set()  # a name in the header, for which dnspython has no objection
    try:
        message = dns.message.from_wire(
            wire, ignore_trailing=True, one_rr_per_rrset=True
        )
    except Exception:
        return set()
    if message.flags & dns.flags.TC or message.opcode() or wire[3] & 0xF not in (0, 3):
        return set()
    of_us = [one for one in message.answer if one.rdclass == dns.rdataclass.IN]
    wanted = dns.rdatatype.from_text(rdtype)
    name = message.question[0].name
    for _ in range(MAX_CNAMES + 1):
        here = [one for one in of_us if one.name == name]
        records = [one[0] for one in here if one.rdtype == wanted]
        links = [one[0] for one in here if one.rdtype == dns.rdatatype.CNAME]
        if records or not links:
            return {_ours(one) for one in records}
        name = links[0].target
    return set()


def _ours(record: dns.rdata.Rdata) -> MxRecord | str:
    if record.rdtype != dns.rdatatype.MX:
        return str(ip_address(record.to_text()))
    preference, exchange = record.to_text().split()
    name = exchange.removesuffix(".").lower() or "."
    return MxRecord(int(preference), name)


def _damaged(wire: bytes, question: Question) -> Iterator[bytes]:
    """Yield the answer section of *wire* with other things behind it."""
    count = int.from_bytes(wire[6:8], "big")
    reader = DnsReader(wire)
    reader.questions(1)
    records, _ = reader.section(count)
    good = wire[records[0].owner_at : records[-1].end]
    yield _message(wire, question, count + 1, good + _broken(question))
    yield _message(wire, question, count + 1, good)
    yield _message(wire, question, count, good + b"\xff" * 20, additionals=2)


def _message(
    wire: bytes, question: Question, count: int, records: bytes, additionals: int = 0
) -> bytes:
    """Return a message with the header of *wire*, and *records* of which *count* answer."""
    numbers = (min(count, 65535), 0, additionals)
    counts = b"".join(one.to_bytes(2, "big") for one in numbers)
    return wire[:6] + counts + question.to_wire(0)[12:] + records


def _broken(question: Question) -> bytes:
    """Return a record of the type asked for whose RDATA is one octet."""
    return b"\xc0\x0c" + question.to_wire(0)[-4:] + b"\0\0\0\x3c\0\1x"


def _sender(text: str) -> None:
    """A sender is refused, or is one line in a command that takes nothing else along."""
    try:
        sender = parse_reverse_path(text)
    except AddressError as error:
        assert set(text) & set("\r\n\0<>")
        assert_shown(str(own_outcomes.bad_sender(error).text), 950)
        return
    if sender is not None:
        assert parse_reverse_path(sender.wire) == sender
        client = SmtpClient("client.example.net")
        client.receive_data(b"220 mx\r\n")
        client.ehlo()
        client.data_to_send()
        client.receive_data(b"250-mx\r\n250 SMTPUTF8\r\n")
        client.mail(sender.wire, smtputf8=sender.needs_smtputf8)
        said = client.data_to_send()
        assert re.fullmatch(rb"MAIL FROM:<[^\r\n\0]+>( SMTPUTF8)?\r\n", said)


def addresses(data: bytes) -> None:
    """An address is refused, or is one line in a command and reads back as itself."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        mailbox = parse_mailbox(text)
    except AddressError as error:
        assert_shown(str(own_outcomes.bad_recipient(error).text), 950)
    else:
        assert not re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", mailbox.wire)
        assert parse_mailbox(mailbox.wire) == mailbox
    _sender(text)
    try:
        hops = parse_nexthop(text, 25)
    except (NexthopError, AddressError) as error:
        assert_shown(str(own_outcomes.bad_nexthop(error).text), 950)
        return
    for hop in hops:
        assert re.fullmatch(r"[a-z0-9._:-]{1,253}", hop.name)
        assert 0 < hop.port < 65536


def requests(data: bytes) -> None:
    """Each request has its answer, however it arrives, and one line answers it."""
    pieces = Choices(data).pieces()
    cut, whole = AttributeReader(), AttributeReader()
    found = [one for piece in pieces for one in cut.receive_data(piece)]
    assert found == whole.receive_data(b"".join(pieces))
    assert bool(cut) == bool(whole)
    for one in found:
        if isinstance(one, Malformed):
            said = one.reason
        else:
            try:
                said = parse_request(one).recipient
            except RequestError as error:
                said = str(error)
        line = access_answer(said).decode("ascii")
        assert_shown(line.removesuffix("\n\n"), 1000)


def configurations(data: bytes) -> None:
    """A file is understood, or each of its mistakes is one line fit to be shown."""
    try:
        parse(data, "/etc/mxpolicy/mxpolicy.yaml")
    except ConfigError as error:
        mistakes = error.mistakes
    else:
        return
    assert mistakes
    for line in mistakes:
        assert line.isprintable(), line
        assert len(line) < 1000


def mail_data(data: bytes) -> None:
    """Whatever a message holds, its lines are the same and no line ends it."""
    choices = Choices(data)
    long_lines = choices.of(tuple(LongLines))
    pieces = choices.pieces(choices.of((1, 50)))
    stuffer = DotStuffer(long_lines)
    wire = b"".join(map(stuffer.encode, pieces)) + stuffer.finish()
    whole = b"".join(pieces)
    at_once = DotStuffer(long_lines)
    assert wire == at_once.encode(whole) + at_once.finish()
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|(?:\A|\r\n)\.(?!\.)", wire)
    assert not wire or wire.endswith(b"\r\n")
    lines = [line.removeprefix(b".") for line in wire.split(b"\r\n")[:-1]]
    text = whole.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if text and not text.endswith(b"\n"):
        text += b"\n"
    read = b"".join(line + b"\n" for line in lines)
    if long_lines is LongLines.FOLD:
        assert all(len(line) <= MAX_TEXT_LINE for line in lines)
        read, text = read.replace(b"\n ", b""), text.replace(b"\n ", b"")
    assert read == text


# -- LMTP clients ----------------------------------------------------------------


def lmtp(data: bytes) -> None:
    """A client is told and understood the same however its bytes arrive.

    Each reply fits into what Exim reads, or Postfix, and none ends a session. What is
    passed on to a host fits into its commands.
    """
    choices = Choices(data)
    dsn = choices.number(2) == 1
    pieces = choices.pieces() or [b""]
    said, told = _lmtp_session(pieces, dsn=dsn)
    assert (said, told) == _lmtp_session([b"".join(pieces)], dsn=dsn)
    assert said.isascii()
    for line in said.splitlines():
        assert len(line) <= MAX_LMTP_REPLY
        assert not line.startswith(b"421")
    for one in told:
        if isinstance(one, DataBegun):
            client = SmtpClient("us.example.net")
            client.receive_data(b"220 ok\r\n")
            client.ehlo()
            client.data_to_send()
            client.receive_data(b"250-mx.example.com\r\n250 DSN\r\n")
            client.mail("", dsn=one.sender.dsn)
            for recipient in one.recipients:
                client.rcpt("a@b.example", dsn=recipient.dsn)


def _lmtp_session(
    pieces: Iterable[bytes], *, dsn: bool
) -> tuple[bytes, list[LmtpEvent]]:
    """Return what a client is told, and what it wants; data in one piece each time."""
    server = LmtpServer(Offers("us.example.net", 1000, dsn=dsn))
    said, told = b"", list[LmtpEvent]()
    for piece in pieces:
        server.receive_data(piece)
        while (event := server.next_event()) is not None:
            last = told[-1] if told else None
            if isinstance(event, DataCame) and isinstance(last, DataCame):
                told[-1] = DataCame(last.data + event.data)
            else:
                told.append(event)
            match event:
                case RecipientNamed(number, recipient):
                    is_refused = "no" in recipient.forward_path
                    server.answer(number, LMTP_NO if is_refused else LMTP_OK)
                case DataBegun():
                    for place in range(len(event.recipients)):
                        server.settle(place, LMTP_NO)
                    with suppress(LocalProtocolError):
                        server.settle(len(event.recipients), LMTP_NO)
                        raise AssertionError("a verdict for nobody")
                case _:
                    pass
        said += server.data_to_send()
        assert server.buffered <= MAX_LMTP_LINE + 1 or not server.owes
    return said, told


TARGETS: dict[str, Target] = {
    one.__name__: one
    for one in (
        attempts,
        replies,
        long_replies,
        judgements,
        states,
        dns_answers,
        addresses,
        requests,
        configurations,
        mail_data,
        lmtp,
    )
}
