"""Everything that can happen to the pipe command, as data: one row each.

A row is a shell script that runs the command with what stands in its way, once under
each mail server, and what that mail server must make of it. `test_contract` provokes them
and asserts. README's table "What happens when" says the same in words, its table of
`KINDS` counts them, and CONTRACT.md beside this file has a row for each.
"""

from dataclasses import dataclass
from itertools import chain

GOOD, HELD, LATER, REFUSES = "good", "held", "later", "refuses"
"""Who is delivered to: a host that is well, falls silent at RCPT, answers it 450, 550."""

SENT, DEFERRED, BOUNCED = "sent", "deferred", "bounced"

COMMAND = "/opt/mxpolicy/bin/mxpolicy"
PYTHON = "/opt/mxpolicy/bin/python"

SOCKETS = "/opt/lab/sockets"
"""Where `false_daemons` listen."""
STRANGERS = "/opt/lab/strangers"
"""The same, of another user."""

FULL_DISK = "/opt/full"
"""A file system of 64 KiB."""


@dataclass(frozen=True)
class Provocation:
    """What is done, and what comes of it.

    `script` is run by sh with the arguments of the command ("pipe ..."). `status` and
    `dsn` are what Postfix logs (Exim has no codes); `text`, a regular expression, is in
    the log of both. `copies` is how many the host gets. `copies_in_the_end`, where it is
    not None, are those after another try, in which nothing stands in the way.
    """

    name: str
    script: str
    status: str = DEFERRED
    dsn: str = "4.3.0"
    text: str = ""
    to: str = GOOD
    copies: int = 0
    mail_data: bytes = b"Subject: one\n\nOne line.\n"
    copies_in_the_end: int | None = None


def run(before: str = "", after: str = "", options: str = "") -> str:
    """Return a script that runs the command; *options* come right behind "pipe"."""
    return f'{before}\n{_with(options)}exec {COMMAND} "$@" {after}\n'


def inject(code: str, options: str = "") -> str:
    """Return a script that runs the command, with *code* in its Python before all else.

    It is the command as it is installed, which finds no Python beside this script, and so
    calls `python3`: a function here.
    """
    return (
        f"INJECTED=$(cat <<'END'\nimport os\n{code}\n{_GO_ON}\nEND\n)\n"
        f'python3() {{ {PYTHON} -c "$INJECTED" "$@"; }}\n'
        f"{_with(options)}. {COMMAND}\n"
    )


# The arguments are the options of an interpreter, -c, a program and its arguments.
_GO_ON = """\
import sys
given = sys.argv.index("-c", 1)
program = sys.argv[given + 1]
del sys.argv[1 : given + 2]
exec(program)
"""


def engine(does: str, code: str = "", options: str = "") -> str:
    """Return a script whose engine does that instead of delivering."""
    return inject(
        "from mxpolicy.delivery import engine\n"
        "def begin(self, request, mail_data):\n"
        f"    {does}\n"
        f"engine.Engine.begin = begin\n{code}",
        options,
    )


def killed(where: str, when: str = "True") -> str:
    """Return a script that kills itself when it comes to *where*, the first time.

    *where* is ``MODULE:CLASS.METHOD``, *when* an expression that may look at ``self``.
    """
    module, _, name = where.partition(":")
    owner, _, method = name.rpartition(".")
    thing = f"{module}.{owner}".rstrip(".")
    return inject(
        "import signal, sys\n"
        f"import {module}\n"
        "from mxpolicy.routing.candidate import Phase\n"
        # Each mail server comes for itself.
        f"mark = '/var/lib/mxpolicy/{name}-' + str('--exim' in sys.argv)\n"
        f"done = {thing}.{method}\n"
        "def kill(self, *more, **named):\n"
        f"    if os.path.exists(mark) or not ({when}):\n"
        "        return done(self, *more, **named)\n"
        "    open(mark, 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{thing}.{method} = kill\n"
    )


def handed_to(daemon: str, directory: str = SOCKETS) -> str:
    """Return a script that hands the message over to one of `false_daemons`."""
    return run(options=f"--socket {directory}/{daemon}")


def _with(options: str) -> str:
    return f'shift; set -- pipe {options} "$@"\n' if options else ""


LARGE = b"Subject: large\n\n" + (b"0123456789abcdef" * 60 + b"\n") * 4096

LOOP = b"Received: from a.example by b.example; Tue, 24 Nov 2026 07:00:00 +0000\n" * 49
LOOP += b"Subject: in circles\n\nOne line.\n"

HANGS = engine(
    "import time; time.sleep(60)",
    "from mxpolicy import pipe, pipe_command as command\n"
    "pipe.ALARM_SLACK = 1 - command.DOT_TIME",
    options="--deadline 1s",
)
WARNS = inject("import sys, warnings; warnings.warn('careful'); print('hello')")

