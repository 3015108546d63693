"""Where the lines go in an Exim's configuration that is a single file."""

from __future__ import annotations

import pytest

from mxpolicy.setup.exim_by_hand import acl, left, lines
from mxpolicy.setup.exim_lines import ACL, RETRY
from mxpolicy.setup.steps import Asked

FILE = "/etc/exim4/exim4.conf"
ALL = Asked(all_mail=True, policy=True)

WHOLE = """\
domainlist local_domains = @
acl_smtp_rcpt = acl_check_rcpt
begin acl
acl_check_rcpt:
  accept hosts = :
  deny    hosts = +relay_from_hosts
          domains = example.org
  accept
    # who may relay
    hosts = +relay_from_hosts
    control = submission
  accept  authenticated = *
begin routers
dnslookup:
  driver = dnslookup
begin transports
remote_smtp:
  driver = smtp
begin retry
*.example.org  *  F,1h,5m
begin rewrite
"""
RULE = "*   *   F,2h,15m; G,16h,1h,1.5; F,4d,6h\n"


def places(text: str, asked: Asked = ALL) -> list[str]:
    return [where for where, _ in lines(asked, FILE, text)]


def test_each_part_has_its_line() -> None:
    copy, retry, transport, router, asks = places(WHOLE)
    assert "the way back" in copy
    assert router.startswith(f'{FILE}, after line 13, "begin routers"')
    assert transport == f'{FILE}, after line 16, "begin transports"'
    assert retry == f"{FILE}, before line 21, at the end of the section retry"
    assert f"{FILE}, before line 8, its first accept" in asks


def test_what_is_put_there_is_there() -> None:
    rows = WHOLE.splitlines(keepends=True)
    _, *parts = [text for _, text in lines(ALL, FILE, WHOLE)]
    # From the last line to the first: what is put in moves no line that is to come.
    for line, text in zip((20, 16, 13, 7), parts, strict=True):
        rows.insert(line, text)
    *_, asks = parts
    made = "".join(rows)
    assert f"F,1h,5m\n{RETRY}begin rewrite" in made
    assert f"example.org\n{asks}  accept\n    # who may relay" in made
    # Twice is once too often.
    sentences = list(left(FILE, made))
    assert len(sentences) == 3
    assert "taken out by hand" in sentences[0]
    assert list(left(FILE, WHOLE)) == []


@pytest.mark.parametrize("rule", [RULE, "  " + RULE])
def test_rule_that_is_there_is_not_asked_for(rule: str) -> None:
    text = WHOLE.replace("begin rewrite", f"{rule}begin rewrite")
    assert not [one for one in places(text) if "retry" in one]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("begin retry\na  *  F,1h,5m\n", "at its end (the section retry)"),
        ("begin routers\n", 'at its end, with a line "begin retry" before it'),
        (".include /etc/exim4/rest\n", 'with a line "begin retry" before it'),
    ],
)
def test_rule_comes_last(text: str, where: str) -> None:
    [found] = [one for one in places(text) if "retry" in one]
    assert where in found


def test_file_without_the_sections_gets_no_numbers() -> None:
    text = ".include /etc/exim4/rest\n"
    assert f'{FILE}, "begin transports"' in places(text)
    assert "in the ACL of acl_smtp_rcpt, before its first accept" in acl(FILE, text)[0]


def test_only_what_is_asked_for() -> None:
    assert len(places(WHOLE, Asked())) == 3
    assert acl(FILE, WHOLE)[1] == ACL
