"""``mxpolicy setup`` with the real Postfix and the real Exim: there and back again."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .case import Case, Expected, Host, place
from .conftest import transports_here
from .lab import Lab
from .packages import LabUnavailable
from .postfix import Client, Delivery
from .smtp_host import Behaviour, Step
from .test_contrib import SIXTH_IS_GOOD
from .world import INSTALLED

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

MXPOLICY = f"{INSTALLED}/bin/mxpolicy"
POSTFIX = "/etc/postfix"
EXIM = "/etc/exim4"

SLOW = Case(
    "slow",
    "The host answers the final dot after six seconds.",
    (Host("mx1", 1, Behaviour({"DOT": Step(delay=6.0)})),),
    {"smtp": Expected("sent", "2.0.0", 30.0, {"mx1": 1})},
)

DEBCONF = """\
dc_eximconfig_configtype='internet'
dc_other_hostnames='mail.lab.test'
dc_local_interfaces='127.0.0.1'
dc_readhost=''
dc_relay_domains=''
dc_minimaldns='false'
dc_relay_nets=''
dc_smarthost=''
CFILEMODE='644'
dc_use_split_config='true'
dc_hide_mailname=''
dc_mailname_in_oh='true'
dc_localdelivery='mail_spool'
"""


@contextmanager
def bare(cases: tuple[Case, ...] = (SIXTH_IS_GOOD,)) -> Iterator[Lab]:
    """Start a lab whose Postfix knows nothing of mxpolicy."""
    try:
        lab = Lab(
            place(cases, ("smtp",)),
            settings={"smtp_connect_timeout": "1s"},
            fragments=None,
        )
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        # No transport map names mxpolicy, and the case goes the general way.
        lab.postfix.forget_route(".mxpolicy.lab.test")
        lab.postfix.forget_route(".smtp.lab.test")
        yield lab


def setup(lab: Lab, *argv: str) -> tuple[int, str]:
    """Run ``mxpolicy setup`` as root; return its status and what it printed."""
    done = lab.mta_exec((MXPOLICY, "setup", *argv))
    assert done.stderr == b"", done.stderr.decode()
    return done.returncode, done.stdout.decode()


def contents(lab: Lab, directory: str) -> dict[str, tuple[bytes, int, int]]:
    """Return {path: (what is in it, mode, owner)} of every file in *directory*."""
    top = lab.world.path(directory)
    return {
        str(one.relative_to(top)): (
            one.read_bytes(),
            one.stat().st_mode,
            one.stat().st_uid,
        )
        for one in top.rglob("*")
        if one.is_file()
    }


def is_right(lab: Lab, mail_server: str = "Postfix") -> None:
    """Check that ``mxpolicy check`` and ``postfix check`` have no complaint."""
    done = lab.mta_exec((MXPOLICY, "check"))
    text = done.stdout.decode()
    assert done.returncode == 0, text
    section = text.partition(f"\n{mail_server}\n")[2].partition("\n\n")[0]
    assert "ok" in section
    assert not re.search(r"^  (warn|fail)", section, re.M), section
    checked = lab.mta_exec(["postfix", "check"])
    assert not re.search(b"warning|error|fatal", checked.stderr), checked.stderr


def send(lab: Lab) -> tuple[str, str]:
    """Send the case's message; return relay and status of its delivery."""
    [placed] = lab.placed
    queue_id = lab.send([placed.recipient], placed.sender)
    [delivery] = lab.postfix.await_deliveries(queue_id, 30)
    return delivery.relay, delivery.status


def make_old(lab: Lab) -> None:
    # Postfix's programs sleep until a file they read is two seconds old.
    for name in ("main.cf", "master.cf"):
        os.utime(lab.world.path(f"{POSTFIX}/{name}"), (0, 0))


def test_all_mail_there_and_back() -> None:
    with bare() as lab:
        [placed] = lab.placed
        before = contents(lab, POSTFIX)
        asked = ("postfix", "--all-mail", "--policy")
        status, text = setup(lab, *asked)
        assert status == 0
        assert "postconf -e" in text
        assert "Nothing was changed. With --apply it is." in text
        assert contents(lab, POSTFIX) == before

        status, text = setup(lab, *asked, "--apply")
        assert (status, "Done." in text) == (0, True)
        make_old(lab)
        is_right(lab)
        assert send(lab) == ("mxpolicy", "sent")
        [message] = lab.hosts.received(placed.recipient)
        assert message.host == f"mx6.{placed.domain}"
        status, text = setup(lab, *asked, "--apply")
        assert (status, "Nothing to do" in text) == (0, True)

        status, text = setup(lab, "postfix", "--undo")
        assert (status, "With --apply it is." in text) == (0, True)
        status, _ = setup(lab, "postfix", "--undo", "--apply")
        assert status == 0
        make_old(lab)
        assert contents(lab, POSTFIX) == before
        # smtp(8) tries five addresses only.
        assert send(lab) == ("none", "deferred")
        status, text = setup(lab, "postfix", "--undo", "--apply")
        assert (status, "Nothing to undo" in text) == (0, True)


