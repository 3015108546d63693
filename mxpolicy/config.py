"""YAML to options. The only module that knows YAML.

The kind of an option says what its word means, not the look of the word. So the traps of
YAML 1.1 (``no`` is false, ``0600`` is 384, ``1:30`` is 90) do not exist here: the text is
read as nodes, which hold the words as they were written, and their lines. All mistakes
are reported in one go, each as ``FILE:LINE:COLUMN: path: what was expected``.

The kinds are the types of the fields in `mxpolicy.options`;
`mxpolicy.option_values` knows how each is read. PyYAML is imported only when
there is a file: mail runs without one, too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from enum import Enum
from typing import TYPE_CHECKING, get_args

from mxpolicy.errors import ConfigError, UsageError
from mxpolicy.option_values import ITEMS, LISTS, choice, near_miss, shown
from mxpolicy.options import Options, is_record
from mxpolicy.reply import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, NoReturn

    import yaml

    from mxpolicy.option_values import Reader

    # yaml.ScalarNode | MappingNode | SequenceNode: told apart by `id`, whose type
    # the stubs do not have.
    Node = Any

__all__ = ["DEFAULT_PATH", "config_option", "load", "parse"]

DEFAULT_PATH = "/etc/mxpolicy/mxpolicy.yaml"

# Far more than a configuration takes, and little enough to read for every message.
MAX_FILE = 1024 * 1024
# Our own files nest five deep. PyYAML's parser recurses: a million brackets would end the
# process by a signal, without a sentence.
MAX_DEPTH = 16
MAX_MISTAKES = 50
MAX_PATH = 240  # of a path, shown

# What YAML itself does not allow (1.1 §5.1), and what a terminal would obey.
_CONTROLS = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]"


def config_option(argv: Sequence[str], usage: str) -> str | None:
    """Return what ``--config`` says on a command line that has no other option.

    Args:
        argv: What follows the command.
        usage: For the mistake.

    Raises:
        UsageError: There is anything else.
    """
    if not argv:
        return None
    name, equals, value = argv[0].partition("=")
    if name == "--config" and len(argv) == (1 if equals else 2):
        return value if equals else argv[1]
    raise UsageError(f"cannot be run with {printable(' '.join(argv), 60)!r}; {usage}")


def load(path: str | None, environ: Mapping[str, str]) -> Options:
    """Return the options from the first file of the search order, or the defaults.

    The order: *path* (``--config``), else ``$MXPOLICY_CONFIG``, else
    `DEFAULT_PATH`. Only the last may be missing.

    Raises:
        ConfigError: Every mistake that was found; or that the file cannot be read.
    """
    named = path or environ.get("MXPOLICY_CONFIG")
    file = named or DEFAULT_PATH
    try:
        data = _contents(file)
    except OSError as exc:
        if not named and exc.errno in {errno.ENOENT, errno.ENOTDIR}:
            return Options()
        raise ConfigError(
            [f"{shown(file, MAX_PATH)}: cannot be read: {exc.strerror}"]
        ) from exc
    return parse(data, file)


def parse(data: bytes, file: str) -> Options:
    """Return the options that *data* says; *file* is only a name for the mistakes.

    An empty file, or one with nothing but comments, gives the defaults.

    Raises:
        ConfigError: Every mistake that was found, in the order of the file.
    """
    mistakes = _Mistakes(shown(file, MAX_PATH))
    try:
        text = _decoded(data, mistakes)
        root = _composed(text, mistakes)
        found = _section(root, Options, "", mistakes)
    except _Unreadable:
        pass
    mistakes.raise_if_any()
    assert isinstance(found, Options)
    return found


# Mistakes


class _Unreadable(Exception):
    """The rest of the file cannot be read, or need not be."""


class _Mistakes:
    """The mistakes of one file, in the order of the file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: list[tuple[int, int, str]] = []

    def add(self, line: int, column: int, text: str) -> None:
        """Note one mistake at *line* and *column*, both counted from 1."""
        self._found.append((line, column, text))
        if len(self._found) == MAX_MISTAKES:
            raise _Unreadable

    def at(self, node: Node, path: str, text: str) -> None:
        """Note one mistake where *node* begins."""
        mark = node.start_mark
        self.add(mark.line + 1, mark.column + 1, f"{path}: {text}" if path else text)

    def stop(self, line: int, column: int, text: str) -> NoReturn:
        """Note a mistake after which nothing else in the file can be understood."""
        self.add(line, column, text)
        raise _Unreadable

    def raise_if_any(self) -> None:
        """Raise ConfigError with all of them."""
        if not self._found:
            return
        lines = [f"{self._file}:{a}:{b}: {text}" for a, b, text in sorted(self._found)]
        if len(lines) == MAX_MISTAKES:
            lines.append(f"{self._file}: there may be more mistakes than these")
        raise ConfigError(lines)


