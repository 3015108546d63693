"""Hosts without sockets: a world's hosts as `mxpolicy.net.stream.Stream` sees them.

A `Site` is a world that lives: it answers lookups, lets itself be dialled, and keeps
what its hosts have taken. The same site, made anew, serves the engine and the patient
sender; time is the running loop's. A `Line` is how one process reaches it.

Thousands of worlds pass in a minute here, since nothing waits for a kernel, and a seed
gives the same world again. Over sockets (`tests.helpers.scripted_smtp`, and the judge of
the lab, `tests.lab.smtp_host`) neither is so.
"""

from __future__ import annotations

import asyncio
import operator
from collections import Counter, deque
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.errors import TLSError
from mxpolicy.net.channel import StreamClosed
from mxpolicy.net.dial import ConnectError
from mxpolicy.routing.candidate import Verdict
from mxpolicy.routing.mx import Lookup, LookupStatus, MxRecord
from tests.simulation.world import GOOD, Act, Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from mxpolicy.routing.candidate import Candidate
    from mxpolicy.routing.evidence import SendState
    from tests.simulation.process import Process
    from tests.simulation.world import Domain, Host, Step, World

__all__ = [
    "ROUND_TRIP",
    "Connection",
    "Line",
    "Site",
    "Taken",
    "connection_to",
    "text_of",
]

# Seconds there and back, to a name server.
ROUND_TRIP = 0.02
GREYLISTED_FOR = 250.0
TTL = 300.0


def text_of(queue_id: str) -> bytes:
    """Return the mail data of a message."""
    return f"X-Message: {queue_id}\r\n\r\ntext\r\n".encode()


class Taken(NamedTuple):
    """A message that a host has, for one recipient.

    Attributes:
        at: When, in seconds from the beginning.
        process: Who has sent it; None for the patient sender.
        heard_at: When the reply to the final dot is there; never for a host without one.
        is_whole: Whether nothing of it is missing.
    """

    recipient: str
    queue_id: str
    host: str
    at: float
    process: Process | None
    heard_at: float
    is_whole: bool