def test_one_domain_in_another_directory() -> None:
    with bare() as lab:
        [placed] = lab.placed
        lab.world.run("mta", ["cp", "-a", POSTFIX, "/etc/postfix-other"])
        untouched = contents(lab, "/etc/postfix-other")
        asked = ("--one-domain", placed.domain.upper(), ".example.com", "--apply")
        status, text = setup(lab, "postfix", *asked, "-c", "/etc/postfix-other")
        assert status == 0, text
        assert "texthash:/etc/postfix-other/mxpolicy_transport" in text
        status, _ = setup(lab, "postfix", *asked)
        assert status == 0
        make_old(lab)
        is_right(lab)
        assert send(lab) == ("mxpolicy", "sent")
        undo = ("postfix", "--undo", "--apply")
        done = lab.mta_exec(
            (MXPOLICY, "setup", *undo), env={"MAIL_CONFIG": "/etc/postfix-other"}
        )
        assert done.returncode == 0, done.stderr
        assert contents(lab, "/etc/postfix-other") == untouched


def test_undo_of_the_fallback_waits_for_its_mail() -> None:
    with bare() as lab:
        before = contents(lab, POSTFIX)
        assert setup(lab, "postfix", "--fallback", "--apply")[0] == 0
        make_old(lab)
        is_right(lab)
        lab.postfix.set(defer_transports="mxpolicy smtp")
        with Client(lab.world, 10026) as client:
            said = client.submit(
                ["user@home.lab.test"], "sender@home.lab.test", b"Subject: x\n\nx\n"
            )
        queue_id = said.decode().rpartition(" ")[2]
        plain = lab.send([f"user@other.{lab.placed[0].domain}"])
        after = contents(lab, POSTFIX)
        status, text = setup(lab, "postfix", "--undo", "--apply")
        assert status == 1
        assert queue_id in text
        assert plain not in text
        assert contents(lab, POSTFIX) == after
        # What it says, helps.
        one_line = " ".join(text.split())
        [command] = re.findall(r"postconf -X .*postsuper -r \w+", one_line)
        # In force by the command's reload, before the message is found again.
        lab.mta_exec(["postconf", "-X", "defer_transports"])
        lab.world.run("mta", ["sh", "-c", command])
        status, text = setup(lab, "postfix", "--undo", "--apply")
        assert status == 0, text
        assert contents(lab, POSTFIX) == before
        [delivery] = deliveries_to(lab, "user@home.lab.test")
        assert (delivery.agent, delivery.status) == ("smtp", "sent")


def deliveries_to(lab: Lab, recipient: str) -> list[Delivery]:
    """Wait for a delivery that mxpolicy's transport was not asked for; return it."""
    until = time.monotonic() + 30
    while True:
        found = [
            one
            for one in lab.postfix.deliveries()
            if one.recipient == recipient and one.text != "deferred transport"
        ]
        if found or time.monotonic() > until:
            return found
        # What postsuper(1) has put back, pickup(8) finds within a minute otherwise. A
        # pickup(8) that the reload ends hears nothing.
        lab.world.run("mta", ["postkick", "public", "pickup", "W"], check=False)
        time.sleep(0.1)


@pytest.mark.parametrize(
    "line",
    [
        "smtp_bind_address = 192.0.2.25",
        "inet_interfaces = 192.0.2.25",
        # What is said for clients of the world, who come through something else.
        "smtpd_upstream_proxy_protocol = haproxy",
        "smtpd_tls_wrappermode = yes",
    ],
)
def test_fallback_takes_mail_whatever_main_cf_says(line: str) -> None:
    name, _, value = line.partition(" = ")
    with bare() as lab:
        [placed] = lab.placed
        lab.postfix.set(**{name: value})
        lab.mta_exec(["postfix", "stop"])
        lab.mta_exec(["postfix", "start"])
        assert setup(lab, "postfix", "--fallback", "--apply")[0] == 0
        make_old(lab)
        argv = ["sendmail", "-f", placed.sender, placed.recipient]
        lab.mta_exec(argv, stdin=b"Subject: x\n\nx\n")
        until = time.monotonic() + 30
        while not lab.hosts.received(placed.recipient) and time.monotonic() < until:
            time.sleep(0.1)
        [message] = lab.hosts.received(placed.recipient)
        assert message.host == f"mx6.{placed.domain}"


