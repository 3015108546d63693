"""The command line of ``mxpolicy setup``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mxpolicy.setup import main
from tests.setup.programs import sample, write


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "the following arguments are required: mail_server"),
        ("sendmail", "invalid choice: 'sendmail'"),
        ("postfix --one-domain", "expected at least one argument"),
        ("postfix --one-domain exam_ple..com", "'exam_ple..com' is no domain"),
        ("postfix --one-domain *", "'*' is no domain"),
        ("postfix --one-domain bücher.example", "write an international one as xn--"),
        ("postfix --one-domain a:b", "'a:b' is no domain"),
        ("postfix --undo --policy", "--undo takes back all"),
        ("postfix --all-mail --one-domain a.example", "has each domain in it"),
        ("postfix --all-mail --fallback", "nothing falls back"),
        ("postfix --fallback --lmtp", "not by --lmtp"),
        ("exim --fallback", "--fallback is for Postfix"),
        ("exim -c /etc/exim4", "-c is for Postfix"),
        ("postfix --all", "unrecognized arguments: --all"),
    ],
)
def test_misuse(argv: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv.split())
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.split())
    assert shown.startswith("usage: mxpolicy setup")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--one-domain", "--undo", "--apply", "-c DIR"):
        assert option in text


def test_what_postconf_objects_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "postconf", "#!/bin/sh\necho postconf: fatal: no >&2; exit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main(["postfix", "--all-mail"]) == 1
    assert capsys.readouterr().err == "mxpolicy: postconf -h: postconf: fatal: no\n"


def test_relative_mail_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = sample("debian", tmp_path / "postfix")
    write(tmp_path / "postconf", '#!/bin/sh\necho "$MAIL_CONFIG"\n')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("MAIL_CONFIG", "postfix")
    monkeypatch.chdir(tmp_path)
    assert main(["postfix", "--undo"]) == 0
    assert f"there is no {directory}/mxpolicy-setup" in capsys.readouterr().out


def test_nothing_to_undo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = sample("debian", tmp_path / "postfix")
    write(tmp_path / "postconf", '#!/bin/sh\necho "$MAIL_CONFIG"\n')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main(["postfix", "--undo", "--apply", "-c", str(directory)]) == 0
    expected = f"Nothing to undo: there is no {directory}/mxpolicy-setup.json.\n"
    assert capsys.readouterr().out == expected
