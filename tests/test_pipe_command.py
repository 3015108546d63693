"""The command line of ``mxpolicy pipe``, and the time that follows from it."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.errors import UsageError
from mxpolicy.options import Options
from mxpolicy.pipe_command import Arguments, parse_arguments, time_needed

__all__ = ["WRONG"]


def test_arguments_are_taken_as_they_are() -> None:
    argv = ["-f", "-me@a.example", "--nexthop", "[h]:25", "--queue-id=4x=y"]
    argv += ["--deadline", "1.5m", "--config", "", "--socket", "/run/x", "--"]
    assert parse_arguments([*argv, "-b@b.example", "--", "-f"], {}) == Arguments(
        sender="-me@a.example",
        nexthop="[h]:25",
        queue_id="4x=y",
        deadline=90.0,
        config="",
        recipients=("-b@b.example", "--", "-f"),
    )


def test_what_is_not_given_has_its_default() -> None:
    assert parse_arguments(["-f", "", "--", "b@b.example"], {}) == Arguments(
        sender="",
        nexthop="",
        queue_id="",
        deadline=None,
        config=None,
        recipients=("b@b.example",),
    )


WRONG = [
    pytest.param([], "no -- before the recipients", id="nothing"),
    pytest.param(["-f", "a@b"], "no -- before the recipients", id="no_dashes"),
    pytest.param(["-f", "a@b", "--"], "no recipient", id="no_recipient"),
    pytest.param(["-f", "a@b", "--", ""], "an empty one", id="empty_recipient"),
    pytest.param(["--", "b@b"], "no sender: give -f", id="no_sender"),
    pytest.param(["-f"], "-f needs a value", id="no_value"),
    # Postfix without null_sender= and with a filter that drops empty arguments.
    pytest.param(["-f", "--", "b@b"], "unknown argument 'b@b'", id="sender_dropped"),
    pytest.param(["-fa@b", "--", "b@b"], "unknown argument", id="sender_glued"),
    pytest.param(["-f=a@b", "--", "b@b"], "unknown argument", id="sender_inline"),
    pytest.param(["b@b"], "unknown argument 'b@b'", id="bare_recipient"),
    pytest.param(["--dead", "3s", "--", "b@b"], "unknown argument", id="abbreviated"),
    pytest.param(["--quiet", "--", "b@b"], "unknown argument '--quiet'", id="unknown"),
    pytest.param(["-f", "", "-f", "", "--", "b@b"], "-f is given twice", id="twice"),
    pytest.param(["--deadline", "3", "--", "b@b"], "'3' is not a", id="no_unit"),
    pytest.param(["-f", "", "--deadline", "0", "--", "b"], "--deadline: ", id="zero"),
    pytest.param(["-f", "", "--deadline", "9d", "--", "b"], "--deadline", id="long"),
    pytest.param(["-f", "", "--deadline", "\x1b[2J", "--", "b"], "is not", id="escape"),
]


@pytest.mark.parametrize(("argv", "said"), WRONG)
def test_wrong_arguments_are_named(argv: list[str], said: str) -> None:
    if "-f" not in argv and "--deadline" in argv:
        argv = ["-f", "", *argv]
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        parse_arguments(argv, {})
    assert "\x1b" not in str(caught.value)


@given(st.lists(st.sampled_from(["-f", "--", "", "--nexthop", "a@b", "--deadline=1s"])))
def test_arguments_are_understood_or_refused(argv: list[str]) -> None:
    with contextlib.suppress(UsageError):
        assert all(parse_arguments(argv, {}).recipients)


DEFAULT = Options().deadline


@pytest.mark.parametrize(
    ("given", "option", "needed"),
    [
        pytest.param(2900.0, DEFAULT, 3500.0, id="contrib"),
        pytest.param(150.0, DEFAULT, 750.0, id="short"),
        pytest.param(None, 2900.0, 3500.0, id="configured"),
        pytest.param(None, 60.0, 660.0, id="configured_short"),
        pytest.param(900.0, DEFAULT, 1500.0, id="the_default_on_purpose"),
        pytest.param(None, DEFAULT, 970.0, id="nobody_said_anything"),
    ],
)
def test_time_that_is_needed_is_the_deadline_and_the_dots(
    given: float | None, option: float, needed: float
) -> None:
    assert time_needed(given, Options(deadline=option)) == needed