# What the script makes of a Python that a signal ended: see mxpolicy/command.sh.
KILLED_TEXT = "signal 9|returned 75"
SIGNALS = (
    ("HUP", 1, "ended by SIGHUP"),
    ("INT", 2, "ended by SIGINT"),
    ("QUIT", 3, "ended by SIGQUIT"),
    ("ABRT", 6, KILLED_TEXT),
    ("KILL", 9, KILLED_TEXT),
    ("USR1", 10, "ended by SIGUSR1"),
    ("SEGV", 11, KILLED_TEXT),
    ("USR2", 12, "ended by SIGUSR2"),
    ("TERM", 15, "ended by SIGTERM"),
    ("XCPU", 24, "ended by SIGXCPU"),
)

TRANSACTION = "mxpolicy.delivery.transaction:Transaction"
DIALOGUE = "mxpolicy.delivery.dialogue:Dialogue"
NOTES = "mxpolicy.delivery.outcome_notes:OutcomeNotes"
KILLED = {
    "killed before the final dot": (
        ("killed-before-mail", (f"{TRANSACTION}._give_mail",), 0, 1),
        ("killed-after-rcpt", (f"{TRANSACTION}._data",), 0, 1),
        ("killed-in-data", ("mxpolicy.delivery.body:Body.drain",), 0, 1),
        ("killed-before-the-dot", (f"{TRANSACTION}._dot",), 0, 1),
    ),
    # It cannot be known whether the host has it.
    "killed between the final dot and the journal's record": (
        (
            "killed-after-the-dot",
            (f"{DIALOGUE}._watch_what_was_sent", "self.phase.now is Phase.DOT"),
            *(1, 2),
        ),
        ("killed-before-the-record", (f"{NOTES}.note",), 1, 2),
    ),
    "killed after the record, or after the answer": (
        ("killed-after-the-record", ("mxpolicy.pipe:WayOut.defer",), 1, 1),
        ("killed-after-the-answer", ("os:_exit",), 1, 1),
    ),
}
"""By kind: name, where, how many copies there are then, and how many in the end."""

FLOOD = "yes | head -c 15000"

FILES = {
    "/opt/lab/bad.yaml": "helo: [\nrace: {opened: 3}\n",
    "/opt/lab/wrong.yaml": "race: {opened: 3}\nport: smtp\n",
    "/opt/lab/state.yaml": "state: /proc/1\n",
    "/opt/lab/dns.yaml": "resolver: {servers: ['127.0.0.1:1'], timeout: 3s}\n",
    "/opt/lab/silent.yaml": "resolver: {servers: [198.19.255.254], timeout: 2s}\n",
}

P = Provocation


def _killed(
    name: str, where: tuple[str, ...], copies: int, in_the_end: int
) -> Provocation:
    text = KILLED_TEXT
    return P(
        name, killed(*where), text=text, copies=copies, copies_in_the_end=in_the_end
    )


