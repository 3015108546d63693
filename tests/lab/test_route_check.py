"""``mxpolicy route`` and ``mxpolicy check`` beside the real Postfix and the real DNS."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from mxpolicy.check import postfix
from mxpolicy.check.postconf import Postconf
from mxpolicy.check.programs import Ended
from mxpolicy.options import Options
from mxpolicy.reply import printable
from tests.check import recorded
from tests.check.mistakes import (
    MISTAKES,
    WITH_A_MEND,
    WITHOUT_ONE_RIGHT_LINE,
    command,
)

from .case import place
from .cases import CASES
from .conftest import transports_here
from .lab import Lab
from .packages import LabUnavailable
from .world import INSTALLED

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        "mxpolicy" not in transports_here(), reason="mxpolicy is not installed here"
    ),
]

MXPOLICY = f"{INSTALLED}/bin/mxpolicy"
WANTED = ("dropped", "null-mx", "twelve-dropped")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of its own: its Postfix is mistreated here."""
    chosen = tuple(case for case in CASES if case.name in WANTED)
    try:
        lab = Lab(place(chosen, ("mxpolicy",)))
    except LabUnavailable as why:
        pytest.skip(str(why))
    with lab:
        # As in contrib; for its cases the lab has more.
        lab.mta_exec(["postconf", "-F", "mxpolicy/unix/process_limit=60"])
        yield lab


