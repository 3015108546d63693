"""What is said of Exim's ACL that asks the policy daemon, by contrib's own lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from mxpolicy.check import exim
from mxpolicy.check.access import Account
from mxpolicy.check.daemon import Answer
from mxpolicy.check.exim import Exim
from mxpolicy.check.exim_acl import Question, judge_question, questions
from mxpolicy.check.report import Item, Level
from mxpolicy.options import Options
from tests.check import recorded

SAMPLE = (Path(__file__).parents[2] / "contrib/exim/acl").read_text()
SOCKET = "/run/mxpolicy/policy"
EXIM = Account("Debian-exim", 102, frozenset((102,)))
SERVED = Answer(owner=64101)
OURS = Account("mxpolicy", 64101, frozenset((64101,)))


def printed(acl: str = SAMPLE) -> str:
    """Return what ``exim -bP config`` prints of *acl*: folded lines are joined."""
    rows = [one for one in acl.splitlines() if not one.startswith("#")]
    joined = "\n".join(rows).replace("\\\n", "\0")
    text = "\n".join(
        "".join(
            part.lstrip() if at else part for at, part in enumerate(row.split("\0"))
        )
        for row in joined.splitlines()
    )
    head = "daemon_smtp_ports = ${readsocket{/x}{request=smtpd_access_policy}{}{}}\n"
    return f"{head}begin acl\n\n  acl_check_rcpt:\n{text}\nbegin routers\n\n"


def asked(acl: str = SAMPLE) -> Question:
    [one] = questions(printed(acl))
    return one


def judge(
    it: Question,
    answer: Answer = SERVED,
    why: str = "",
    sockets: tuple[str, ...] = (SOCKET,),
) -> list[Item]:
    machine = recorded.MACHINE._replace(
        answer=lambda at: answer, objection=lambda user, path, wanted: why
    )
    return judge_question(it, sockets, 8.0, (EXIM, OURS), machine)


def test_contrib_is_well() -> None:
    it = asked()
    assert it == Question("acl_check_rcpt", SOCKET, 10.0, is_forgiving=True)
    [item] = judge(it)
    assert item.level is Level.OK
    assert (
        item.text
        == f"Exim's ACL acl_check_rcpt asks the daemon at {SOCKET}, which answers"
    )


@pytest.mark.parametrize(
    ("old", "new", "level", "text", "mend"),
    [
        ("{10s}", "{8s}", Level.WARN, "waits 8 s for an answer", "{10s} as the third"),
        ("{10s}", "{}", Level.WARN, "waits 5 s for an answer", "{10s} as the third"),
        ("{10s}", "{9s:shutdown=no}", None, "", ""),
        ("{10s}", "{ages}", Level.WARN, "waits a time that is none", "{10s} as"),
        ("{10s}{ }{}}}", "{10s}{ }}}", Level.WARN, "any trouble of", "{} as the fifth"),
        (
            "{10s}{ }{}}}",
            "{3s}}}",
            Level.FAIL,
            "then each recipient is put off",
            "{10s}",
        ),
    ],
)
def test_how_it_asks(
    old: str, new: str, level: Level | None, text: str, mend: str
) -> None:
    assert old in SAMPLE
    bad = [one for one in judge(asked(SAMPLE.replace(old, new))) if one.mend]
    if level is None:
        assert bad == []
        return
    assert (bad[0].level, text in bad[0].text, mend in bad[0].mend) == (
        level,
        True,
        True,
    ), bad


DEAD = Answer("No such file or directory")


@pytest.mark.parametrize(
    ("answer", "why", "sockets", "text", "mend"),
    [
        (DEAD, "", (SOCKET,), "where none answers (No such file", "systemctl restart"),
        (DEAD, "", ("/other",), "listen.policy.at has /other", f"at: [{SOCKET}]"),
        (DEAD, "", (), "listen.policy.at has nothing", f"at: [{SOCKET}]"),
        (
            Answer(),
            "Debian-exim may not write",
            (SOCKET,),
            "but Debian-exim may not write",
            "group: Debian-exim",
        ),
        (Answer(owner=1000), "", (SOCKET,), "which a process of user 1000 serves", ""),
    ],
)
def test_what_answers(
    answer: Answer, why: str, sockets: tuple[str, ...], text: str, mend: str
) -> None:
    [item] = judge(asked(), answer, why, sockets)
    assert (item.level, text in item.text, mend in item.mend) == (
        Level.WARN,
        True,
        True,
    ), item
    # Where nothing is said for that case, Exim defers.
    if not answer.owner:
        strict = asked()._replace(is_forgiving=False)
        assert judge(strict, answer, why, sockets)[0].level is Level.FAIL


@pytest.mark.parametrize("owner", [None, 0, 64101])
def test_process_that_may_serve(owner: int | None) -> None:
    [item] = judge(asked(), Answer(owner=owner))
    assert item.level is Level.OK


def test_tcp_and_what_is_another_program_s() -> None:
    it = asked(SAMPLE.replace("{/run/mxpolicy/policy}", "{ inet:127.0.0.1:10028 }"))
    assert it.at == "127.0.0.1:10028"
    other = "begin acl\n  a:\n    condition = ${readsocket{/run/dcc}{x\\}y}{5s}{}{}}\n"
    assert questions(other) == []
    assert questions("begin acl\n  a:\n    condition = ${readsocket{/unclosed") == []
    assert questions(printed(SAMPLE + SAMPLE)) == [asked()]


def test_it_is_judged_without_a_transport() -> None:
    it = asked()
    seen = Exim({}, {}, {}, {}, [it], "")
    items = exim.look(seen, Options(), recorded.MACHINE, [SOCKET], is_alone=True)
    assert [one.level for one in items] == [Level.WARN, Level.OK]


def test_exim_is_asked_for_it() -> None:
    answers = {"config": printed(), "exim_user": "exim_user = Debian-exim\n"}

    def ask(how: str, what: str) -> str:
        return answers.get(what, "")

    seen = exim.see(ask, [])
    assert (seen.questions, seen.user) == ([asked()], "Debian-exim")
