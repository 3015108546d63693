"""The commands of README's and OPERATING's chapters on set-up, as they stand there.

They are cut out of the text and given to a shell in the lab. Three things differ. What
fetches packages is not run, as the lab has them. The reader's own domain is put in the
place of the example. A daemon is started as it is without systemd.
"""

import re
import time

import pytest

from .case import Case, Expected, Host
from .conftest import transports_here
from .lab import Lab
from .packages import CHECKOUT
from .test_setup import POSTFIX, bare, contents, is_right, make_old

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

SECOND_IS_GOOD = Case(
    "second",
    "The firewall drops the first MX; the second is good.",
    (Host("mx1", 1, firewall="drop"), Host("mx2", 2)),
    {"smtp": Expected("sent", "2.0.0", 30.0, {"mx2": 1})},
)

# Needs the network, or an account that the lab has already.
FETCHES = ("apt-get ", "python3 -m venv ", "/opt/mxpolicy/bin/pip ", "adduser ")

# systemd's part, in its place `start_by_hand`.
BY_SYSTEMD = "systemctl restart mxpolicy"

# Where the lab's syslog writes what is in Debian's mail.log.
LOG = {"/var/log/mail.log": "/var/log/syslog"}


def blocks(file: str, chapter: str) -> list[list[str]]:
    """Return the commands of a chapter, block by block, each a list of lines."""
    text = (CHECKOUT / file).read_text()
    found = re.search(rf"^## {re.escape(chapter)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"{file} has no chapter {chapter}"
    cut = re.findall(r"(?<=\n\n)(?:(?:    |      )\S.*\n)+", found[1])
    return [[line.strip() for line in one.splitlines()] for one in cut]


def with_first(found: list[list[str]], word: str) -> list[str]:
    """Return the one block that begins with *word*."""
    [block] = [one for one in found if one[0].startswith(word)]
    return block


def shell(lab: Lab, lines: list[str], **put: str) -> str:
    """Give *lines* to one shell, each of which must end well; return what they print.

    Args:
        lab: Where.
        lines: Commands.
        put: What is put in the place of what.
    """
    script = "\n".join(("set -e", "mxpolicy=/opt/mxpolicy/bin/mxpolicy", *lines))
    for old, new in {**LOG, "example.com": lab.placed[0].domain, **put}.items():
        script = script.replace(old, new)
    done = lab.mta_exec(["sh", "-c", script])
    make_old(lab)
    text = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, f"{script}\n{text}"
    return text


def logged(lab: Lab, command: str) -> str:
    """Return what *command* finds in the log, as soon as it finds something."""
    until = time.monotonic() + 30
    while True:
        try:
            return shell(lab, [command])
        except AssertionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def start_by_hand(lab: Lab) -> None:
    """Start the daemon as OPERATING has it for those without systemd."""
    found = blocks("OPERATING.md", "The daemon from day to day")
    made, serve = with_first(found, "install ")
    shell(lab, [made])
    lab.world.start("mta", serve.split())
    until = time.monotonic() + 20
    while not lab.world.path("/run/mxpolicy/lmtp").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_set_up_leads_past_a_dropped_mx_and_back() -> None:
    found = blocks("README.md", "Setting it up")
    install = with_first(found, "apt-get ")
    first = with_first(found, "mxpolicy=")
    send, search = with_first(found, "echo ")
    more = with_first(found, "$mxpolicy setup postfix --one-domain ")
    undo = with_first(found, "$mxpolicy setup postfix --undo")
    tried = {*first, *more, *undo}
    asked = {one for block in found for one in block if "setup postfix" in one}
    assert asked <= tried, asked - tried
    with bare((SECOND_IS_GOOD,)) as lab:
        [placed] = lab.placed
        before = contents(lab, POSTFIX)
        fetching = [line for line in install if line.startswith(FETCHES)]
        assert len(fetching) == len(FETCHES)
        shell(lab, [line for line in install if line not in fetching])

        assert first[0] == "mxpolicy=/opt/mxpolicy/bin/mxpolicy"
        text = shell(lab, first)
        assert "Nothing was changed. With --apply it is." in text
        assert "0 fail" in text
        is_right(lab)

        shell(lab, [send])
        [line] = logged(lab, search).splitlines()
        assert f"to=<you@{placed.domain}>, relay=mx2.{placed.domain}" in line
        assert re.search(rf"status=sent \(250 .*\), tried=mx1\.{placed.domain}\[", line)

        for command in more:
            assert "Done." in shell(lab, [command])
            is_right(lab)
        assert "With --apply it is." in shell(lab, undo[:1])
        shell(lab, undo[1:])
        assert contents(lab, POSTFIX) == before


def test_all_mail_goes_by_lmtp_and_back() -> None:
    block = with_first(
        blocks("README.md", "More than ten messages a second"), "install"
    )
    at = block.index(BY_SYSTEMD)
    with bare((SECOND_IS_GOOD,)) as lab:
        [placed] = lab.placed
        before = contents(lab, POSTFIX)
        shell(lab, block[:at])
        start_by_hand(lab)
        assert "Done." in shell(lab, block[at + 1 :])
        is_right(lab)
        queue_id = lab.send([placed.recipient], placed.sender)
        [delivery] = lab.postfix.await_deliveries(queue_id, 30)
        assert (delivery.agent, delivery.status) == ("lmtp", "sent")
        [message] = lab.hosts.received(placed.recipient)
        assert message.host == f"mx2.{placed.domain}"
        undo = with_first(blocks("OPERATING.md", "Uninstall"), "mxpolicy setup")
        shell(lab, [line.replace("mxpolicy ", "$mxpolicy ", 1) for line in undo[:2]])
        assert contents(lab, POSTFIX) == before
        gone = [line for line in undo if line.startswith(("rm -rf /var", "cd "))]
        assert len(gone) == 2
        lab.mta_exec(["postfix", "stop"])
        # The lab's own is mounted there.
        shell(lab, gone, **{" /opt/mxpolicy": ""})
        hidden = ("-path", "/run/lab", "-prune", "-o")  # what the lab stands on
        ours = ("(", "-name", "*mxpolicy*", "-o", "-name", "*mxlmtp*", ")", "-print")
        sought = ["find", "/etc", "/var", "/run", *hidden, *ours]
        left = lab.world.run("mta", sought).stdout.decode().split()
        assert left == []
