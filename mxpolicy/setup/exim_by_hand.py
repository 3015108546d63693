"""The lines for an Exim whose configuration is the postmaster's own. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.setup.exim_lines import ACL, RETRY, router, transport

if TYPE_CHECKING:
    from mxpolicy.setup.steps import Asked

__all__ = ["ACL_PLACE", "lines"]

ACL_PLACE = (
    "to put in by hand: in the ACL of acl_smtp_rcpt (Debian: acl_check_rcpt in"
    " conf.d/acl/30_exim4-config_check_rcpt), before its first accept with"
    " hosts = +relay_from_hosts"
)


def lines(asked: Asked) -> list[tuple[str, str]]:
    """Return where each part goes in a configuration in a single file, and its text."""
    rows = (
        (
            asked.all_mail or asked.domains,
            'after "begin routers", before the router dnslookup',
            router(asked.domains, asked.lmtp),
        ),
        (
            True,
            'after "begin transports"',
            transport(asked.program, asked.config, asked.lmtp),
        ),
        (True, 'after "begin retry", if there is no rule for all domains', RETRY),
        (asked.policy, ACL_PLACE, ACL),
    )
    return [(where, text) for is_asked, where, text in rows if is_asked]
