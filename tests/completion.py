"""What bash and zsh complete behind `mxpolicy`, made from the parsers of its commands."""

import argparse
from collections.abc import Iterable, Iterator

from mxpolicy import cli
from mxpolicy.demo.stories import STORIES
from mxpolicy.protocol.access_policy import AccessRequest
from tests.man_pages import parser_of

__all__ = ["bash", "zsh"]

GLOBAL = {"--help": "the commands", "--version": "the version"}

_BASH = """\
# What bash completes behind mxpolicy. Made by python -m tests.reference.
# Its place: /usr/share/bash-completion/completions/mxpolicy

_mxpolicy() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W '{first}' -- "$word"))
        return
    fi
    case $before in {files}) COMPREPLY=($(compgen -f -- "$word")); return ;; esac
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _mxpolicy mxpolicy
"""

_ZSH = """\
#compdef mxpolicy
# What zsh completes behind mxpolicy. Made by python -m tests.reference.
# Its place: a directory of $fpath, as /usr/share/zsh/site-functions/_mxpolicy

local -a commands
commands=(
{commands}
)
if (( CURRENT == 2 )); then
    _describe -t commands command commands
    _arguments {options}
    return
fi
local command=$words[2]
shift words
(( CURRENT-- ))
case $command in
{cases}
esac
"""


def bash() -> str:
    """Return the file for bash."""
    cases = [
        f"    {command}) words='{' '.join(_words(parser_of(command), command))}' ;;"
        for command in cli.COMMANDS
    ]
    files = sorted({flag for one in cli.COMMANDS for flag in _with_a_file(one)})
    return _BASH.format(
        first=" ".join([*cli.COMMANDS, *GLOBAL]),
        files=" | ".join(files),
        cases="\n".join(cases),
    )


def _with_a_file(command: str) -> Iterator[str]:
    for action in parser_of(command)._actions:
        if _names_a_file(action):
            yield from action.option_strings


def _names_a_file(action: argparse.Action) -> bool:
    return action.metavar in {"FILE", "PATH", "WHERE", "DIR"}


def _words(parser: argparse.ArgumentParser, command: str) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings[-1:]
    yield from _values(parser, command)


def _values(parser: argparse.ArgumentParser, command: str) -> Iterable[str]:
    """Return the words that may stand behind a command, beside its options."""
    if command == "demo":
        return [story.name for story in STORIES]
    if command == "ask":
        return [f"{name}=" for name in AccessRequest._fields]
    choices = (one.choices for one in parser._actions if not one.option_strings)
    return [str(word) for some in choices for word in some or ()]


def zsh() -> str:
    """Return the file for zsh."""
    commands = [
        f"    {_quoted(f'{name}:{_plain(text)}')}"
        for name, text in cli.COMMANDS.items()
    ]
    options = [_quoted(f"{flag}[{text}]") for flag, text in GLOBAL.items()]
    return _ZSH.format(
        commands="\n".join(commands),
        options=" ".join(options),
        cases="\n".join(map(_case, cli.COMMANDS)),
    )


def _case(command: str) -> str:
    parser = parser_of(command)
    lines = [f"{command})", "    _arguments \\"]
    for action in parser._actions:
        if action.option_strings:
            text = _plain(action.help or action.dest)
            flag = action.option_strings[-1]
            lines.append(f"        {_quoted(f'{flag}[{text}]{_value(action)}')} \\")
    words = " ".join(_values(parser, command))
    lines += [
        f"        {_quoted(f'*:word:({words})')}" if words else "        '*:word:'"
    ]
    return "\n".join([*lines, "    ;;"])


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    return f":{action.metavar}:" + ("_files" if _names_a_file(action) else "")


def _plain(text: str) -> str:
    """Return *text* without what means something to zsh's `_arguments`."""
    words = text.replace("[", "(").replace("]", ")")
    return words.replace(":", r"\:").replace("%%", "%")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
