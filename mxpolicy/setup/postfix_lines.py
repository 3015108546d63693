"""The lines for Postfix: those of contrib/postfix, where each is explained. Pure.

A service is its line in master.cf, in one piece, as ``postconf -M`` takes it. A setting
is a parameter of main.cf and its value.
"""

from __future__ import annotations

from typing import NamedTuple

from mxpolicy.check.status_filter import FILTER, FILTER_NAME
from mxpolicy.setup.steps import PROGRAM

__all__ = [
    "ALL_MAIL",
    "FALLBACK",
    "FALLBACK_AT",
    "LMTP",
    "LMTP_AT",
    "OWN",
    "PIPE",
    "POLICY",
    "RELAY_CHECK",
    "RELAY_LIST",
    "SENDER_CHECK",
    "SENDER_LIST",
    "STRANGERS",
    "TABLE",
    "Part",
    "table_line",
]

# Where smtp(8) leaves what it could not deliver.
FALLBACK_AT = ("127.0.0.1", 10026)

# Names of our own: what begins with one belongs to a service of ours.
OWN = ("mxpolicy", "mxlmtp")

# The table of --one-domain, in the directory of main.cf, and what may be read there.
TABLE = "mxpolicy_transport"

# The option listen.lmtp.at that goes with `LMTP`.
LMTP_AT = "127.0.0.1:2424"

_ASK = "check_policy_service {{ $mxpolicy_policy, policy_context={} }}"
RELAY_CHECK = _ASK.format("recipient")
SENDER_CHECK = _ASK.format("sender")

# Clients whose senders are not judged.
STRANGERS = "permit_mynetworks, permit_sasl_authenticated"

# Where the postmaster has no lists.
RELAY_LIST = (
    f"permit_auth_destination, {RELAY_CHECK}, {STRANGERS}, defer_unauth_destination"
)
SENDER_LIST = f"{STRANGERS}, {SENDER_CHECK}"


class Part(NamedTuple):
    """What goes together.

    Attributes:
        services: Lines of master.cf.
        settings: (parameter, value) of main.cf.
    """

    services: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


PIPE = Part(
    services=(
        "mxpolicy unix - n n - 60 pipe"
        " flags=q user=mxpolicy null_sender="
        f" argv={PROGRAM} pipe -f ${{sender}} --nexthop ${{nexthop}}"
        " --queue-id ${queue_id} --deadline 2900s -- ${recipient}",
    ),
    settings=(
        ("mxpolicy_destination_recipient_limit", "1"),
        ("mxpolicy_time_limit", "3600s"),
        (FILTER_NAME, FILTER),
    ),
)

LMTP = Part(
    services=(
        "mxlmtp unix - - n - 200 lmtp"
        " -o lmtp_host_lookup=dns"
        " -o lmtp_dns_reply_filter=static:IGNORE"
        f" -o lmtp_fallback_relay=[127.0.0.1]:{LMTP_AT.rpartition(':')[2]}"
        " -o lmtp_bind_address=127.0.0.1"
        " -o lmtp_bind_address6=::1"
        " -o lmtp_data_done_timeout=1800s"
        " -o lmtp_send_xforward_command=yes"
        " -o lmtp_tls_security_level=none"
        " -o lmtp_tls_wrappermode=no",
    ),
    settings=(
        ("mxlmtp_destination_concurrency_failed_cohort_limit", "0"),
        ("mxlmtp_destination_concurrency_negative_feedback", "0"),
        ("mxlmtp_destination_concurrency_limit", "20"),
    ),
)

# With `mxlmtp:` where LMTP is asked for.
ALL_MAIL = Part(settings=(("default_transport", "mxpolicy:"), ("relayhost", "")))

FALLBACK = Part(
    services=(
        "127.0.0.1:10026 inet n - n - - smtpd"
        " -o syslog_name=postfix/fallback"
        " -o content_filter=mxpolicy:"
        " -o mynetworks=127.0.0.0/8"
        " -o inet_interfaces=all"
        " -o smtpd_client_restrictions=permit_mynetworks,permit_inet_interfaces,defer"
        " -o smtpd_helo_restrictions="
        " -o smtpd_sender_restrictions="
        " -o smtpd_relay_restrictions="
        " -o smtpd_recipient_restrictions=permit_mynetworks,permit_inet_interfaces,defer"
        " -o smtpd_data_restrictions="
        " -o smtpd_end_of_data_restrictions="
        " -o smtpd_sasl_auth_enable=no"
        " -o smtpd_client_event_limit_exceptions=0.0.0.0/0,[::]/0"
        " -o smtpd_upstream_proxy_protocol="
        " -o smtpd_tls_security_level=none"
        " -o smtpd_tls_wrappermode=no"
        " -o smtpd_proxy_filter="
        " -o smtpd_milters="
        " -o local_header_rewrite_clients="
        " -o receive_override_options=no_unknown_recipient_checks,"
        "no_address_mappings,no_header_body_checks,no_milters",
    ),
    settings=(("smtp_fallback_relay", "[127.0.0.1]:10026"),),
)

POLICY = Part(
    services=(
        f"mxpolicy-policy unix - n n - 0 spawn user=mxpolicy argv={PROGRAM} policy",
    ),
    settings=(
        (
            "mxpolicy_policy",
            "unix:private/mxpolicy-policy, default_action=DUNNO, timeout=10s,"
            " max_idle=60s",
        ),
        ("mxpolicy-policy_time_limit", "3600s"),
    ),
)


def table_line(domain: str, transport: str) -> str:
    """Return the line of the transport table that sends *domain* by *transport*."""
    return f"{domain:<19} {transport}:\n"
