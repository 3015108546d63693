"""`mxpolicy.routing.tls_requirement`: where a requirement comes from, and its failure."""

from __future__ import annotations

import pytest

from mxpolicy.options import TlsLevel
from mxpolicy.routing.candidate import Finding, Phase, Scope, Verdict
from mxpolicy.routing.tls_requirement import (
    Level,
    Source,
    TlsRequirement,
    tls_requirement,
    wanted_by_host,
)

WANTED = wanted_by_host("530 5.7.0 TLS!")


@pytest.mark.parametrize(
    ("default", "is_broken", "expected"),
    [
        (TlsLevel.NONE, False, TlsRequirement(Level.NONE, Source.DEFAULT)),
        (TlsLevel.NONE, True, TlsRequirement(Level.NONE, Source.DEFAULT)),
        (TlsLevel.MAY, False, TlsRequirement(Level.MAY, Source.DEFAULT)),
        (TlsLevel.MAY, True, TlsRequirement(Level.NONE, Source.MEMORY)),
    ],
)
def test_option_none_comes_before_what_is_remembered(
    default: TlsLevel, is_broken: bool, expected: TlsRequirement
) -> None:
    assert tls_requirement(default, is_broken=is_broken) == expected


def test_only_the_operator_rules_tls_out() -> None:
    assert tls_requirement(TlsLevel.NONE).is_ruled_out
    assert not tls_requirement(TlsLevel.MAY).is_ruled_out
    assert not tls_requirement(TlsLevel.MAY, is_broken=True).is_ruled_out
    assert not WANTED.is_ruled_out


def test_failure_before_tls_is_one_of_tls_that_quotes_the_host() -> None:
    finding = Finding(Verdict.REFUSED, Phase.CONNECT, 2.0, text="Connection refused")
    text = "the second connection: refused Connection refused; in clear it said 530 5.7.0 TLS!"
    assert WANTED.unmet(finding) == Finding(
        Verdict.TLS_FAILED, Phase.TLS, 2.0, text=text
    )


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (
            Finding(Verdict.TLS_SILENT, Phase.TLS, 9.0),
            "in clear it said 530 5.7.0 TLS!",
        ),
        (
            Finding(Verdict.CLOSED, Phase.CONNECT, 0.0, Scope.SITE, text="no memory"),
            "no memory; in clear it said 530 5.7.0 TLS!",
        ),
    ],
    ids=["of TLS", "of ourselves"],
)
def test_other_failure_stays_and_quotes_the_host(finding: Finding, text: str) -> None:
    assert WANTED.unmet(finding) == finding._replace(text=text)
