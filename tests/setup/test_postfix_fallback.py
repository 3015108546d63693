"""What ``--fallback`` keeps out of mxpolicy, on files of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mxpolicy.setup.postfix import Postfix
from mxpolicy.setup.steps import Asked
from tests.setup.programs import Copy, sample

FALLBACK = Asked(fallback=True)


@pytest.mark.parametrize(
    ("name", "clients"),
    [
        ("byhand", []),
        ("debian", ["relay/unix"]),
        ("dockermailserver", ["smtp-amavis/unix"]),
        ("ispconfig", ["relay/unix", "amavis/unix"]),
        ("plesk", ["relay/unix", "plesk-192.0.2.25-/unix"]),
    ],
)
def test_only_the_client_for_the_world_falls_back(
    name: str, clients: list[str], tmp_path: Path
) -> None:
    directory = sample(name, tmp_path / "postfix")
    what = Postfix(Copy(directory)).plan(FALLBACK)
    changed = [one for one in what.steps if one.before and one.file == "master.cf"]
    assert [one.key for one in changed] == clients
    assert all(one.after.endswith(" -o smtp_fallback_relay=") for one in changed)
    # Before main.cf names the relay.
    assert [one.file for one in what.steps].index("master.cf") == 0
    said = [one for one in what.notes if "waits as before" in one]
    assert [one.partition(" in ")[0] for one in said] == (
        [", ".join(clients)] if clients else []
    )


def test_client_with_a_relay_of_its_own_keeps_it(tmp_path: Path) -> None:
    directory = sample("byhand", tmp_path / "postfix")
    with (directory / "master.cf").open("a") as file:
        file.write("scan unix - - n - 5 smtp\n  -o smtp_fallback_relay=[192.0.2.1]\n")
    what = Postfix(Copy(directory)).plan(FALLBACK)
    assert [one.before for one in what.steps if one.key == "scan/unix"] == []


@pytest.mark.parametrize(
    ("lines", "table", "said"),
    [
        (
            "content_filter = smtp:[127.0.0.1]:10024\n",
            "",
            "content_filter = smtp:[127.0.0.1]:10024: when that does not answer",
        ),
        (
            "relay_domains = example.net\ntransport_maps = texthash:{}/inward\n",
            "example.net  smtp:[192.0.2.7]\n",
            "transport_maps has example.net smtp:[192.0.2.7] (texthash:",
        ),
        (
            "relay_domains = example.net\ntransport_maps = texthash:{}/inward\n",
            "me@example.net  smtp:[192.0.2.7]:2525\n",
            "Write relay: in the place of smtp: there",
        ),
    ],
)
def test_mail_for_our_own_hosts_is_refused(
    lines: str, table: str, said: str, tmp_path: Path
) -> None:
    directory = sample("byhand", tmp_path / "postfix")
    (directory / "inward").write_text(table)
    with (directory / "main.cf").open("a") as file:
        file.write(lines.format(directory))
    [refusal] = Postfix(Copy(directory)).plan(FALLBACK).refusals
    assert said in refusal
    assert Postfix(Copy(directory)).plan(Asked(all_mail=True)).refusals == ()


def test_table_for_the_world_is_in_nobodys_way(tmp_path: Path) -> None:
    directory = sample("byhand", tmp_path / "postfix")
    rows = "example.net relay:[192.0.2.7]\nexample.org smtp:[192.0.2.8]\n* smtp:\n"
    (directory / "mixed").write_text(rows)
    with (directory / "main.cf").open("a") as file:
        file.write("relay_domains = example.net\n")
        file.write(f"transport_maps = texthash:{directory}/mixed\n")
    what = Postfix(Copy(directory)).plan(FALLBACK)
    assert what.refusals == ()
    assert not any("cannot be listed" in one for one in what.notes)


def test_table_that_is_not_listed_is_told(tmp_path: Path) -> None:
    directory = sample("ispconfig", tmp_path / "postfix")
    what = Postfix(Copy(directory)).plan(FALLBACK)
    [note] = [one for one in what.notes if "cannot be listed" in one]
    assert "mysql-virtual_transports.cf cannot be listed: see that no" in note
