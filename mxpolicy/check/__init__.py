"""``mxpolicy check``: the configuration as understood, and whether its surroundings fit.

It looks at the configuration, the name servers, our name in DNS, what a delivery needs
of this machine, its Postfix or Exim, and the daemon. For each fault it says what would
happen, and the line that mends it. It changes nothing, sends no mail, and dials only the
name servers and the daemon.

Each theme has a module: `configuration`, `names`, `our_name`, `surroundings`, `daemon`,
`exim` (`exim_rows`, `exim_client` and `exim_acl` judge) and `postfix`. Both ask by `programs`, which runs
what the mail server has. For Postfix `postconf` asks and `master_cf` reads;
`transport_rows`, `time_limit` and `status_filter` judge what runs `mxpolicy pipe`,
`policy_service` and `policy_clients` who answers and who asks for policy, `postfix_rows`,
`tls_level`, `own_client` and `fallback_relay` the whole. A command line of ours is gathered
by `command` from a `machine`; `access` and `installation` say what an account may use.
`report` has the rows, and `show` prints them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
import traceback
from typing import TYPE_CHECKING

from mxpolicy.check import (
    configuration,
    daemon,
    exim,
    names,
    our_name,
    postfix,
    show,
    surroundings,
)
from mxpolicy.check.access import account, current
from mxpolicy.check.machine import HERE
from mxpolicy.check.postconf import Postconf
from mxpolicy.check.programs import ProgramError
from mxpolicy.check.report import Item, Level, tell
from mxpolicy.config import DEFAULT_PATH, load
from mxpolicy.errors import ConfigError
from mxpolicy.terminal import shown_by, write_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mxpolicy.check.access import Account
    from mxpolicy.check.configuration import Setting
    from mxpolicy.options import Options

__all__ = ["main", "parser"]

# Most steps have a shorter bound of their own. This one is for those that have none: a
# directory service behind getpwnam(3), a file on a server that is away.
PATIENCE = 90.0


class _Looking:
    """What has been seen so far, and what is being looked at.

    Attributes:
        sections: Title and items of each theme.
        settings: The options as understood.
        file: The configuration, whether it is there or not.
        title: Of the theme that is being looked at.
    """

    def __init__(self, config: str | None) -> None:
        self._config = config
        self.file = config or os.environ.get("MXPOLICY_CONFIG") or DEFAULT_PATH
        self.sections: list[tuple[str, list[Item]]] = []
        self.settings: list[Setting] = []
        self.title = "configuration"
        self._postfix: postfix.Postfix | None = None
        self._exim: exim.Exim | None = None

    def run(self) -> None:
        """Look at one thing after the other; trouble with one is told in its section."""
        try:
            options = load(self._config, os.environ)
        except ConfigError as error:
            text = "mail is deferred (4.3.5): "
            if isinstance(error.__cause__, PermissionError) and os.geteuid():
                # It says nothing about the account of deliveries.
                text = f"nothing was checked: {current().name} is not root, and "
            items = [tell(Level.FAIL, text + mistake) for mistake in error.mistakes]
            self.sections.append((self.title, items))
            return
        self.settings = configuration.settings(options, os.environ)
        themes: tuple[tuple[str, Callable[[], list[Item]]], ...] = (
            (self.title, lambda: configuration.look(self._config, options, os.environ)),
            ("name servers", lambda: asyncio.run(names.look_at_name_servers(options))),
            ("our name", lambda: asyncio.run(our_name.look_at_our_name(options))),
            ("Exim", lambda: self._look_at_exim(options)),
            ("Postfix", lambda: self._look_at_postfix(options)),
            ("this machine", lambda: self._machine(options)),
            ("the daemon", lambda: self._daemon(options)),
        )
        for self.title, look in themes:
            self.sections.append((self.title, _looked(look)))

    def _look_at_postfix(self, options: Options) -> list[Item]:
        postconf = Postconf.find(os.environ.get("PATH", ""))
        if postconf is None:
            text = "there is no Postfix on this machine (no postconf found)"
            return [tell(Level.OK, text)]
        self._postfix = postfix.see(postconf)
        is_alone = not (self._exim and self._exim.routers)
        sockets = daemon.places(options, os.environ, "policy")
        return postfix.look(
            self._postfix, options, self._config, sockets=sockets, is_alone=is_alone
        )

    def _look_at_exim(self, options: Options) -> list[Item]:
        ask = exim.find(os.environ.get("PATH", ""))
        if ask is None:
            text = "there is no Exim on this machine (neither exim4 nor exim found)"
            return [tell(Level.OK, text)]
        self._exim = exim.see(ask, daemon.places(options, os.environ, "lmtp"))
        is_alone = Postconf.find(os.environ.get("PATH", "")) is None
        sockets = daemon.places(options, os.environ, "policy")
        return exim.look(self._exim, options, HERE, sockets, is_alone=is_alone)

    def _machine(self, options: Options) -> list[Item]:
        return surroundings.look(options, os.environ, self._user())

    def _daemon(self, options: Options) -> list[Item]:
        used: list[str] = []
        if self._postfix and self._postfix.daemon_at:
            used = [self._postfix.daemon_at]
        elif (self._postfix and self._postfix.to_daemon) or (
            self._exim and self._exim.uses_daemon
        ):
            used = daemon.places(options, os.environ, "lmtp")
        units = daemon.enabled_units()
        return daemon.look(
            options,
            os.environ,
            self._user(),
            used,
            units,
            has_systemd=daemon.runs_systemd(),
        )

    def _user(self) -> Account:
        """Return the account of deliveries."""
        user = postfix.user_of(self._postfix) if self._postfix else None
        if user is None and self._exim:
            user = exim.user_of(self._exim, HERE)
        # Where Postfix names no account: the one of contrib's samples.
        return user or account("mxpolicy") or current()


def _looked(look: Callable[[], list[Item]]) -> list[Item]:
    try:
        return look()
    except ProgramError as error:
        mend = "; try as root" if os.geteuid() else ""
        return [tell(Level.WARN, f"could not be seen: {error}{mend}")]
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"could not be checked: {type(error).__name__}: {error}"
        return [tell(Level.WARN, f"{text} ({where.name}, line {where.lineno})")]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return shown_by(
        "check",
        "Show the configuration as understood, and whether its surroundings fit: name"
        " servers, our name, Postfix, Exim, this machine, the daemon.",
        "Exit status: 0 when nothing fails, else 1.",
    )


def main(argv: Sequence[str]) -> int:
    """Look at everything and say how it is.

    Args:
        argv: What follows ``mxpolicy check`` on the command line.

    Returns:
        0 when nothing fails, else 1. Leaves by `SystemExit` with 2 on a wrong
        command line.
    """
    arguments = parser().parse_args(argv)
    looking = _Looking(arguments.config)
    # In a thread, which can be left behind: a file system or a directory service that
    # does not answer cannot be interrupted by a signal.
    thread = threading.Thread(target=looking.run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    sections = list(looking.sections)
    if thread.is_alive():
        text = f"no answer within {PATIENCE:.0f} s; the rest was not looked at"
        sections.append((looking.title, [tell(Level.FAIL, text)]))
    failed = any(one.level is Level.FAIL for _, part in sections for one in part)
    write_out(
        arguments,
        lambda: show.as_json(sections, looking.settings),
        lambda terminal: show.as_text(
            sections, looking.settings, looking.file, terminal
        ),
    )
    if thread.is_alive():
        os._exit(1)
    return 1 if failed else 0
