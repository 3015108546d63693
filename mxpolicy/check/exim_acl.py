"""Where Exim's ACLs ask the policy daemon by ``${readsocket``, and what comes of it.

`questions` reads what ``exim -bP config`` prints: the whole configuration, macros and
``.include`` carried out, each option in one line. The parts of a ``${readsocket`` are the
socket, what is asked, the time for it, what stands for a line end, and what the answer is
when there is none. Without the last part Exim puts the recipient off then.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import WRITE
from mxpolicy.check.exim_rows import parse_time
from mxpolicy.check.report import fail, first, ok, said, warn

if TYPE_CHECKING:
    from collections.abc import Collection

    from mxpolicy.check.access import Account
    from mxpolicy.check.machine import Machine
    from mxpolicy.check.report import Item

__all__ = ["Question", "judge_question", "questions"]

# What is asked of a policy service of Postfix's, ours or another.
_ASKED = "request=smtpd_access_policy"

_HEAD = re.compile(r"\s*([\w.-]+):\s*$")
_SECTION = re.compile(r"begin\s+(\w+)")
_START = "${readsocket"

# Exim's own, where the third part says none.
_TIMEOUT = "5s"

_UNJUDGED = "each recipient is taken unjudged"
_PUT_OFF = "each recipient is put off, with 451"


class Question(NamedTuple):
    """One ``${readsocket``.

    Attributes:
        acl: The name of its ACL.
        at: A path, or ``ADDRESS:PORT``.
        within: Seconds that an answer is waited for; None when it is no time.
        is_forgiving: Whether it says what the answer is when there is none.
    """

    acl: str
    at: str
    within: float | None
    is_forgiving: bool


def questions(config: str) -> list[Question]:
    """Return how the ACLs in *config* ask a policy service; each once."""
    found = []
    section = acl = ""
    for line in config.splitlines():
        if head := _SECTION.match(line):
            section = head[1]
        elif head := _HEAD.match(line):
            acl = head[1]
        elif section == "acl":
            found += [_question(acl, line, at) for at in _starts(line)]
    return list(dict.fromkeys(one for one in found if one))


def _starts(line: str) -> list[int]:
    return [one.end() for one in re.finditer(re.escape(_START), line)]


def _question(acl: str, line: str, start: int) -> Question | None:
    parts = _parts(line, start)
    if len(parts) < 2 or _ASKED not in parts[1]:
        return None
    at, _, timing, _, _ = [*parts, *[""] * 5][:5]
    within = parse_time(timing.partition(":")[0].strip() or _TIMEOUT)
    return Question(acl, at.strip().removeprefix("inet:"), within, len(parts) > 4)


def _parts(line: str, start: int) -> list[str]:
    """Return what stands in each pair of braces from *start* on."""
    parts: list[str] = []
    depth = begin = 0
    is_quoted = False
    for place in range(start, len(line)):
        one = line[place]
        if is_quoted or one == "\\":
            is_quoted = not is_quoted
        elif one == "{":
            depth += 1
            begin = place + 1 if depth == 1 else begin
        elif one == "}":
            depth -= 1
            if depth < 0:
                break
            if not depth:
                parts.append(line[begin:place])
        elif not depth and not one.isspace():
            break
    return parts


def judge_question(
    it: Question,
    sockets: Collection[str],
    own: float,
    users: tuple[Account | None, Account],
    machine: Machine,
) -> list[Item]:
    """Judge one question.

    Args:
        it: From `questions`.
        sockets: Where the daemon's policy service listens by its options.
        own: Seconds within which it answers.
        users: The account of Exim, None where it is not known; and of deliveries.
        machine: This one.
    """
    exim, deliveries = users
    answer = machine.answer(it.at)
    is_local = it.at.startswith("/")
    shut = machine.objection(exim, it.at, WRITE) if exim and is_local else ""
    stranger = answer.owner if answer.owner not in {None, 0, deliveries.uid} else None
    level, then = (warn, _UNJUDGED) if it.is_forgiving else (fail, _PUT_OFF)
    who = f"Exim's ACL {it.acl}"
    listens = ", ".join(sockets) or "nothing"
    return said(
        first(
            level(
                answer.trouble and it.at not in sockets,
                f"{who} asks at {it.at}, where none answers ({answer.trouble}) and the"
                f" daemon is not to listen (listen.policy.at has {listens}): {then}",
                f"listen: {{policy: {{at: [{it.at}]}}}}",
            ),
            level(
                answer.trouble,
                f"{who} asks the daemon at {it.at}, where none answers"
                f" ({answer.trouble}): {then}",
                machine.start,
            ),
            level(
                shut,
                f"{who} asks the daemon at {it.at}, but {shut}: {then}",
                f"listen: {{policy: {{group: {exim.name if exim else ''}}}}}",
            ),
            warn(
                stranger is not None,
                f"{who} asks at {it.at}, which a process of user {stranger} serves, and"
                f" not {deliveries.name}'s: what deliveries remember is not known there",
            ),
            ok(True, f"{who} asks the daemon at {it.at}, which answers"),
        ),
        level(
            it.within is None or it.within <= own,
            f"{who} waits {_seconds(it.within)} for an answer, which takes up to"
            f" {own:g} s (policy.timeout): then {then}",
            f"{{{own + 2:.0f}s}} as the third part of ${{readsocket",
        ),
        warn(
            not it.is_forgiving,
            f"{who} does not say what the answer is when there is none: any trouble of"
            " the daemon puts off all mail",
            "{} as the fifth part of ${readsocket, behind {10s}{ }",
        ),
    )


def _seconds(within: float | None) -> str:
    return "a time that is none" if within is None else f"{within:g} s"
