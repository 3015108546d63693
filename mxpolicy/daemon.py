"""``mxpolicy serve``: one engine for all messages, reached through sockets.

It stays in the foreground, and a service manager starts it (`mxpolicy.net.service_manager`).
It may be process 1 of a container.

SIGHUP
    Read the configuration again. A bad one is refused as a whole, and the old one goes
    on. What is under way ends as it began.
SIGTERM, SIGINT
    End. Doors take no further message. Deliveries whose final dot is not out are deferred
    at once; the others are waited for, as a second copy would be the price
    (`mxpolicy.delivery.engine.Engine.stop`). A second signal ends that wait: the host may
    have the message, and the journal says so.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from mxpolicy import __version__
from mxpolicy.command_help import parser
from mxpolicy.config import load

# What others import when it is first needed. By then the package may be installed anew, and
# a module of another version would be among those that are here.
from mxpolicy.delivery import forecast, probe  # noqa: F401
from mxpolicy.delivery.context import Context
from mxpolicy.delivery.engine import Engine
from mxpolicy.delivery.events import Notice, Trouble
from mxpolicy.delivery.kick import Kick
from mxpolicy.delivery.late_reply import LateReplies
from mxpolicy.delivery.log import ALWAYS_LOGGED, Log
from mxpolicy.delivery.replay import prevails
from mxpolicy.doors import Doors, runtime_directory
from mxpolicy.errors import ConfigError, ListenError
from mxpolicy.net.service_manager import ServiceManager, given_sockets
from mxpolicy.options import LogDetail, Options
from mxpolicy.orphans import Orphans
from mxpolicy.policy_fallback import open_null
from mxpolicy.protocol.smtp_states import DOT_TIME
from mxpolicy.state.opening import open_store, state_file
from mxpolicy.state.store import JOURNAL

if TYPE_CHECKING:
    import socket
    from collections.abc import Container, Coroutine, MutableMapping, Sequence
    from typing import Any, NoReturn

    from mxpolicy.delivery.events import Event
    from mxpolicy.state.fallback import FallbackStore

__all__ = ["main"]

ENDING = (signal.SIGTERM, signal.SIGINT)

# Seconds after a first signal. By then a dot that is out has its answer, or never gets
# one, and the journal has it, also on a slow disk. TimeoutStopSec= in the unit is longer.
STOPS_WITHIN = DOT_TIME + 70.0
# Seconds more to note the doubts, where that, or a second signal, has ended the wait, and
# for the kick to end.
RECORDED_WITHIN = 30.0
# Seconds for clients to read their last answers.
LAST_ANSWERS = 1.0
# Seconds between two looks at what the service manager is told.
STATUS_INTERVAL = 5.0
# Objects that are made and not freed between two searches for cycles (`gc`). A message has
# a thousand while it is under way, and leaves few cycles. With Python's own 700, a twelfth
# of the processor time goes into searching.
NEW_OBJECTS = 20_000
# Descriptors that are asked for, where the system allows so many. A client takes one, and
# a delivery some.
DESCRIPTORS = 65536


def main(argv: Sequence[str]) -> int:
    """Serve as *argv* says, until a signal ends it; return the exit status.

    0: ended by a signal. 1: it could not begin; standard error and the log say why. 2, by
    `SystemExit`: the command line is wrong.
    """
    # Without 0, 1 and 2 the log would be written into the socket that became 2. And libuv
    # ends the process when it is to close one of them.
    os.close(open_null())
    # Process 1 has no default action for a signal (kill(2)).
    for number in ENDING:
        signal.signal(number, _end_before_the_beginning)
    # The configuration may be read already: it is read again, once all is there.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    config = parser("serve").parse_args(argv).config
    manager = ServiceManager(os.environ)
    given = given_sockets(os.environ)
    try:
        options = load(config, os.environ)
    except ConfigError as error:
        sys.stderr.write("\n".join((*error.mistakes, "")))
        return 1
    _raise_descriptor_limit()
    gc.set_threshold(NEW_OBJECTS)
    loop = _new_event_loop()
    daemon = Daemon(config, options, os.environ, manager)
    try:
        return loop.run_until_complete(daemon.run(given))
    finally:
        loop.close()


def _end_before_the_beginning(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # a filter of system calls
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's where it is installed: it needs less processor time."""
    import importlib

    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _look_at(store: FallbackStore) -> None:
    """Use *store*, so that its trouble is told at the beginning.

    It takes a second at most (`mxpolicy.state.fallback`).
    """
    for room in (JOURNAL, ""):
        await store.put(f"{room}probe", b"", time.time() + 1)


