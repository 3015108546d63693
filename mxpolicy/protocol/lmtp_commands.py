"""What an LMTP client's command lines say: paths, parameters, attributes.

RFC 5321 §4.1.2 (paths), RFC 1870 (SIZE), RFC 6152 (BODY), RFC 6531 (SMTPUTF8), RFC 3461
(RET, ENVID, NOTIFY, ORCPT), and Postfix's XFORWARD_README.

A path is only taken out of its brackets here. What is in it, the engine judges for all
doors alike. Bytes that are not UTF-8 are lone surrogates (PEP 383).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mxpolicy.address import is_utf8
from mxpolicy.errors import MxPolicyError
from mxpolicy.protocol.extensions import MailDsn, RcptDsn, from_xtext
from mxpolicy.reply import EnhancedStatus

__all__ = [
    "CommandError",
    "MailCommand",
    "RcptCommand",
    "parse_mail",
    "parse_rcpt",
    "parse_xforward",
]

# A path in its brackets. Angle brackets in it are in a quoted string; a quote without end
# begins none.
_PATH = r'<((?>"(?:\\.|[^"\\])*"|[^<>"]|"(?=[^"<>]*>))*)>'
_MAIL = re.compile(rf"FROM: *{_PATH}(?: +(.*))?\Z", re.IGNORECASE)
_RCPT = re.compile(rf"TO: *{_PATH}(?: +(.*))?\Z", re.IGNORECASE)
# RFC 5321 §4.1.2: A-d-l ":" in front of a mailbox. It MUST be accepted and SHOULD be
# ignored.
_SOURCE_ROUTE = re.compile(r"@[^:\"]*:")
_SIZE = re.compile(r"[0-9]{1,20}\Z")
# RFC 3461 §4.1, §4.3.
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})
_RET = frozenset({"FULL", "HDRS"})
# RFC 3461 §4.2: addr-type ";" xtext.
_ORCPT = re.compile(r"[A-Za-z0-9-]+;(?:[!-*,-<>-~]|\+[0-9A-F]{2})+\Z")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
# RFC 3461 §4.4: 100 characters before xtext. ORCPT has 500 (§4.2).
_MAX_ENVID = 100
_MAX_ORCPT = 500

_SYNTAX = EnhancedStatus(5, 5, 2)  # RFC 3463 §3.6
_ARGUMENTS = EnhancedStatus(5, 5, 4)

# What XFORWARD may say. Only IDENT is used.
XFORWARD_NAMES = frozenset({"NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"})
_UNAVAILABLE = "[UNAVAILABLE]"


class CommandError(MxPolicyError):
    """A command that cannot be taken.

    Attributes:
        code: Of the reply.
        status: Of the reply.
        text: Of the reply.
    """

    def __init__(self, code: int, status: EnhancedStatus, text: str) -> None:
        super().__init__(code, status, text)
        self.code = code
        self.status = status
        self.text = text

    def __str__(self) -> str:
        return f"{self.code} {self.status} {self.text}"


class MailCommand(NamedTuple):
    """What MAIL says.

    Attributes:
        reverse_path: Without its brackets; empty for the null one.
        size: Bytes of the message, as declared; None when not.
        dsn: What the sender wants to be told; None when nothing was said.
        has_parameters: Whether the client has used what the LHLO reply offers.
    """

    reverse_path: str
    size: int | None = None
    dsn: MailDsn | None = None
    has_parameters: bool = False


class RcptCommand(NamedTuple):
    """What RCPT says.

    Attributes:
        forward_path: Without brackets and source route.
        dsn: What the sender wants to be told; None when nothing was said.
    """

    forward_path: str
    dsn: RcptDsn | None = None


def parse_mail(arguments: str, *, dsn: bool) -> MailCommand:
    """Return what follows ``MAIL``; with *dsn*, RET and ENVID are taken.

    Raises:
        CommandError: It cannot be taken.
    """
    path, parameters = _path(_MAIL, arguments, "MAIL FROM:<address>")
    size, ret, envid = None, "", ""
    for name, value in parameters.items():
        if name == "SIZE" and _SIZE.match(value):
            size = int(value)
        elif (name == "BODY" and value.upper() in {"7BIT", "8BITMIME"}) or (
            name == "SMTPUTF8" and not value
        ):
            pass  # the mail data and the addresses themselves say it
        elif dsn and name == "RET" and value.upper() in _RET:
            ret = value.upper()
        elif dsn and name == "ENVID" and 0 < len(value) <= 3 * _MAX_ENVID:
            envid = _unxtext(name, value)
        else:
            raise _unknown_parameter(name, value)
    asked = MailDsn(ret, envid) if ret or envid else None
    return MailCommand(path, size, asked, bool(parameters))


def parse_rcpt(arguments: str, *, dsn: bool) -> RcptCommand:
    """Return what follows ``RCPT``; with *dsn*, NOTIFY and ORCPT are taken.

    Raises:
        CommandError: It cannot be taken.
    """
    path, parameters = _path(_RCPT, arguments, "RCPT TO:<address>")
    path = path[found.end() :] if (found := _SOURCE_ROUTE.match(path)) else path
    if not path:
        raise CommandError(501, EnhancedStatus(5, 1, 3), "no recipient address")
    notify: tuple[str, ...] = ()
    original = ""
    for name, value in parameters.items():
        if dsn and name == "NOTIFY" and (notify := _notify(value)):
            continue
        if dsn and name == "ORCPT" and (original := _orcpt(value)):
            continue
        raise _unknown_parameter(name, value)
    asked = RcptDsn(notify, original) if notify or original else None
    return RcptCommand(path, asked)


def parse_xforward(arguments: str) -> dict[str, str]:
    """Return {attribute: value} of ``XFORWARD``; a value that is not known is empty.

    Raises:
        CommandError: It cannot be taken.
    """
    attributes = {}
    for word in arguments.split():
        name, is_given, value = word.partition("=")
        name = name.upper()
        if not is_given or name not in XFORWARD_NAMES:
            raise CommandError(501, _ARGUMENTS, "bad XFORWARD attribute")
        value = _unxtext(name, value)
        attributes[name] = "" if value.upper() == _UNAVAILABLE else value
    if not attributes:
        raise CommandError(501, _ARGUMENTS, "XFORWARD needs attributes")
    return attributes


def _path(
    command: re.Pattern[str], arguments: str, form: str
) -> tuple[str, dict[str, str]]:
    """Return path and parameters of MAIL or RCPT."""
    found = command.match(arguments)
    if found is None:
        raise CommandError(501, _SYNTAX, f"bad syntax: say {form}")
    parameters = {}
    for word in (found[2] or "").split():
        name, _, value = word.partition("=")
        parameters[name.upper()] = value
    return found[1], parameters


def _notify(value: str) -> tuple[str, ...]:
    """Return the words of NOTIFY; none where they are wrong."""
    words = tuple(value.upper().split(","))
    return words if words == ("NEVER",) or set(words) <= _NOTIFY else ()


def _orcpt(value: str) -> str:
    """Return the value of ORCPT as all hosts take it; empty where it is wrong."""
    if value[:6].lower() == "utf-8;" and is_utf8(value):
        # RFC 6533 §3, utf-8-addr-unitext: only for SMTPUTF8. The other form is for all.
        value = _BEYOND_ASCII.sub(lambda found: f"\\x{{{ord(found[0]):02X}}}", value)
    return value if len(value) <= _MAX_ORCPT and _ORCPT.match(value) else ""


def _unxtext(name: str, value: str) -> str:
    try:
        return from_xtext(value)
    except ValueError:
        raise CommandError(501, _ARGUMENTS, f"bad value of {name}") from None


def _unknown_parameter(name: str, value: str) -> CommandError:
    """RFC 5321 §4.1.1.11: a parameter that is not offered is refused."""
    shown = f"{name}={value}" if value else name
    return CommandError(555, _ARGUMENTS, f"parameter not taken: {shown}")
