"""Transports for those cases that contrib's own way to call mxpolicy cannot show.

`many`   several recipients in one run
`hasty`  short times, where the real ones are minutes: what comes of silence late in a
         transaction
"""

from collections.abc import Sequence

from .case import Placed
from .lab import TRANSPORTS, Lab

MANY, HASTY = "many", "hasty"

HASTY_DEADLINE = 30.0
"""Seconds; the final dot is sent within them."""
HASTY_PROGRESS = 3.0
"""Seconds without an acknowledged byte of mail data."""

_CONFIGURATION = "/etc/mxpolicy/hasty.yaml"

_ENTRY = (
    "unix - n n - 100 pipe flags=q user=mxpolicy null_sender= "
    "argv=/opt/mxpolicy/bin/mxpolicy pipe -f ${{sender}} --nexthop ${{nexthop}} "
    "--queue-id ${{queue_id}} {options} -- ${{recipient}}"
)

_ENTRIES = {
    MANY: _ENTRY.format(options="--deadline 2900s"),
    HASTY: _ENTRY.format(
        options=f"--deadline {HASTY_DEADLINE:.0f}s --config {_CONFIGURATION}"
    ),
}

_SETTINGS = {
    "many_time_limit": "3600s",
    "hasty_destination_recipient_limit": "1",
    "hasty_time_limit": "3600s",
}

_FILES = {_CONFIGURATION: f"transaction: {{body_progress: {HASTY_PROGRESS:.0f}s}}\n"}

ALL_TRANSPORTS = (*TRANSPORTS, *_ENTRIES)


def lab_of_cases(placed: Sequence[Placed]) -> Lab:
    """Return a lab for these cases, with every transport that one could want."""
    return Lab(placed, transports=_ENTRIES, settings=_SETTINGS, files=_FILES)