def test_fallback_leaves_the_content_filter_alone() -> None:
    with bare() as lab:
        [placed] = lab.placed
        lab.mta_exec(["postconf", "-M", "scan/unix=scan unix - - n - 2 smtp"])
        # Nobody listens there.
        lab.postfix.set(content_filter="scan:[127.0.0.1]:10024")
        make_old(lab)
        before = contents(lab, POSTFIX)
        assert setup(lab, "postfix", "--fallback", "--apply")[0] == 0
        make_old(lab)
        is_right(lab)
        queue_id = lab.send([placed.recipient], placed.sender)
        [delivery] = lab.postfix.await_deliveries(queue_id, 30)
        assert (delivery.agent, delivery.status) == ("smtp", "deferred")
        assert "127.0.0.1]:10024: Connection refused" in delivery.text
        assert setup(lab, "postfix", "--undo", "--apply")[0] == 0
        assert contents(lab, POSTFIX) == before


def test_account_that_cannot_read_the_file_is_refused() -> None:
    with bare() as lab:
        before = contents(lab, POSTFIX)
        path = lab.world.path("/root/mxpolicy/mx.yaml")
        path.parent.mkdir(mode=0o700)
        path.write_text("deadline: 30m\n")
        asked = ("postfix", "--all-mail", "--config", "/root/mxpolicy/mx.yaml")
        status, text = setup(lab, *asked, "--apply")
        assert status == 1
        assert "/root/mxpolicy/mx.yaml: all mail would be deferred" in text
        assert contents(lab, POSTFIX) == before


def test_undo_lets_a_delivery_end() -> None:
    with bare((SLOW,)) as lab:
        [placed] = lab.placed
        before = contents(lab, POSTFIX)
        assert setup(lab, "postfix", "--all-mail", "--apply")[0] == 0
        make_old(lab)
        queue_id = lab.send([placed.recipient], placed.sender)
        until = time.monotonic() + 20
        while not lab.hosts.received(placed.recipient):
            assert time.monotonic() < until
            time.sleep(0.1)
        # The host has the message, and has not answered yet.
        status, text = setup(lab, "postfix", "--undo", "--apply")
        assert status == 0, text
        assert "Deliveries under way are let end" in text
        make_old(lab)
        assert contents(lab, POSTFIX) == before
        [delivery] = lab.postfix.await_deliveries(queue_id, 30)
        assert (delivery.relay, delivery.status) == ("mxpolicy", "sent")
        lab.postfix.flush()
        assert len(lab.hosts.received(placed.recipient)) == 1


def test_port_that_is_taken_stops_the_fallback() -> None:
    with bare() as lab:
        before = contents(lab, POSTFIX)
        listen = (
            "import socket; s = socket.create_server(('127.0.0.1', 10026)); s.accept()"
        )
        lab.world.start("mta", ["python3", "-c", listen])
        until = time.monotonic() + 10
        while "is taken" not in (text := setup(lab, "postfix", "--fallback")[1]):
            assert time.monotonic() < until, text
        assert setup(lab, "postfix", "--fallback", "--apply")[0] == 1
        assert contents(lab, POSTFIX) == before
        assert lab.mta_exec(["postfix", "status"]).returncode == 0


@pytest.mark.daemon
def test_lmtp_there_and_back() -> None:
    with bare() as lab:
        [placed] = lab.placed
        # For a Dovecot on another machine; it is not for our daemon.
        lab.postfix.set(lmtp_tls_security_level="encrypt")
        before = contents(lab, POSTFIX)
        asked = ("postfix", "--all-mail", "--lmtp", "--apply")
        status, text = setup(lab, *asked)
        assert status == 1
        assert "the daemon does not listen at 127.0.0.1:2424" in text
        lab.start_daemon()
        config = ("--config", "/etc/mxpolicy/daemon.yaml")
        assert setup(lab, *asked, *config)[0] == 0
        make_old(lab)
        assert send(lab) == ("127.0.0.1[127.0.0.1]:2424", "sent")
        assert len(lab.hosts.received(placed.recipient)) == 1
        assert setup(lab, "postfix", "--undo", "--apply")[0] == 0
        assert contents(lab, POSTFIX) == before


