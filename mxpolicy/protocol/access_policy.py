"""Postfix's SMTP access policy protocol: requests with their types, answers as bytes.

SMTPD_POLICY_README and access(5); the server's side. A request is a set of
attributes. An answer is one line ``action=...`` and an empty one. The words of an
action are checked where they come from, in the configuration (`parse_action`).

Actions that could do harm here are left out on purpose. ``OK`` and ``RELAY`` before
``reject_unauth_destination`` let a stranger relay. ``DISCARD``, ``REDIRECT``, ``BCC`` and
``HOLD`` act on a whole message, and a request is about one address of it. 421 and 521
hang up on the other recipients.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.address import canonical_address
from mxpolicy.reply import EnhancedStatus, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DUNNO",
    "MAX_ACTION",
    "VERBS",
    "AccessRequest",
    "Action",
    "RequestError",
    "answer",
    "parse_action",
    "parse_request",
]

REQUEST = "smtpd_access_policy"
"""The only kind of request there is."""

DUNNO = "DUNNO"

# Characters. Postfix puts "NNN X.Y.Z <address>: Recipient address rejected: " before it,
# and a reply line should not be over 512 bytes (RFC 5321 §4.5.3.1.5); the address may be
# half of that. A header of PREPEND may have 998 (RFC 5322 §2.1.1).
MAX_ACTION = 400

VERBS = ("DUNNO", "REJECT", "DEFER", "DEFER_IF_PERMIT", "WARN", "PREPEND", "FILTER")
"""Beside them, ``4NN`` and ``5NN``."""

# Characters; more are no address (INET6_ADDRSTRLEN, and a zone).
_MAX_ADDRESS = 100

_WORDS = re.compile(r"(\S+)(?:\s+(.*))?", re.DOTALL)
_CODE = re.compile(r"[45][0-9][0-9]")
# RFC 5322 §2.2: a field's name is printable ASCII without colon.
_HEADER = re.compile(r"[!-9;-~]+:[ \t]*\S.*")
# transport:nexthop, as in transport(5); an empty nexthop is the recipient's domain.
_FILTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*:\S*")


class RequestError(ValueError):
    """The attributes are not a request of this protocol; the text says why."""


class AccessRequest(NamedTuple):
    """What smtpd(8) asks about; an attribute that was not sent is empty.

    Attributes:
        protocol_state: ``RCPT``, ``MAIL``, ...; upper case.
        sender: Reverse-path without its brackets; empty for the null one, and
            before MAIL.
        recipient: Forward-path, its local part *unquoted*. Empty before RCPT, and
            after it when there are several.
        client_address: Canonical; empty when it is not an address.
        sasl_username: The name of the login; empty without one.
        queue_id: Empty until the first recipient was accepted.
        policy_context: The ``policy_context`` of ``check_policy_service`` in main.cf.
    """

    protocol_state: str = ""
    sender: str = ""
    recipient: str = ""
    client_address: str = ""
    sasl_username: str = ""
    queue_id: str = ""
    policy_context: str = ""


class Action(NamedTuple):
    """What an answer does.

    Attributes:
        verb: One of `VERBS`, or three digits.
        text: What follows it; may be empty where the verb allows that.
    """

    verb: str
    text: str = ""

    @property
    def class_(self) -> int:
        """4 or 5 when it refuses the command, for now or for good; else 0."""
        if self.verb[0] in "45":
            return int(self.verb[0])
        return {"REJECT": 5, "DEFER": 4, "DEFER_IF_PERMIT": 4}.get(self.verb, 0)

    def for_now(self) -> Action:
        """Return the same for now: a later try may go well."""
        if self.class_ != 5:
            return self
        verb = "DEFER" if self.verb == "REJECT" else f"4{self.verb[1:]}"
        text = self.text
        if status := EnhancedStatus.parse(text):
            text = f"{status._replace(class_=4)}{text.removeprefix(str(status))}"
        return Action(verb, text)

    def __str__(self) -> str:
        return f"{self.verb} {self.text}".rstrip()


def parse_request(attributes: Mapping[str, str]) -> AccessRequest:
    """Return the request in *attributes*; those of later versions are ignored.

    Raises:
        RequestError: ``request`` is not `REQUEST`.
    """
    get = attributes.get
    kind = get("request", "")
    if kind != REQUEST:
        raise RequestError(f"expected request={REQUEST}, not {kind[:40]!a}")
    return AccessRequest(
        protocol_state=get("protocol_state", "").upper(),
        sender=get("sender", ""),
        recipient=get("recipient", ""),
        client_address=_address(get("client_address", "")[:_MAX_ADDRESS]),
        sasl_username=get("sasl_username", ""),
        queue_id=get("queue_id", ""),
        policy_context=get("policy_context", ""),
    )


@lru_cache(256)
def _address(text: str) -> str:
    return canonical_address(text) or ""


@lru_cache(256)
def parse_action(text: str) -> Action:
    """Return the action in *text*, as access(5) would understand it.

    Raises:
        ValueError: With a sentence that says what is expected.
    """
    if not text.isascii() or not text.isprintable():
        raise ValueError("expected printable ASCII, in one line")
    if len(text) > MAX_ACTION:
        raise ValueError(f"longer than {MAX_ACTION} characters")
    found = _WORDS.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected {', '.join(VERBS)}, or 4NN or 5NN and a text")
    action = Action(found[1].upper(), found[2] or "")
    if action.verb in {"421", "521"}:
        raise ValueError(f"{action.verb} would hang up; use another code")
    if action.verb not in VERBS and not _CODE.fullmatch(action.verb):
        raise ValueError(_unknown(found[1]))
    _check_text(action)
    return action


def _unknown(verb: str) -> str:
    expected = f"use one of {', '.join(VERBS)}, or 4NN or 5NN and a text"
    if verb.upper() in {"OK", "RELAY", "PERMIT"} or verb.isdigit():
        return (
            f"'{verb[:40]}' might let strangers relay, and is not allowed; {expected}"
        )
    return f"'{verb[:40]}' is not allowed here; {expected}"


def _check_text(action: Action) -> None:
    status = EnhancedStatus.parse(action.text)
    if status and action.class_ not in {0, status.class_}:
        raise ValueError(f"{status} does not begin with {action.class_}")
    if action.verb == "DUNNO" and action.text:
        raise ValueError("DUNNO has no text")
    if action.verb == "PREPEND" and not _HEADER.fullmatch(action.text):
        raise ValueError("PREPEND needs a header, for example PREPEND X-Note: a text")
    if action.verb == "FILTER" and not _FILTER.fullmatch(action.text):
        raise ValueError("FILTER needs transport:nexthop, for example FILTER mxpolicy:")


@lru_cache(256)
def answer(action: str) -> bytes:
    """Return the bytes that answer one request with *action*.

    They are one bounded line of printable ASCII, and the empty line.
    """
    return b"action=%b\n\n" % printable(action, 2 * MAX_ACTION).encode("ascii")