def run(
    lab: Lab,
    *argv: str,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run mxpolicy on the mail server; return its status and what it printed."""
    done = lab.mta_exec((MXPOLICY, *argv), user=user, env=env)
    assert done.stderr == b"", done.stderr.decode()
    return done.returncode, done.stdout.decode()


def check(
    lab: Lab, user: str | None = None, env: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Run ``mxpolicy check``; return its items. Its status must agree with them."""
    make_old(lab)
    status, text = run(lab, "check", "--json", user=user, env=env)
    items: list[dict[str, str]] = json.loads(text)["items"]
    fails = [one for one in items if one["level"] == "fail"]
    assert status == (1 if fails else 0)
    return items


def make_old(lab: Lab) -> None:
    for name in ("main.cf", "master.cf"):
        # Postfix's programs sleep until a file they read is two seconds old.
        os.utime(lab.world.path(f"/etc/postfix/{name}"), (0, 0))


def bad(items: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return what of Postfix is not well."""
    return [one for one in items if one["level"] != "ok" and one["about"] == "Postfix"]


# route


def test_route_sees_the_signed_zone_and_both_hosts(lab: Lab) -> None:
    status, text = run(
        lab, "route", "dropped.mxpolicy.lab.test", "--json", user="mxpolicy"
    )
    said: dict[str, Any] = json.loads(text)
    assert status == 0
    assert [one["host"].partition(".")[0] for one in said["candidates"]] == [
        "mx1",
        "mx2",
    ]
    answers = [one for one in said["findings"] if one["about"] == "dns"]
    assert all(one["secure"] for one in answers)
    [start] = [one for one in said["findings"] if one["about"] == "start"]
    assert start["seconds"] == [0.0, 1.5]


def test_route_tells_when_the_thirteenth_is_started(lab: Lab) -> None:
    status, text = run(lab, "route", "twelve-dropped.mxpolicy.lab.test")
    assert status == 0
    rows = [line for line in text.splitlines() if line.endswith("a worse preference")]
    [last] = [line for line in rows if " 130 " in line]
    assert last.split()[0] == "18.00"


def test_route_dials_nobody(lab: Lab) -> None:
    lab.hosts.forget()
    run(lab, "route", "dropped.mxpolicy.lab.test")
    assert lab.hosts.sessions() == []


def test_route_bounces_what_postfix_would_bounce(lab: Lab) -> None:
    status, text = run(lab, "route", "null-mx.mxpolicy.lab.test")
    assert status == 69
    assert "5.1.10" in text


def test_route_shows_what_a_delivery_has_found_out(lab: Lab) -> None:
    domain = "dropped.mxpolicy.lab.test"
    queue_id = lab.send([f"user@{domain}"], "me@home.lab.test")
    [delivery] = lab.postfix.await_deliveries(queue_id, 60)
    assert delivery.status == "sent"
    for user in (None, "mxpolicy"):
        status, text = run(lab, "route", domain, "--json", user=user)
        said: dict[str, Any] = json.loads(text)
        assert status == 0
        first, last = said["candidates"]
        assert (first["host"], last["host"]) == (f"mx2.{domain}", f"mx1.{domain}")
        assert "verdict" not in first
        assert (last["verdict"], last["phase"]) == ("filtered", "connect")
        assert last["standing"] == "paused"
        assert last["since"] < last["until"]
    files = lab.mta_exec(["ls", "-l", "/var/lib/mxpolicy"]).stdout.decode()
    assert "state.sqlite3" in files
    assert " root " not in files
    # Who may not read it is told so, and sees what DNS says.
    status, text = run(lab, "route", domain, user="postfix")
    assert status == 0
    assert "what is remembered cannot be read: /var/lib/mxpolicy/state.sqlite3" in text
    assert "filtered" not in text


# check


def test_check_finds_nothing_that_fails_with_contrib(lab: Lab) -> None:
    items = check(lab)
    assert [one for one in items if one["level"] == "fail"] == []
    assert bad(items) == []
    said = "\n".join(one["text"] for one in items)
    assert "name server 127.0.0.1 answers and validates, and is believed" in said
    assert (
        "mxpolicy: deferred after 3500 s at the latest, killed by Postfix after 3600 s"
        in said
    )
    assert "/var/lib/mxpolicy can be written by mxpolicy" in said
    assert "syslog listens on /dev/log" in said


def test_check_sees_as_much_as_any_user(lab: Lab) -> None:
    assert bad(check(lab, user="mxpolicy")) == []


def test_check_says_what_it_could_not_see(lab: Lab) -> None:
    lab.mta_exec(["chmod", "0600", "/etc/postfix/main.cf"])
    try:
        [item] = bad(check(lab, user="mxpolicy"))
    finally:
        lab.mta_exec(["chmod", "0644", "/etc/postfix/main.cf"])
    assert item["level"] == "warn"
    assert "could not be seen" in item["text"]
    assert "Permission denied" in item["text"]


def test_check_on_a_terminal_is_text(lab: Lab) -> None:
    status, text = run(lab, "check")
    assert status == 0
    assert text.splitlines()[0] == "options"
    assert " 0 fail, " in f" {text.splitlines()[-1]}"


@pytest.mark.parametrize("name", WITH_A_MEND)
def test_mistake_is_found_and_mended_by_the_line_that_is_shown(
    lab: Lab, name: str
) -> None:
    edits, level, said = WITH_A_MEND[name]
    saved = {
        name: lab.world.path(f"/etc/postfix/{name}").read_text()
        for name in ("main.cf", "master.cf")
    }
    try:
        edit(lab, *edits)
        found = [one for one in bad(check(lab)) if said in one["text"]]
        assert [one["level"] for one in found] == [level], check(lab)
        done = lab.mta_exec(["sh", "-c", found[0]["mend"]])
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""
        assert [one for one in bad(check(lab)) if said in one["text"]] == []
        # What was mended is still what Postfix itself accepts.
        assert lab.mta_exec(["postfix", "check"]).stderr == b""
    finally:
        for name, text in saved.items():
            lab.world.path(f"/etc/postfix/{name}").write_text(text)


@pytest.mark.parametrize("name", WITHOUT_ONE_RIGHT_LINE)
def test_mistake_without_one_right_line_is_found(lab: Lab, name: str) -> None:
    edits, level, said = WITHOUT_ONE_RIGHT_LINE[name]
    path = lab.world.path("/etc/postfix/master.cf")
    saved = path.read_text()
    try:
        edit(lab, *edits)
        found = [one for one in bad(check(lab)) if said in one["text"]]
        assert [one["level"] for one in found] == [level], check(lab)
    finally:
        path.write_text(saved)


@pytest.mark.parametrize("name", MISTAKES)
def test_recorded_answers_are_those_of_this_postfix(lab: Lab, name: str) -> None:
    saved = {
        file: lab.world.path(f"/etc/postfix/{file}").read_text()
        for file in ("main.cf", "master.cf")
    }
    answers: dict[tuple[str, ...], Ended] = {}

    def ask(*argv: str) -> Ended:
        done = lab.mta_exec(argv, env={"LC_ALL": "C"})
        # Warnings are nothing to us.
        words = printable(done.stderr.strip()) if done.returncode else ""
        answers[argv] = Ended(done.returncode, done.stdout.decode(), words)
        return answers[argv]

    try:
        edit(lab, *MISTAKES[name].edits)
        make_old(lab)
        postfix.look(postfix.see(Postconf(ask)), Options(), None, recorded.MACHINE)
    finally:
        for file, text in saved.items():
            lab.world.path(f"/etc/postfix/{file}").write_text(text)
    if os.environ.get("MXPOLICY_RECORD"):
        recorded.write(name, answers)
    assert {argv: recorded.read(name).get(argv) for argv in answers} == answers


def test_check_looks_at_the_instance_that_mail_config_names(lab: Lab) -> None:
    script = (
        "cp -r /etc/postfix /etc/postfix-out && postconf -c /etc/postfix-out -e"
        " soft_bounce=yes multi_instance_name=postfix-out && touch -d @0"
        " /etc/postfix-out/main.cf /etc/postfix-out/master.cf"
    )
    assert lab.mta_exec(["sh", "-c", script]).returncode == 0
    assert bad(check(lab)) == []
    [item] = bad(check(lab, env={"MAIL_CONFIG": "/etc/postfix-out"}))
    assert "soft_bounce is yes" in item["text"]


def edit(lab: Lab, *edits: Sequence[str]) -> None:
    for words in edits:
        done = lab.mta_exec(["postconf", *words])
        assert done.returncode == 0, done.stderr


def test_name_server_that_is_away_fails(lab: Lab) -> None:
    lab.names.stop_resolver()
    try:
        items = check(lab)
    finally:
        lab.names.start_resolver()
    assert "no name server answers" in "\n".join(
        one["text"] for one in items if one["level"] == "fail"
    )


def test_every_line_of_one_check_in_a_row_mends_all(lab: Lab) -> None:
    saved = {
        name: lab.world.path(f"/etc/postfix/{name}").read_text()
        for name in ("main.cf", "master.cf")
    }
    try:
        edit(lab, command("flags=q user=mxpolicy null_sender=", "flags=FuR user=root"))
        edit(lab, ["-X", "mxpolicy_time_limit", "pipe_delivery_status_filter"])
        found = bad(check(lab))
        assert len(found) >= 7
        for one in found:
            assert lab.mta_exec(["sh", "-c", one["mend"]]).returncode == 0
        assert bad(check(lab)) == []
    finally:
        for name, text in saved.items():
            lab.world.path(f"/etc/postfix/{name}").write_text(text)
