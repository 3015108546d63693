"""The console command, run as a mail server and as an operator would run it."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mxpolicy import __version__, cli, command_help, pipe_command

CHECKOUT = Path(__file__).parents[1]
# As it is installed: the shell script beside the interpreter.
COMMAND = Path(sys.executable).with_name("mxpolicy")
ANSWER = re.compile(rb"4\.3\.\d mxpolicy: [ -~]+")


def run(*argv: str, before: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run `mxpolicy` with *argv* in a process of its own, after the code *before*."""
    return subprocess.run(
        [sys.executable, "-c", program(before), *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=CHECKOUT,
        timeout=60,
        check=False,
    )


def program(before: str) -> str:
    return f"import sys; from mxpolicy.cli import main\n{before}\nsys.exit(main())"


def assert_deferred(ended: subprocess.CompletedProcess[bytes]) -> None:
    """It said "try later" once, and nothing on standard error, which is the same pipe."""
    assert ended.returncode == 75
    assert ANSWER.fullmatch(ended.stdout), ended.stdout
    assert ended.stderr == b""


# What a mail server may meet


def importing_pipe(does: str) -> str:
    """Return code after which the import of `mxpolicy.pipe` *does* something else."""
    return (
        "import os, signal\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'mxpolicy.pipe': {does}\n"
        "sys.meta_path.insert(0, Finder())"
    )


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("sys.modules['mxpolicy.pipe'] = None", id="module_missing"),
        pytest.param("sys.modules['signal'] = None", id="standard_library_damaged"),
        pytest.param(importing_pipe("raise MemoryError"), id="out_of_memory"),
        pytest.param(importing_pipe("sys.exit(2)"), id="somebody_calls_sys_exit"),
        pytest.param(
            importing_pipe("raise ValueError('\\x1b[31m\\n5.1.1 \\xfc' + 'x' * 9999)"),
            id="exception_with_hostile_text",
        ),
    ],
)
def test_pipe_that_cannot_begin_is_deferred(before: str) -> None:
    assert_deferred(run("pipe", "-f", "", "--", "a@example.com", before=before))


@pytest.mark.parametrize("limit", [24, 32, 40])
def test_pipe_in_too_little_memory_is_deferred(limit: int, tmp_path: Path) -> None:
    config = tmp_path / "mxpolicy.yaml"
    config.write_text(f"state: {tmp_path}\nlog: {{to: /dev/null}}\n")
    before = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit} << 20, {limit} << 20))"
    )
    argv = ("pipe", "-f", "", "--config", str(config), "--", "a@example.invalid")
    ended = run(*argv, before=before)
    assert ended.returncode == 75
    assert ANSWER.fullmatch(ended.stdout), ended


@pytest.mark.parametrize(
    "argv",
    [
        ("pipex", "-f", "", "--", "a@example.com"),
        ("pipe=",),
        ("ppie",),
        ("Pipe",),
        ("--config", "/etc/mxpolicy.yaml", "pipe", "--", "a@example.com"),
        ("-f", "", "--", "a@example.com"),
        ("--nexthop", "example.com", "--", "a@example.com"),
    ],
)
def test_misspelt_pipe_is_deferred(argv: tuple[str, ...]) -> None:
    assert_deferred(run(*argv))


