"""The last resort of ``mxpolicy policy``: DUNNO to every question.

When the configuration cannot be used, a module is missing or there is no memory
for more, mail goes on as if nobody had been asked. This module needs nothing but
what is built into Python, and is imported before anything else of ours.
"""

import os

__all__ = ["serve", "take_stdout"]

ANSWER = b"action=DUNNO\n\n"
MAX_LOGGED = 1000
EXIT_USAGE = 2

# Postfix's requests have some hundred bytes.
READ_SIZE = 4096

# Given back when there is no memory for more: answering takes a little, too. Pages
# that nobody has written to are none.
_reserve = bytearray(2 * 1024 * 1024)


def take_stdout() -> int:
    """Return a descriptor for answers; what else is written to stdout goes nowhere.

    Under spawn(8) standard error is the mail server's connection, too: any warning
    would be taken for an answer. Where it is another file it stays as it is.
    """
    null = os.open(os.devnull, os.O_RDWR)
    while null < 3:  # 0, 1 or 2 was closed: this is the new one
        null = os.dup(null)
    out = os.dup(1)
    is_shared = any(_is_same_file(2, other) for other in (0, 1))
    os.dup2(null, 1)
    if is_shared and not os.isatty(2):
        os.dup2(null, 2)
    os.close(null)
    return out


def _is_same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


def serve(out: int, why: str) -> int:
    """Answer DUNNO on *out* to every request on stdin, until it ends.

    Args:
        out: From `take_stdout`.
        why: For the log; a person at a terminal is told and not kept waiting.

    Returns:
        The exit status.
    """
    _reserve.clear()
    if os.isatty(0):
        os.write(2, f"mxpolicy policy: {why}\n".encode(errors="replace"))
        return EXIT_USAGE
    _log(f"policy: {why}; every question is answered DUNNO")
    try:
        _answer_all(out)
    except OSError:
        return 0  # the mail server has closed the connection
    return 0


def _answer_all(out: int) -> None:
    is_empty = True  # the line that is being read, so far
    while data := os.read(0, READ_SIZE):
        *ended, rest = data.split(b"\n")
        for line in ended:
            if is_empty and not line.strip(b"\r"):
                os.write(out, ANSWER)
            is_empty = True
        is_empty = is_empty and not rest.strip(b"\r")


def _log(text: str) -> None:
    """Tell syslog, if that is possible at all."""
    try:
        import syslog

        # syslog(3) takes no NUL, and one line is enough.
        words = "".join(one if one.isprintable() else " " for one in text)
        syslog.openlog("mxpolicy", syslog.LOG_PID, syslog.LOG_MAIL)
        syslog.syslog(syslog.LOG_WARNING, words[:MAX_LOGGED])
    except Exception:  # noqa: S110 - there is nobody left to tell
        pass
