"""Where smtpd(8) asks, and whether the daemon answers there."""

from __future__ import annotations

from collections import defaultdict

import pytest

from mxpolicy.check import postfix
from mxpolicy.check.daemon import Answer
from mxpolicy.check.master_cf import parse_services
from mxpolicy.check.policy_clients import Client, looked_at
from mxpolicy.check.postconf import Postconf
from mxpolicy.check.programs import Ended
from mxpolicy.check.report import Item, Level
from mxpolicy.options import Options
from tests.check import recorded

SMTPD = "smtp inet n - n - - smtpd"
CHROOTED = "smtp inet n - y - - smtpd"
ASK = "check_policy_service {{ {}, default_action=DUNNO, timeout=10s }}"
AT = "unix:/run/mxpolicy/policy"
IN_QUEUE = "/var/spool/postfix/mxpolicy/policy"

MAIN = {
    "mail_version": "3.7.11",
    "mail_owner": "nobody",
    "queue_directory": "/var/spool/postfix",
    "compatibility_level": "3.6",
    "smtpd_policy_service_timeout": "100s",
    "smtpd_policy_service_default_action": "451 4.3.5 Server configuration problem",
}
SOCKETS = ("/run/mxpolicy/policy", "127.0.0.1:10028")


def look(
    master: str, asks: str = AT, sockets: tuple[str, ...] = SOCKETS, **more: str
) -> list[Item]:
    """Return what is said of a Postfix whose main.cf asks at *asks*, where it does."""
    asked = ASK.format(asks) if asks else ""
    main = {**MAIN, "smtpd_relay_restrictions": asked, **more}

    def answer(*argv: str) -> Ended:
        if argv == ("postconf", "-M"):
            return Ended(0, f"{master}\n", "")
        lines = (f"{name} = {main[name]}\n" for name in argv[2:] if name in main)
        return Ended(0, "".join(lines), "")

    machine = recorded.MACHINE._replace(
        answer=lambda at: Answer("" if at in SOCKETS else "Connection refused"),
        objection=lambda who, path, wanted: "",
    )
    seen = postfix.see(Postconf(answer))
    items = postfix.look(seen, Options(), None, machine, sockets=sockets)
    return [one for one in items if not one.text.startswith("Postfix 3.7.11 is here")]


def test_daemon_that_answers_is_well() -> None:
    for at in (AT, "inet:127.0.0.1:10028", "inet:localhost:10028", "inet::10028"):
        items = look(SMTPD, at)
        assert [one.level for one in items] == [Level.OK, Level.OK], items
        assert f"smtp/inet asks the daemon at {at}, which answers" in items[0].text


def test_policy_services_of_others_are_not_judged() -> None:
    for at in ("inet:127.0.0.1:10023", "unix:private/policyd-spf", "unix:/run/quota"):
        assert look(CHROOTED, at) == []


@pytest.mark.parametrize(
    ("master", "asks", "sockets", "said", "mend"),
    [
        pytest.param(
            CHROOTED,
            AT,
            SOCKETS,
            "in a chroot, where that is /var/spool/postfix/run/mxpolicy/policy",
            f"listen: {{policy: {{at: [{IN_QUEUE}], group: postfix}}}}, and",
            id="chroot",
        ),
        pytest.param(
            SMTPD,
            AT,
            (),
            "where the daemon is not to listen (listen.policy.at has nothing)",
            "listen: {policy: {at: [/run/mxpolicy/policy]}}",
            id="no_door",
        ),
        pytest.param(
            SMTPD,
            "unix:mxpolicy/policy",
            (IN_QUEUE,),
            "where none answers (Connection refused): each recipient takes seconds",
            "systemctl restart mxpolicy.service",
            id="no_daemon",
        ),
        pytest.param(
            SMTPD,
            "unix:private/mxpolicy-policy",
            SOCKETS,
            "and master.cf has no such service",
            "mxpolicy setup postfix --policy",
            id="no_service",
        ),
    ],
)
def test_daemon_that_is_not_reached_is_told(
    master: str, asks: str, sockets: tuple[str, ...], said: str, mend: str
) -> None:
    item, *_ = look(master, asks, sockets)
    assert item.level is Level.WARN
    assert said in item.text
    assert item.mend.startswith(mend)


def test_mail_that_is_put_off_without_an_answer_fails() -> None:
    asks = f"check_policy_service {AT}"
    item, *rest = look(SMTPD, sockets=(), smtpd_relay_restrictions=asks)
    assert item.level is Level.FAIL
    assert "says '451 4.3.5 Server configuration problem'" in rest[-1].text


def test_daemon_that_is_too_slow_for_smtpd_is_told() -> None:
    asks = f"check_policy_service {{ {AT}, timeout=2s }}"
    texts = [one.text for one in look(SMTPD, smtpd_relay_restrictions=asks)]
    assert any("waits 2 s for an answer of the daemon at" in one for one in texts)


def test_lists_of_a_service_of_its_own_are_read() -> None:
    own = "-o { smtpd_relay_restrictions = check_policy_service { $theirs } }"
    master = (
        f"{SMTPD} -o smtpd_relay_restrictions=\nsubmission inet n - n - - smtpd {own}"
    )
    items = look(master, "", theirs=f"{AT}, default_action=DUNNO, timeout=10s")
    assert items[0].text.startswith("submission/inet asks the daemon at unix:/run/")
    assert [one.level for one in items] == [Level.OK, Level.OK]


def test_path_is_seen_as_smtpd_sees_it() -> None:
    both = parse_services(f"{SMTPD}\n{CHROOTED}", "smtpd")
    settings = defaultdict(str, MAIN)
    client = Client(AT, 10.0, "DUNNO")
    inside = "/var/spool/postfix/run/mxpolicy/policy"
    assert looked_at(client, both, settings) == ["/run/mxpolicy/policy", inside]
    assert looked_at(client, [], settings) == ["/run/mxpolicy/policy"]
    relative = client._replace(at="unix:mxpolicy/policy")
    assert looked_at(relative, both, settings) == [IN_QUEUE]
