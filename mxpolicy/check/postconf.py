"""Asks the Postfix of this machine what its configuration is, by its own programs.

Where a program fails, its own words are the error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from mxpolicy.check.programs import ProgramError, directory_of, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mxpolicy.check.programs import Ended

__all__ = ["Postconf"]

_NAME = re.compile(r"\$(?:[{(](\w+)[)}]|(\w+))")


class Postconf:
    """Asks one Postfix what its configuration is.

    Every method raises `ProgramError` where a program does not say.
    """

    def __init__(self, run: Callable[..., Ended]) -> None:
        """Ask by *run*, which takes the words of a command line."""
        self._run = run

    @classmethod
    def find(cls, search: str) -> Postconf | None:
        """Return the one on the path *search* or in the usual places, if any."""
        directory = directory_of("postconf", search)
        return cls(partial(run, directory)) if directory else None

    def services(self) -> str:
        """Return what ``postconf -M`` says."""
        return self._answer("postconf", "-M")

    def settings(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the values of main.cf, ``$name`` filled in; unknown ones are empty."""
        lines = self._answer("postconf", "-x", *names).splitlines()
        pairs = (line.partition("=") for line in lines)
        found = {name.strip(): value.strip() for name, _, value in pairs}
        return defaultdict(str, found)

    def filled(self, text: str) -> str:
        """Return *text*, of an ``-o`` in master.cf, with each ``$name`` of main.cf filled in."""
        names = {one for found in _NAME.finditer(text) if (one := found[1] or found[2])}
        if not names:
            return text
        values = self.settings(sorted(names))
        return _NAME.sub(lambda found: values[found[1] or found[2]], text)

    def raw(self, name: str) -> str:
        """Return a value as it is written."""
        return self._answer("postconf", "-h", name).strip()

    def filtered(self, key: str, tables: Sequence[str]) -> str:
        """Return what the first of *tables* (``type:name``) that has *key* says.

        Returns:
            Its value; empty when none has it.
        """
        answers = (self._answer("postmap", "-q", key, table) for table in tables)
        return next(filter(None, map(str.strip, answers)), "")

    def _answer(self, program: str, *argv: str) -> str:
        ended = self._run(program, *argv)
        # So postmap(1) ends when a table does not have the key.
        # A warning ("overriding earlier entry") is the postmaster's own affair.
        is_absent = program == "postmap" and ended.status == 1 and not _trouble(ended)
        if ended.status == 0 or is_absent:
            return ended.out
        silent = f"{program} ended with status {ended.status}"
        raise ProgramError(ended.err or silent)


def _trouble(ended: Ended) -> str:
    """Return what *ended* wrote to stderr beside warnings."""
    lines = re.split(r"\s*[?\n](?=post\w+: )", ended.err)
    return "\n".join(one for one in lines if ": warning: " not in one)
