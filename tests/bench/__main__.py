"""python -m tests.bench [--short] [--write]: all figures of the manual. Or one of them:
python -m tests.bench NAME [ARGUMENT...]; `NAME --help` says more about it."""

import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module

import tests.bench
from tests import guard
from tests.bench import whole

_NOT_PROGRAMS = {
    *(
        "__main__",
        "dot_window",
        "installation",
        "killers",
        "report",
        "servers",
        "smart_sink",
        "whole",
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Return what the measurement returned, or 2 where it is not known.

    Without a name, all of them are made (`tests.bench.whole`).
    """
    here = [module.name for module in pkgutil.iter_modules(tests.bench.__path__)]
    programs = [name for name in here if name not in _NOT_PROGRAMS]
    if not arguments or arguments[0] in {"--short", "--write", "--only"}:
        return whole.main(arguments)
    if arguments[0] not in programs:
        print(__doc__, file=sys.stderr)
        for name in programs:
            print(f"  {name:12} {_first_line(name)}", file=sys.stderr)
        return 2
    status: int = import_module(f"tests.bench.{arguments[0]}").main(arguments[1:])
    return status


def _first_line(name: str) -> str:
    return (import_module(f"tests.bench.{name}").__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(guard.guarded(lambda: main(sys.argv[1:])))
