"""The fragments of contrib/postfix, loaded as they are by a Postfix of their own."""

import platform
import re
from collections.abc import Iterator

import pytest

from mxpolicy.options import Options

from .cases import Case, Expected, Host, place
from .conftest import transports_here
from .lab import Lab
from .packages import CHECKOUT, LabUnavailable
from .postfix import CONTRIB

pytestmark = pytest.mark.lab

README = CHECKOUT / "README.md"

# Five addresses are all that smtp(8) tries.
SIXTH_IS_GOOD = Case(
    "sixth",
    "The firewall drops five MX; the sixth is good.",
    (*(Host(f"mx{n}", n, firewall="drop") for n in range(1, 6)), Host("mx6", 6)),
    {"smtp": Expected("sent", "2.0.0", 30.0, {"mx6": 1})},
)

needs_mxpolicy = pytest.mark.skipif(
    "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
)

# In the stead of mxpolicy, for what is about Postfix only: a shell script.
ECHO = "unix - n n - - pipe flags=q user=mxpolicy null_sender= argv=/bin/sh -c"


def start(*fragments: str) -> Lab:
    """Start a lab with further fragments, and with an smtp(8) that gives up soon."""
    try:
        return Lab(
            place((SIXTH_IS_GOOD,), ("smtp",)),
            settings={"smtp_connect_timeout": "1s"},
            fragments=fragments,
        )
    except LabUnavailable as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    """A lab with main.cf and master.cf only."""
    with start() as lab:
        yield lab


def run(lab: Lab, *argv: str) -> str:
    """Run a command as the postmaster would; return what it printed."""
    done = lab.mta_exec(argv)
    assert done.returncode == 0, done.stderr
    assert b"warning" not in done.stderr, done.stderr
    return done.stdout.decode()


def test_postfix_accepts_every_fragment() -> None:
    with start("all-mail", "one-domain", "fallback") as lab:
        run(lab, "postconf", "-n")
        run(lab, "postfix", "check")
        assert not re.search("warning|error|fatal", "\n".join(lab.postfix.log()))


def test_readme_names_the_versions_that_are_tried(plain: Lab) -> None:
    release = platform.freedesktop_os_release()
    name = f"{release['ID'].capitalize()} {release.get('VERSION_ID', 'sid')}"
    row = re.search(rf"^\| {name} \| (\S+) \| (\S+) ", README.read_text(), re.M)
    if row is None:
        pytest.skip(f"README does not say that {name} was tried")
    assert row[1].startswith(run(plain, "postconf", "-h", "mail_version").strip())
    exim = re.match(
        r"Exim version (\S+)", run(plain, "exim4", "-C", "/dev/null", "-bV")
    )
    assert exim is not None
    assert row[2].startswith(exim[1])


def test_deadline_is_below_the_limit_at_which_postfix_kills(plain: Lab) -> None:
    entry = run(plain, "postconf", "-M", "mxpolicy/unix")
    deadline = re.search(r"--deadline (\d+)s", entry)
    limit = run(plain, "postconf", "-h", "mxpolicy_time_limit").strip()
    giving_up = run(plain, "postconf", "-h", "daemon_timeout").strip()
    assert deadline is not None
    needed = int(deadline[1]) + 600 + 60
    assert needed <= int(limit.rstrip("s")) < int(giving_up.rstrip("s"))


def test_entry_allows_as_many_processes_as_it_explains() -> None:
    text = (CONTRIB / "master.cf").read_text()
    explained = re.search(r"^# maxproc (\d+)", text, re.M)
    entry = re.search(r"^mxpolicy .* (\d+) +pipe$", text, re.M)
    assert explained is not None
    assert entry is not None
    assert explained[1] == entry[1]
    assert int(entry[1]) == Options().limits.processes


@needs_mxpolicy
def test_all_mail_goes_to_mxpolicy() -> None:
    with start("all-mail") as lab:
        # No transport map names it, so this is default_transport's.
        lab.postfix.forget_route(".smtp.lab.test")
        [placed] = lab.placed
        queue_id = lab.send([placed.recipient], placed.sender)
        [delivery] = lab.postfix.await_deliveries(queue_id, 30)
        assert (delivery.relay, delivery.status) == ("mxpolicy", "sent")


def test_sample_transport_table_is_read(plain: Lab) -> None:
    table = plain.world.path("/etc/postfix/sample")
    table.write_text((CONTRIB / "one-domain" / "transport").read_text())
    hop = run(plain, "postmap", "-q", "example.org", "texthash:/etc/postfix/sample")
    assert hop == "mxpolicy:[mail.example.net]:2525\n"


@needs_mxpolicy
def test_fallback_gets_what_smtp_could_not_deliver() -> None:
    with start("fallback") as lab:
        [placed] = lab.placed
        queue_id = lab.send([placed.recipient], placed.sender)
        [by_smtp] = lab.postfix.await_deliveries(queue_id, 30)
        assert by_smtp.relay == "127.0.0.1[127.0.0.1]:10026"
        taken_as = re.search(r"queued as (\w+)", by_smtp.text)
        assert taken_as is not None
        [by_pipe] = lab.postfix.await_deliveries(taken_as[1], 30)
        assert (by_pipe.relay, by_pipe.status) == ("mxpolicy", "sent")
        [message] = lab.hosts.received(placed.recipient)
        assert message.host == f"mx6.{placed.domain}"


@pytest.mark.parametrize("ending", ["exit 1", "exit 2", "exit 120", "exit 127"])
def test_unforeseen_end_of_the_command_defers(plain: Lab, ending: str) -> None:
    name = "broken-" + ending.replace(" ", "")
    plain.postfix.add_transport(name, f"{ECHO} {{{ending}}}")
    plain.route(f"{name}.lab.test", f"{name}:")
    queue_id = plain.send([f"user@{name}.lab.test"])
    [delivery] = plain.postfix.await_deliveries(queue_id, 20)
    assert (delivery.status, delivery.dsn) == ("deferred", "4.3.0")


def test_delivery_that_reaches_the_time_limit_defers(plain: Lab) -> None:
    plain.postfix.set(**{"broken-slow_time_limit": "1s"})
    plain.postfix.add_transport("broken-slow", f"{ECHO} {{exec sleep 60}}")
    plain.route("slow.lab.test", "broken-slow:")
    queue_id = plain.send(["user@slow.lab.test"])
    [delivery] = plain.postfix.await_deliveries(queue_id, 20)
    assert (delivery.status, delivery.dsn) == ("deferred", "4.3.0")


def test_refusal_by_the_command_still_bounces(plain: Lab) -> None:
    plain.postfix.add_transport(
        "refusing", f"{ECHO} {{echo 5.1.1 no such user; exit 69}}"
    )
    plain.route("refusing.lab.test", "refusing:")
    queue_id = plain.send(["user@refusing.lab.test"])
    [delivery] = plain.postfix.await_deliveries(queue_id, 20)
    assert (delivery.status, delivery.dsn) == ("bounced", "5.1.1")
