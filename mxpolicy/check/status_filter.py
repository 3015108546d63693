"""The delivery status filter (pipe_delivery_status_filter): what it makes of accidents.

Without one, a command that does not start bounces the message: pipe(8) takes any status
but 75 for a refusal.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.master_cf import words
from mxpolicy.check.programs import ProgramError
from mxpolicy.check.report import fail, first, ok, said, warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.postconf import Postconf
    from mxpolicy.check.report import Item

__all__ = ["FILTER", "FILTER_NAME", "Filtered", "ask_filter", "judge_filter"]

FILTER_NAME = "pipe_delivery_status_filter"

# As in contrib/postfix/main.cf.
FILTER = "regexp:{ {/^5(\\.3\\.[0-5] (Command (died|time limit exceeded).*))/ 4$$1} }"

# pipe(8)'s words for ends that we never choose: Python does not start, a module or a file
# is missing, memory has run out.
ACCIDENTS = (
    '5.3.0 Command died with status 1: "mxpolicy"',
    '5.3.0 Command died with status 127: "mxpolicy"',
    '5.3.0 Command time limit exceeded: "mxpolicy"',
)

# An end that we do choose.
REFUSAL = "5.1.1 no such user"


class Filtered(NamedTuple):
    """What the filter of one service makes of some ends.

    Attributes:
        answers: Of each of `ACCIDENTS` and of `REFUSAL`; empty where it leaves that alone.
        as_written: The filter in main.cf, with its ``$$``.
        unseen: Why it could not be asked.
    """

    answers: Mapping[str, str] = {}
    as_written: str = ""
    unseen: str = ""


def ask_filter(
    service: Service, settings: Mapping[str, str], postconf: Postconf
) -> Filtered:
    """Return what the filter of *service* makes of some ends; with soft_bounce, nothing."""
    if settings["soft_bounce"] == "yes":
        return Filtered()
    tables = words(service.overrides.get(FILTER_NAME, settings[FILTER_NAME]), " \t,")
    try:
        ends = {end: postconf.filtered(end, tables) for end in (*ACCIDENTS, REFUSAL)}
        return Filtered(ends, postconf.raw(FILTER_NAME) if tables else "")
    except ProgramError as error:
        return Filtered(unseen=str(error))


def judge_filter(
    service: Service, settings: Mapping[str, str], it: Filtered
) -> list[Item]:
    """Return what is said of the filter of *service*."""
    hard = [one for one in ACCIDENTS if not it.answers.get(one, "").startswith("4")]
    # Ours first: it is the narrower.
    value = ", ".join(filter(None, (FILTER, it.as_written)))
    return said(
        first(
            warn(
                settings["soft_bounce"] == "yes",
                "soft_bounce is yes: nothing bounces, whatever hosts say, until"
                " maximal_queue_lifetime",
                "postconf -e soft_bounce=no",
            ),
            warn(
                it.unseen,
                f"{FILTER_NAME} could not be asked: {it.unseen}",
            ),
            fail(
                hard,
                f"{FILTER_NAME} does not soften '{''.join(hard[:1])[6:]}': when Python"
                " does not start, or a file is missing, mail is bounced, not deferred",
                f"postconf -PX {service.place}/{FILTER_NAME}"
                if FILTER_NAME in service.overrides
                else f"postconf -e {shlex.quote(f'{FILTER_NAME} = {value}')}",
            ),
            ok(
                True,
                f"{service.name}: accidents of the command are deferred"
                f" ({FILTER_NAME})",
            ),
        ),
        warn(
            it.answers.get(REFUSAL, "").startswith("4"),
            f"{FILTER_NAME} softens 5.1.1: what a host refuses for good stays in the"
            " queue",
        ),
    )
