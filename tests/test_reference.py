"""The sample file, the manual and CONTRACT.md say what the sources say."""

import re
import tomllib
from pathlib import Path

import pytest

from mxpolicy import config
from mxpolicy.options import Options
from tests.options_table import all_options
from tests.reference import (
    BLOCKS,
    CHECKOUT,
    FILES,
    INTERNALS,
    MANUAL,
    OPERATING,
    README,
    SAMPLE,
    switched_on,
    with_tables,
)

OPTIONS = [one for one in all_options() if one.default is not None]
KEYS = [key for one in OPTIONS for key in one.keys]
NO_CHAPTERS = {"Copies"}  # A column of a table.
AGAIN = "python -m tests.reference writes it anew"


@pytest.mark.parametrize("option", [*OPTIONS, *KEYS], ids=lambda option: option.path)
def test_option_has_a_sentence(option: object) -> None:
    assert option.text.endswith((".", ")", ".)"))  # type: ignore[attr-defined]
    assert option.text[0].isupper() or option.text.startswith("``")  # type: ignore[attr-defined]


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_is_what_the_sources_say(path: Path) -> None:
    assert path.read_text() == FILES[path](), AGAIN


def test_rules_in_readme_are_right() -> None:
    found = re.search(r"\n    policy:\n((?:      .*\n)+)", README.read_text())
    assert found is not None
    options = config.parse(f"policy:\n{found[1]}".encode(), "README")
    assert len(options.policy.rules) == found[1].count("- {finding: ")


def test_operating_names_options_that_there_are() -> None:
    text = OPERATING.read_text()
    # What is said to be a setting is one.
    settings = re.findall(r"`([a-z_]+: [{\[].*?[}\]])`", text)
    assert len(settings) > 5
    for one in settings:
        config.parse(one.encode(), one)
    assert set(re.findall(r"`((?:memory|limits|race)\.\w+)`", text)) <= {
        one.path for one in all_options()
    }


@pytest.mark.parametrize("path", MANUAL, ids=lambda path: path.name)
def test_file_of_the_manual_is_linked_and_names_what_there_is(path: Path) -> None:
    text = path.read_text()
    manual = "".join(one.read_text() for one in MANUAL)
    assert (
        path == README or f"`{path.name}`" in README.read_text().partition("\n## ")[0]
    )
    # A chapter that it names is in one of the files; its own are linked at its head.
    chapters = set(re.findall(r"^##+ (.*)", manual, re.M)) | NO_CHAPTERS
    assert set(re.findall(r"(?<!\*)\*([A-Z][\w ]+)\*[,)\s.]", text)) <= chapters
    links = re.findall(r"\[([^]]+)\]\(#([\w-]+)\)", text)
    if links:
        assert [name for name, _ in links] == re.findall(r"^## (.*)", text, re.M)
        assert all(_anchor_of(name) == at for name, at in links)


def _anchor_of(chapter: str) -> str:
    """Return what a Markdown reader makes of a heading."""
    return re.sub(r"[^\w -]", "", chapter.lower()).replace(" ", "-")


def test_table_goes_between_its_marks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    blocks = {name: make for made in BLOCKS.values() for name, make in made.items()}
    monkeypatch.setitem(BLOCKS, path, blocks)
    old = "".join(f"{name}\n<!-- {name} -->old<!-- /{name} -->\n" for name in blocks)
    path.write_text(f"a\n{old}z")
    made = with_tables(path)
    for name, make in blocks.items():
        block = f"<!-- {name} -->\n\n{make()}\n\n<!-- /{name} -->"
        assert f"{name}\n{block}\n" in made
        made = made.replace(f"{name}\n{block}\n", "")
    assert made == "a\nz"
    path.write_text("a")
    with pytest.raises(ValueError, match="no <!-- contract -->"):
        with_tables(path)


def test_layer_picture_is_the_contract_that_is_kept() -> None:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    [layers] = [
        one["layers"]
        for one in settings["tool"]["importlinter"]["contracts"]
        if one.get("containers") == ["mxpolicy"]
    ]
    # In parentheses: not built yet.
    rows = [re.sub(r"\(\w+\) \| | \| \(\w+\)", "", one) for one in layers]
    assert rows[0] == "__main__"
    picture = re.search(r"\n((?:    .*→.*\n)+)", INTERNALS.read_text())
    assert picture is not None
    assert " ".join(picture[1].split()) == " → ".join(rows[1:])


def test_internals_has_a_line_for_each_room_of_a_delivery() -> None:
    text = INTERNALS.read_text()
    rooms = {one.stem for one in (CHECKOUT / "mxpolicy" / "delivery").glob("[a-z]*.py")}
    assert rooms == set(re.findall(r"`(\w+)`", _table_of_rooms(text)))


def _table_of_rooms(text: str) -> str:
    """Return the first column of the table of the rooms of `delivery/`."""
    found = re.search(r"\n\| room \|.*\n\|---.*\n((?:\|.*\n)+)", text)
    assert found is not None
    return "\n".join(row.split("|")[1] for row in found[1].splitlines())
