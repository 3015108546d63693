"""What Postfix is asked, and what is made of how its programs end."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from mxpolicy.check.postconf import Postconf
from mxpolicy.check.programs import Ended, ProgramError, run


def program(directory: Path, text: str) -> None:
    file = directory / "postconf"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_postfix_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert Postconf.find(str(tmp_path)) is None
    program(tmp_path, "echo a b")
    found = Postconf.find(str(tmp_path))
    assert found is not None
    assert found.services() == "a b\n"


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        (Ended(1, "half", "postconf: fatal: bad"), "postconf: fatal: bad"),
        (Ended(1, "half", ""), "postconf ended with status 1"),
        (Ended(-9, "", ""), "postconf ended with status -9"),
    ],
)
def test_program_that_fails_is_unseen_with_its_own_words(
    ended: Ended, why: str
) -> None:
    postconf = Postconf(lambda *argv: ended)
    for ask in (postconf.services, lambda: postconf.settings(["a"])):
        with pytest.raises(ProgramError) as raised:
            ask()
        assert str(raised.value) == why


def test_settings_that_are_garbage_are_empty() -> None:
    postconf = Postconf(lambda *argv: Ended(0, "a = b = c\nd\n=\n\n  e=  f \n", ""))
    settings = postconf.settings(["a", "x"])
    assert settings["a"] == "b = c"
    assert settings["e"] == "f"
    assert settings["d"] == settings["x"] == ""


def test_first_table_that_has_it_filters() -> None:
    answers = {
        "regexp:/a": Ended(1, "", ""),  # postmap(1): it has nothing
        "regexp:/b": Ended(0, "4.1.1 b\n", ""),
        "regexp:/c": Ended(0, "5.1.1 c\n", ""),
        "hash:/broken": Ended(1, "", "postmap: fatal: open /broken.db"),
    }
    postconf = Postconf(lambda program, how, key, table: answers[table])
    assert postconf.filtered("5.1.1 x", ["regexp:/a", "regexp:/b", "regexp:/c"]) == (
        "4.1.1 b"
    )
    assert postconf.filtered("5.1.1 x", ["regexp:/a"]) == ""
    assert postconf.filtered("5.1.1 x", []) == ""
    # Two lines for one parameter in main.cf: Postfix warns, and goes on.
    said = (
        "postmap: warning: /etc/postfix/main.cf, line 9: overriding earlier entry: a=b"
    )
    answers["regexp:/a"] = Ended(1, "", said)
    assert postconf.filtered("5.1.1 x", ["regexp:/a", "regexp:/b"]) == "4.1.1 b"
    answers["regexp:/a"] = Ended(1, "", f"{said}?postmap: fatal: no")
    with pytest.raises(ProgramError, match="fatal: no"):
        postconf.filtered("5.1.1 x", ["regexp:/a", "regexp:/b"])
    answers["regexp:/a"] = Ended(1, "", "")
    with pytest.raises(ProgramError, match=r"^postmap: fatal: open /broken\.db$"):
        postconf.filtered("5.1.1 x", ["regexp:/a", "hash:/broken", "regexp:/b"])


def test_instance_that_mail_config_names_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, 'echo "myhostname = ${MAIL_CONFIG:-the first}"')
    postconf = Postconf(partial(run, str(tmp_path)))
    monkeypatch.delenv("MAIL_CONFIG", raising=False)
    assert postconf.settings(["myhostname"])["myhostname"] == "the first"
    monkeypatch.setenv("MAIL_CONFIG", "/etc/postfix-out")
    assert postconf.settings(["myhostname"])["myhostname"] == "/etc/postfix-out"


def test_language_of_the_user_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "echo $LC_ALL")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert Postconf(partial(run, str(tmp_path))).services() == "C\n"
    assert os.environ["LC_ALL"] == "de_DE.UTF-8"
