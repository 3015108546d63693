"""What is said of an Exim, by what a real one has printed (``-bP``, ``-brt``).

``tests/check/exim`` has the answers of Debian's Exim 4.96 with contrib/exim in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mxpolicy.check import exim
from mxpolicy.check.exim import Exim, see, stanzas
from mxpolicy.check.exim_rows import ENVIRONMENT, RULE, TEMPORARY, parse_time
from mxpolicy.check.programs import ProgramError
from mxpolicy.check.report import Item, Level
from mxpolicy.options import Options
from tests.check import recorded

CHECKOUT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "exim"
TRANSPORTS = (HERE / "transports.txt").read_text()
ROUTERS = (HERE / "routers.txt").read_text()
HAS_RULE = f"Retry rule: {RULE}; \n"
NO_RULE = "No retry information found\n"
LMTP = """
mxpolicy_lmtp transport:
driver = lmtp
socket = /run/mxpolicy/lmtp
timeout = {}
batch_max = {}
"""


def seen(
    transports: str = TRANSPORTS,
    routers: str = ROUTERS,
    rule: str = HAS_RULE,
    way: str = "mxpolicy",
    by: str = "mxpolicy",
) -> Exim:
    """Return what is seen of an Exim that prints these."""
    answers = {"transports": transports, "routers": routers, "config": ""}

    def ask(how: str, what: str) -> str:
        if how == "-bt":
            return f"{what}\n  router = {way}, transport = {by}\n"
        return answers[what] if how == "-bP" else rule

    return see(ask, ["/run/mxpolicy/lmtp"])


def look(**printed: str) -> list[Item]:
    return exim.look(seen(**printed), Options(), recorded.MACHINE, is_alone=True)


def bad(items: list[Item]) -> list[Item]:
    return [one for one in items if one.level is not Level.OK]


def test_contrib_is_well() -> None:
    items = look()
    assert bad(items) == []
    text = "\n".join(one.text for one in items)
    assert "transport mxpolicy runs /opt/mxpolicy/bin/mxpolicy pipe --exim" in text
    assert "deferred after 3500 s at the latest, killed by Exim after 1h" in text
    assert "router mxpolicy leads to mxpolicy: ! +local_domains" in text
    assert "what is deferred for example.com is tried again: * * F,2h,15m;" in text


def test_router_that_stands_before_ours_is_named() -> None:
    [item] = bad(look(way="smarthost", by="remote_smtp_smarthost"))
    assert item.level is Level.WARN
    assert "router mxpolicy does not get its mail: router smarthost, which" in item.text
    assert "sends it to remote_smtp_smarthost" in item.text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("domains = ! +local_domains\n", "domains = +by_mxpolicy\n"),
        ("condition = \n", "condition = ${if eq{a}{b}}\n"),
        ("senders = \n", "senders = *@example.org\n"),
    ],
)
def test_router_that_takes_some_mail_is_not_judged_by_a_domain(
    old: str, new: str
) -> None:
    head, ours, rest = ROUTERS.partition("mxpolicy router:\n")
    mine, next_one, others = rest.partition(" router:\n")
    assert old in mine
    routers = head + ours + mine.replace(old, new) + next_one + others
    assert seen(routers=routers, way="other", by="remote_smtp").ways == {}


def test_rows_want_what_contrib_says() -> None:
    contrib = CHECKOUT / "contrib/exim"
    sample = (contrib / "transport").read_text()
    assert f"environment = {ENVIRONMENT}\n" in sample
    assert f"temp_errors = {TEMPORARY}\n" in sample
    assert RULE.split() in [
        line.split() for line in (contrib / "retry").read_text().splitlines()
    ]


OURS = "command = /opt/mxpolicy/bin/mxpolicy pipe --exim --deadline 2900s"


@pytest.mark.parametrize(
    ("old", "new", "level", "said", "mend"),
    [
        (
            "timeout = 1h",
            "timeout = 50m",
            "fail",
            "and the message arrives twice",
            "3600s",
        ),
        ("timeout = 1h", "timeout = ever", "warn", "cannot be understood", ""),
        ("--deadline 2900s", "--deadline 1h", "fail", "timeout is 1h", "4300s"),
        ("timeout_defer", "no_timeout_defer", "fail", "Exim bounces", "timeout_defer"),
        ("freeze_signal", "no_freeze_signal", "fail", "Exim bounces", "freeze_signal"),
        ("batch_max = 1\n", "batch_max = 9\n", "fail", "one status", "batch_max = 1"),
        ("no_return_output", "return_output", "fail", "makes a bounce", "no_return"),
        ("no_ignore_status", "ignore_status", "fail", "counts as deliv", "no_ignore"),
        ("no_use_shell", "use_shell", "fail", "a shell reads", "no_use_shell"),
        ("no_use_bsmtp", "use_bsmtp", "fail", "SMTP commands", "no_use_bsmtp"),
        ("no_use_crlf", "use_crlf", "fail", "line ends", "no_use_crlf"),
        ("max_output = 20K", "max_output = 4096", "fail", "kills", "max_output = 20K"),
        ("max_parallel = ", "max_parallel = 5", "warn", "healthy", "max_parallel ="),
        ("\nlog_output", "\nno_log_output", "warn", "which host took", "log_output"),
        (
            "return_fail_output",
            "no_return_fail_output",
            "warn",
            "not say why",
            "return",
        ),
        (
            "message_prefix = ",
            "message_prefix = From x",
            "fail",
            "has message_prefix = From x: a line stands before",
            "message_prefix =",
        ),
        ("message_suffix = ", "message_suffix = x", "fail", "is added", "message_suff"),
        ("126:127:254", "126", "fail", "temp_errors lacks 127, 254", "temp_errors = "),
        (TEMPORARY, "*", "warn", "stays in the queue", "temp_errors = "),
        ("68:70", "68:69:70", "warn", "temp_errors has 69", "temp_errors = "),
        (
            ENVIRONMENT,
            "",
            "fail",
            "does not pass the sender",
            f"environment = {ENVIRONMENT}",
        ),
        (
            ENVIRONMENT,
            "RETURN_PATH=$return_path",
            "fail",
            "does not quote the sender",
            f"environment = {ENVIRONMENT}",
        ),
        ("user = mxpolicy", "user = stranger", "fail", "is not known here", "adduser"),
        ("user = mxpolicy", "user = ", "fail", "has no user", "user = mxpolicy"),
        ("pipe --exim", "pipe -f x", "fail", "does not pass --exim", ""),
        ("$pipe_addresses", "$local_part@$domain", "fail", "not pass $pipe_addr", ""),
        (
            "mxpolicy pipe --exim",
            "mxpolicy --exim",
            "fail",
            "is not its first word",
            "",
        ),
        ("--deadline", "--dead", "fail", "all mail is deferred: unknown argument", ""),
        (
            "--deadline",
            "--config /etc/nowhere.yaml --deadline",
            "fail",
            "(4.3.5): /etc/nowhere.yaml: cannot be read",
            "",
        ),
        (
            "--deadline",
            "--config /srv/secret.yaml --deadline",
            "fail",
            "/srv/secret.yaml: mxpolicy has no permission",
            "chmod",
        ),
        (
            "command = /opt/",
            "command = /root/",
            "fail",
            "cannot run its program (mxpolicy has no permission",
            "",
        ),
    ],
)
def test_mistake_in_the_transport_is_told(
    old: str, new: str, level: str, said: str, mend: str
) -> None:
    head, ours = TRANSPORTS.split("mxpolicy transport:\n")
    assert OURS in ours
    assert ours.count(old) >= 1
    printed = f"{head}mxpolicy transport:\n{ours.replace(old, new, 1)}"
    [item] = bad(look(transports=printed))
    assert item.level.value == level
    assert said in item.text
    assert mend in item.mend
    assert bool(mend) == bool(item.mend)


def test_exim_without_a_rule_bounces_what_is_deferred() -> None:
    [item] = bad(look(rule=NO_RULE))
    assert item.level is Level.FAIL
    assert "Exim bounces what mxpolicy defers (No retry" in item.text
    assert item.mend == RULE


@pytest.mark.parametrize(
    ("old", "new", "level", "said"),
    [
        ("no_unseen", "unseen", "fail", "delivers the same mail once more"),
        ("domains = ! +local_domains", "domains = ", "warn", "for this machine, too"),
    ],
)
def test_mistake_in_the_router_is_told(
    old: str, new: str, level: str, said: str
) -> None:
    head, ours = ROUTERS.split("mxpolicy router:\n")
    printed = f"{head}mxpolicy router:\n{ours.replace(old, new, 1)}"
    [item] = bad(look(routers=printed))
    assert item.level.value == level
    assert said in item.text


def test_transport_without_a_router_gets_no_mail() -> None:
    items = look(routers="")
    assert bad(items) == []
    assert "no router leads to mxpolicy: it gets no mail" in [one.text for one in items]


def test_rule_is_asked_for_a_domain_that_the_router_takes() -> None:
    some = "! +local_domains : ! example.net : example.org : *.example.org"
    printed = ROUTERS.replace("domains = ! +local_domains\n", f"domains = {some}\n")
    assert list(seen(routers=printed).rules) == ["example.org"]


@pytest.mark.parametrize(
    ("timeout", "batch", "said"),
    [("1h", "50", []), ("5m", "50", ["fail"]), ("1h", "1", ["warn"])],
)
def test_transport_to_the_daemon_is_judged(
    timeout: str, batch: str, said: list[str]
) -> None:
    items = look(transports=LMTP.format(timeout, batch), routers="")
    assert "transport mxpolicy_lmtp delivers to /run/mxpolicy/lmtp" in items[0].text
    assert [one.level.value for one in bad(items)] == said
    # No mail goes there without a router.
    assert not seen(transports=LMTP.format(timeout, batch), routers="").uses_daemon
    routers = ROUTERS.replace("transport = mxpolicy\n", "transport = mxpolicy_lmtp\n")
    assert seen(transports=LMTP.format(timeout, batch), routers=routers).uses_daemon


def test_exim_that_does_not_run_us_is_only_warned_of_where_it_is_alone() -> None:
    nothing = seen(transports="", routers="")
    [item] = exim.look(nothing, Options(), recorded.MACHINE, is_alone=True)
    assert (item.level, item.mend) == (Level.WARN, "mxpolicy setup exim")
    [item] = exim.look(nothing, Options(), recorded.MACHINE, is_alone=False)
    assert item.level is Level.OK


def test_exim_that_refuses_is_unseen(tmp_path: Path) -> None:
    program = tmp_path / "exim4"
    program.write_text("#!/bin/sh\necho 'bad option' >&2; exit 1\n")
    program.chmod(0o755)
    ask = exim.find(str(tmp_path))
    assert ask is not None
    with pytest.raises(ProgramError, match="exim -bP transports: bad option"):
        see(ask, [])


def test_garbage_has_no_stanzas() -> None:
    assert stanzas("x = y\n\nno_\nno_no_\n = \n a transport:b\n") == {}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        ("2w1d", 1296000.0),
        ("0s", 0.0),
        ("", None),
        ("1", None),
        ("soon", None),
    ],
)
def test_times_are_read_as_exim_writes_them(text: str, seconds: float | None) -> None:
    assert parse_time(text) == seconds


def test_router_that_an_acl_asks_is_told() -> None:
    head, ours = ROUTERS.split("mxpolicy router:\n")
    asked = ours.replace("no_verify_sender\n", "verify_sender\n", 1)
    printed = f"{head}mxpolicy router:\n{asked}"
    [item] = bad(look(routers=printed))
    assert "router mxpolicy lacks no_verify" in item.text
    assert item.mend == "no_verify"
    # It is the only one that says something of any domain.
    assert bad(look(routers=printed.replace("driver = dnslookup", "driver = x"))) == []
