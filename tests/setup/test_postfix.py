"""Set-up of a Postfix and its undo, on files of several kinds."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from mxpolicy.check.programs import Ended
from mxpolicy.setup.cf_text import entries
from mxpolicy.setup.disk import Disk, Labels, SetupError, labels_of
from mxpolicy.setup.kept import Stage, load
from mxpolicy.setup.mail_server import KEPT
from mxpolicy.setup.postfix import Postfix
from mxpolicy.setup.postfix_queue import waiting
from mxpolicy.setup.steps import Asked, Plan
from tests.setup.programs import TREE, Copy, Real, sample

needs_postconf = pytest.mark.skipif(TREE is None, reason="no packages of the lab")
programs = pytest.mark.parametrize(
    "programs", [pytest.param(Real, marks=needs_postconf), Copy]
)

ASKED = {
    "transport": Asked(),
    "all-mail": Asked(all_mail=True),
    "one-domain": Asked(domains=("example.com", ".example.com")),
    "fallback": Asked(fallback=True),
    "policy": Asked(policy=True),
    "lmtp": Asked(lmtp=True, all_mail=True),
    "all-and-policy": Asked(all_mail=True, policy=True, config="/srv/mx.yaml"),
}
SAMPLES = (
    "debian",
    "mailcow",
    "dockermailserver",
    "plesk",
    "ispconfig",
    "byhand",
    "manylines",
)

every_sample = pytest.mark.parametrize("name", SAMPLES)
every_way = pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)


def contents(directory: Path) -> dict[str, tuple[bytes, Labels | None]]:
    """Return {name: (what is in it, owner, mode and attributes)}."""
    return {
        one.name: (one.read_bytes(), labels_of(str(one))) for one in directory.iterdir()
    }


def planned(postfix: Postfix, asked: Asked) -> Plan:
    return postfix.plan(asked)


def applied(postfix: Postfix, asked: Asked) -> Plan:
    what = postfix.plan(asked)
    assert what.refusals == ()
    if what.steps or postfix.stage is Stage.UNFINISHED:
        postfix.apply(asked, what)
    return what


def undone(postfix: Postfix) -> tuple[str, ...]:
    what = postfix.undoing()
    assert what is not None
    assert what.refusals == ()
    assert postfix.undo(what) == []
    return what.undone.notes


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@programs
@every_sample
@every_way
def test_undo_restores_every_byte(
    programs: type[Copy], name: str, asked: Asked, tmp_path: Path
) -> None:
    directory = sample(name, tmp_path / "postfix")
    (directory / "main.cf").chmod(0o640)
    os.setxattr(directory / "main.cf", "user.mine", b"kept")
    before = contents(directory)
    postfix = Postfix(programs(directory))
    what = applied(postfix, asked)
    after = contents(directory)
    assert (after != before) == bool(what.steps)
    assert planned(postfix, asked).steps == ()
    # postconf -e makes it 0644.
    assert after["main.cf"][1] == before["main.cf"][1]
    if not what.steps:
        return
    assert (directory / KEPT).stat().st_mode & 0o777 == 0o600
    undone(postfix)
    assert contents(directory) == before
    assert postfix.undoing() is None
    if programs is Real:
        # What is new comes in any order: postconf keeps it in a hash table.
        applied(Postfix(Copy(directory)), asked)
        for file in ("main.cf", "master.cf"):
            real, copy = (
                entries(file, one[file][0].decode("latin-1"))
                for one in (after, contents(directory))
            )
            assert {one.text for one in real} == {one.text for one in copy}


@every_sample
@every_way
def test_lines_of_others_stay(name: str, asked: Asked, tmp_path: Path) -> None:
    directory = sample(name, tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    before = contents(directory)
    if not applied(postfix, asked).steps:
        return
    for file in ("main.cf", "master.cf"):
        text = (directory / file).read_bytes()
        (directory / file).write_bytes(b"# first\n" + text + b"# last\n")
    assert undone(postfix) == ()
    for file in ("main.cf", "master.cf"):
        expected = b"# first\n" + before[file][0] + b"# last\n"
        assert (directory / file).read_bytes() == expected


def test_several_set_ups_are_undone_together(tmp_path: Path) -> None:
    directory = sample("dockermailserver", tmp_path / "postfix")
    before = contents(directory)
    postfix = Postfix(Copy(directory))
    for asked in ASKED.values():
        applied(postfix, asked)
        applied(postfix, Asked(domains=("example.org",), lmtp=False))
    table = (directory / "mxpolicy_transport").read_text()
    assert "example.org" in table
    assert "example.com" in table
    undone(postfix)
    assert contents(directory) == before


def test_set_up_over_changes_of_others(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    before = (directory / "main.cf").read_text()
    applied(postfix, Asked(all_mail=True))
    change(directory / "main.cf", "biff = no", "biff = yes")
    applied(postfix, Asked(policy=True))
    undone(postfix)
    expected = before.replace("biff = no", "biff = yes")
    assert (directory / "main.cf").read_text() == expected


def test_set_up_of_another_file_than_others_change(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    before = (directory / "master.cf").read_text()
    applied(postfix, Asked())
    change(directory / "master.cf", "bounce\ndefer", "bounce\n# said\ndefer")
    assert [one.file for one in applied(postfix, Asked(all_mail=True)).steps] == [
        "main.cf"
    ]
    undone(postfix)
    expected = before.replace("bounce\ndefer", "bounce\n# said\ndefer")
    assert (directory / "master.cf").read_text() == expected


def test_value_that_the_postmaster_changed_stays(tmp_path: Path) -> None:
    directory = sample("dockermailserver", tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    applied(postfix, Asked(all_mail=True))
    change(directory / "main.cf", "relayhost = \n", "relayhost = [new.example]\n")
    change(directory / "main.cf", "limit = 3600s", "limit = 7200s")
    notes = undone(postfix)
    assert any("relayhost = [new.example]" in one for one in notes)
    text = (directory / "main.cf").read_text()
    assert "relayhost = [new.example]\n" in text
    assert "default_transport = smtp\n" in text
    assert "mxpolicy" not in text


def test_table_that_the_postmaster_changed_is_kept(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    applied(postfix, Asked(domains=("example.com",)))
    table = directory / "mxpolicy_transport"
    table.write_text(table.read_text() + "example.org mxpolicy:\n")
    assert len(undone(postfix)) == 1
    assert not table.exists()
    kept = directory / "mxpolicy_transport.undone"
    assert "example.org mxpolicy:\n" in kept.read_text()


def test_line_that_the_postmaster_put_into_the_table_outlives_the_undo(
    tmp_path: Path,
) -> None:
    directory = sample("debian", tmp_path / "postfix")
    before = contents(directory)
    postfix = Postfix(Copy(directory))
    applied(postfix, Asked(domains=("example.com",)))
    table = directory / "mxpolicy_transport"
    table.write_text(table.read_text() + "example.org relay:[192.0.2.7]\n")
    applied(postfix, Asked(domains=("example.net",)))
    [note] = undone(postfix)
    assert f"{table} was changed since: it is kept as {table}.undone" in note
    kept = directory / "mxpolicy_transport.undone"
    assert "example.org relay:[192.0.2.7]\n" in kept.read_text()
    kept.unlink()
    assert contents(directory) == before


# -- refusals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "line", "asked", "said"),
    [
        (
            "main.cf",
            "relayhost = [one.example]\nbiff = yes\nrelayhost = [two.example]\n",
            Asked(all_mail=True),
            "main.cf has relayhost more than once, in lines 28, 34, 36: leave one",
        ),
        (
            "main.cf",
            "mxpolicy_time_limit = 3600s",
            Asked(),
            "main.cf does not end with a line end",
        ),
        (
            "main.cf",
            "pipe_delivery_status_filter = regexp:/etc/postfix/ends\n",
            Asked(),
            "pipe_delivery_status_filter = regexp:/etc/postfix/ends already; join",
        ),
        (
            "main.cf",
            "smtp_fallback_relay = [relay.example]\n",
            Asked(fallback=True),
            "smtp_fallback_relay = [relay.example] already",
        ),
        (
            "master.cf",
            "mxpolicy unix - n n - 5 pipe\n  user=nobody argv=/bin/false\n",
            Asked(),
            "has another service mxpolicy/unix: mxpolicy unix - n n - 5 pipe user=nob",
        ),
        (
            "master.cf",
            "127.0.0.1:10026 inet n - n - - smtpd -o content_filter=\n",
            Asked(fallback=True),
            "has another service 127.0.0.1:10026/inet",
        ),
        (
            "master.cf",
            "mxpolicy-policy unix - n n - 0 spawn user=nobody argv=/usr/bin/other\n",
            Asked(policy=True),
            "has another service mxpolicy-policy/unix: mxpolicy-policy unix - n n - 0",
        ),
        (
            "main.cf",
            "smtpd_banner = a\0b\n",
            Asked(),
            "main.cf has a NUL byte in line 34",
        ),
        (
            "main.cf",
            "inet_protocols = IPv6\n",
            Asked(fallback=True),
            "--fallback goes by 127.0.0.1, and Postfix would end",
        ),
        (
            "main.cf",
            "inet_protocols = ipv6\n",
            Asked(all_mail=True, lmtp=True),
            "--lmtp goes by 127.0.0.1, and Postfix would defer",
        ),
    ],
)
def test_refusal(file: str, line: str, asked: Asked, said: str, tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    path = directory / file
    path.write_text(path.read_text() + line)
    what = planned(Postfix(Copy(directory)), asked)
    assert [one for one in what.refusals if said in one], what.refusals


@pytest.mark.parametrize("protocols", ["all", "ipv4", "ipv6, ipv4"])
def test_fallback_with_both_protocols(protocols: str, tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    path = directory / "main.cf"
    path.write_text(f"{path.read_text()}inet_protocols = {protocols}\n")
    assert planned(Postfix(Copy(directory)), Asked(fallback=True)).refusals == ()


@pytest.mark.parametrize(
    ("level", "refused", "noted"),
    [
        ("", False, False),
        ("may", False, False),
        ("dane", False, True),
        ("encrypt", True, True),
        ("secure", True, True),
    ],
)
def test_demand_for_tls_is_not_lowered_in_silence(
    level: str, refused: bool, noted: bool, tmp_path: Path
) -> None:
    directory = sample("debian", tmp_path / "postfix")
    path = directory / "main.cf"
    path.write_text(f"{path.read_text()}smtp_tls_security_level = {level}\n")
    postfix = Postfix(Copy(directory))
    what = planned(postfix, Asked(fallback=True))
    assert any("would not deliver there" in one for one in what.refusals) is refused
    for asked in (
        Asked(fallback=True),
        Asked(all_mail=True),
        Asked(domains=("a.example",)),
    ):
        notes = planned(postfix, asked).notes
        assert any("level may" in one for one in notes) is noted
    assert (
        planned(postfix, Asked(policy=True)).notes
        == planned(
            Postfix(Copy(sample("debian", tmp_path / "other"))), Asked(policy=True)
        ).notes
    )


def test_tls_policy_of_some_domains_is_noted(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    path = directory / "main.cf"
    path.write_text(f"{path.read_text()}smtp_tls_policy_maps = texthash:/etc/tls\n")
    [note] = [
        one
        for one in planned(Postfix(Copy(directory)), Asked(all_mail=True)).notes
        if "level may" in one
    ]
    assert note.startswith("smtp_tls_policy_maps is texthash:/etc/tls: mail")


def test_what_only_our_own_client_is_told_is_noted(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    path = directory / "main.cf"
    path.write_text(f"{path.read_text()}smtp_generic_maps = hash:/etc/postfix/names\n")
    postfix = Postfix(Copy(directory))
    said = "smtp_generic_maps is hash:/etc/postfix/names: mail that goes by mxpolicy"
    for asked, is_noted in (
        (Asked(all_mail=True), True),
        (Asked(domains=("a.example",)), True),
        (Asked(policy=True), False),
    ):
        notes = planned(postfix, asked).notes
        assert any(one.startswith(said) for one in notes) is is_noted


def test_probes_that_would_ask_nobody_are_noted(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    path, text = directory / "main.cf", (directory / "main.cf").read_text()
    asks = "smtpd_data_restrictions = reject_unverified_sender\n"
    own = "address_verify_default_transport = smtp-probe:\n"
    for lines, asked, is_noted in (
        (asks, Asked(all_mail=True), True),
        (asks, Asked(all_mail=True, lmtp=True), True),
        (asks, Asked(domains=("a.example",)), False),
        (asks + own, Asked(all_mail=True), False),
        ("", Asked(all_mail=True), False),
    ):
        path.write_text(text + lines)
        notes = planned(Postfix(Copy(directory)), asked).notes
        assert any("takes each address for a good one" in one for one in notes) is (
            is_noted
        )


def test_warnings_of_postmap_are_no_trouble(tmp_path: Path) -> None:
    directory = sample("dockermailserver", tmp_path / "postfix")
    copy = Copy(directory)

    def run(program: str, *argv: str, **how: float) -> Ended:
        ended = copy(program, *argv, **how)
        said = "postmap: warning: main.cf, line 3: overriding earlier entry: biff=no"
        return ended._replace(err=said) if program == "postmap" else ended

    assert planned(Postfix(run), Asked(domains=("example.com",))).refusals == ()


def test_table_of_a_longer_name_is_another_one(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    (directory / "mxpolicy_transport_old").write_text("example.net smtp:\n")
    there = f"texthash:{directory}/mxpolicy_transport_old"
    path = directory / "main.cf"
    path.write_text(f"{path.read_text()}transport_maps = {there}\n")
    what = planned(Postfix(Copy(directory)), Asked(domains=("example.com",)))
    [step] = [one for one in what.steps if one.key == "transport_maps"]
    assert step.after == f"texthash:{directory}/mxpolicy_transport, {there}"


def test_domain_that_goes_another_way_is_refused(tmp_path: Path) -> None:
    directory = sample("dockermailserver", tmp_path / "postfix")
    asked = Asked(domains=("example.com", "partner.example"))
    [refusal] = planned(Postfix(Copy(directory)), asked).refusals
    assert "partner.example by relay:[mx.partner.example] (texthash:" in refusal


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("mydestination = localhost, Mine.example", "mydestination"),
        ("virtual_mailbox_domains = texthash:{}/mine", "virtual_mailbox_domains"),
        ("mine = mine.example\nvirtual_alias_domains = $mine", "virtual_alias_domains"),
    ],
)
def test_domain_of_our_own_is_refused(line: str, name: str, tmp_path: Path) -> None:
    directory = sample("manylines", tmp_path / "postfix")
    (directory / "mine").write_text("mine.example x\n")
    path = directory / "main.cf"
    text = path.read_bytes().replace(b"mydestination = localhost\n", b"")
    path.write_bytes(text + f"{line.format(directory)}\n".encode())
    asked = Asked(domains=("mine.example", "theirs.example", ".mine.example"))
    [refusal] = planned(Postfix(Copy(directory)), asked).refusals
    assert f"mine.example is this mail system's own ({name})" in refusal


@pytest.mark.parametrize(
    "line",
    [
        "mydestination = mail.Mine.example",
        "mydestination = {}/names",
        "virtual_mailbox_domains = other.example, {}/names",
        "virtual_alias_domains = texthash:{}/table",
    ],
)
def test_domain_of_our_own_below_another_is_refused(line: str, tmp_path: Path) -> None:
    directory = sample("manylines", tmp_path / "postfix")
    (directory / "names").write_text("# ours\nx.example,\n  mail.mine.example\n")
    (directory / "table").write_text("a@b.mine.example x\nmail.mine.example x\n")
    path = directory / "main.cf"
    text = path.read_bytes().replace(b"mydestination = localhost\n", b"")
    path.write_bytes(text + f"{line.format(directory)}\n".encode())
    asked = Asked(domains=(".mine.example", ".ine.example", "b.mine.example"))
    [refusal] = planned(Postfix(Copy(directory)), asked).refusals
    assert refusal.startswith("mail.mine.example is this mail system's own (")


def test_table_that_is_not_listed_is_told(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    (directory / "domains").write_text("/zzz/ y\n")
    with (directory / "main.cf").open("a") as file:
        file.write(f"virtual_mailbox_domains = regexp:{directory}/domains\n")
    postfix = Postfix(Copy(directory))
    what = planned(postfix, Asked(domains=("a.example", ".a.example")))
    assert what.refusals == ()
    assert any("cannot be listed" in one for one in what.notes)
    assert planned(postfix, Asked(domains=("a.example",))).notes == ()


def test_relays_of_senders_are_refused_for_all_mail(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    with (directory / "main.cf").open("a") as file:
        file.write("sender_dependent_relayhost_maps = hash:/etc/postfix/relays\n")
        file.write("sender_dependent_default_transport_maps = hash:/etc/postfix/ways\n")
    postfix = Postfix(Copy(directory))
    what = planned(postfix, Asked(all_mail=True))
    [refusal] = what.refusals
    assert "sender_dependent_relayhost_maps = hash:/etc/postfix/relays" in refusal
    assert any("hash:/etc/postfix/ways" in one for one in what.notes)
    assert planned(postfix, Asked(domains=("example.com",))).refusals == ()


def test_fallback_past_a_relay_is_told(tmp_path: Path) -> None:
    directory = sample("dockermailserver", tmp_path / "postfix")
    what = planned(Postfix(Copy(directory)), Asked(fallback=True))
    assert any("[smtp.example.com]:587 (relayhost)" in one for one in what.notes)


@pytest.mark.parametrize(
    "override",
    ["-o smtpd_sender_restrictions=", "-o { smtpd_sender_restrictions = permit }"],
)
def test_service_with_lists_of_its_own_is_told(override: str, tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    with (directory / "master.cf").open("a") as file:
        file.write(f"10587 inet n - y - - smtpd {override}\n")
    what = planned(Postfix(Copy(directory)), Asked(policy=True))
    assert any("10587/inet in master.cf has its own" in one for one in what.notes)


def test_further_instances_are_told(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    with (directory / "main.cf").open("a") as file:
        file.write("multi_instance_directories = /etc/postfix-out\n")
    [note] = planned(Postfix(Copy(directory)), Asked(all_mail=True)).notes
    assert "(multi_instance_directories = /etc/postfix-out)" in note
    assert f"this is the one of {directory}, and -c DIR names another" in note


def test_domain_that_goes_another_way_than_all_mail_is_told(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    applied(postfix, Asked(domains=("example.com", "example.org")))
    assert planned(postfix, Asked(all_mail=True)).notes == ()
    [note] = planned(postfix, Asked(all_mail=True, lmtp=True)).notes
    assert "has example.com, example.org, which goes as it says there" in note
    assert note.endswith("not by mxlmtp:")


def test_link_in_the_place_of_main_cf_is_refused(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    (directory / "main.cf").rename(tmp_path / "main.cf")
    (directory / "main.cf").symlink_to(tmp_path / "main.cf")
    with pytest.raises(SetupError, match=r"is a link to .*-c DIR"):
        Postfix(Copy(directory))


def test_service_that_was_put_in_by_hand_stays(tmp_path: Path) -> None:
    directory = sample("byhand", tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    what = planned(postfix, Asked())
    assert what.steps == ()
    assert [one.split(" ")[0] for one in what.notes] == [
        "master.cf",
        "mxpolicy_time_limit",
    ]
    applied(postfix, Asked(all_mail=True))
    undone(postfix)
    assert "unix" in (directory / "master.cf").read_text()


def test_queued_messages_are_named(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    run = Copy(directory)
    postfix = Postfix(run)
    applied(postfix, Asked(fallback=True))
    run.queue = {
        "4ZbX3k0Qz": ("deferred", "mxpolicy:"),
        "A1B2C3": ("active", ""),
        "D4E5F6": ("hold", "mxpolicy:[mail.example.net]"),
        "B7B7B7": ("maildrop", "mxpolicy:"),
        "778899": ("deferred", "smtp-amavis:[127.0.0.1]:10024"),
    } | {f"F{number:04}": ("incoming", "") for number in range(250)}
    what = postfix.undoing()
    assert what is not None
    [refusal] = what.refusals
    assert "2 queued messages are bound to mxpolicy" in refusal
    assert "4ZbX3k0Qz, D4E5F6 (on hold)" in refusal
    first = "postconf -X smtp_fallback_relay; postfix reload; "
    assert f": {first}postsuper -r 4ZbX3k0Qz (" in refusal
    assert not [one for one in run.ran if one[0] == "postsuper"]
    del run.queue["4ZbX3k0Qz"], run.queue["D4E5F6"]
    undone(postfix)


def test_message_that_leaves_the_queue_meanwhile(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    run = Copy(directory)
    run.queue = {"AA": ("active", "mxpolicy:"), "BB": ("deferred", "mxpolicy:")}
    listed = run("postqueue", "-j")
    del run.queue["AA"]
    postfix = Postfix(
        lambda *argv, **how: listed if argv[0] == "postqueue" else run(*argv, **how)
    )
    [sentence] = waiting(postfix.ask, {"mxpolicy"})
    assert "1 queued messages" in sentence
    assert "BB" in sentence


def test_queue_that_cannot_be_looked_at_stops_the_undo(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    run = Copy(directory)
    applied(Postfix(run), Asked())
    broken = Ended(1, "", "postqueue: fatal: bad string length 0 < 1: myhostname =")
    postfix = Postfix(
        lambda *argv, **how: broken if argv[0] == "postqueue" else run(*argv, **how)
    )
    with pytest.raises(SetupError, match=r"myhostname =; so .* mend that first"):
        postfix.undoing()


def test_message_that_comes_during_undo_is_told(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    run = Copy(directory)
    postfix = Postfix(run)
    applied(postfix, Asked(fallback=True))
    what = postfix.undoing()
    assert what is not None
    run.queue["AA"] = ("active", "mxpolicy:")
    [sentence] = postfix.undo(what)
    assert "AA" in sentence


@pytest.mark.parametrize(
    ("asked", "file", "line", "said"),
    [
        (
            Asked(),
            "main.cf",
            "relay_transport = mxpolicy:",
            "relay_transport: mxpolicy:",
        ),
        (
            Asked(),
            "master.cf",
            "in inet n - n - - smtpd -o content_filter=mxpolicy:x",
            "in/inet",
        ),
        (
            Asked(policy=True),
            "main.cf",
            "only_insiders = check_policy_service { $mxpolicy_policy, timeout=3s }",
            "only_insiders: $mxpolicy_policy",
        ),
        (
            Asked(domains=("example.com",)),
            "main.cf",
            "relay_domains = texthash:$config_directory/mxpolicy_transport",
            "relay_domains: mxpolicy_transport",
        ),
        (Asked(), "transport", "example.org mxpolicy:[192.0.2.1]", "transport, line 3"),
        (Asked(), "transport", "example.org\tmxpolicy", "transport, line 3: mxpolicy"),
        (Asked(), "main.cf", "relay_transport = mxpolicy", "transport: mxpolicy"),
        (
            Asked(),
            "main.cf",
            "mailbox_transport_maps = inline:{a=b, c=mxpolicy}",
            "maps: mxpolicy",
        ),
        (
            Asked(),
            "master.cf",
            "in inet n - n - - smtpd -o local_transport=mxpolicy",
            "in/inet: local_transport=mxpolicy",
        ),
    ],
)
def test_what_would_point_to_nothing_is_refused(
    asked: Asked, file: str, line: str, said: str, tmp_path: Path
) -> None:
    # Its transport_maps have a table in $config_directory.
    directory = sample("dockermailserver", tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    applied(postfix, asked)
    after = (directory / file).read_text()
    (directory / file).write_text(f"{after}{line}\n# mxpolicy: is no mention\n")
    what = postfix.undoing()
    assert what is not None
    [refusal] = what.refusals
    assert said in refusal
    (directory / file).write_text(after)
    undone(postfix)


def test_other_uses_of_our_name_are_in_nobodys_way(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    (directory / "names").write_text("mxpolicy: root\nroot: mxpolicy\n")
    path = directory / "main.cf"
    lines = f"alias_maps = texthash:{directory}/names\nsyslog_name = mxpolicy\n"
    path.write_text(path.read_text().replace("alias_maps", "#") + lines)
    postfix = Postfix(Copy(directory))
    applied(postfix, Asked())
    undone(postfix)


def test_value_that_was_taken_out_is_told(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    change(directory / "main.cf", "relayhost = \n", "relayhost = [relay.example]\n")
    postfix = Postfix(Copy(directory))
    applied(postfix, Asked(all_mail=True))
    change(directory / "main.cf", "relayhost = \n", "")
    [note] = undone(postfix)
    assert note.endswith("does not come back: relayhost = [relay.example]")


def test_line_behind_ours_stays(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    before = (directory / "main.cf").read_text()
    postfix = Postfix(Copy(directory))
    applied(postfix, Asked(all_mail=True))
    with (directory / "main.cf").open("a") as file:
        file.write("default_transport = smtp:\n")
    assert undone(postfix) == ()
    assert (directory / "main.cf").read_text() == f"{before}default_transport = smtp:\n"


# -- what is kept -----------------------------------------------------------------


def test_copy_of_a_directory_that_is_set_up_changes_nothing(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    applied(Postfix(Copy(directory)), Asked())
    after = contents(directory)
    copied = shutil.copytree(directory, tmp_path / "copy")
    with pytest.raises(SetupError, match="is a copy, and about"):
        Postfix(Copy(copied)).undoing()
    assert contents(directory) == after


def test_directory_by_another_name_is_the_same_one(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    before = contents(directory)
    link = tmp_path / "link"
    link.symlink_to("postfix")
    applied(Postfix(Copy(link)), Asked(domains=("example.com",)))
    undone(Postfix(Copy(directory)))
    assert contents(directory) == before


def test_kept_file_says_its_format(tmp_path: Path) -> None:
    directory = sample("manylines", tmp_path / "postfix")
    main = (directory / "main.cf").read_bytes()
    applied(Postfix(Copy(directory)), Asked(all_mail=True))
    found = json.loads((directory / KEPT).read_text())
    assert found["format"] == 1
    text = found["files"][str(directory / "main.cf")]["before"]
    assert text.encode("utf-8", "surrogateescape") == main


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ('{"format": 2, "version": "9.1"}', 0o600, r"is of format 2, .*\(9\.1\)"),
        ('{"format": 1', 0o600, "is damaged"),
        ('{"format": 1}', 0o600, "is damaged"),
        ("[]", 0o600, "is damaged"),
        (
            '{"format": 1, "mail_server": "postfix", "steps": [{}], "files": {}}',
            0o600,
            "is damaged",
        ),
        ("{}", 0o620, "others may write it"),
        ("{}", 0o602, "others may write it"),
    ],
)
def test_kept_file_that_is_not_believed(
    text: str, mode: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / KEPT
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(SetupError, match=said):
        load(str(path))


def test_link_in_the_place_of_the_kept_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("{}")
    (tmp_path / KEPT).symlink_to(tmp_path / "theirs")
    with pytest.raises(SetupError, match="is no file"):
        load(str(tmp_path / KEPT))
    Disk().replace(str(tmp_path / KEPT), "ours", 0o600)
    assert (tmp_path / "theirs").read_text() == "{}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is let in by modes")
def test_file_that_cannot_be_replaced_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = sample("debian", tmp_path / "postfix")
    postfix = Postfix(Copy(directory))
    applied(postfix, Asked())
    path = str(directory / "main.cf")
    # As access(2) answers of an immutable file.
    monkeypatch.setattr(os, "access", lambda one, how: one != path)
    [refusal] = planned(postfix, Asked(all_mail=True)).refusals
    assert f"{path} cannot be changed even by root: its file system is" in refusal
    assert planned(postfix, Asked()).refusals == ()
    what = postfix.undoing()
    assert what is not None
    assert what.refusals == (refusal,)


def test_disk_that_is_full_is_told(tmp_path: Path) -> None:
    path = tmp_path / "main.cf"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel's answer is another, and the way it comes is the same.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            Disk().replace(str(path), "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert raised.value.filename == str(path)
    assert contents(tmp_path) == {"main.cf": (b"old", labels_of(str(path)))}


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    for name in ("main.cf.mxpolicy-new", "conf.d/router.mxpolicy-new", "main.cf"):
        (tmp_path / name).touch()
    with Disk().alone(str(tmp_path)):
        pass
    assert {one.name for one in tmp_path.rglob("*")} == {"main.cf", "conf.d"}
