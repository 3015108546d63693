"""Whether a delivery ends before Postfix kills it; times in main.cf."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mxpolicy.check.configuration import SHORT_DEADLINE, TOO_SHORT
from mxpolicy.check.report import fail, first, ok, said, warn
from mxpolicy.pipe import ALARM_INTERVAL
from mxpolicy.pipe_command import ALARM_SLACK, time_needed
from mxpolicy.protocol.smtp_states import DOT_TIME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mxpolicy.check.master_cf import Service
    from mxpolicy.check.report import Item
    from mxpolicy.options import Options

__all__ = ["DAY", "LEAST_MARGIN", "MARGIN", "judge_time", "parse_time"]

# Seconds between the last reply that is waited for and Postfix's limit: contrib's, and
# the least, in which the last alarm rings.
MARGIN = 100.0
LEAST_MARGIN = ALARM_SLACK + 2 * ALARM_INTERVAL

DAY = 86400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}
_TIME = re.compile(r"(\d+)([smhdw]?)")


def parse_time(text: str, unit: str = "s") -> float | None:
    """Return the seconds of a time in main.cf, None if it is none.

    Args:
        text: ``3600s``, ``5d``, ``0``.
        unit: What a bare number means.
    """
    found = _TIME.fullmatch(text)
    return float(found[1]) * _UNITS[found[2] or unit] if found else None


def judge_time(
    service: Service, settings: Mapping[str, str], given: float | None, options: Options
) -> list[Item]:
    """Judge whether a delivery ends before Postfix kills it, and bounces the message.

    Args:
        service: The entry.
        settings: As they hold for it.
        given: What ``--deadline`` says, None without it.
        options: From the configuration file that the command reads.
    """
    name = f"{service.name}_time_limit"
    written = settings[name]
    limit = parse_time(written)
    if limit is None:
        return said(warn(True, f"{name} cannot be understood: {written}"))
    source = "--deadline" if given else "the option deadline"
    deadline, needed = given or options.deadline, time_needed(given, options)
    longest = max(limit, deadline)
    watchdog = parse_time(settings["daemon_timeout"])
    return said(
        first(
            fail(
                limit < needed + LEAST_MARGIN,
                f"{name} is {limit:.0f} s, {source} {deadline:.0f} s, and a host may"
                f" take {DOT_TIME:.0f} s more to answer the end of a message: Postfix"
                " kills a delivery that is still under way, and the message is bounced"
                " or arrives twice",
                service.set_command(name, f"{deadline + DOT_TIME + MARGIN:.0f}s"),
            ),
            ok(
                needed < deadline + DOT_TIME,
                f"{service.name}: without --deadline a message must have left after"
                f" {needed - DOT_TIME:.0f} s, or Postfix might kill the delivery while"
                " its end is answered",
            ),
            ok(
                True,
                f"{service.name}: deferred after {needed:.0f} s at the latest, killed by"
                f" Postfix after {limit:.0f} s",
            ),
        ),
        fail(
            deadline < SHORT_DEADLINE,
            f"{service.name}: {source} is {deadline:.0f} s: {TOO_SHORT}",
        ),
        fail(
            watchdog is not None and watchdog <= longest,
            f"daemon_timeout is {watchdog or 0.0:.0f} s: Postfix gives up on {service.name}"
            f" before {name} has passed, and tries again beside it",
            service.set_command("daemon_timeout", f"{longest * 2:.0f}s"),
        ),
    )
