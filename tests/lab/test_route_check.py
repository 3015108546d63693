"""``mxpolicy route`` and ``mxpolicy check`` beside the real Postfix and the real DNS."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

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


def run(lab: Lab, *argv: str, user: str | None = None) -> tuple[int, str]:
    """Run mxpolicy on the mail server; return its status and what it printed."""
    done = lab.mta_exec((MXPOLICY, *argv), user=user)
    assert done.stderr == b"", done.stderr.decode()
    return done.returncode, done.stdout.decode()


def check(lab: Lab, user: str | None = None) -> list[dict[str, str]]:
    """Run ``mxpolicy check``; return its items. Its status must agree with them."""
    for name in ("main.cf", "master.cf"):
        # Postfix's programs sleep until a file they read is two seconds old.
        os.utime(lab.world.path(f"/etc/postfix/{name}"), (0, 0))
    status, text = run(lab, "check", "--json", user=user)
    items: list[dict[str, str]] = json.loads(text)["items"]
    fails = [one for one in items if one["level"] == "fail"]
    assert status == (1 if fails else 0)
    return items


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


NAME = "mxpolicy/unix"
COMMAND = (
    "pipe flags=q user=mxpolicy null_sender= argv=/opt/mxpolicy/bin/mxpolicy pipe"
    " -f ${sender} --nexthop ${nexthop} --queue-id ${queue_id} --deadline 2900s"
    " -- ${recipient}"
)


def command(old: str, new: str) -> list[str]:
    """Return the edit of master.cf that puts *new* in place of *old* in our entry."""
    assert old in COMMAND
    return ["-F", f"{NAME}/command={COMMAND.replace(old, new)}"]


@pytest.mark.parametrize(
    ("mistake", "level", "said"),
    [
        pytest.param(
            ["-X", "mxpolicy_destination_recipient_limit"],
            "warn",
            "recipient_limit is 50, not 1",
            id="recipient_limit_missing",
        ),
        pytest.param(
            ["-X", "mxpolicy_time_limit"],
            "fail",
            "mxpolicy_time_limit is 1000 s, --deadline 2900 s, and",
            id="time_limit_below_the_deadline",
        ),
        pytest.param(
            ["-P", f"{NAME}/mxpolicy_time_limit=5m"],
            "fail",
            "mxpolicy_time_limit is 300 s, --deadline 2900 s, and",
            id="time_limit_lowered_in_master_cf",
        ),
        pytest.param(
            ["-X", "pipe_delivery_status_filter"],
            "fail",
            "does not soften 'Command died with status 1",
            id="filter_missing",
        ),
        pytest.param(
            ["-e", "pipe_delivery_status_filter=regexp:{ {/^5(.7.1 .*)/ 4$$1} }"],
            "fail",
            "does not soften 'Command died with status 1",
            id="filter_for_something_else",
        ),
        pytest.param(
            command("null_sender= ", ""),
            "warn",
            "lacks null_sender=",
            id="null_sender_missing",
        ),
        pytest.param(
            command("null_sender=", "null_sender=bounces@lab.test"),
            "fail",
            "bounces leave with that sender",
            id="null_sender_that_is_an_address",
        ),
        pytest.param(
            command("flags=q", "flags=FqR"),
            "fail",
            "the flags F, which change the message",
            id="flags_that_change_the_message",
        ),
        pytest.param(
            command("flags=q ", ""), "warn", "lacks the flag q", id="flag_q_missing"
        ),
        pytest.param(
            command("user=mxpolicy", "user=postfix"),
            "fail",
            "user=postfix, which pipe(8) refuses",
            id="user_postfix",
        ),
        pytest.param(
            ["-F", f"{NAME}/chroot=y"], "fail", "runs in a chroot", id="chroot"
        ),
        pytest.param(
            ["-F", f"{NAME}/unprivileged=y"],
            "fail",
            "cannot become another user",
            id="unprivileged",
        ),
        pytest.param(
            ["-F", f"{NAME}/process_limit=0"],
            "warn",
            "any number of processes",
            id="any_number_of_processes",
        ),
        pytest.param(
            ["-e", "daemon_timeout=3000s"],
            "fail",
            "Postfix gives up on mxpolicy before",
            id="watchdog_before_the_limit",
        ),
        pytest.param(
            ["-e", "soft_bounce=yes"], "warn", "nothing bounces", id="soft_bounce"
        ),
        pytest.param(
            ["-e", "maximal_queue_lifetime=0"],
            "warn",
            "maximal_queue_lifetime is 0",
            id="queue_lifetime_of_nothing",
        ),
        pytest.param(
            ["-e", "default_transport=mxpolicy:", "relayhost=[relay.lab.test]"],
            "warn",
            "all of it is aimed at [relay.lab.test]",
            id="relayhost_in_the_way",
        ),
    ],
)
def test_mistake_is_found_and_mended_by_the_line_that_is_shown(
    lab: Lab, mistake: list[str], level: str, said: str
) -> None:
    saved = {
        name: lab.world.path(f"/etc/postfix/{name}").read_text()
        for name in ("main.cf", "master.cf")
    }
    try:
        edit(lab, mistake)
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


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        pytest.param(
            command("-f ${sender}", "-f${sender}"),
            "all mail is deferred: unknown argument",
            id="option_and_value_in_one_word",
        ),
        pytest.param(
            command(" -- ", " "),
            "unknown argument 'user@example.com'",
            id="no_double_dash",
        ),
        pytest.param(
            command("mxpolicy pipe", "mxpolicy"), "without 'pipe'", id="no_command"
        ),
        pytest.param(
            command("${nexthop}", "${next_hop}"),
            "pipe(8) does not know ${next_hop}",
            id="unknown_macro",
        ),
        pytest.param(
            command("bin/mxpolicy", "sbin/mxpolicy"),
            "cannot run its program",
            id="program_missing",
        ),
        pytest.param(
            command("${recipient}", "user@lab.test"),
            "does not pass ${recipient}",
            id="recipient_missing",
        ),
        pytest.param(
            command("--deadline", "--config /etc/nowhere.yaml --deadline"),
            "/etc/nowhere.yaml: cannot be read",
            id="configuration_missing",
        ),
    ],
)
def test_mistake_without_one_right_line_is_found(
    lab: Lab, mistake: list[str], said: str
) -> None:
    path = lab.world.path("/etc/postfix/master.cf")
    saved = path.read_text()
    try:
        edit(lab, mistake)
        found = [one for one in bad(check(lab)) if said in one["text"]]
        assert [one["level"] for one in found] == ["fail"], check(lab)
    finally:
        path.write_text(saved)


def edit(lab: Lab, mistake: list[str]) -> None:
    done = lab.mta_exec(["postconf", *mistake])
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
