from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mxpolicy.address import parse_domain
from mxpolicy.net.own_name import MAX_HOSTS_FILE, own_name

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"


@pytest.mark.parametrize(
    ("node", "hosts", "name"),
    [
        pytest.param("mail.example.com", "", "mail.example.com", id="node_is_full"),
        pytest.param("Mail.Example.COM.", "", "mail.example.com", id="made_canonical"),
        pytest.param(
            "mail.example.com",
            "192.0.2.1 other.example.com mail.example.com\n",
            "mail.example.com",
            id="full_node_beats_the_file",
        ),
        pytest.param(
            "mail",
            LOOPBACK + "127.0.1.1\tmail.example.com\tmail # ours\n",
            "mail.example.com",
            id="debian",
        ),
        pytest.param(
            "mail",
            "192.0.2.1 mail mail.example.com\n",
            "mail.example.com",
            id="short_name_first",
        ),
        pytest.param(
            "MAIL",
            "192.0.2.1 Mail.Example.com Mail\n",
            "mail.example.com",
            id="case_is_nothing",
        ),
        pytest.param(
            "mail",
            "192.0.2.1 www.example.com mail mail.example.com\n",
            "mail.example.com",
            id="own_name_before_another_of_the_line",
        ),
        pytest.param(
            "mail",
            "127.0.0.1 localhost.localdomain localhost mail\n"
            "192.0.2.1 mail.example.com mail\n",
            "mail.example.com",
            id="loopback_line_names_us_too",
        ),
        pytest.param(
            "mail", "192.0.2.1 mail.example.com\n", "mail.localdomain", id="not_ours"
        ),
        pytest.param(
            "mail", "#192.0.2.1 mail.example.com mail", "mail.localdomain", id="comment"
        ),
        pytest.param(
            "mail", "192.0.2.1 bad..name mail\n", "mail.localdomain", id="no_domain"
        ),
        pytest.param("mail", "\n \n192.0.2.1\n", "mail.localdomain", id="odd_lines"),
        pytest.param("localhost", LOOPBACK, "localhost.localdomain", id="nameless"),
        pytest.param(
            "localhost.localdomain", "", "localhost.localdomain", id="nameless_in_full"
        ),
        pytest.param("-_-", "", "localhost.localdomain", id="no_host_name_at_all"),
        pytest.param("b\u00fcro", "", "xn--bro-hoa.localdomain", id="beyond_ascii"),
    ],
)
def test_name_is_found(node: str, hosts: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(hosts)
    assert own_name(str(file), node) == name


def test_name_is_found_without_a_hosts_file(tmp_path: Path) -> None:
    assert own_name(str(tmp_path / "none"), "mail") == "mail.localdomain"


def test_name_is_found_in_a_hosts_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(b"\xff\xfe\x00\n192.0.2.1 mail.example.com mail\n")
    assert own_name(str(file), "mail") == "mail.example.com"


def test_a_name_cut_in_two_by_the_limit_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    line = "192.0.2.1 mail mail.example.com\n"
    for missing in range(1, len(".example.com") + 2):
        room = MAX_HOSTS_FILE - len(line) + missing
        file.write_text("#" * (room - 1) + "\n" + line)
        assert own_name(str(file), "mail") == "mail.localdomain"


def test_this_machine_has_a_name_that_can_be_said_in_ehlo() -> None:
    name = own_name()
    assert "." in parse_domain(name)
    node = os.uname().nodename.lower()
    assert name.startswith(node.partition(".")[0]) or name == "localhost.localdomain"
