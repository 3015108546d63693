"""The last resort of ``mxpolicy policy``: DUNNO to every question.

It answers when the configuration cannot be used, a module is missing or memory has run
out. Mail then goes on as without a policy server. This module needs only what is built
into Python. It is imported before any other module of ours.
"""

import os

__all__ = ["open_null", "serve", "take_stdout"]

ANSWER = b"action=DUNNO\n\n"
MAX_LOGGED = 1000
EXIT_USAGE = 2

# Postfix's requests have some hundred bytes.
READ_SIZE = 4096

# An emergency reserve, freed when memory has run out, for answering. It costs no RAM
# until then.
_reserve = bytearray(2 * 1024 * 1024)


def open_null() -> int:
    """Return a descriptor of /dev/null that is not 0, 1 or 2; each of those exists then."""
    null = os.open(os.devnull, os.O_RDWR)
    while null < 3:  # 0, 1 or 2 was closed: this is the new one
        null = os.dup(null)
    return null


def take_stdout() -> int:
    """Return a descriptor for answers; anything else written to stdout is discarded.

    Under spawn(8) stderr is the mail server's connection, too, and a warning would be
    taken for an answer. When it is another file, stderr stays as it is.
    """
    null = open_null()
    out = os.dup(1)
    errors = os.fstat(2)
    is_shared = any(os.path.samestat(errors, os.fstat(other)) for other in (0, 1))
    os.dup2(null, 1)
    if is_shared and not os.isatty(2):
        os.dup2(null, 2)
    os.close(null)
    return out


def serve(out: int, why: str) -> int:
    """Answer DUNNO on *out* to every request on stdin, until it ends.

    Args:
        out: From `take_stdout`.
        why: For the log. At a terminal it is printed, and no answer is given.

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
    is_empty = True  # so far, the line that is being read
    while data := os.read(0, READ_SIZE):
        *ended, rest = data.split(b"\n")
        for line in ended:
            if is_empty and not line.strip(b"\r"):
                os.write(out, ANSWER)
            is_empty = True
        is_empty = is_empty and not rest.strip(b"\r")


def _log(text: str) -> None:
    """Write *text* to syslog, where that is possible."""
    try:
        import syslog

        # syslog(3) takes no NUL, and one line is enough.
        words = "".join(one if one.isprintable() else " " for one in text)
        syslog.openlog("mxpolicy", syslog.LOG_PID, syslog.LOG_MAIL)
        syslog.syslog(syslog.LOG_WARNING, words[:MAX_LOGGED])
    except Exception:  # noqa: S110 - there is no other log
        pass