# From a path to nodes


def _contents(file: str) -> bytes:
    """Return at most `MAX_FILE` + 1 bytes of *file*; never waits for a writer."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        # /dev/null asks for the defaults. A FIFO would look empty.
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is not a file")
        data = b""
        while len(data) <= MAX_FILE:
            piece = os.read(descriptor, MAX_FILE + 1 - len(data))
            if not piece:
                break
            data += piece
        return data
    finally:
        os.close(descriptor)


def _decoded(data: bytes, mistakes: _Mistakes) -> str:
    if len(data) > MAX_FILE:
        mistakes.stop(1, 1, f"the file is larger than {MAX_FILE >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("latin-1")
        mistakes.stop(*_line_and_column(before), "this is not UTF-8 text")
    control = re.search(_CONTROLS, text)
    if control:
        what = (
            f"a control character (\\x{ord(control[0]):02x}); this must be a text file"
        )
        mistakes.stop(*_line_and_column(text[: control.start()]), what)
    return text


def _line_and_column(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _composed(text: str, mistakes: _Mistakes) -> Node | None:
    """Return the file's one document as nodes; None when it is empty."""
    import yaml

    # PyYAML built without libyaml has the slow loader only.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(yaml.parse(text, loader), mistakes)
        return yaml.compose(text, loader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        assert mark is not None, "scanner and parser always say where"
        line, column = mark.line + 1, mark.column + 1
        mistakes.stop(line, column, f"this is not YAML: {_problem(exc, text, line)}")


def _problem(exc: yaml.MarkedYAMLError, text: str, line: int) -> str:
    said = shown(str(exc.problem))
    lines = text.split("\n")
    nearby = lines[max(0, line - 2) : line]
    if any("\t" in one[: len(one) - len(one.lstrip())] for one in nearby):
        said += " (indent with spaces, not with tabs)"
    return said


def _check_events(events: Iterator[Any], mistakes: _Mistakes) -> None:
    """Refuse what no configuration needs, and attacks use, before nodes are made of it.

    That is anchors and aliases (a few lines that expand to gigabytes), tags, a second
    document, and depth.
    """
    depth = documents = 0
    for event in events:
        name = type(event).__name__
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if getattr(event, "anchor", None) is not None:
            mistakes.stop(line, column, "anchors and aliases are not used here")
        if getattr(event, "tag", None) is not None:
            mistakes.stop(line, column, "tags (!) are not used here")
        documents += name == "DocumentStartEvent"
        if documents > 1:
            mistakes.stop(line, column, "a second document (---); there may be one")
        depth += name in {"MappingStartEvent", "SequenceStartEvent"}
        depth -= name in {"MappingEndEvent", "SequenceEndEvent"}
        if depth > MAX_DEPTH:
            mistakes.stop(line, column, f"nested deeper than {MAX_DEPTH} levels")


# From nodes to options


def _section(node: Node | None, record: Any, path: str, mistakes: _Mistakes) -> object:
    """Return *record* with the values of the mapping *node*.

    A section with nothing in it (all its keys are comments) is the default one.
    None when a key that has no default is missing, which is a mistake.
    """
    if node is None or (_is_null(node) and not _required(record)):
        return record()
    if node.id != "mapping":
        keys = ", ".join(record._fields)
        what = f"expected a section with the keys {keys}"
        mistakes.at(node, path.rstrip("."), what)
        return None if _required(record) else record()
    known = record.__annotations__
    values: dict[str, object] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = _key(key_node, known, path, mistakes)
        if key is None:
            continue
        if key in lines:
            what = f"key given twice (first on line {lines[key]})"
            mistakes.at(key_node, path + key, what)
            continue
        lines[key] = key_node.start_mark.line + 1
        try:
            values[key] = _value(value_node, known[key], path + key, mistakes)
        except ValueError as exc:
            mistakes.at(value_node, path + key, str(exc))
        else:
            if values[key] == () and not value_node.value and key in _required(record):
                mistakes.at(value_node, path + key, "expected at least one")
    for key in _required(record):
        if key not in lines:
            mistakes.at(node, path.rstrip("."), f"the key '{key}' is missing")
    is_whole = values.keys() >= set(_required(record))
    return record(**values) if is_whole else None


def _required(record: Any) -> list[str]:
    """Return the keys of a section that have no default."""
    return [name for name in record._fields if name not in record._field_defaults]


def _key(
    node: Node, known: Mapping[str, object], path: str, mistakes: _Mistakes
) -> str | None:
    """Return the name of an option of this section, or None after a mistake."""
    if node.id != "scalar":
        mistakes.at(node, path.rstrip("."), "expected the name of an option here")
    elif node.value in known:
        return str(node.value)
    else:
        what = f"unknown key{_nearest_key(node.value, tuple(known))}"
        mistakes.at(node, path + shown(node.value), what)
    return None


def _nearest_key(key: str, known: tuple[str, ...]) -> str:
    """Say what was meant: a name of this section, else one that belongs elsewhere."""
    near = near_miss(key, known)
    if near:
        return near
    elsewhere = [one for one in _all_paths(Options, "") if one.split(".")[-1] == key]
    return f" (did you mean '{elsewhere[0]}'?)" if elsewhere else ""


def _all_paths(record: Any, path: str) -> Iterator[str]:
    for name, kind in record.__annotations__.items():
        yield path + name
        if of_list := _record_of_list(kind):
            yield from _all_paths(of_list, f"{path}{name}[].")
        elif is_record(kind):
            yield from _all_paths(kind, f"{path}{name}.")


def _value(node: Node, kind: Any, path: str, mistakes: _Mistakes) -> object:
    """Return the value of one option; a mistake in it is raised as ValueError."""
    if kind in ITEMS:
        return ITEMS[kind](_word(node))
    if kind in LISTS:
        return _list(node, LISTS[kind], path, mistakes)
    if record := _record_of_list(kind):
        return _sections(node, record, path, mistakes)
    if issubclass(kind, Enum):
        return choice(_word(node), kind)
    return _section(node, kind, f"{path}.", mistakes)


def _is_null(node: Node) -> bool:
    return bool(
        node.id == "scalar"
        and not node.style  # plain: None, or "" from libyaml
        and node.value in {"", "~", "null", "Null", "NULL"}
    )


def _word(node: Node) -> str:
    """Return the text of a scalar as it was written, whatever YAML makes of it."""
    if node.id != "scalar":
        form = "a list" if node.id == "sequence" else "a section"
        raise ValueError(f"expected one value, not {form}")
    if _is_null(node):
        raise ValueError("the value is missing; leave the key out for the default")
    return str(node.value)


def _list(
    node: Node, read: Reader, path: str, mistakes: _Mistakes
) -> tuple[object, ...]:
    if node.id != "sequence":
        is_word = node.id == "scalar" and not _is_null(node)
        example = f"for example [{shown(node.value)}]" if is_word else "[] for none"
        raise ValueError(f"expected a list, {example}")
    items = []
    for number, item in enumerate(node.value):
        try:
            items.append(read(_word(item)))
        except ValueError as exc:
            mistakes.at(item, f"{path}[{number}]", str(exc))
    return tuple(items)


def _record_of_list(kind: Any) -> Any:
    """Return the record that *kind* is a list of (``tuple[Record, ...]``), else None."""
    first, *_ = get_args(kind) or (None,)
    return first if is_record(first) else None


def _sections(
    node: Node, record: Any, path: str, mistakes: _Mistakes
) -> tuple[object, ...]:
    if node.id != "sequence":
        keys = ", ".join(f"{name}: ..." for name in _required(record))
        raise ValueError(f"expected a list, for example [{{{keys}}}], or [] for none")
    return tuple(
        _section(item, record, f"{path}[{number}].", mistakes)
        for number, item in enumerate(node.value)
    )
