from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.protocol.extensions import MailDsn, RcptDsn, from_xtext, orcpt, xtext
from mxpolicy.protocol.lmtp_commands import (
    CommandError,
    MailCommand,
    RcptCommand,
    parse_mail,
    parse_rcpt,
    parse_xforward,
)


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ("FROM:<a@b.example>", "a@b.example"),
        ("from:<a@b.example>", "a@b.example"),
        ("FROM: <a@b.example>", "a@b.example"),
        ("FROM:<>", ""),
        ('FROM:<"a b"@c.example>', '"a b"@c.example'),
        ('FROM:<"a>b"@c.example>', '"a>b"@c.example'),
        (r'FROM:<"a\">b"@c.example>', r'"a\">b"@c.example'),
        ('FROM:<"a@c.example>', '"a@c.example'),
        ("FROM:<root@host (none)>", "root@host (none)"),
        ("FROM:<@one,@two:a@b.example>", "@one,@two:a@b.example"),
        ("FROM:<\u00e9@b.example>", "\u00e9@b.example"),
    ],
)
def test_reverse_path(arguments: str, path: str) -> None:
    assert parse_mail(arguments, dsn=False) == MailCommand(path)
    with_size = parse_mail(arguments + " SIZE=5", dsn=False)
    assert with_size == MailCommand(path, size=5, has_parameters=True)


@pytest.mark.parametrize(
    "arguments",
    [
        *("", "FROM", "FROM:", "TO:<a@b.example>", "FROM:a@b.example", "FROM:<a"),
        *("FROM:<a>b>", "FROM:<<a@b.example>>", "FROM:<a@b.example>SIZE=1"),
        "FROM:<a@b.example>>",
    ],
)
def test_what_is_no_reverse_path(arguments: str) -> None:
    with pytest.raises(CommandError, match=r"^501 5\.5\.2 bad syntax"):
        parse_mail(arguments, dsn=False)


def test_source_route_of_a_recipient_is_ignored() -> None:
    found = parse_rcpt("TO:<@one.example,@two.example:a@b.example>", dsn=False)
    assert found == RcptCommand("a@b.example")
    found = parse_rcpt('TO:<"@one:"@b.example>', dsn=False)
    assert found == RcptCommand('"@one:"@b.example')


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("SIZE=0", MailCommand("", size=0)),
        ("size=123", MailCommand("", size=123)),
        ("BODY=7BIT", MailCommand("")),
        ("body=8bitmime", MailCommand("")),
        ("SMTPUTF8", MailCommand("")),
    ],
)
def test_parameter_of_mail(parameter: str, expected: MailCommand) -> None:
    found = parse_mail(f"FROM:<> {parameter}", dsn=False)
    assert found == expected._replace(has_parameters=True)


@pytest.mark.parametrize(
    "parameter",
    [
        *("SIZE", "SIZE=", "SIZE=x", "SIZE=-1", "SIZE=" + "1" * 21, "BODY=", "BODY"),
        *("BODY=BINARYMIME", "SMTPUTF8=1", "AUTH=<>", "X", "RET=FULL", "ENVID=x"),
        "REQUIRETLS",
    ],
)
def test_parameter_that_is_not_offered(parameter: str) -> None:
    with pytest.raises(
        CommandError, match=rf"^555 5\.5\.4 .*{parameter.partition('=')[0]}"
    ):
        parse_mail(f"FROM:<> {parameter}", dsn=False)


def test_dsn_of_mail() -> None:
    found = parse_mail("FROM:<> RET=hdrs ENVID=QQ+2B1", dsn=True)
    assert found.dsn == MailDsn("HDRS", "QQ+1")


@pytest.mark.parametrize("parameter", ["RET=", "RET=ALL", "ENVID=", "ENVID"])
def test_bad_dsn_of_mail(parameter: str) -> None:
    with pytest.raises(CommandError, match=r"^555 5\.5\.4 "):
        parse_mail(f"FROM:<> {parameter}", dsn=True)


@pytest.mark.parametrize("envid", ["a=b", "a+zz", "+2b"])
def test_envid_that_is_no_xtext(envid: str) -> None:
    with pytest.raises(CommandError, match=r"^501 5\.5\.4 bad value of ENVID"):
        parse_mail(f"FROM:<> ENVID={envid}", dsn=True)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", None),
        (" NOTIFY=NEVER", RcptDsn(("NEVER",))),
        (" notify=success,Failure", RcptDsn(("SUCCESS", "FAILURE"))),
        (" ORCPT=rfc822;A+2Bb@c.example", RcptDsn((), "rfc822;A+2Bb@c.example")),
        (
            " NOTIFY=DELAY ORCPT=x400;/a+3Db/",
            RcptDsn(("DELAY",), "x400;/a+3Db/"),
        ),
    ],
)
def test_dsn_of_rcpt(parameters: str, expected: RcptDsn | None) -> None:
    found = parse_rcpt(f"TO:<a@b.example>{parameters}", dsn=True)
    assert found == RcptCommand("a@b.example", expected)


@pytest.mark.parametrize(
    "parameter",
    [
        *("NOTIFY", "NOTIFY=", "NOTIFY=NEVER,SUCCESS", "NOTIFY=X", "ORCPT=a@b.example"),
        *("ORCPT=rfc822;", "ORCPT=;a", "ORCPT=rfc822;a=b", "ORCPT=rfc822;\u00e9"),
        *("ORCPT=rf c;a", "ORCPT=" + "x" * 500 + ";a", "X=1"),
    ],
)
def test_bad_dsn_of_rcpt(parameter: str) -> None:
    with pytest.raises(CommandError, match=r"^555 5\.5\.4 "):
        parse_rcpt(f"TO:<a@b.example> {parameter}", dsn=True)


def test_orcpt_that_only_smtputf8_takes_gets_the_form_for_all() -> None:
    found = parse_rcpt("TO:<a@b.example> ORCPT=utf-8;\u00e9+2B@c.example", dsn=True)
    assert found.dsn == RcptDsn((), r"utf-8;\x{E9}+2B@c.example")


@given(st.text(min_size=1, max_size=30))
def test_orcpt_is_passed_on_as_it_came(address: str) -> None:
    original = orcpt(address.encode("utf-8", "replace").decode())
    found = parse_rcpt(f"TO:<a@b.example> ORCPT={original}", dsn=True)
    assert found.dsn is not None
    assert found.dsn.parameters() == [f"ORCPT={original}"]


@given(st.text())
def test_xtext_comes_back(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert from_xtext(xtext(text)) == text


def test_xforward() -> None:
    line = "NAME=spike.example ADDR=IPV6:2001:db8::1 ident=4b+3D SOURCE=[unavailable]"
    assert parse_xforward(line) == {
        "NAME": "spike.example",
        "ADDR": "IPV6:2001:db8::1",
        "IDENT": "4b=",
        "SOURCE": "",
    }


@pytest.mark.parametrize("line", ["", "NAME", "COLOUR=red", "NAME=a=b", "NAME=+zz"])
def test_bad_xforward(line: str) -> None:
    with pytest.raises(CommandError, match=r"^501 5\.5\.4 "):
        parse_xforward(line)