def _heeded(options: Options) -> Container[object] | None:
    """Return the kinds of a delivery's events that log and `Kick` heed; None is all."""
    is_all = options.log.detail is LogDetail.EVENTS or options.kick.command
    return None if is_all else ALWAYS_LOGGED


class Daemon:
    """The daemon, from its beginning to its end.

    Args:
        config: The file of ``--config``.
        options: What it says now.
        environ: Says where sockets and state are.
        manager: Told how we are.
    """

    def __init__(
        self,
        config: str | None,
        options: Options,
        environ: MutableMapping[str, str],
        manager: ServiceManager,
    ) -> None:
        self._config = config
        self._options = options  # at the beginning
        self._environ = environ
        self._manager = manager
        self._began = time.monotonic()
        self._log = Log(options.log)
        self._is_ending = asyncio.Event()
        self._is_urged = asyncio.Event()
        self._told_missing = ""
        self._told_lost = ""
        self._store: FallbackStore
        self._engine: Engine
        self._kick: Kick
        self._doors: Doors

    # -- the log ----------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        """Log *event*: the log may be another one by now."""
        self._log.observe(event)

    def _learn(self, event: Event) -> None:
        """Log what happens to a message, and remember it, if it is deferred."""
        self._observe(event)
        self._kick.observe(event)

    def _tell(self, text: str) -> None:
        self._observe(Trouble(time.monotonic() - self._began, text))

    def _note(self, text: str) -> None:
        self._observe(Notice(time.monotonic() - self._began, text))

    def _tell_of_loop(self, _: object, context: dict[str, Any]) -> None:
        """Log what a callback or a task of ours raised, and nothing else handled."""
        error = context.get("exception")
        text = str(context.get("message", ""))
        if error is not None:
            text += ": " + "".join(traceback.format_exception(error))
        self._tell(text)

    # -- beginning --------------------------------------------------------------

    async def run(self, given: Sequence[tuple[str, socket.socket]]) -> int:
        """Serve until a signal says to end; return the exit status.

        Args:
            given: Name and socket of those that are open already.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._tell_of_loop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        for number in ENDING:
            loop.add_signal_handler(number, self._end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, *ENDING})
        options = self._options
        path = state_file(options.state, self._environ)
        self._store = store = open_store(path, self._tell, prevails, stays=True)
        try:
            context = Context(
                options,
                store=store,
                keeps_sessions=True,
                late_replies=LateReplies(),
                heeded=_heeded,
            )
            self._engine = Engine(context)
            self._kick = Kick(lambda: self._engine.context, self._observe)
            self._doors = Doors(
                lambda: self._engine,
                self._learn,
                self._tell,
                runtime_directory(self._environ),
                given,
            )
            self._doors.apply(options)
        except (ConfigError, ListenError) as error:
            self._tell(str(error))
            if options.log.to != "stderr":
                sys.stderr.write(f"mxpolicy: {error}\n")
            return 1
        await _look_at(store)
        begun = f"mxpolicy {__version__} serves {', '.join(self._doors.sockets)}"
        self._note(begun)
        if options.log.to != "stderr" and sys.stderr.isatty():
            # Nothing more is said there.
            sys.stderr.write(f"{begun}; the log goes to {options.log.to}\n")
        self._manager.ready(self._status())
        alive = self._in_background(self._stay_alive())
        kicking = self._in_background(self._kick.run())
        await self._is_ending.wait()
        kicking.cancel()
        await self._stop()
        await asyncio.wait([kicking], timeout=RECORDED_WITHIN)
        await store.close()
        alive.cancel()
        await asyncio.wait([alive])
        self._log.close()
        return 0

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Let *work* run until it is cancelled, and log why it ends before."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._has_ended)
        return task

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell("".join(traceback.format_exception(error)))

    def _end(self) -> None:
        if self._is_ending.is_set():
            self._is_urged.set()
        self._is_ending.set()

    async def _stay_alive(self) -> None:
        """Tell the service manager how we are, as long as the event loop turns."""
        interval = STATUS_INTERVAL
        if self._manager.watchdog is not None:
            interval = min(interval, self._manager.watchdog / 2)
        orphans = Orphans() if os.getpid() == 1 else None
        while True:
            await asyncio.sleep(interval)
            try:
                self._manager.alive(self._status())
                self._mend_sockets()
                self._tell_of_lost_sockets()
                if orphans is not None:
                    orphans.reap()
            except Exception:  # no memory for a moment; the loop turns all the same
                self._tell(traceback.format_exc())

    def _mend_sockets(self) -> None:
        """Make socket files anew that were removed: no client would find us."""
        missing = [] if self._is_ending.is_set() else self._doors.missing
        trouble = ""
        if missing:
            try:
                self._doors.apply(self._engine.context.options)
                self._note(
                    f"socket files were removed, made anew: {', '.join(missing)}"
                )
            except ListenError as error:
                trouble = f"socket files were removed, and stay away: {error}"
                if trouble != self._told_missing:
                    self._tell(trouble)
        self._told_missing = trouble

    def _tell_of_lost_sockets(self) -> None:
        """Say which files that systemd has made were removed: no client finds us there."""
        lost = ", ".join(self._doors.lost)
        if lost and lost != self._told_lost and not self._is_ending.is_set():
            self._tell(
                f"socket files of systemd's were removed: {lost}; stop mxpolicy.service,"
                " restart its .socket units, and start it again"
            )
        self._told_lost = lost

    def _status(self) -> str:
        under_way = len(self._engine.under_way)
        what = "ending" if self._is_ending.is_set() else "serving"
        forgets = "; nothing outlives it" if self._store.is_memory_only else ""
        late = self._engine.context.late_replies
        listens = f"; late replies awaited: {len(late)}" if late else ""
        return f"{what}; deliveries under way: {under_way}{listens}{forgets}"

    # -- reading the configuration again ----------------------------------------

    def _reload(self) -> None:
        if self._is_ending.is_set():
            return
        self._manager.reloading()
        try:
            self._note(self._renew(load(self._config, self._environ)))
        except (ConfigError, ListenError) as error:
            self._tell(f"configuration not read again, the old one goes on: {error}")
        except Exception:
            why = traceback.format_exc()
            self._tell(f"configuration not read again, the old one goes on: {why}")
        self._manager.ready(self._status())

    def _renew(self, options: Options) -> str:
        """Go on by *options*; return what there is to say of it.

        Raises:
            ConfigError, ListenError: Nothing has changed.
        """
        before = self._engine.context.options
        engine = self._engine.renewed(options)
        try:
            self._doors.apply(options)
        except ListenError:
            self._engine = self._engine.renewed(before)
            raise
        self._engine = engine
        old, self._log = self._log, Log(options.log)
        old.close()
        text = f"configuration read again; serves {', '.join(self._doors.sockets)}"
        if options.state != before.state:
            text += "; 'state' stays as it was until a restart"
        return text

    # -- ending -----------------------------------------------------------------

    async def _stop(self) -> None:
        """End the deliveries, then the clients."""
        self._note(f"ends; deliveries under way: {len(self._engine.under_way)}")
        self._manager.stopping(self._status())
        self._doors.stop()
        stopping = asyncio.create_task(self._engine.stop("mxpolicy ends"))
        urged = asyncio.create_task(self._is_urged.wait())
        await asyncio.wait(
            [stopping, urged],
            timeout=STOPS_WITHIN,
            return_when=asyncio.FIRST_COMPLETED,
        )
        urged.cancel()
        if not stopping.done():
            self._tell(
                f"ends without an answer to {len(self._engine.under_way)} final dots"
            )
            abandoning = asyncio.create_task(self._engine.abandon())
            await asyncio.wait([stopping, abandoning], timeout=RECORDED_WITHIN)
        await self._doors.close(LAST_ANSWERS)
        self._note("has ended")
