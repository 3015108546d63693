"""The delivery status filter (pipe_delivery_status_filter): what it makes of accidents.

Without one, a command that does not start bounces the message: pipe(8) takes any status
but 75 for a refusal.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mxpolicy.check.master_cf import words
from mxpolicy.check.report import fail, first, ok, said, warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.postfix_rows import Transport
    from mxpolicy.check.report import Item

__all__ = [
    "ACCIDENTS",
    "FILTER",
    "FILTER_NAME",
    "REFUSAL",
    "filter_tables",
    "judge_filter",
]

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


def filter_tables(service: Service, settings: Mapping[str, str]) -> list[str]:
    """Return the tables of the delivery status filter, in the order of the question."""
    text = service.overrides.get(FILTER_NAME, settings[FILTER_NAME])
    return words(text, " \t,")


def judge_filter(it: Transport) -> list[Item]:
    """Return what is said of the filter of one service."""
    hard = [one for one in ACCIDENTS if not it.filtered.get(one, "").startswith("4")]
    # Ours first: it is the narrower.
    value = ", ".join(filter(None, (FILTER, it.filter_as_written)))
    return said(
        first(
            warn(
                it.settings["soft_bounce"] == "yes",
                "soft_bounce is yes: nothing bounces, whatever hosts say, until"
                " maximal_queue_lifetime",
                "postconf -e soft_bounce=no",
            ),
            warn(
                it.filter_unseen,
                f"{FILTER_NAME} could not be asked: {it.filter_unseen}",
            ),
            fail(
                hard,
                f"{FILTER_NAME} does not soften '{''.join(hard[:1])[6:]}': when Python"
                " does not start, or a file is missing, mail is bounced, not deferred",
                f"postconf -PX {it.service.place}/{FILTER_NAME}"
                if FILTER_NAME in it.service.overrides
                else f"postconf -e {shlex.quote(f'{FILTER_NAME} = {value}')}",
            ),
            ok(
                True,
                f"{it.service.name}: accidents of the command are deferred"
                f" ({FILTER_NAME})",
            ),
        ),
        warn(
            it.filtered.get(REFUSAL, "").startswith("4"),
            f"{FILTER_NAME} softens 5.1.1: what a host refuses for good stays in the"
            " queue",
        ),
    )