KINDS: dict[str, tuple[Provocation, ...]] = {
    "what a host says": (
        P("well", run(), SENT, "2.0.0", copies=1),
        P("put-off", run(), dsn="4.2.0", text="450 4.2.0 Later", to=LATER),
        P("refused", run(), BOUNCED, "5.1.1", "550 5.1.1 No such user", to=REFUSES),
        P(
            "in-circles",
            run(),
            BOUNCED,
            "5.4.6",
            "mail loop: 5. Received",
            mail_data=LOOP,
        ),
    ),
    "a wrong command line or configuration": (
        P(
            "wrong-option",
            run(options="--nexthopp x"),
            dsn="4.3.5",
            text="unknown argument",
        ),
        P(
            "twice",
            run(options="--config '' --config ''"),
            dsn="4.3.5",
            text="given twice",
        ),
        P(
            "no-dashes",
            f"exec {COMMAND} pipe c@d.example\n",
            dsn="4.3.5",
            text="unknown",
        ),
        P("misspelt", f'shift; exec {COMMAND} ppie "$@"\n', text="invalid choice"),
        P(
            "no-file",
            run(options="--config /none.yaml"),
            dsn="4.3.5",
            text="/none.yaml",
        ),
        P(
            "unreadable",
            run(options="--config /etc/shadow"),
            dsn="4.3.5",
            text="denied",
        ),
        P(
            "no-yaml",
            run(options="--config /opt/lab/bad.yaml"),
            dsn="4.3.5",
            text="bad.yaml:",
        ),
        P(
            "invalid",
            run(options="--config /opt/lab/wrong.yaml"),
            dsn="4.3.5",
            text="yaml:1:8",
        ),
    ),
    "a program or a Python that does not start": (
        P("not-there", "exec /opt/mxpolicy/bin/none\n"),
        P("not-executable", "exec /etc/passwd\n"),
        P(
            "module-missing",
            inject("import sys; sys.modules['asyncio'] = None"),
            text="asyncio",
        ),
        P("package-missing", f"exec {PYTHON} -c 'import mxpolicyy'\n"),
        # The script that is installed has Python read no such variable.
        P(
            "no-standard-library",
            f'export PYTHONHOME=/none; exec {PYTHON} -m mxpolicy "$@"\n',
        ),
        P("other-status", engine("os._exit(3)")),
    ),
    "faults inside mxpolicy": (
        P("exception", engine("1 / 0"), text="ZeroDivisionError"),
        P("out-of-memory", engine("raise MemoryError"), text="out of memory"),
        P(
            "recursion",
            engine("begin(self, request, mail_data)"),
            text="Recursion",
        ),
        P("system-exit", engine("raise SystemExit(2)"), text="SystemExit"),
        P("hangs", HANGS, text="out of time"),
        P("warns", WARNS, SENT, "2.0.0", copies=1),
    ),
    "limits, closed descriptors, full disks": (
        P("address-space", run(before="ulimit -v 20000")),
        P("less-address-space", run(before="ulimit -v 26000")),
        P("next-to-no-address-space", run(before="ulimit -v 6000")),
        P("descriptors", run(before="ulimit -n 6")),
        P("file-size", run(before="ulimit -f 8"), text="cannot spool", mail_data=LARGE),
        P(
            "disk-full",
            run(before=f"export TMPDIR={FULL_DISK}"),
            text="cannot spool the message: No space left",
            mail_data=LARGE,
        ),
        P("stdin-closed", run(after="<&-"), text="standard input is closed"),
        P("stdin-empty", run(after="</dev/null"), text="standard input is empty"),
        P("stdout-closed", run(after=">&-"), to=LATER),
        P("stdout-closed-and-well", run(after=">&-"), SENT, "2.0.0", copies=1),
        P("all-closed", run(after="<&- >&- 2>&-")),
        P("output-to-a-full-device", run(after=">/dev/full 2>&1"), to=LATER),
        P(
            "state-unwritable",
            run(options="--config /opt/lab/state.yaml"),
            SENT,
            "2.0.0",
            copies=1,
        ),
    ),
    "name servers that refuse or are silent": (
        P("dns-refuses", run(options="--config /opt/lab/dns.yaml"), dsn="4.4.3"),
        P("dns-silent", run(options="--config /opt/lab/silent.yaml"), dsn="4.4.3"),
    ),
    "its own deadline": (
        P("own-deadline", run(options="--deadline 2s"), dsn="4.4.2", to=HELD),
    ),
    "signals to the process that delivers": (
        *(
            P(
                f"sig{name.lower()}",
                engine(f"os.kill(os.getpid(), {number})"),
                text=text,
            )
            for name, number, text in SIGNALS
        ),
        P(
            "signals-ignored",
            run(before="trap '' CHLD HUP INT TERM ALRM"),
            *(SENT, "2.0.0"),
            copies=1,
        ),
    ),
    **{kind: tuple(_killed(*row) for row in rows) for kind, rows in KILLED.items()},
    "a daemon that does not take the message": (
        P("no-daemon", handed_to("none"), SENT, "2.0.0", copies=1),
        P("daemon-silent", handed_to("silent"), SENT, "2.0.0", copies=1),
        P("daemon-closes", handed_to("closes"), SENT, "2.0.0", copies=1),
        P("daemon-refuses", handed_to("refuses"), SENT, "2.0.0", copies=1),
        P("daemon-of-another-kind", handed_to("other"), SENT, "2.0.0", copies=1),
        P(
            "daemon-of-a-stranger",
            handed_to("lies", STRANGERS),
            SENT,
            "2.0.0",
            copies=1,
        ),
    ),
    "a daemon that takes it and gives no answer": (
        P("daemon-dies", handed_to("dies"), text="gone without an answer"),
        P("daemon-wrong", handed_to("wrong"), text="cannot be understood"),
        P(
            "daemon-keeps-it",
            handed_to("keeps"),
            text="no answer from the daemon in its time",
            mail_data=LARGE,
        ),
    ),
    "output that another process holds open or floods": (
        P("child-holds-stdout", run(before="sleep 3 &"), SENT, "2.0.0", copies=1),
        P(
            "flood-of-output",
            f'{COMMAND} "$@"; {FLOOD}; exit 0\n',
            SENT,
            "2.0.0",
            copies=1,
        ),
        P(
            "flood-of-output-and-later",
            f'{COMMAND} "$@"; {FLOOD}; exit 75\n',
            dsn="4.2.0",
            text="450 4.2.0 Later",
            to=LATER,
        ),
    ),
}
"""The provocations by their kind, which README's short table has as rows."""

PROVOCATIONS = tuple(chain.from_iterable(KINDS.values()))
