"""What is said of a pipe(8) service that runs mxpolicy: a pure function of what was gathered.

Each row is a condition, a sentence about what would happen, and the ``postconf`` line that
mends it.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import ADD_USER
from mxpolicy.check.command import Command, cannot_run, cannot_use_file
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.check.time_limit import judge_time
from mxpolicy.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.report import Item

__all__ = ["Transport", "judge_transport"]

# Bytes of memory that one delivery takes.
PROCESS = 30 * 1024 * 1024

_RECIPIENT = re.compile(r"recipient}|\$recipient|\(recipient")


class Transport(NamedTuple):
    """A pipe(8) service that runs mxpolicy, and what its entry refers to.

    Attributes:
        service: The entry.
        settings: As they hold for it; one that is not there is empty.
        memory: Of this machine, in bytes.
        command: What is run.
        unknown: The first macro that pipe(8) does not have; empty when it has all.
        other_file: What this check was told to look at, where that is another file.
    """

    service: Service
    settings: Mapping[str, str]
    memory: int
    command: Command = Command()
    unknown: str = ""
    other_file: str = ""


def judge_transport(it: Transport) -> list[Item]:
    """Return what is said of one service."""
    # One line for all of them: each alone would undo what the others mend.
    mend = _entry_mend(it.service, is_refused=it.service.is_user_refused(it.settings))
    items = [*_judge_process(it), *_judge_user(it, mend), *_judge_flags(it, mend)]
    items += [*_judge_recipients(it), *_judge_command(it)]
    if it.command.arguments and it.command.options:
        deadline = it.command.arguments.deadline
        items += judge_time(it.service, it.settings, deadline, it.command.options)
    return items


def _judge_process(it: Transport) -> list[Item]:
    name, place, settings = it.service.name, it.service.place, it.settings
    most = it.service.most(settings)
    bound = f"up to {most}" if most else "any number of"
    fitting = max(1, min(Options().limits.processes, it.memory // 2 // PROCESS))
    return said(
        ok(True, f"transport {name} runs {' '.join(it.service.argv)}"),
        fail(
            it.service.unprivileged != "n",
            f"{name} has no 'n' in the column unpriv: pipe(8) cannot become another"
            " user, and all mail is deferred",
            f"postconf -F {place}/unprivileged=n",
        ),
        fail(
            it.service.is_chrooted(settings),
            f"{name} runs in a chroot, where there is no Python: all mail is deferred",
            f"postconf -F {place}/chroot=n",
        ),
        first(
            warn(
                not most or most * PROCESS > it.memory / 2,
                f"{name}: {bound} processes of 30 MB may run at once, more than half of"
                " this machine's memory",
                f"postconf -F {place}/process_limit={fitting}",
            ),
            ok(True, f"{name}: at most {most} processes at once"),
        ),
    )


def _judge_user(it: Transport, mend: str) -> list[Item]:
    name, program = it.service.name, it.service.argv[0]
    user = it.service.attributes.get("user", "")
    return said(
        first(
            fail(
                not user,
                f"{name} has no user=: pipe(8) ends, and all mail is deferred",
                mend,
            ),
            fail(
                it.service.is_user_refused(it.settings),
                f"{name} has user={user}, which pipe(8) refuses: all mail is deferred",
                mend,
            ),
            fail(
                it.command.account is None,
                f"{name} has user={user}, which is not known here: all mail is deferred",
                ADD_USER,
            ),
            warn(
                not program.startswith("/"),
                f"{name} runs {program} without a path; pipe(8) looks for it in /usr/bin"
                " and /bin only",
            ),
            cannot_run(it.command, name, ": all mail is deferred"),
        )
    )


def _judge_flags(it: Transport, mend: str) -> list[Item]:
    name, flags = it.service.name, it.service.attributes.get("flags", "")
    harmful = "".join(one for one in "FB.>" if one in flags)
    added = "".join(one for one in "DOR" if one in flags)
    null_sender = it.service.attributes.get("null_sender", "MAILER-DAEMON")
    return said(
        fail(
            harmful,
            f"{name} has the flags {harmful}, which change the message: signatures"
            " (DKIM) break",
            mend,
        ),
        warn(
            "u" in flags,
            f"{name} has the flag u: local parts arrive in lower case, and hosts that"
            " tell A from a refuse them",
            mend,
        ),
        warn(
            added,
            f"{name} has the flags {added}, which add header fields (Delivered-To,"
            " X-Original-To, Return-Path) that are for mailboxes, and tell the recipient"
            " too much",
            mend,
        ),
        warn(
            "q" not in flags,
            f"{name} lacks the flag q: a local part with blanks or quotes cannot be told"
            " from another one",
            mend,
        ),
        first(
            ok(null_sender == "", f"{name}: the sender of a bounce stays empty"),
            warn(
                null_sender == "MAILER-DAEMON",
                f"{name} lacks null_sender=: the empty sender of a bounce arrives as a"
                " name, by default MAILER-DAEMON; mxpolicy takes that one, and no other"
                " one, for the empty sender",
                mend,
            ),
            fail(
                True,
                f"{name} has null_sender={null_sender}: bounces leave with that sender,"
                " and can loop",
                mend,
            ),
        ),
    )


def _entry_mend(service: Service, *, is_refused: bool) -> str:
    """Return the line that gives the entry the attributes that it should have."""
    flags = service.attributes.get("flags", "")
    kept = "".join(one for one in flags if one not in "FB.>uDOR")
    wanted = {"flags": kept if "q" in kept else f"{kept}q", "null_sender": ""}
    if is_refused:
        wanted["user"] = "mxpolicy"
    before, argv, after = service.command.partition("argv=")
    for name, value in wanted.items():
        if service.attributes.get(name) != value:
            old = re.compile(rf"(?<=\s){name}=\S*(?=\s)")
            before, count = old.subn(f"{name}={value}", before, count=1)
            before += "" if count else f"{name}={value} "
    return (
        f"postconf -F {shlex.quote(f'{service.place}/command={before}{argv}{after}')}"
    )


def _judge_recipients(it: Transport) -> list[Item]:
    name = f"{it.service.name}_destination_recipient_limit"
    limit = it.settings[name]
    return said(
        warn(
            name in it.service.overrides,
            f"-o {name} in master.cf has no effect: the queue manager reads main.cf",
            f"postconf -PX {it.service.place}/{name}",
        ),
        first(
            ok(limit == "1", f"{it.service.name}: one recipient for each run"),
            warn(
                True,
                f"{name} is {limit or 'unknown'}, not 1: while one recipient of a"
                " message is deferred, all of that run are, and a refusal of one bounces"
                " them all",
                f"postconf -e {name}=1",
            ),
        ),
    )


def _judge_command(it: Transport) -> list[Item]:
    name, arguments = it.service.name, it.command.arguments
    return said(
        fail(
            it.unknown,
            f"{name}: pipe(8) does not know ${{{it.unknown}}}: all mail is deferred",
        ),
        fail(
            it.command.usage_error,
            f"{name}: all mail is deferred: {it.command.usage_error}",
        ),
        warn(
            arguments and not arguments.nexthop,
            f"{name} does not pass --nexthop ${{nexthop}}: a host given in"
            " transport_maps or relayhost has no effect",
        ),
        warn(
            arguments and not arguments.queue_id,
            f"{name} does not pass --queue-id ${{queue_id}}: log lines do not say which"
            " message they are about",
        ),
        fail(
            arguments and not _RECIPIENT.search(" ".join(it.service.argv)),
            f"{name} does not pass ${{recipient}}: mail goes astray",
        ),
        cannot_use_file(it.command, name, fail, "all mail is deferred (4.3.5)"),
        warn(
            it.other_file,
            f"{name} reads {it.command.file}, not {it.other_file}, which was looked at here",
        ),
    )