class Site:
    """A world's hosts and names at work.

    Attributes:
        taken: Each delivery, in their order.
        cut_off: What a host was about to take when the process was killed: the recipient
            and the host's name. The dot may have been noted, and has not come.
        dialled: Addresses, in their order.
        as_of: The time that hosts and names go by in a task, where it is not the clock's.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.taken: list[Taken] = []
        self.cut_off: list[tuple[str, str]] = []
        self.dialled: list[str] = []
        self.as_of: ContextVar[float | None] = ContextVar("as_of", default=None)
        self.met: dict[tuple[str, str], float] = {}  # greylisting: (host, recipient)
        self.sessions: Counter[str] = Counter()  # by address
        self.failing_since: dict[str, float] = {}  # the patient sender's: by name
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._domains = {domain.name: domain for domain in world.domains}
        self._names = {host.name: host for host in world.hosts}
        self._hosts = {
            address: host for host in world.hosts for address in host.addresses
        }

    def now(self) -> float:
        """Return seconds since the beginning."""
        as_of = self.as_of.get()
        return self._loop.time() - self._began if as_of is None else as_of

    def host(self, address: str) -> Host:
        """Return whose *address* it is."""
        return self._hosts[address]

    async def lookup(
        self, name: str, rdtype: str, within: float | None = None
    ) -> Lookup:
        """See `mxpolicy.delivery.plan.Lookups`."""
        await asyncio.sleep(ROUND_TRIP)
        if rdtype == "MX" and name in self._domains:
            return self._exchangers(self._domains[name])
        if host := self._names.get(name):
            return self._address(host, rdtype)
        return Lookup(name, rdtype, LookupStatus.NXDOMAIN)

    def _exchangers(self, domain: Domain) -> Lookup:
        name = domain.name
        if self.now() < domain.fails_until:
            return Lookup(name, "MX", LookupStatus.FAILED, reason="SERVFAIL")
        found = [MxRecord(one.preference, one.name) for one in domain.hosts]
        if domain.is_null:
            found.append(MxRecord(0, "."))
        return Lookup(name, "MX", LookupStatus.FOUND, tuple(found), ttl=TTL)

    def _address(self, host: Host, rdtype: str) -> Lookup:
        step = host.at(Place.LOOKUP, self.now())
        if step is not None and step.act is Act.FAIL:
            failed = LookupStatus.FAILED
            return Lookup(host.name, rdtype, failed, reason="SERVFAIL")
        if step is not None:
            return Lookup(host.name, rdtype, LookupStatus.NXDOMAIN)
        found = tuple(
            one for one in host.addresses if (":" in one) == (rdtype == "AAAA")
        )
        if found:
            return Lookup(host.name, rdtype, LookupStatus.FOUND, found, ttl=TTL)
        return Lookup(host.name, rdtype, LookupStatus.NODATA)


class Line:
    """How one process looks names up and dials; both end when it is killed."""

    def __init__(self, site: Site, process: Process) -> None:
        self._site = site
        self._process = process

    async def lookup(
        self, name: str, rdtype: str, within: float | None = None
    ) -> Lookup:
        """See `mxpolicy.delivery.plan.Lookups`."""
        self._process.operate()
        return await self._site.lookup(name, rdtype)

    async def dial(self, candidate: Candidate, /, *, mss: int | None = None) -> Stream:
        """See `mxpolicy.net.dial.dial`."""
        self._process.operate()
        self._process.note("dialled")
        assert candidate.host == self._site.host(candidate.address).name
        try:
            connection = await connection_to(
                self._site, candidate.address, self._process
            )
        except ConnectionRefusedError as error:
            raise ConnectError(Verdict.REFUSED, "Connection refused") from error
        return Stream(connection, self._process)


async def connection_to(
    site: Site, address: str, process: Process | None = None
) -> Connection:
    """Connect, which may take for ever."""
    site.dialled.append(address)
    host = site.host(address)
    step = host.at(Place.CONNECT, site.now(), address=address)
    if step is not None and step.act is Act.DROP:
        await asyncio.get_running_loop().create_future()
    await asyncio.sleep(host.round_trip + (step.delay if step else 0.0))
    if step is not None and step.act is Act.REFUSE:
        raise ConnectionRefusedError(address)
    return Connection(site, host, address, process)


class Connection:
    """The host's side: takes what is sent, and says what its script says, in order."""

    def __init__(
        self, site: Site, host: Host, address: str, process: Process | None
    ) -> None:
        self._site = site
        self._process = process
        self._host = host
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._free_at = self._loop.time()  # when it has said all it has to say so far
        self._buffer = b""
        self._body: bytes | None = None
        self._recipients: list[str] = []
        self._on_the_way: deque[bytes] = deque()
        self._has_sender = False
        self._transactions = 0
        self._fed = 0  # how often the client has said something
        self._is_deaf = False
        self.watcher: Callable[[], None] | None = None
        self.is_secure = False
        self.inbox = b""
        self.at_eof = False
        self.is_closed_by_us = False
        self._is_over = False
        self._woken: asyncio.Event = asyncio.Event()
        site.sessions[address] += 1
        if process is not None:
            process.connections.append(self)
        self._greet()

    @property
    def round_trip(self) -> float:
        """Seconds there and back."""
        return self._host.round_trip

    # -- what the client does ------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take *data*, which has left the client."""
        self._buffer += data
        self._fed += 1
        while not self._is_deaf:
            if self._body is not None:
                if not self._read_body():
                    return
                continue
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                return
            self._buffer = rest
            self._command(line.decode("utf-8", "replace"))

    async def input(self) -> None:
        """Wait until there is something to read."""
        while not (self.inbox or self.at_eof):
            self._woken.clear()
            await self._woken.wait()

    async def handshake(self) -> None:
        """Do the TLS handshake, or raise `ConnectionError`, or wait for ever."""
        step = self._step(Place.TLS)
        if step is not None and step.act is Act.SILENT:
            await self._loop.create_future()
        far = self._host.round_trip
        await asyncio.sleep(2 * far + (step.delay if step else 0.0))
        if step is not None and step.act is Act.FAIL:
            raise ConnectionResetError("handshake failure")
        self.is_secure = True

    def close(self) -> None:
        """The client has gone."""
        is_dead = self._process is not None and self._process.is_dead
        if is_dead and not self.is_closed_by_us and self._awaits_dot():
            self._site.cut_off += [(one, self._host.name) for one in self._recipients]
        self.is_closed_by_us = True
        self._leave()

    def _awaits_dot(self) -> bool:
        """Return whether the client may have noted that the dot is next.

        It does so when the mail data is sent; in a session that has waited for a message,
        as soon as that is there.
        """
        return self._body is not None or self._transactions > 1

    def _leave(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._site.sessions[self._address] -= 1

    # -- what the host does ----------------------------------------------------

    def _step(self, place: Place, recipient: str = "") -> Step | None:
        return self._host.at(place, self._site.now(), recipient, self._address)

    def _greet(self) -> None:
        step = self._step(Place.GREETING)
        if step is None or step.act is not Act.BUSY:
            self._act(Place.GREETING)
        elif self._site.sessions[self._address] > 1:
            self._end(0.0, step.reply)
        else:
            self._say(0.0, self._good(Place.GREETING))

    def _command(self, line: str) -> None:
        verb = line.split(" ")[0].split(":")[0].upper()
        match verb:
            case "EHLO":
                self._act(Place.EHLO)
            case "HELO":
                self._say(0.0, f"250 {self._host.name}")
            case "STARTTLS":
                self._start_tls()
            case "MAIL":
                self._recipients = []
                self._mail()
            case "RCPT":
                self._rcpt(line[len("RCPT TO:<") :].partition(">")[0])
            case "DATA":
                self._data()
            case "QUIT":
                self._end(0.0, "221 2.0.0 bye")
            case "RSET":
                self._act(Place.RSET)
            case _:
                self._say(0.0, "500 5.5.1 what?")

    def _act(self, place: Place, recipient: str = "") -> bool:
        """Do what the script says at *place*; return whether it was answered well."""
        step = self._step(place, recipient)
        good = self._good(place)
        if step is None:
            self._say(0.0, good)
            return True
        match step.act:
            case Act.SILENT:
                self._is_deaf = True
            case Act.CLOSE:
                self._end(step.delay)
            case Act.REPLY if step.reply:
                if step.reply.startswith("421"):
                    self._end(step.delay, step.reply)
                else:
                    self._say(step.delay, step.reply)
            case _:
                self._say(step.delay, good)
                return True
        return False

    def _good(self, place: Place) -> str:
        if place is not Place.EHLO:
            return GOOD[place].format(name=self._host.name)
        offers = ["ENHANCEDSTATUSCODES"]
        if self._host.pipelining:
            offers.append("PIPELINING")
        if self._host.offers_tls and not self.is_secure:
            offers.append("STARTTLS")
        if (most := self._host.most) is not None and most.is_said:
            offers.append(f"LIMITS RCPTMAX={most.recipients} MAILMAX={most.messages}")
        lines = [self._host.name, *offers]
        return "\r\n".join(
            f"250{' ' if one == lines[-1] else '-'}{one}" for one in lines
        )

    def _start_tls(self) -> None:
        step = self._step(Place.TLS)
        if step is not None and step.reply:
            self._say(step.delay, step.reply)
        else:
            self._say(0.0, "220 2.0.0 go ahead")

    def _mail(self) -> None:
        again = self._step(Place.AGAIN)
        if again is not None and self._transactions:
            self._has_sender = self._act(Place.AGAIN)
            return
        most = self._host.most
        if most is not None and self._transactions >= most.messages:
            self._has_sender = False
            self._end(0.0, "421 4.7.0 too many messages")
            return
        self._transactions += 1
        step = self._step(Place.MAIL)
        if step is not None and step.act is Act.TLS_ONLY and self._host.offers_tls:
            self._has_sender = self.is_secure
            if self.is_secure:
                self._say(0.0, GOOD[Place.MAIL])
            else:
                self._say(0.0, "530 5.7.0 Must issue a STARTTLS command first")
            return
        self._has_sender = self._act(Place.MAIL)

    def _rcpt(self, recipient: str) -> None:
        if not self._has_sender:
            self._say(0.0, "503 5.5.1 no sender")
            return
        most = self._host.most
        if most is not None and len(self._recipients) >= most.recipients:
            self._say(0.0, most.reply)
            return
        step = self._step(Place.RCPT, recipient)
        if step is not None and step.act is Act.GREYLIST:
            key = (self._host.name, recipient)
            first = self._site.met.setdefault(key, self._site.now())
            if self._site.now() - first < GREYLISTED_FOR:
                self._say(0.0, "450 4.7.1 greylisted")
                return
        if self._act(Place.RCPT, recipient):
            self._recipients.append(recipient)

    def _data(self) -> None:
        if not self._recipients:
            self._say(0.0, "503 5.5.1 no recipients")
        elif self._act(Place.DATA):
            self._body = b""
            data, body = self._step(Place.DATA), self._step(Place.BODY)
            if data is not None and data.act is Act.STRAY:
                self._say(0.0, "250 2.0.0 Ok")
            if body is not None and body.act is Act.CLOSE:
                self._end(self._host.round_trip)

    def _read_body(self) -> bool:
        step = self._step(Place.BODY)
        if step is not None and step.act is Act.EARLY and b"text" in self._buffer:
            if self._body == b"":
                self._say(0.0, "250 2.0.0 body is here")
            self._body = b"text"
        body, end, rest = self._buffer.partition(b"\r\n.\r\n")
        if not end:
            return False
        self._buffer, self._body = rest, None
        if self._process is not None:
            self._process.note("the final dot was sent")
        step = self._step(Place.DOT)
        act = step.act if step is not None else None
        is_well = step is None or (act is Act.REPLY and not step.reply)
        if act is Act.TAKE_AND_CLOSE:
            self._end(0.0)
        elif act is Act.TAKE_IN_SILENCE:
            self._is_deaf = True
        else:
            self._act(Place.DOT)
            self._rest()
        if is_well:
            self._take(body, self._free_at + self._host.round_trip)
        elif act in (Act.TAKE_AND_CLOSE, Act.TAKE_IN_SILENCE):
            self._take(body, inf)
        self._recipients = []
        return True

    def _rest(self) -> None:
        """Do what a host does with a session that waits for the next message."""
        step, fed = self._step(Place.IDLE), self._fed
        if step is None:
            return

        def act() -> None:
            if self._is_over:
                return
            if step.act is Act.STRAY:  # whatever else is said meanwhile
                self._say(0.0, "250 2.0.0 taken")
            elif self._fed == fed:
                self._end(0.0, step.reply)

        self._loop.call_at(self._free_at + step.delay, act)

    def _take(self, body: bytes, heard_at: float) -> None:
        queue_id = body.partition(b"X-Message: ")[2].partition(b"\r\n")[0].decode()
        is_whole = body + b"\r\n" == text_of(queue_id)
        self._site.taken += [
            Taken(
                one,
                queue_id,
                self._host.name,
                self._site.now(),
                self._process,
                heard_at,
                is_whole,
            )
            for one in self._recipients
        ]

    # -- words on their way ------------------------------------------------------

    def _say(self, delay: float, text: str) -> None:
        self._free_at = max(self._free_at, self._loop.time()) + delay
        self._send(text.encode() + b"\r\n")

    def _end(self, delay: float, text: str = "") -> None:
        """Say *text* and close."""
        if text:
            self._say(delay, text)
        else:
            self._free_at = max(self._free_at, self._loop.time()) + delay
        self._is_deaf = True
        self._leave()
        self._send(b"")

    def _send(self, data: bytes) -> None:
        # A loop does not keep the order of what is due at the same time.
        self._on_the_way.append(data)
        self._loop.call_at(self._free_at + self._host.round_trip, self._arrive)

    def _arrive(self) -> None:
        data = self._on_the_way.popleft()
        if self.at_eof:
            return
        self.inbox += data
        self.at_eof = not data
        self._woken.set()
        self.tell_watcher()

    def tell_watcher(self) -> None:
        """Tell who watches, as long as there is something to read."""
        if self.watcher is not None and (self.inbox or self.at_eof):
            self._loop.call_soon(self._tell_now)

    def tell_anyway(self) -> None:
        """Tell who watches of an acknowledgement."""
        if self.watcher is not None:
            self.watcher()

    def _tell_now(self) -> None:
        if self.watcher is not None and (self.inbox or self.at_eof):
            self.watcher()
            self.tell_watcher()


class Stream:
    """`mxpolicy.net.stream.Stream` over a `Connection`."""

    def __init__(self, connection: Connection, process: Process) -> None:
        self.tls = False
        self.handed_over = 0
        self._on_the_way: deque[tuple[float, int]] = deque()  # acknowledged when, bytes
        self._is_announced = False
        self._connection = connection
        self._process = process
        self._data = b""
        self._is_closed = False
        self._until: float | None = None

    def wait_at_most(self, seconds: float | None) -> None:
        now = asyncio.get_running_loop().time()
        self._until = None if seconds is None else now + seconds

    async def read(self, limit: int = 65536) -> bytes:
        self._check()
        async with asyncio.timeout_at(self._until):
            await self._connection.input()
        if self._is_closed:
            raise StreamClosed("closed by ourselves")
        data = self._connection.inbox[:limit]
        self._connection.inbox = self._connection.inbox[limit:]
        return data

    def take(self, limit: int = 65536) -> bytes | None:
        self._check()
        if not self.has_input():
            return None
        data = self._connection.inbox[:limit]
        self._connection.inbox = self._connection.inbox[limit:]
        return data

    def give(self, data: bytes) -> bool:
        self._check()
        if self._connection.at_eof:
            raise StreamClosed("Connection reset by peer")
        self._feed(data)
        return True

    def watch(self, told: Callable[[], None]) -> None:
        self._connection.watcher = told
        self._connection.tell_watcher()

    def unwatch(self) -> None:
        self._connection.watcher = None

    def has_input(self) -> bool:
        return bool(self._connection.inbox or self._connection.at_eof)

    async def wait_for_input(self, seconds: float) -> bool:
        end = asyncio.get_running_loop().time() + seconds
        is_limit_first = self._until is not None and self._until <= end
        try:
            async with asyncio.timeout_at(self._until if is_limit_first else end):
                await self._connection.input()
        except TimeoutError:
            if is_limit_first:
                raise
            return False
        return True

    async def write(
        self,
        data: bytes,
        *,
        progress_timeout: float | None = None,
        heed_input: bool = False,
    ) -> bool:
        self._check()
        self._data = data
        return await self.resume(heed_input=heed_input)

    async def resume(
        self, *, progress_timeout: float | None = None, heed_input: bool = False
    ) -> bool:
        if heed_input and self.has_input():
            return False
        if self._connection.at_eof:
            raise StreamClosed("Connection reset by peer")
        self._feed(self._data)
        self._data = b""
        return True

    def _feed(self, data: bytes) -> None:
        self._connection.feed(data)
        self.handed_over += len(data)
        loop = asyncio.get_running_loop()
        at = loop.time() + self._connection.round_trip
        self._on_the_way.append((at, len(data)))
        if self._is_announced:
            loop.call_at(at, self._connection.tell_anyway)

    async def drain(
        self,
        *,
        progress_timeout: float | None = None,
        heed_input: bool = False,
        suffices: Callable[[int], bool] = operator.not_,
    ) -> bool:
        self._check()
        far = self._connection.round_trip
        if heed_input:
            return not await self.wait_for_input(far)
        await asyncio.sleep(far)
        return True

    def announce(self, is_on: bool) -> None:
        self._is_announced = is_on

    @property
    def acknowledged(self) -> int:
        return self.handed_over - self.unacknowledged()

    def unacknowledged(self) -> int:
        now = asyncio.get_running_loop().time()
        while self._on_the_way and self._on_the_way[0][0] <= now:
            self._on_the_way.popleft()
        return sum(count for _, count in self._on_the_way)

    def send_state(self) -> SendState | None:
        return None

    def tls_words(self) -> str:
        return "TLSv1.3/SIMULATED" if self.tls else ""

    async def start_tls(self, context: object, server_name: str) -> None:
        self._check()
        try:
            await self._connection.handshake()
        except ConnectionError as error:
            raise TLSError(str(error)) from error
        self.tls = True

    def close(self, last_words: bytes = b"") -> None:
        if not self._is_closed and last_words and not self._process.is_dead:
            self._connection.feed(last_words)
        self.abort()

    def keep_alive(self) -> None:
        """Nothing forgets a connection here."""

    def abort(self) -> None:
        self.unwatch()
        self._is_closed = True
        self._connection.close()

    def _check(self) -> None:
        self._process.operate()
        if self._is_closed:
            raise StreamClosed("closed by ourselves")
