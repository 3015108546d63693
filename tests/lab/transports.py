"""Transports beside those of contrib that are called by its own names.

For cases that contrib's own way to call mxpolicy cannot show:

`many`          several recipients in one run
`hasty`         short times, where the real ones are minutes: what comes of silence late
                in a transaction

Where there is a daemon (`lab_with_daemon`), by the way that a message gets there:

`handed`        contrib's pipe transport; the process hands the message over
`handed-many`   `many`, likewise
`handed-exim`   the pipe transport of contrib/exim, likewise
`postfix-lmtp`  Postfix's lmtp(8) to the unix socket
`mxlmtp`        the same by TCP, with a queue for each domain
`exim-lmtp`     Exim's lmtp transport
"""

from collections.abc import Mapping, Sequence

from .case import Placed
from .daemon import LMTP
from .lab import EXIM_LMTP, HANDED_EXIM, TRANSPORTS, Lab
from .postfix import CONTRIB

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


TO_SOCKET = "postfix-lmtp"

DAEMON_TRANSPORTS = (
    *("handed", "handed-many", HANDED_EXIM),
    *(TO_SOCKET, "mxlmtp", EXIM_LMTP),
)

# The service of contrib/postfix/lmtp-socket, by another name.
_TO_SOCKET = (CONTRIB / "lmtp-socket" / "master.cf").read_text().split("\nmxlmtp ")[1]
_ONE_DESTINATION = {
    "initial_destination_concurrency": "300",
    "destination_concurrency_limit": "300",
    "destination_concurrency_failed_cohort_limit": "0",
    "destination_concurrency_negative_feedback": "0",
}


def lab_with_daemon(
    placed: Sequence[Placed], settings: Mapping[str, str] | None = None
) -> Lab:
    """Return a lab for cases with `DAEMON_TRANSPORTS`, and the daemon in it.

    *settings* are more lines for Postfix's main.cf.
    """
    lab = Lab(
        placed,
        transports={MANY: _ENTRIES[MANY], TO_SOCKET: _TO_SOCKET.replace("\n", "")},
        settings={
            **{key: text for key, text in _SETTINGS.items() if MANY in key},
            **{f"{TO_SOCKET}_{key}": text for key, text in _ONE_DESTINATION.items()},
            "default_transport": "smtp",
            **(settings or {}),
        },
        fragments=["lmtp-per-domain"],
        routes={
            "handed": "mxpolicy:",
            "handed-many": f"{MANY}:",
            "mxlmtp": "mxlmtp:",
            TO_SOCKET: f"{TO_SOCKET}:unix:{LMTP}",
        },
    )
    lab.start_daemon(f"transaction: {{body_progress: {HASTY_PROGRESS:.0f}s}}\n")
    return lab
