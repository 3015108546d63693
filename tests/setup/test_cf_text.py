"""Logical lines of main.cf and master.cf."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxpolicy.setup.cf_text import entries, find, put_back
from mxpolicy.setup.steps import MAIN, MASTER
from tests.setup.programs import SAMPLES, Copy

LINES = st.sampled_from(
    (
        *("a = 1\n", "b=2\n", "  more\n", "\tthan that\n", "# said\n", "\n", "   \n"),
        *(
            "  # in between\n",
            "c =\n",
            "  = 3\n",
            "\x0bx\n",
            "d = \x85 \u2028\n",
            "e\n",
        ),
    )
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\n", {"a": "1"}),
        ("a=1\n  2,\n# no\n\n\t3\nb =\n", {"a": "1 2, 3", "b": ""}),
        ("a\n = 1\n", {"a": "1"}),
        ("a = b = c\n", {"a": "b = c"}),
        ("# a = 1\n", {}),
        ("  continues nothing\na = 1", {"a": "1"}),
    ],
)
def test_main_cf(text: str, expected: dict[str, str]) -> None:
    assert {one.key: one.value for one in entries(MAIN, text)} == expected


def test_master_cf() -> None:
    text = (SAMPLES / "mailcow" / MASTER).read_text()
    [entry] = find(MASTER, text, "smtps/inet")
    assert entry.value.endswith("-o cleanup_service_name=smtp_sender_cleanup")
    assert "# no submission-only options below\n" in entry.text
    assert len(entries(MASTER, text)) == 11


@given(st.lists(LINES, max_size=12), st.sampled_from("abce"))
def test_what_postconf_replaced_comes_back(lines: list[str], key: str) -> None:
    text = "".join(lines)
    before = find(MAIN, text, key)
    if len(before) > 1:
        return
    edited = Copy.edited(MAIN, text, key, "new")
    [entry] = find(MAIN, edited, key)
    assert entry.value == "new"
    assert put_back(edited, entry, before[0].text if before else None) == text


def test_other_changes_stay() -> None:
    text = "a = 1\n# said\n  2\nb = 3\n"
    [before] = find(MAIN, text, "a")
    edited = Copy.edited(MAIN, text, "a", "new") + "c = 4\n"
    changed = edited.replace("# said\n", "# said otherwise\n").replace("3", "5")
    [entry] = find(MAIN, changed, "a")
    assert (
        put_back(changed, entry, before.text)
        == "a = 1\n  2\n# said otherwise\nb = 5\nc = 4\n"
    )


def test_samples_are_read_as_they_are(tmp_path: Path) -> None:
    for directory in SAMPLES.iterdir():
        for name in (MAIN, MASTER):
            data = (directory / name).read_bytes()
            text = data.decode("utf-8", "surrogateescape")
            for entry in entries(name, text):
                lines = text.split("\n")[entry.first : entry.last + 1]
                assert "".join(f"{one}\n" for one in lines) == entry.text
