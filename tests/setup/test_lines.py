"""The lines of set-up are those that contrib explains."""

from __future__ import annotations

from pathlib import Path

import pytest

from mxpolicy.setup import exim_lines, postfix_lines
from mxpolicy.setup.cf_text import entries, squeeze
from mxpolicy.setup.postfix_lines import Part
from mxpolicy.setup.steps import MAIN, MASTER

CONTRIB = Path(__file__).parents[2] / "contrib"

PARTS = {
    "": postfix_lines.PIPE,
    "all-mail": postfix_lines.ALL_MAIL,
    "fallback": postfix_lines.FALLBACK,
    "policy": Part(
        postfix_lines.POLICY.services,
        (
            *postfix_lines.POLICY.settings,
            ("smtpd_relay_restrictions", postfix_lines.RELAY_LIST),
            ("smtpd_sender_restrictions", postfix_lines.SENDER_LIST),
        ),
    ),
    "lmtp-per-domain": Part(
        postfix_lines.LMTP.services,
        (
            ("default_transport", "mxlmtp:"),
            ("relayhost", ""),
            *postfix_lines.LMTP.settings,
        ),
    ),
    "one-domain": Part(
        settings=(("transport_maps", f"texthash:/etc/postfix/{postfix_lines.TABLE}"),)
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_postfix(name: str) -> None:
    directory, part = CONTRIB / "postfix" / name, PARTS[name]
    main = entries(MAIN, (directory / MAIN).read_text())
    assert [(one.key, one.value) for one in main] == list(part.settings)
    if part.services:
        master = entries(MASTER, (directory / MASTER).read_text())
        assert [one.value for one in master] == list(part.services)


def test_transport_table() -> None:
    text = (CONTRIB / "postfix" / "one-domain" / "transport").read_text()
    lines = [one for one in text.splitlines(keepends=True) if one[0] != "#"]
    for line, domain in zip(lines, ("example.com", ".example.com"), strict=False):
        assert line == postfix_lines.table_line(domain, "mxpolicy")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("router", exim_lines.ROUTER),
        ("transport", exim_lines.TRANSPORT),
        ("transport-lmtp", exim_lines.TRANSPORT_LMTP),
        ("retry", exim_lines.RETRY),
        ("acl", exim_lines.ACL),
    ],
)
def test_exim(name: str, text: str) -> None:
    file = (CONTRIB / "exim" / name).read_text()
    lines = file.splitlines(keepends=True)
    assert "".join(one for one in lines if one[0] != "#") == text


def test_exim_is_as_on_this_machine() -> None:
    assert exim_lines.router((), lmtp=False).endswith(exim_lines.ROUTER)
    some = exim_lines.router(["example.org", ".example.org"], lmtp=True)
    assert "  domains = ! +local_domains : example.org : *.example.org\n" in some
    assert "  transport = mxpolicy_lmtp\n" in some
    assert exim_lines.domains_of(some) == ["example.org", ".example.org"]
    assert exim_lines.domains_of(exim_lines.router((), lmtp=False)) is None
    pipe = exim_lines.transport("/srv/bin/mxpolicy", "/srv/mx.yaml", lmtp=False)
    assert "= /srv/bin/mxpolicy pipe --config /srv/mx.yaml --exim -" in squeeze(pipe)
