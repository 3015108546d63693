from __future__ import annotations

import pytest

from mxpolicy.protocol.extensions import (
    Extensions,
    Limits,
    MailDsn,
    RcptDsn,
    orcpt,
    xtext,
)
from mxpolicy.reply import Reply


def offered(*lines: str) -> Extensions:
    return Extensions.from_reply(Reply(250, ("mx.example", *lines)))


def test_nothing_is_offered_before_ehlo() -> None:
    nothing = Extensions()
    assert nothing == {}
    assert nothing.size is None
    assert nothing.limits == Limits(None, None)
    assert not nothing.starttls_masked


def test_the_first_line_is_no_keyword() -> None:
    reply = Reply(250, ("PIPELINING greets you", "DSN"))
    assert Extensions.from_reply(reply) == {"DSN": ()}


@pytest.mark.parametrize(
    "keyword", ["PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "STARTTLS"]
)
def test_keywords_are_known_in_any_case(keyword: str) -> None:
    assert keyword in offered(keyword.lower())
    assert keyword not in offered(keyword + "X", "", " ")
    assert offered(keyword).starttls is (keyword == "STARTTLS")


def test_unknown_keywords_are_kept_with_their_parameters() -> None:
    extensions = offered("AUTH=LOGIN", "X-what a  b")
    assert extensions == {"AUTH=LOGIN": (), "X-WHAT": ("a", "b")}
    assert "X-WHAT" in extensions


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("SIZE 35882577", 35882577),
        ("SIZE", 0),
        ("SIZE 0", 0),
        ("SIZE -1", 0),
        ("SIZE 1e6", 0),
        ("SIZE 10 MB", 0),
        ("SIZE " + "9" * 20, 10**20 - 1),
        ("SIZE " + "9" * 21, 0),
        ("SIZES 1", None),
    ],
)
def test_size_is_a_number_or_no_limit(line: str, size: int | None) -> None:
    assert offered(line).size == size


@pytest.mark.parametrize(
    ("limits", "met", "batch"),
    [
        pytest.param(Limits(), "", [0, 1, 2, 3, 4], id="no limit"),
        pytest.param(Limits(rcptmax=2), "", [0, 1], id="two recipients"),
        pytest.param(Limits(rcptmax=9), "", [0, 1, 2, 3, 4], id="more than there are"),
        pytest.param(Limits(rcptdomainmax=1), "", [0, 2], id="one domain"),
        pytest.param(Limits(rcptdomainmax=2), "", [0, 1, 2, 4], id="two domains"),
        pytest.param(Limits(rcptdomainmax=2), "b", [0, 1, 2, 4], id="one was there"),
        pytest.param(Limits(rcptdomainmax=2), "cx", [3], id="another was there"),
        pytest.param(Limits(rcptdomainmax=1), "x", [], id="no other"),
        pytest.param(Limits(rcptmax=1, rcptdomainmax=2), "b", [0], id="both limits"),
    ],
)
def test_batch_of_recipients_keeps_the_limits(
    limits: Limits, met: str, batch: list[int]
) -> None:
    assert limits.next_batch("abacb", set(met)) == batch


@pytest.mark.parametrize(
    ("line", "limits"),
    [
        ("LIMITS RCPTMAX=20 MAILMAX=5", Limits(5, 20)),
        ("limits rcptmax=1 RcptDomainMax=999999", Limits(None, 1, 999999)),
        ("LIMITS", Limits()),
        ("LIMITS RCPTMAX RCPTMAX= MAILMAX=0 X=1", Limits()),
        ("LIMITS RCPTMAX=1000000 MAILMAX=-1 RCPTDOMAINMAX=01", Limits()),
    ],
)
def test_limits_that_cannot_be_read_count_as_not_said(
    line: str, limits: Limits
) -> None:
    assert offered(line).limits == limits


@pytest.mark.parametrize(
    ("lines", "masked"),
    [
        (["XXXXXXXA"], True),
        (["PIPELINING", "XXXXXXXB", "XXXA"], True),
        (["STARTTLS", "XXXXXXXB"], False),
        (["XXXXXXXXXA", "XXXA", "XXXXXXX1", "8BITMIME"], False),
    ],
)
def test_a_masked_starttls_is_seen(lines: list[str], masked: bool) -> None:
    assert offered(*lines).starttls_masked is masked


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("QQ314159", "QQ314159"),
        ("a+b=c", "a+2Bb+3Dc"),
        ("a b", "a+20b"),
        ("~!*,<>", "~!*,<>"),
        ("\r\n\x00\x7f", "+0D+0A+00+7F"),
        ("ä", "+C3+A4"),
        ("\udce4", "+E4"),
    ],
)
def test_xtext_encodes_all_but_xchars(text: str, encoded: str) -> None:
    assert xtext(text) == encoded


@pytest.mark.parametrize(
    ("address", "encoded"),
    [
        ("Bob@Example.COM", "rfc822;Bob@Example.COM"),
        ("a+b@example.com", "rfc822;a+2Bb@example.com"),
        ('"a b"@example.com', 'rfc822;"a+20b"@example.com'),
        ("jürg+x@example.com", "utf-8;j\\x{FC}rg\\x{2B}x@example.com"),
        ("\\ä\n@example.com", "utf-8;\\x{5C}\\x{E4}\\x{0A}@example.com"),
        ("用户@example.com", "utf-8;\\x{7528}\\x{6237}@example.com"),
    ],
)
def test_orcpt_names_its_address_type_and_is_ascii(address: str, encoded: str) -> None:
    assert orcpt(address) == encoded


def test_dsn_parameters_are_those_that_were_said() -> None:
    assert MailDsn().parameters() == []
    assert MailDsn("HDRS", "a=b").parameters() == ["RET=HDRS", "ENVID=a+3Db"]
    assert RcptDsn().parameters() == []
    assert RcptDsn(("SUCCESS", "DELAY"), "rfc822;a@b.example").parameters() == [
        "NOTIFY=SUCCESS,DELAY",
        "ORCPT=rfc822;a@b.example",
    ]
