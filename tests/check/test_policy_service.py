"""What is said of the policy service in master.cf, and of how smtpd(8) asks it."""

from __future__ import annotations

from collections import defaultdict

import pytest

from mxpolicy.check import policy_service, postfix
from mxpolicy.check.master_cf import parse_services
from mxpolicy.check.policy_clients import Client, clients
from mxpolicy.check.postconf import Postconf
from mxpolicy.check.programs import Ended
from mxpolicy.check.report import Item, Level
from mxpolicy.options import Options
from mxpolicy.setup.postfix_lines import LMTP, POLICY, RELAY_LIST, SENDER_LIST
from tests.check import recorded

[ENTRY] = POLICY.services

SETTINGS = {
    "mail_version": "3.7.11",
    "mail_owner": "postfix",
    "default_process_limit": "100",
    "smtpd_policy_service_max_ttl": "1000s",
    "smtpd_policy_service_timeout": "100s",
    "smtpd_policy_service_default_action": "451 4.3.5 Server configuration problem",
    "mxpolicy-policy_time_limit": "3600s",
    "smtpd_relay_restrictions": RELAY_LIST,
    "smtpd_sender_restrictions": SENDER_LIST,
}
ASK = "unix:private/mxpolicy-policy, default_action=DUNNO, timeout=10s, max_idle=60s"

NOBODY_ASKS = {"smtpd_relay_restrictions": "", "smtpd_sender_restrictions": ""}


def look(entry: str = ENTRY, ask: str = ASK, **settings: str) -> list[Item]:
    """Return what is said of a Postfix whose only service of ours is *entry*."""
    main = {
        **SETTINGS,
        **{name.replace("__", "-"): settings[name] for name in settings},
    }
    main = {name: one.replace("$mxpolicy_policy", ask) for name, one in main.items()}

    def answer(*argv: str) -> Ended:
        if argv == ("postconf", "-M"):
            return Ended(0, f"{entry}\n", "")
        lines = (f"{name} = {main[name]}\n" for name in argv[2:] if name in main)
        return Ended(0, "".join(lines), "")

    seen = postfix.see(Postconf(answer))
    return postfix.look(seen, Options(), None, recorded.MACHINE)


def test_contrib_is_well() -> None:
    items = look()
    assert [one.level for one in items] == [Level.OK, Level.OK, Level.OK]
    assert "mxpolicy-policy runs /opt/mxpolicy/bin/mxpolicy policy" in items[0].text
    assert "is asked; without an answer mail goes on" in items[1].text


@pytest.mark.parametrize(
    ("old", "new", "level", "said", "mend"),
    [
        (" user=mxpolicy", " user=stranger", "fail", "not known here", "adduser "),
        (" user=mxpolicy", " user=postfix", "fail", "which spawn(8) refuses", ""),
        (" user=mxpolicy", " user=root", "fail", "which spawn(8) refuses", ""),
        (" user=mxpolicy", "", "fail", "which spawn(8) refuses", ""),
        ("/opt/", "/root/", "fail", "cannot run its program (mxpolicy has no perm", ""),
        ("mxpolicy policy", "mxpolicy", "fail", "'policy' is not its first word", ""),
        ("mxpolicy policy", "mxpolicy policy -x", "fail", "no question is answ", ""),
        (
            "mxpolicy policy",
            "mxpolicy policy --config /etc/nowhere.yaml",
            "warn",
            "every question is answered DUNNO: /etc/nowhere.yaml: cannot be read",
            "",
        ),
        (
            "mxpolicy policy",
            "mxpolicy policy --config /srv/secret.yaml",
            "warn",
            "answered DUNNO: /srv/secret.yaml: mxpolicy has no permission",
            "chmod ",
        ),
        (
            "unix - n n",
            "unix - y n",
            "fail",
            "cannot become another user",
            "postconf -F mxpolicy-policy/unix/unprivileged=n",
        ),
        (
            "unix - n n",
            "unix - n y",
            "fail",
            "runs in a chroot",
            "postconf -F mxpolicy-policy/unix/chroot=n",
        ),
        (
            " - 0 spawn",
            " - 20 spawn",
            "warn",
            "may have 20 processes, smtpd(8) more",
            "postconf -F mxpolicy-policy/unix/process_limit=0",
        ),
        (
            "spawn user",
            "spawn -o mxpolicy-policy_time_limit=5m user",
            "warn",
            "mxpolicy-policy_time_limit is 5m: spawn(8) kills",
            "postconf -P mxpolicy-policy/unix/mxpolicy-policy_time_limit=3600s",
        ),
    ],
)
def test_mistake_in_the_entry_is_told(
    old: str, new: str, level: str, said: str, mend: str
) -> None:
    assert old in ENTRY
    bad = [one for one in look(ENTRY.replace(old, new)) if one.level is not Level.OK]
    [item] = bad
    assert item.level.value == level
    assert said in item.text
    assert item.mend.startswith(mend)


def test_time_limit_of_postfix_kills_the_command_in_a_connection() -> None:
    items = look(mxpolicy__policy_time_limit="1000s")
    [item] = [one for one in items if one.level is not Level.OK]
    assert item.mend == "postconf -e mxpolicy-policy_time_limit=3600s"
    items = look(mxpolicy__policy_time_limit="soon")
    [item] = [one for one in items if one.level is not Level.OK]
    assert "cannot be understood: soon" in item.text


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ("unix:private/mxpolicy-policy", "says '451 4.3.5 Server configuration"),
        (ASK.replace("=10s", "=5s"), "waits 5 s for an answer of mxpolicy-policy"),
    ],
)
def test_way_of_asking_that_harms_is_told(ask: str, said: str) -> None:
    [item] = [one for one in look(ask=ask) if one.level is not Level.OK]
    assert item.level is Level.WARN
    assert said in item.text


def test_service_that_nothing_asks_is_said_to_be_so() -> None:
    items = look(**NOBODY_ASKS)
    assert "nothing in main.cf asks mxpolicy-policy" in items[-2].text


def test_transport_to_the_daemon_needs_no_pipe() -> None:
    [entry] = LMTP.services
    items = look(entry, **NOBODY_ASKS)
    assert [one.level for one in items] == [Level.OK, Level.OK]
    assert items[0].text == "transport mxlmtp delivers to the daemon"
    [item] = look("smtp unix - - y - - smtp", **NOBODY_ASKS)
    assert item.level is Level.WARN


def test_each_way_of_asking_is_read() -> None:
    settings = defaultdict(str, SETTINGS)
    settings["smtpd_data_restrictions"] = (
        "check_policy_service inet:127.0.0.1:9998, permit"
    )
    settings["smtpd_relay_restrictions"] = f"check_policy_service {{ {ASK} }}"
    settings["smtpd_sender_restrictions"] = "permit"
    action = SETTINGS["smtpd_policy_service_default_action"]
    assert clients(settings) == [
        Client("unix:private/mxpolicy-policy", 10.0, "DUNNO"),
        Client("inet:127.0.0.1:9998", 100.0, action),
    ]


def test_names_that_are_asked_have_the_time_limit() -> None:
    names = policy_service.settings_of(parse_services(ENTRY, "spawn"))
    assert "mxpolicy-policy_time_limit" in names
