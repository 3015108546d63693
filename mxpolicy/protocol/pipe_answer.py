"""What a command run by pipe(8) or Exim's pipe transport tells the mail server.

An exit status, and one line that begins with an enhanced status code. Postfix lets the
code beat the status, so the two are made to agree here. 0 is delivered, 75 is "try
later", 69 is "never"; Exim looks at nothing else.

`answer` is for the outcomes of all recipients, `deferral` for what prevented them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mxpolicy.errors import ConfigError, LocalTrouble, UsageError
from mxpolicy.outcome import (
    EXIT_BOUNCE,
    EXIT_DEFER,
    EXIT_DELIVERED,
    Bounced,
    Deferred,
    Delivered,
    Outcome,
)
from mxpolicy.reply import EnhancedStatus, printable

__all__ = ["MAX_ANSWER", "answer", "answer_line", "deferral"]

# pipe(8) reads 4096 bytes and closes; a bounce shows it all in one line.
MAX_ANSWER = 4096
MAX_TEXT = MAX_ANSWER - len("5.999.999 \n")
# What a host said is not worth quoting if less than this is left of it.
SHORTEST_TEXT = 25


def answer(outcomes: Sequence[tuple[str, Outcome]]) -> tuple[int, str]:
    """Return exit status and text for the outcomes of all recipients.

    pipe(8) and Exim take one answer for all. While any recipient is deferred it is "try
    later". When all are settled and some were refused it is "never". Then it names each
    refused one, and says which were delivered: the bounce will name them all.
    """
    deferred = [(who, what) for who, what in outcomes if isinstance(what, Deferred)]
    bounced = [(who, what) for who, what in outcomes if isinstance(what, Bounced)]
    delivered = [(who, what) for who, what in outcomes if isinstance(what, Delivered)]
    decisive = deferred or bounced or delivered
    first = decisive[0][1]
    have = [who for who, _ in delivered] if decisive is bounced else []
    text = first.text if len(outcomes) == 1 else _for_several(decisive, have)
    status = EXIT_DEFER if deferred else EXIT_BOUNCE if bounced else EXIT_DELIVERED
    return status, f"{first.status} {text}"


def _for_several(told: Sequence[tuple[str, Outcome]], delivered: Sequence[str]) -> str:
    """Return one text for all of *told*, and that *delivered* have the message.

    Where there is no room for all of it, the texts are shortened, not the names: a
    sender who cannot see which recipients have the message sends it to all again.
    """
    last = "; delivered: " + _listed(delivered) if delivered else ""
    text = "; ".join(f"<{who}>: {what.text}" for who, what in told) + last
    if len(text) <= MAX_TEXT:
        return text
    names = sum(len(f"<{who}>: ; ") for who, _ in told)
    share = (MAX_TEXT - names - len(last)) // len(told)
    if share >= SHORTEST_TEXT:
        short = (f"<{who}>: {printable(what.text, share)}" for who, what in told)
        return "; ".join(short) + last
    count = f"{len(told)} of {len(told) + len(delivered)} recipients"
    text = f"{count}: {printable(told[0][1].text, MAX_TEXT // 8)}: "
    return text + _listed([who for who, _ in told]) + last


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"<{who}>" for who in names)


def answer_line(status: int, text: str) -> bytes:
    """Return *text* as the line that leaves, its code made to agree with *status*.

    At most `MAX_ANSWER` bytes of printable ASCII. No line end: Postfix would show it as a
    blank in its log. To Postfix ``5.x.x``
    is a bounce whatever the status, 75 included, and a code of class 2 is one with
    any status but 0.
    """
    wanted = {EXIT_DEFER: 4, EXIT_BOUNCE: 5}.get(status)
    text = printable(text, MAX_ANSWER)
    found = EnhancedStatus.parse(text)
    if wanted and (found is None or found.class_ != wanted):
        text = f"{wanted}.3.0 mxpolicy: {text}"
    return printable(text, MAX_ANSWER - 1).encode("ascii")


def deferral(trouble: BaseException) -> str:
    """Return what is answered to the mail server about *trouble*."""
    while isinstance(trouble, BaseExceptionGroup):
        trouble = trouble.exceptions[0]
    match trouble:
        case UsageError() | ConfigError():
            return f"4.3.5 mxpolicy: {trouble}"
        case LocalTrouble():
            return f"4.3.0 mxpolicy: {trouble}"
        case MemoryError():
            return "4.3.0 mxpolicy: out of memory"
        case _:
            where = _raised_at(trouble)
            return f"4.3.0 mxpolicy: {type(trouble).__name__}: {trouble}{where}"


def _raised_at(trouble: BaseException) -> str:
    """Return where *trouble* was raised: a postmaster's report has only this line."""
    traceback = trouble.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    file = traceback.tb_frame.f_code.co_filename.rpartition("/")[2]
    return f" ({file}:{traceback.tb_lineno})"
