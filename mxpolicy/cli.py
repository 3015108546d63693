"""The console command: it finds out which command is meant, and runs it.

`mxpolicy pipe` comes first and costs nothing here. The mail server that runs it bounces
the message on any exit status but its three (pipe(8) does so with 1, 2 and 127). So
trouble before `mxpolicy.pipe` has taken over ends here, in one line that begins ``4.3.0``
and in exit status 75: a missing module, no memory, a misspelt word in master.cf.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from mxpolicy import __version__

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main", "pipe"]

EXIT_USAGE = 2
EXIT_DEFER = 75  # as in mxpolicy.outcome, which may be what cannot be imported

# Until the access policy server answers: below `timeout=` of contrib's main.cf.
SECONDS_TO_BEGIN = 9

# In the order of the help text.
COMMANDS = {
    "pipe": "deliver the message on standard input; run by the mail server",
    "policy": "answer the mail server's questions; run by it (spawn(8))",
    "serve": "the daemon: deliveries and questions over sockets",
    "route": "show which hosts a message would be tried at, and why; dials nothing",
    "ask": "show what the mail server's question is answered, and why",
    "hosts": "show what is remembered of hosts, or forget it (hosts clear)",
    "setup": "set up Postfix or Exim, or take that back; prints it first",
    "check": "show the configuration as understood, and whether all around it fits",
    "demo": "see it work on loopback: no root, no mail server",
}

_RUN_BY_MAIL_SERVER = ("pipe", "policy")
_HELPED_HERE = (*_RUN_BY_MAIL_SERVER, "serve")
_HELP = ("-h", "--help")
_VERSION = ("-V", "--version")

USAGE = "usage: mxpolicy [-h] [-V] COMMAND [ARGUMENT...]\n"

HELP = """\
{usage}
Hand each message to the first MX host that can be reached.

commands:
{commands}

  -h, --help     this text; COMMAND --help: that of a command
  -V, --version  the version; also after a COMMAND