def test_pipe_with_wrong_arguments_is_deferred() -> None:
    assert_deferred(run("pipe", "--no-such-option", "--", "a@example.com"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_while_pipe_is_being_imported_is_deferred(
    number: signal.Signals,
) -> None:
    reads, writes = os.pipe()
    before = importing_pipe(f"os.close({writes}); signal.pause()")
    with subprocess.Popen(
        [sys.executable, "-c", program(before), "pipe"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[writes],
        cwd=CHECKOUT,
    ) as process:
        os.close(writes)
        assert os.read(reads, 1) == b""  # it is in the middle of the import now
        os.close(reads)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert_deferred(subprocess.CompletedProcess([], process.returncode, out, err))


def test_pipe_is_deferred_when_nobody_reads_the_answer() -> None:
    before = "import os; os.close(1); os.close(2); sys.modules['mxpolicy.pipe'] = None"
    assert run("pipe", before=before).returncode == 75


def test_nothing_dear_is_imported_before_pipe_is() -> None:
    dear = "{'argparse', 'asyncio', 'logging', 'difflib', 'yaml', 'dns'}"
    before = f"sys.stdout.write(repr(sorted({dear} & set(sys.modules))))"
    assert run("--version", before=before).stdout.startswith(b"[]")


# What an operator sees


def given(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mxpolicy", *argv])
    return cli.main()


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_names_every_command(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert given(monkeypatch, word) == 0
    out, err = capsys.readouterr()
    assert all(f"\n  {command} " in out for command in cli.COMMANDS)
    assert err == ""


def test_version_is_the_package_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert given(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"mxpolicy {__version__}\n"


def test_no_command_shows_the_help_and_is_misuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert given(monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: mxpolicy [-h] [-V] COMMAND")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dmo", "invalid choice: 'dmo' (did you mean 'demo'?)"),
        ("frobnicate", "invalid choice: 'frobnicate' (choose from pipe, "),
        ("--colour", "invalid choice: '--colour' (choose from pipe, "),
    ],
)
def test_unknown_command_is_misuse_with_the_near_miss(
    word: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert given(monkeypatch, word) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


@contextlib.contextmanager
def on_a_terminal() -> Iterator[None]:
    ours, theirs = pty.openpty()
    stdin = os.dup(0)
    os.dup2(theirs, 0)
    try:
        yield
    finally:
        os.dup2(stdin, 0)
        for one in (stdin, ours, theirs):
            os.close(one)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
@pytest.mark.parametrize("word", ["-V", "--version"])
def test_each_command_says_the_version_on_a_terminal(
    command: str,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with on_a_terminal():
        assert given(monkeypatch, command, word) == 0
    assert capsys.readouterr().out == f"mxpolicy {__version__}\n"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
@pytest.mark.parametrize("word", ["-h", "--help"])
def test_each_command_has_its_help_on_a_terminal(
    command: str,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with on_a_terminal(), contextlib.suppress(SystemExit):
        given(monkeypatch, command, word)
    assert capsys.readouterr().out.startswith(f"usage: mxpolicy {command} ")


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("--help", b"usage: mxpolicy pipe "),
        ("-V", f"mxpolicy {__version__}\n".encode()),
    ],
)
@pytest.mark.parametrize("start", [[str(COMMAND)], [sys.executable, "-m", "mxpolicy"]])
def test_help_is_no_answer_to_a_mail_server(
    start: list[str], word: str, answer: bytes
) -> None:
    argv = [*start, "pipe", word]
    ended = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, cwd=CHECKOUT
    )
    assert_deferred(ended)
    ours, theirs = pty.openpty()
    ended = subprocess.run(
        argv, stdin=theirs, capture_output=True, timeout=60, cwd=CHECKOUT
    )
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 0
    assert ended.stdout.startswith(answer)


def test_help_names_the_options_that_are_read() -> None:
    actions = command_help.parser("pipe")._actions
    named = {flag for one in actions for flag in one.option_strings}
    assert named == {"-h", "--help", "--exim", *pipe_command._OPTIONS}


def test_demo_gets_what_follows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        given(monkeypatch, "demo", "--help")
    assert left.value.code == 0
    assert "mxpolicy demo" in capsys.readouterr().out


def test_module_is_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mxpolicy", "--version"],
        capture_output=True,
        cwd=CHECKOUT,
        timeout=60,
        check=True,
    )
    assert ended.stdout.decode() == f"mxpolicy {__version__}\n"


def test_children_are_heard_of_where_sigchld_was_inherited_ignored() -> None:
    before = (
        "import atexit, signal\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "atexit.register(lambda: print(signal.getsignal(signal.SIGCHLD).name))"
    )
    assert run("--version", before=before).stdout.endswith(b"\nSIG_DFL\n")
