"""The sample file and README say what `options.py` says."""

import re

import pytest

from mxpolicy import config
from mxpolicy.options import Options
from tests.reference import (
    BEGIN,
    END,
    README,
    SAMPLE,
    all_options,
    contract,
    sample,
    switched_on,
    table,
    with_table,
)

OPTIONS = [one for one in all_options() if one.default is not None]
KEYS = [key for one in OPTIONS for key in one.keys]
AGAIN = "python -m tests.reference writes it anew"


@pytest.mark.parametrize("option", [*OPTIONS, *KEYS], ids=lambda option: option.path)
def test_option_has_a_sentence(option: object) -> None:
    assert option.text.endswith((".", ")", ".)"))  # type: ignore[attr-defined]
    assert option.text[0].isupper() or option.text.startswith("``")  # type: ignore[attr-defined]


def test_sample_is_what_the_options_say() -> None:
    assert SAMPLE.read_text() == sample(), AGAIN


def test_sample_as_it_is_gives_the_defaults() -> None:
    assert config.load(str(SAMPLE), {}) == Options()


def test_sample_with_all_options_switched_on_gives_the_defaults() -> None:
    text = switched_on(SAMPLE.read_text())
    assert config.parse(text.encode(), "sample") == Options()
    # Each option is really there, and not still a comment.
    assert all(
        f"{one.path.rpartition('.')[2]}: {one.default}\n" in text for one in OPTIONS
    )
    without_comments = [
        line for line in text.splitlines() if line.lstrip()[:1] not in "#"
    ]
    assert len(without_comments) == len(list(all_options()))


def test_each_option_of_the_sample_can_be_switched_on_alone() -> None:
    for one in all_options():
        if one.depth == 0 and one.default is not None:
            line = f"#{one.path}: {one.default}\n"
            assert line in SAMPLE.read_text()
            assert config.parse(line[1:].encode(), "line") == Options()


def test_readme_has_the_table_of_options() -> None:
    text = README.read_text() if README.exists() else ""
    if BEGIN not in text:
        pytest.skip(f"README has no {BEGIN}")
    assert text == with_table(text), AGAIN


def test_rules_in_readme_are_right() -> None:
    found = re.search(r"\n    policy:\n((?:      .*\n)+)", README.read_text())
    assert found is not None
    options = config.parse(f"policy:\n{found[1]}".encode(), "README")
    assert len(options.policy.rules) == found[1].count("- {finding: ")


def test_table_goes_between_the_marks_only() -> None:
    text = f"a\n{BEGIN}\nold\n{END}\nb\n<!-- contract -->old<!-- /contract -->c\n"
    assert with_table(text) == (
        f"a\n{BEGIN}\n\n{table()}\n\n{END}\nb\n"
        f"<!-- contract -->\n\n{contract()}\n\n<!-- /contract -->c\n"
    )
    with pytest.raises(ValueError, match="no <!-- options -->"):
        with_table("a")
