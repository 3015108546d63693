"""The stub resolver: questions to the machine's name servers, with bounded time.

Every name server and firewall understands the first query: UDP without EDNS. An answer
of more than 512 bytes comes over TCP (RFC 7766), and where TCP does not work, over UDP
with EDNS. In the first round a silent server is left for the next one. In later rounds
it is asked over TCP too. A server that fails goes to the end of the list.

How long it takes, with n servers, T seconds of patience (``resolver.timeout``, 15 s;
3.6 s for the access policy) and p, the smaller of 2 s and T / (n + 1):

=================================================  =================================
the first server                                   seconds until there is an answer
=================================================  =================================
is dead, the next one is good                      p, and for the next name none
has a long answer, and TCP works or is closed      none
has a long answer, and TCP is dropped or silent    p / 4
and all others answer over TCP only                n p
and all others are dead                            T, and the lookup has failed
=================================================  =================================

A plan takes twice as long at most: once for MX, once for all addresses together.

SERVFAIL, REFUSED, silence, nonsense and lame answers never count as "there is none".
They are `LookupStatus.FAILED`, each with its reason.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from mxpolicy.errors import LocalTrouble
from mxpolicy.net.dns_cache import Cache
from mxpolicy.net.dns_message import MAX_CNAMES, Answer, Question
from mxpolicy.net.dns_query import (
    FIRST_ROUND,
    LATER_ROUND,
    ONLY_TCP,
    Step,
    ask_server,
    parse_server,
)
from mxpolicy.net.dns_wire import WireError
from mxpolicy.net.resolv_conf import ResolvConfFile
from mxpolicy.reply import printable
from mxpolicy.routing.mx import Lookup, LookupStatus

if TYPE_CHECKING:
    from typing import TypeAlias

    from mxpolicy.net.dns_query import Server
    from mxpolicy.net.resolv_conf import ResolvConf
    from mxpolicy.options import ResolverOptions

    # Name, type, and seconds of patience.
    _Question: TypeAlias = tuple[str, str, float]

__all__ = ["Resolver"]

# Seconds that a server has in the first round. They double with every round, so that a
# slow recursive server is heard in a later one. glibc waits 5 s each time; with a dead
# first server every message would.
FIRST_TIMEOUT = 2.0
ROUNDS = 3


class Resolver:
    """Looks names up, and remembers the answers while their TTL lasts."""

    def __init__(
        self,
        options: ResolverOptions,
        conf: ResolvConf | None = None,
        file: ResolvConfFile | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            options: Servers named here replace those of resolv.conf, and then
                its ``trust-ad``, which is about its own servers, does not count.
            conf: What resolv.conf says, for good. When None, the file says it, now and
                whenever it has changed.
            file: That file; by default the one in /etc.

        Raises:
            ConfigError: A server is not written as an address.
        """
        self._options = options
        self._timeout = options.timeout
        self._file: ResolvConfFile | None = None
        if conf is None:
            self._file = file or ResolvConfFile()
            conf = self._file.read()
        self._use(conf)
        self._cache = Cache()
        self._asking: dict[_Question, asyncio.Future[Lookup | None]] = {}

    def _use(self, conf: ResolvConf) -> None:
        """Go on by what resolv.conf says."""
        options = self._options
        named = options.servers
        self._servers = [parse_server(text) for text in named or conf.servers]
        if options.trust_ad is not None:
            self._trust_ad = options.trust_ad
        else:
            self._trust_ad = conf.trust_ad and not named
        if conf.rotate:
            _begin_anywhere(self._servers)
        self._use_vc = conf.use_vc
        self._first_timeout = conf.timeout or FIRST_TIMEOUT
        self._rounds = conf.attempts or ROUNDS

    async def lookup(
        self, name: str, rdtype: str, within: float | None = None
    ) -> Lookup:
        """Return what DNS says about *name* (absolute, final dot or not).

        It takes at most ``ResolverOptions.timeout`` seconds. Whatever DNS does, it does
        not raise: no answer is FAILED with a reason. Equal questions at the same time
        are asked once.

        Args:
            rdtype: ``MX``, ``A`` or ``AAAA``.
            within: Seconds, where there is less time than that. Its answer serves
                questions with more time too; its failure does not.
        """
        patience = min(within or self._timeout, self._timeout)
        key = (name.lower().rstrip("."), rdtype, patience)
        while True:
            if known := self._cache.get(*key[:2], _now(), patience):
                return known
            if (asking := self._asking.get(key)) is None:
                return await self._ask_and_tell(key)
            # The task that asks may be cancelled; then one of those that wait asks.
            if told := await asyncio.shield(asking):
                return told

    async def _ask_and_tell(self, key: _Question) -> Lookup:
        done: asyncio.Future[Lookup | None]
        self._asking[key] = done = asyncio.get_running_loop().create_future()
        lookup = None
        try:
            lookup = self._cache.put(await self._ask(*key), _now(), key[2])
        except LocalTrouble as error:
            # Not kept: it says nothing about the name.
            lookup = Lookup(*key[:2], LookupStatus.FAILED, reason=str(error))
        finally:
            del self._asking[key]
            done.set_result(lookup)
        return lookup

    async def _ask(self, name: str, rdtype: str, patience: float) -> Lookup:
        if self._file is not None and (conf := self._file.news(_now())):
            self._use(conf)
        reasons: list[str] = []
        # Short enough that dead servers leave some time for the last one.
        first = min(self._first_timeout, patience / (len(self._servers) + 1))
        try:
            async with asyncio.timeout(patience):
                answer = await self._follow(Question.of(name, rdtype), first, reasons)
        except TimeoutError:
            answer = Answer(LookupStatus.FAILED)
            reasons.append(f"no answer within {patience:g} s")
        except WireError:
            answer = Answer(LookupStatus.FAILED, reason="not a domain name")
        return Lookup(
            name,
            rdtype,
            answer.status,
            answer.records,
            answer.secure and self._trust_ad,
            answer.ttl,
            _reason(answer, reasons),
        )

    async def _follow(
        self, question: Question, first: float, reasons: list[str]
    ) -> Answer:
        """Ask; ask again where a server leaves a CNAME's target to us."""
        secure, ttl = True, float("inf")
        for _ in range(MAX_CNAMES):
            answer = await self._ask_servers(question, first, reasons)
            secure, ttl = secure and answer.secure, min(ttl, answer.ttl)
            if answer.follow is None:
                return answer._replace(secure=secure, ttl=ttl)
            question = question._replace(name=answer.follow)
        return Answer(LookupStatus.FAILED, reason="CNAME chain too long or a loop")

    async def _ask_servers(
        self, question: Question, first: float, reasons: list[str]
    ) -> Answer:
        """Ask one server after the other, a few rounds long, until one answers.

        Args:
            first: Seconds that each server has in the first round.
            reasons: Why servers failed; added to.
        """
        hopeless: set[Server] = set()
        servers = self._servers  # another list, once resolv.conf has changed
        for turn in range(self._rounds):
            for server in tuple(servers):
                if server in hopeless:
                    continue
                answer = await ask_server(
                    server, question, self._steps(turn), first * 2**turn
                )
                if answer.status is not LookupStatus.FAILED:
                    return answer
                reasons.append(f"{answer.reason} from {server}")
                if not answer.ask_again:
                    # It has answered, and would answer the same again.
                    hopeless.add(server)
                servers.remove(server)
                servers.append(server)
        return Answer(LookupStatus.FAILED)

    def _steps(self, turn: int) -> tuple[Step, ...]:
        if self._use_vc:
            return ONLY_TCP
        return LATER_ROUND if turn else FIRST_ROUND


def _begin_anywhere(servers: list[Server]) -> None:
    """Turn the list, so that many processes share the servers (``options rotate``)."""
    start = int.from_bytes(os.urandom(2), "big") % len(servers)
    servers[:] = servers[start:] + servers[:start]


def _reason(answer: Answer, reasons: list[str]) -> str:
    if answer.status is not LookupStatus.FAILED:
        return ""
    if answer.reason:
        return answer.reason
    return printable("; ".join(dict.fromkeys(reasons)), 200)


def _now() -> float:
    return asyncio.get_running_loop().time()