# --- Exim


def exim_deliveries(lab: Lab, count: int) -> list[str]:
    """Wait for *count* delivery lines of Exim's log; return them."""
    path = lab.world.path("/var/log/exim4/mainlog")
    until = time.monotonic() + 30
    while True:
        text = path.read_text() if path.exists() else ""
        found = re.findall(r"(?:=>|==|\*\*) .*", text)
        if len(found) >= count or time.monotonic() > until:
            return found
        time.sleep(0.1)


def prepare_exim(lab: Lab) -> None:
    """Do what the package's scripts do for an internet site with a split configuration."""
    lab.world.path(f"{EXIM}/update-exim4.conf.conf").write_text(DEBCONF)
    for directory in ("/var/spool/exim4", "/var/log/exim4", "/var/lib/exim4"):
        owned = ("-o", "Debian-exim", "-g", "Debian-exim", "-m", "750")
        lab.world.run("mta", ["install", "-d", *owned, directory])
    owned = ("-o", "mxpolicy", "-g", "mxpolicy", "-m", "750")
    lab.world.run("mta", ["install", "-d", *owned, "/var/lib/mxpolicy"])
    lab.world.run("mta", ["update-exim4.conf"])


def way_of(lab: Lab, address: str) -> str:
    return lab.mta_exec(["exim4", "-bt", address]).stdout.decode()


def submit(lab: Lab, recipient: str) -> subprocess.CompletedProcess[bytes]:
    argv = ["exim4", "-odi", "-f", "sender@home.lab.test", recipient]
    return lab.mta_exec(argv, stdin=b"Subject: x\n\nx\n")


def test_exim_there_and_back() -> None:
    with bare() as lab:
        prepare_exim(lab)
        [placed] = lab.placed
        before = contents(lab, EXIM)
        made = lab.world.path("/var/lib/exim4/config.autogenerated").read_bytes()
        status, text = setup(lab, "exim", "--all-mail")
        assert (status, "With --apply it is." in text) == (0, True), text
        assert contents(lab, EXIM) == before
        assert setup(lab, "exim", "--all-mail", "--apply")[0] == 0
        is_right(lab, "Exim")
        # An ACL still knows which domains there are.
        verify = ["exim4", "-bvs", "user@no-such.lab.test", placed.recipient]
        said = lab.mta_exec(verify).stdout.decode()
        assert "no-such.lab.test failed to verify: Unrouteable address" in said
        assert f"{placed.recipient} verified" in said
        submit(lab, placed.recipient)
        [line] = exim_deliveries(lab, 1)
        assert "R=mxpolicy T=mxpolicy" in line
        [message] = lab.hosts.received(placed.recipient)
        assert message.host == f"mx6.{placed.domain}"
        status, text = setup(lab, "exim", "--all-mail", "--apply")
        assert (status, "Nothing to do" in text) == (0, True)
        assert setup(lab, "exim", "--undo", "--apply")[0] == 0
        assert contents(lab, EXIM) == before
        now = lab.world.path("/var/lib/exim4/config.autogenerated").read_bytes()
        assert now == made
        assert "router = dnslookup" in way_of(lab, placed.recipient)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("retry/30_exim4-config", "\n*  ", "\nexample.net ", "there is no retry rule"),
        (
            "transport/35_mxpolicy",
            "timeout = 1h",
            "timeout = 5m",
            "timeout is 5m, --dead",
        ),
        ("transport/35_mxpolicy", "  timeout_defer\n", "", "has no_timeout_defer: at"),
        ("transport/35_mxpolicy", "user = mxpolicy", "user = uucp", "cannot run its"),
        ("router/190_mxpolicy", "no_more", "unseen", "router mxpolicy has unseen"),
    ],
)
def test_mistake_in_exim_is_found_by_check(
    changed_exim: Lab, file: str, old: str, new: str, said: str
) -> None:
    lab = changed_exim
    path = lab.world.path(f"{EXIM}/conf.d/{file}")
    before = path.read_text()
    closed = lab.world.path("/opt/mxpolicy/bin")
    try:
        assert old in before
        path.write_text(before.replace(old, new))
        # For uucp alone; mxpolicy owns it.
        lab.world.run("mta", ["chown", "mxpolicy", "/opt/mxpolicy/bin"])
        closed.chmod(0o700)
        lab.world.run("mta", ["update-exim4.conf"])
        done = lab.mta_exec((MXPOLICY, "check", "--json"))
    finally:
        path.write_text(before)
        closed.chmod(0o755)
        lab.world.run("mta", ["chown", "root", "/opt/mxpolicy/bin"])
    items = json.loads(done.stdout)["items"]
    bad = [one for one in items if one["about"] == "Exim" and one["level"] != "ok"]
    assert [one["level"] for one in bad] == ["fail"], bad
    assert said in bad[0]["text"]
    assert done.returncode == 1


