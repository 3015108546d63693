"""The lines for Exim: those of contrib/exim, where each is explained. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mxpolicy.setup.steps import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ACL",
    "LMTP_SOCKET",
    "RETRY",
    "ROUTER",
    "TRANSPORT",
    "TRANSPORT_LMTP",
    "domains_of",
]
__all__ += ["router", "transport"]

# Where `mxpolicy serve` has it.
LMTP_SOCKET = "/run/mxpolicy/lmtp"

ROUTER = r"""
mxpolicy:
  driver = accept
  domains = ! +local_domains
  transport = mxpolicy
  no_verify
  no_more
""".lstrip("\n")

TRANSPORT = r"""
mxpolicy:
  driver = pipe
  command = /opt/mxpolicy/bin/mxpolicy pipe --exim --deadline 2900s -- $pipe_addresses
  environment = RETURN_PATH=${listquote{:}{$return_path}}
  user = mxpolicy
  group = mxpolicy
  message_prefix =
  message_suffix =
  batch_max = 1
  temp_errors = 1:2:64:65:66:67:68:70:71:72:73:74:75:76:77:78:120:126:127:254
  freeze_signal
  timeout = 1h
  timeout_defer
  return_fail_output
  log_output
  max_output = 20K
""".lstrip("\n")

TRANSPORT_LMTP = r"""
mxpolicy_lmtp:
  driver = lmtp
  socket = /run/mxpolicy/lmtp
  timeout = 1h
  batch_max = 50
""".lstrip("\n")

RETRY = r"""
*                      *           F,2h,15m; G,16h,1h,1.5; F,4d,6h
""".lstrip("\n")

ACL = r"""
  warn
    set acl_m_mxpolicy =

  warn
    domains = ! +local_domains
    set acl_m_mxpolicy = recipient

  warn
    domains = +local_domains
    ! hosts = +relay_from_hosts
    ! authenticated = *
    set acl_m_mxpolicy = sender

  warn
    condition = ${if def:acl_m_mxpolicy}
    set acl_m_mxpolicy = ${sg{${readsocket{/run/mxpolicy/policy}\
      {request=smtpd_access_policy\n\
      protocol_state=RCPT\n\
      policy_context=$acl_m_mxpolicy\n\
      client_address=$sender_host_address\n\
      sasl_username=${escape:$authenticated_id}\n\
      sender=$sender_address\n\
      recipient=$local_part@$domain\n\n}\
      {10s}{ }{}}}{\N^action=|\s+$\N}{}}

  deny
    condition = ${if match{$acl_m_mxpolicy}{\N^(5\d\d|REJECT)\b\N}}
    message = ${sg{$acl_m_mxpolicy}{^REJECT}{550}}

  defer
    condition = ${if match{$acl_m_mxpolicy}{\N^(4\d\d|DEFER|DEFER_IF_PERMIT)\b\N}}
    message = ${sg{$acl_m_mxpolicy}{\N^DEFER(_IF_PERMIT)?\b\N}{450}}

  warn
    condition = ${if match{$acl_m_mxpolicy}{\N^WARN\b\N}}
    log_message = $acl_m_mxpolicy

  warn
    condition = ${if match{$acl_m_mxpolicy}{\N^PREPEND\b\N}}
    add_header = ${sg{$acl_m_mxpolicy}{\N^PREPEND\s+\N}{}}
""".lstrip("\n")

_ELSEWHERE = "! +local_domains"
_HEAD = (
    "# Made by `mxpolicy setup exim`; contrib/exim of mxpolicy explains each line.\n"
)
_DOMAINS = re.compile(r"^  domains = (.*)$", re.M)


def router(domains: Sequence[str], lmtp: bool) -> str:
    """Return the file of the router.

    Args:
        domains: Whose mail it takes, ``.example.com`` for all below it; none is all
            mail for elsewhere.
        lmtp: Whether the daemon gets it by LMTP.
    """
    text = ROUTER
    if domains:
        names = (f"*{one}" if one.startswith(".") else one for one in domains)
        # A domain of our own stays here, whatever was asked for.
        text = text.replace(_ELSEWHERE, " : ".join((_ELSEWHERE, *names)))
    if lmtp:
        text = text.replace("transport = mxpolicy", "transport = mxpolicy_lmtp")
    return _HEAD + text


def domains_of(text: str) -> list[str] | None:
    """Return the domains of a file that `router` made; None where it takes all mail."""
    found = _DOMAINS.search(text)
    if found is None or found[1] == _ELSEWHERE:
        return None
    _, *names = found[1].split(" : ")
    return [one.strip().removeprefix("*") for one in names]


def transport(program: str, config: str, lmtp: bool) -> str:
    """Return the file of the transport.

    Args:
        program: Absolute path of mxpolicy.
        config: For its ``--config``; empty is the usual file.
        lmtp: Whether the daemon gets the mail by LMTP.
    """
    if lmtp:
        return _HEAD + TRANSPORT_LMTP
    named = f" --config {config}" if config else ""
    return _HEAD + TRANSPORT.replace(f"{PROGRAM} pipe", f"{program} pipe{named}")
