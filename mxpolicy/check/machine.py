"""What a mail server's configuration refers to on this machine: accounts, files, memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.access import EXECUTE, READ, account, objection
from mxpolicy.check.daemon import connect, runs_systemd
from mxpolicy.check.installation import Obstacle, obstacle
from mxpolicy.config import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.check.access import Account
    from mxpolicy.check.daemon import Answer
    from mxpolicy.options import Options

__all__ = ["HERE", "Machine"]


class Machine(NamedTuple):
    """A machine as far as it is asked.

    Attributes:
        memory: In bytes.
        account: The account of a ``user=``, None when it is unknown.
        objection: Why an account may not do something with a file; see `access.objection`.
        obstacle: What keeps an account from running a program.
        exists: Whether a file does.
        answer: What a socket of the policy service does.
        load: The options in the file that ``--config`` names, or in the usual one.
        start: The command that starts the daemon.
    """

    memory: int
    account: Callable[[str], Account | None]
    objection: Callable[[Account, str, int], str]
    obstacle: Callable[[Account, str], Obstacle]
    exists: Callable[[str], bool]
    answer: Callable[[str], Answer]
    load: Callable[[str | None], Options]
    start: str

    def unreadable(self, user: Account, file: str) -> Obstacle:
        """Return what keeps *user* from the configuration *file*, which may be missing.

        A directory that it may not enter defers all mail though there is no file in it:
        that there is none cannot be seen then.
        """
        directory = os.path.dirname(file)
        for path, wanted, mend in ((directory, EXECUTE, "a+x"), (file, READ, "a+r")):
            if self.exists(path) and (why := self.objection(user, path, wanted)):
                return Obstacle(why, f"chmod {mend} {path}")
        return Obstacle()


HERE = Machine(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    account,
    objection,
    obstacle,
    os.path.exists,
    lambda at: connect(at, "policy"),
    lambda path: load(path, {}),
    "systemctl restart mxpolicy.service" if runs_systemd() else "mxpolicy serve",
)