@pytest.fixture(scope="module")
def changed_exim() -> Iterator[Lab]:
    """A lab whose Exim was set up for mxpolicy."""
    with bare() as lab:
        prepare_exim(lab)
        assert setup(lab, "exim", "--all-mail", "--apply")[0] == 0
        yield lab


def test_exim_with_one_domain_and_one_more() -> None:
    with bare() as lab:
        prepare_exim(lab)
        [placed] = lab.placed
        before = contents(lab, EXIM)
        assert setup(lab, "exim", "--one-domain", "example.com", "--apply")[0] == 0
        assert "router = dnslookup" in way_of(lab, placed.recipient)
        more = ("--one-domain", placed.domain, ".example.com", "--apply")
        assert setup(lab, "exim", *more)[0] == 0
        for address in (placed.recipient, "a@example.com", "a@b.example.com"):
            assert "router = mxpolicy" in way_of(lab, address)
        assert "mxpolicy" not in way_of(lab, "a@example.org")
        assert setup(lab, "exim", "--undo", "--apply")[0] == 0
        assert contents(lab, EXIM) == before


def test_exim_that_refuses_goes_on_as_before() -> None:
    with bare() as lab:
        prepare_exim(lab)
        [placed] = lab.placed
        bad = lab.world.path(f"{EXIM}/conf.d/router/950_bad")
        bad.write_text("bad:\n  driver = nonsense\n")
        before = contents(lab, EXIM)
        done = lab.mta_exec((MXPOLICY, "setup", "exim", "--all-mail", "--apply"))
        assert done.returncode == 1
        assert b"nonsense" in done.stderr
        assert contents(lab, EXIM) == before
        assert "router = dnslookup" in way_of(lab, placed.recipient)


def test_exim_with_a_single_file_gets_lines_to_paste() -> None:
    with bare() as lab:
        prepare_exim(lab)
        path: Path = lab.world.path(f"{EXIM}/update-exim4.conf.conf")
        path.write_text(DEBCONF.replace("'true'", "'false'"))
        before = contents(lab, EXIM)
        status, text = setup(lab, "exim", "--all-mail", "--policy")
        assert status == 0
        assert "begin routers" in text
        assert "  driver = pipe\n" in text
        assert "acl_m_mxpolicy" in text
        assert setup(lab, "exim", "--all-mail", "--apply")[0] == 1
        assert contents(lab, EXIM) == before


def finished(lab: Lab, *argv: str) -> None:
    """Run set-up to its end, after what a killed one has left running."""
    until = time.monotonic() + 30
    while True:
        done = lab.mta_exec((MXPOLICY, "setup", "exim", *argv))
        if b"another set-up" not in done.stderr or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize("way", ["--all-mail", "--undo"])
def test_exim_is_whole_wherever_set_up_is_killed(way: str) -> None:
    with bare() as lab:
        prepare_exim(lab)
        [placed] = lab.placed
        before = contents(lab, EXIM)
        begun = time.monotonic()
        finished(lab, "--all-mail", "--apply")
        took = time.monotonic() - begun
        finished(lab, "--undo", "--apply")
        for part in (0.5, 0.7, 0.85, 0.95):
            if way == "--undo":
                finished(lab, "--all-mail", "--apply")
            command = (MXPOLICY, "setup", "exim", way, "--apply")
            lab.mta_exec(("timeout", "-s", "KILL", f"{part * took:.3f}", *command))
            assert lab.mta_exec(["exim4", "-bV"]).returncode == 0
            assert "router = " in way_of(lab, placed.recipient)
            finished(lab, way, "--apply")
            finished(lab, "--undo", "--apply")
            assert contents(lab, EXIM) == before