Exit status: pipe: 0 delivered, 75 try later, 69 bounce, never another one;
route: the same when there is no host to dial, else 0;
policy: 0 when the mail server has hung up, 1 when it ended by its own fault;
the others: 0 well, 1 not well, 2 misused.
"""


def main() -> int:
    """Run the command that ``sys.argv`` names and return its exit status.

    `pipe` does not return: it leaves by `os._exit`.
    """
    _hear_of_children()
    command, *rest = sys.argv[1:] or [""]
    word = rest[0] if rest else ""
    if word in _VERSION and _is_for_people(command):
        command = word
    if word in _HELP and command in _HELPED_HERE and _is_for_people(command):
        from mxpolicy.command_help import parser

        parser(command).print_help()
        return 0
    if command == "pipe":
        pipe(rest)
    if command == "policy":
        return _policy(rest)
    if sys.stdout is None:
        # It is closed (">&-"), and would become the next file that is opened.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if command in COMMANDS:
        from importlib import import_module

        module = "daemon" if command == "serve" else command
        return int(import_module(f"mxpolicy.{module}").main(rest))
    if command in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return 0
    if command in _VERSION:
        sys.stdout.write(f"mxpolicy {__version__}\n")
        return 0
    return _misused(command, rest)


def _is_for_people(command: str) -> bool:
    """Return whether *command* may be explained, or say its version, instead of running.

    That is at a terminal. What a mail server has as ``--help`` in its configuration is a
    mistake, and is answered as one.
    """
    return command in COMMANDS and (command not in _RUN_BY_MAIL_SERVER or os.isatty(0))


def _hear_of_children() -> None:
    """Have the kernel keep the exit status of the processes that we start.

    It keeps none for a process that ignores SIGCHLD (wait(2)). exec(3) hands that on from
    a parent that ignores it (``trap '' CHLD``, some supervisors).
    """
    try:
        import signal

        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except Exception:  # what needs the module says so in its own way
        return


def pipe(argv: list[str], mail_server: int | None = None) -> NoReturn:
    """Deliver, and answer "try later" where that cannot even begin.

    Args:
        argv: What follows ``mxpolicy pipe`` on the command line.
        mail_server: Its process id where our parent is `command.sh`.
    """
    try:
        import gc
        import signal

        # What is imported stays: until all of it is there (mxpolicy.pipe), a search for
        # garbage finds none.
        gc.disable()
        # Exim bounces the message when a signal kills its command. `pipe` has handlers
        # of its own, once it is imported.
        ending = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
        # exec(3) keeps an alarm that was set before (alarm(2)).
        for number in (*ending, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
            signal.signal(number, _on_signal)
        is_of_exim = "--exim" in argv[: argv.index("--") if "--" in argv else None]
        # A process of Exim's own would hear our answer though Exim had gone.
        if is_of_exim and (mail_server or os.getppid()) == 1:
            _defer("the mail server that started us has gone away")
        from mxpolicy import pipe as door

        door.main(argv, mail_server)
    except BaseException as exc:
        _defer(f"{type(exc).__name__}: {exc}")


def _on_signal(number: int, frame: FrameType | None) -> NoReturn:
    _defer(f"ended by signal {number} before it began")


def _defer(text: str) -> NoReturn:
    """Answer "try later" and end."""
    try:
        # One line of printable ASCII; no helper that would have to be imported.
        words = "".join(one if " " <= one <= "~" else "?" for one in text[:1000])
        os.write(1, f"4.3.0 mxpolicy: {words}".encode("ascii"))
    finally:
        # After sys.exit a flush may fail and make status 120 of it.
        os._exit(EXIT_DEFER)


def _policy(argv: list[str]) -> int:
    """Serve access policy, and answer DUNNO where that cannot even begin."""
    from mxpolicy import policy_fallback

    out = policy_fallback.take_stdout()
    try:
        # With too little memory, Python's import has been seen to run in circles.
        # smtpd(8) takes a dead process for DUNNO, as main.cf says.
        _end_after(SECONDS_TO_BEGIN)
        from mxpolicy import policy

        serve = policy.prepare(argv, out)
    except BaseException as exc:
        why = f"{type(exc).__name__}: {exc}"
    else:
        _end_after(0)
        return serve()
    _end_after(0)
    # Only here: the exception has let go of its memory.
    return policy_fallback.serve(out, why)


def _end_after(seconds: int) -> None:
    """Have the process killed after *seconds*; 0 calls it off."""
    try:
        import signal
    except Exception:  # then there is no alarm to call off
        return
    signal.alarm(seconds)


def _misused(command: str, rest: list[str]) -> int:
    """Say which commands there are; answer a mail server "try later" or DUNNO."""
    if not command:
        sys.stderr.write(_help())
        return EXIT_USAGE
    import difflib

    close = difflib.get_close_matches(command, COMMANDS, n=1)
    near = (
        f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(COMMANDS)}"
    )
    text = f"argument COMMAND: invalid choice: '{command[:60]}' ({near})"
    # In master.cf it may be `pipex`, `ppie`, `--config FILE pipe`, or no word before
    # `-f`. Status 2 would bounce the message.
    if command.startswith("pipe") or close == ["pipe"]:
        _defer(text)
    if {"pipe", "-f", "--"} & {command, *rest}:
        _defer(text)
    # `polcy` in master.cf: a line on stderr would be taken for an answer.
    if command.startswith("policy") or close == ["policy"]:
        from mxpolicy import policy_fallback

        return policy_fallback.serve(policy_fallback.take_stdout(), text)
    sys.stderr.write(f"{USAGE}mxpolicy: error: {text}\n")
    return EXIT_USAGE


def _help() -> str:
    rows = (f"  {name:<11} {text}" for name, text in COMMANDS.items())
    return HELP.format(usage=USAGE, commands="\n".join(rows))
