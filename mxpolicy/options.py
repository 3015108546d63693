"""Every option, with its unit and its default; the one place where defaults live.

The records are frozen and import nothing of ours, so that any layer may take
one as an argument. `mxpolicy.config` fills them from YAML; the sample file and
the table in REFERENCE.md are made from the docstrings under the fields.

Field names are the YAML keys. The type of a field is its kind, and
`mxpolicy.option_values` has one reader for each kind: a `Timeout` is a number
of seconds here and ``30s`` or ``5m`` in YAML, a `Size` is a number of bytes
here and ``10MiB`` there. Kinds are kept apart at run time by `Annotated`.

They are no dataclasses: each of those takes three million instructions to make, for
every message that `mxpolicy pipe` delivers by itself.
"""

from enum import Enum
from typing import Annotated, NamedTuple

__all__ = [
    "MIB",
    "AccessAbout",
    "AccessAction",
    "AccessFinding",
    "AccessFindings",
    "AccessPolicyOptions",
    "AccessRule",
    "AccessRules",
    "Clients",
    "Delay",
    "Destinations",
    "Directory",
    "GreetingPolicy",
    "Group",
    "Hops",
    "HostName",
    "HostNames",
    "JournalOptions",
    "KickOptions",
    "LimitOptions",
    "ListenOptions",
    "LmtpOptions",
    "LmtpSockets",
    "LogDetail",
    "LogFormat",
    "LogOptions",
    "LogTarget",
    "LongLines",
    "MemoryOptions",
    "NameServers",
    "Networks",
    "NetworksOrPrivate",
    "NxdomainPolicy",
    "Options",
    "Paths",
    "PipeSockets",
    "Places",
    "PolicySockets",
    "Port",
    "Processes",
    "ProtocolStates",
    "RaceOptions",
    "Rate",
    "ResolverOptions",
    "Size",
    "Sockets",
    "Texts",
    "Timeout",
    "TlsLevel",
    "TlsOptions",
    "TransactionOptions",
    "YesNoAuto",
    "is_record",
]

MS = 0.001
SECONDS = 1.0
MINUTES = 60.0
MIB = 1024 * 1024

Delay = Annotated[float, "Delay"]
"""Seconds, from 0 to an hour."""
Timeout = Annotated[float, "Timeout"]
"""Seconds, from 1 ms to a day: waiting no time at all would be no try at all."""
Size = Annotated[int, "Size"]
"""Bytes, from 0 to 1 GiB."""
Port = Annotated[int, "Port"]
"""A TCP port, 1 to 65535."""
Places = Annotated[int, "Places"]
"""How many at once, 1 to 32: an attempt dials no more."""
Processes = Annotated[int, "Processes"]
"""How many processes or connections at once, 0 to 10000."""
Clients = Annotated[int, "Clients"]
"""Connections at once, 1 to 100000."""
Hops = Annotated[int, "Hops"]
"""Mail servers that a message has passed, 1 to 1000."""
Rate = Annotated[int, "Rate"]
"""How many a second, 1 to 1000."""
YesNoAuto = Annotated[bool | None, "YesNoAuto"]
"""``yes``, ``no``, or None for ``auto``."""
HostName = Annotated[str, "HostName"]
"""A host's name as A-labels, at least two, or an address literal in brackets; empty for the default."""
HostNames = Annotated[tuple[str, ...], "HostNames"]
"""Host names, lower case, without the final dot."""
Networks = Annotated[tuple[str, ...], "Networks"]
"""Addresses, or networks in CIDR notation."""
NetworksOrPrivate = Annotated[tuple[str, ...], "NetworksOrPrivate"]
"""The same, or ``private`` for the private ranges."""
NameServers = Annotated[tuple[str, ...], "NameServers"]
"""``ADDRESS``, ``ADDRESS:PORT`` or ``[V6]:PORT``."""
LogTarget = Annotated[str, "LogTarget"]
"""``syslog``, ``journald``, ``stderr`` or an absolute path."""
Directory = Annotated[str, "Directory"]
"""An absolute path; empty for the default."""
LOOPBACK = ("127.0.0.0/8", "::1")
UNIX = "unix"
"""The usual path of a socket; see `ListenOptions`."""
Sockets = Annotated[tuple[str, ...], "Sockets"]
"""`UNIX`, absolute paths, ``ADDRESS:PORT`` or ``[V6]:PORT``."""
Paths = Annotated[tuple[str, ...], "Paths"]
"""`UNIX`, or absolute paths."""
Group = Annotated[str, "Group"]
"""A group's name; empty for the default."""
AccessAction = Annotated[str, "AccessAction"]
"""An action of access(5), as `mxpolicy.protocol.access_policy` knows them."""
ProtocolStates = Annotated[tuple[str, ...], "ProtocolStates"]
"""Postfix's names for where an SMTP session is, upper case."""
Destinations = Annotated[tuple[str, ...], "Destinations"]
"""Domains as A-labels; ``.example.com`` stands for all below it."""
Texts = Annotated[tuple[str, ...], "Texts"]
"""Words taken as they are."""


class GreetingPolicy(Enum):
    """What a 5yz greeting means."""

    NEXT = "next"
    BOUNCE = "bounce"


class NxdomainPolicy(Enum):
    """What "no such domain" means."""

    BOUNCE = "bounce"
    DEFER = "defer"


class LongLines(Enum):
    """What happens to lines over 998 bytes (RFC 5321 §4.5.3.1.6)."""

    FOLD = "fold"
    PASS = "pass"  # noqa: S105


class TlsLevel(Enum):
    """Postfix's TLS security levels; more come with DANE and MTA-STS."""

    NONE = "none"
    MAY = "may"


class LogFormat(Enum):
    """The form of a log line."""

    POSTFIX = "postfix"
    JSON = "json"


class LogDetail(Enum):
    """What is logged."""

    RECIPIENTS = "recipients"
    EVENTS = "events"


class ResolverOptions(NamedTuple):
    """How DNS is asked."""

    servers: NameServers = ()
    """Name servers, ``ADDRESS`` or ``ADDRESS:PORT`` (``[V6]:PORT``). Default: those of ``/etc/resolv.conf``."""
    timeout: Timeout = 15 * SECONDS
    """How long one lookup may take, over all servers and repetitions."""
    trust_ad: YesNoAuto = None
    """Believe the AD bit of these servers: ``yes``, ``no``, or ``auto``, which is yes with ``options trust-ad`` in resolv.conf."""


class RaceOptions(NamedTuple):
    """How soon the next candidate is started beside one that is slow."""

    address_delay: Delay = 250 * MS
    """How long a SYN-ACK is awaited before the other address family of the same host is dialled too (RFC 8305 §5)."""
    host_delay: Delay = 1 * SECONDS
    """The same, before another host of the same preference is dialled too."""
    rank_delay: Delay = 1.5 * SECONDS
    """The same, before a host of a worse preference is dialled too."""
    phase_patience: Timeout = 8 * SECONDS
    """How long a connected host may stay in one phase (greeting, EHLO, TLS) before the next host is dialled too. postscreen makes every client wait 6 seconds on purpose."""
    open: Places = 6
    """Most connections open at once for one message."""
    open_per_rank: Places = 4
    """Most of these to hosts of one preference."""
    grace: Delay = 200 * MS
    """How long a better host that is connected is awaited when a worse one is ready first."""


class TransactionOptions(NamedTuple):
    """How long a mail transaction waits."""

    silence: Timeout = 60 * SECONDS
    """How long a reply before the final dot is awaited before the next host is asked, if there is one. The silent one is asked again, with all its time, when the others have been."""
    late_reply: Delay = 60 * MINUTES
    """How long the daemon still listens for the reply to the final dot, once the mail server was told 4.4.2 for want of it. When it comes after all, the next attempt ends as delivered and makes no second copy (RFC 1047). ``0s``: not at all. A ``mxpolicy pipe`` that runs alone cannot wait."""
    session_idle: Delay = 5 * SECONDS
    """How long ``mxpolicy serve`` keeps a session with a host that has taken a message, for the next message to that host (Postfix: smtp_connection_cache_time_limit). ``0s``: each message has a session of its own."""
    session_messages: Processes = 100
    """How many messages are sent over one session (Postfix: smtp_connection_reuse_count_limit). What the host says of its limits counts, too (RFC 9422). 0: no limit."""
    body_progress: Timeout = 180 * SECONDS
    """How long the host may acknowledge no byte of the mail data (Postfix: smtp_data_xfer_timeout)."""


class LimitOptions(NamedTuple):
    """What messages may take of this machine."""

    message_memory: Size = 1 * MIB
    """Mail data kept in memory. A larger message goes to a file without a name."""
    spool_memory: Size = 64 * MIB
    """The same for all messages of a daemon together. The more of it is in use, the less of its data each message keeps in memory."""
    hops: Hops = 50
    """``Received:`` fields that make a message a loop; it bounces with 5.4.6 (RFC 5321 §6.3, Postfix: hopcount_limit)."""
    processes: Processes = 60
    """How many deliveries the mail server runs at once (Postfix: maxproc in master.cf, added up where several transports run mxpolicy). A destination that does not answer gets no more than its share, and other mail goes on. 0: no destination is ever limited."""
    connections_per_host: Processes = 20
    """How many connections ``mxpolicy serve`` has with one host, by name or by address, where more messages wait (Postfix: default_destination_concurrency_limit). The others wait for their turn, in fair order. 0: no limit."""
    connections: Processes = 1000
    """The same for all hosts together. 0: no limit."""
    clients: Clients = 4000
    """How many clients one socket of ``mxpolicy serve`` has at once; the next ones wait. All of them together use half of its descriptors at most."""


class PipeSockets(NamedTuple):
    """Where ``mxpolicy pipe`` hands messages over."""

    at: Paths = (UNIX,)
    """``unix``, which is ``pipe`` in ``$RUNTIME_DIRECTORY``, else in ``/run/mxpolicy``; or absolute paths. ``[]``: none."""
    group: Group = ""
    """Group of these sockets; their mode is 0660. Default: that of ``mxpolicy serve``, which is also the mail server's for ``mxpolicy pipe``."""


class LmtpSockets(NamedTuple):
    """Where the mail server delivers by LMTP (RFC 2033). A client that may connect may send mail to all the world."""

    at: Sockets = (UNIX,)
    """``unix``, which is ``lmtp`` in that directory; absolute paths; ``ADDRESS:PORT`` or ``[V6]:PORT`` for TCP. ``[]``: none."""
    group: Group = ""
    """Group of the unix sockets among them (mode 0660): the mail server's, ``postfix`` or ``Debian-exim``. Default: that of ``mxpolicy serve``. A socket that systemd gives has the group of its unit (SocketGroup=)."""
    allow: Networks = LOOPBACK
    """Addresses or networks that may connect by TCP."""
    users: Texts = ("postfix", "Debian-exim", "exim")
    """Users of this machine that may send by TCP, by name or number, beside root and the user of ``mxpolicy serve``. A name that does not exist is no mistake."""


class PolicySockets(NamedTuple):
    """Where the mail server asks for access policy (``check_policy_service``)."""

    at: Sockets = (UNIX,)
    """``unix``, which is ``policy`` in that directory; absolute paths; ``ADDRESS:PORT`` or ``[V6]:PORT`` for TCP. ``[]``: none."""
    group: Group = ""
    """As for ``lmtp``."""
    allow: Networks = LOOPBACK
    """As for ``lmtp``. Every user of this machine may ask by TCP: a question changes nothing, and its answer tells what DNS says and which hosts were out of reach."""


class ListenOptions(NamedTuple):
    """Where ``mxpolicy serve`` is reached, beside the sockets that systemd gives it. A door with a socket from systemd makes none for ``unix``."""

    pipe: PipeSockets = PipeSockets()
    lmtp: LmtpSockets = LmtpSockets()
    policy: PolicySockets = PolicySockets()


class MemoryOptions(NamedTuple):
    """How long a host that failed is asked last."""

    pause: Timeout = 60 * SECONDS
    """How long a host is asked last after its first failure. It doubles each time the host still fails."""
    longest_pause: Timeout = 10 * MINUTES
    """Upper limit of the pause, and so of how long a host that has recovered stays unused."""
    fast_deferral: bool = True
    """When every host has failed and is in its pause: ``yes`` defers the message at once, ``no`` asks them all again."""


class JournalOptions(NamedTuple):
    """Which recipient has which message, so that none gets it twice."""

    keep: bool = True
    """``yes``: a retry goes only to recipients that have not had the message; ``no``: to all of its recipients again."""
    durable: bool = False
    """Whether the note before a final dot must survive a loss of power. ``yes`` costs one wait for the disk; deliveries at the same time share it. ``no``: after a loss of power, the messages of the last seconds may be sent again. A crash of mxpolicy alone loses no note."""
    wait: Delay = 30 * SECONDS
    """How long a delivery waits for another one of the same message to the same recipient; then it is deferred."""


class KickOptions(NamedTuple):
    """Telling the mail server, from ``mxpolicy serve``, that hosts can be reached again."""

    command: Texts = ()
    """Program and arguments; the queue id of a deferred message comes behind them. ``[/usr/sbin/postqueue, -i]`` or ``[/usr/sbin/exim4, -M]``, as an account that may do so. Default: no command is run, and the mail server's own schedule decides."""
    rate: Rate = 10
    """How many messages a second the mail server is told of at most."""


class TlsOptions(NamedTuple):
    """TLS towards the hosts."""

    default: TlsLevel = TlsLevel.MAY
    """Level for every destination, one of Postfix's names: ``none`` or ``may``."""


class LogOptions(NamedTuple):
    """Where a delivery is logged, and how."""

    to: LogTarget = "syslog"
    """``syslog``, ``journald``, ``stderr`` (not under pipe(8) and spawn(8)) or a file's absolute path."""
    format: LogFormat = LogFormat.POSTFIX
    """``postfix``, a line like Postfix's own, or ``json``."""
    detail: LogDetail = LogDetail.RECIPIENTS
    """``recipients``: one line for each. ``events``: every step as it happens, too."""


class AccessFinding(Enum):
    """What is known about the domain of an address without dialling a host."""

    NULL_MX = "null_mx"
    NO_SUCH_DOMAIN = "no_such_domain"
    NO_ADDRESS = "no_address"
    NEVER_DIALLED = "never_dialled"
    LOOPS_TO_MYSELF = "loops_to_myself"
    ALL_PAUSED = "all_paused"


class AccessAbout(Enum):
    """Whose domain."""

    RECIPIENT = "recipient"
    SENDER = "sender"


AccessFindings = Annotated[tuple[AccessFinding, ...], "AccessFindings"]
"""Findings, at least one."""


class AccessRule(NamedTuple):
    """What is answered to the mail server about one finding, and when."""

    finding: AccessFindings
    """Required. ``null_mx``; ``no_such_domain``; ``no_address`` (the domain exists, and none of its hosts has one); ``never_dialled`` (only loopback and the like); ``loops_to_myself``; ``all_paused`` (each of its hosts has failed and is in its pause)."""
    action: AccessAction
    """Required. ``DUNNO``, ``REJECT``, ``DEFER``, ``DEFER_IF_PERMIT``, ``WARN``, ``4NN`` or ``5NN``, each with a text or with mxpolicy's own; ``PREPEND HEADER: TEXT``; ``FILTER mxpolicy:``. About ``all_paused``, ``REJECT`` and ``5NN`` become ``DEFER`` and ``4NN``."""
    about: AccessAbout = AccessAbout.RECIPIENT
    """Whose domain: that of the ``recipient`` or of the ``sender``."""
    protocol_state: ProtocolStates = ()
    """Only in these states of the SMTP session: ``RCPT``, ``MAIL``, ``DATA``, ... Default: in all."""
    client: Networks = ()
    """Only for clients of these addresses or networks. Default: for all."""
    sasl_username: Texts = ()
    """Only for clients that logged in by one of these names; ``*`` is any name. Default: for all, logged in or not."""
    domain: Destinations = ()
    """Only for these domains; ``.example.com`` is every domain below it. Default: for all."""


AccessRules = tuple[AccessRule, ...]
"""In the order of trying; the first one that matches decides."""


class AccessPolicyOptions(NamedTuple):
    """What ``mxpolicy policy`` answers to the mail server (SMTPD_POLICY_README)."""

    timeout: Timeout = 8 * SECONDS
    """How long one answer may take; then it is DUNNO. Keep it below ``timeout=`` in main.cf."""
    rules: AccessRules = ()
    """What is answered about which finding; the first rule that matches decides. Two more follow: ``{finding: [null_mx], action: 550}`` about recipients and the same about senders (RFC 7505). Then DUNNO."""


class LmtpOptions(NamedTuple):
    """What the daemon's LMTP server takes (RFC 2033)."""

    timeout: Timeout = 30 * MINUTES
    """How long the mail server waits for the reply to the end of a message (Postfix: lmtp_data_done_timeout; Exim: timeout of the lmtp transport). The end is sent to a host up to 10 minutes before that."""
    message_size: Size = 1024 * MIB
    """The largest message that is taken. Keep it above the mail server's own limit (Postfix: message_size_limit)."""
    dsn: bool = False
    """``yes``: announce DSN (RFC 3461), and pass NOTIFY, RET, ENVID and ORCPT to hosts that offer it. The mail server then leaves reports of success to them; a host that does not offer DSN sends none, and neither does mxpolicy. ``no``: the mail server reports "relayed" to senders who asked for it."""


class Options(NamedTuple):
    """The whole configuration; ``Options()`` works as it is."""

    helo: HostName = ""
    """Name given in EHLO. Default: the machine's fully qualified name."""
    own_names: HostNames = ()
    """Host names of this mail system, beside ``helo`` (Postfix: the hosts in mydestination)."""
    own_addresses: Networks = ()
    """Addresses or networks of this mail system as the world sees it (Postfix: proxy_interfaces)."""
    never_dial: NetworksOrPrivate = ()
    """Addresses or networks never to be dialled, beside loopback, link-local and the like; ``private`` stands for the private ranges."""
    allow_dial: Networks = ()
    """Exceptions to all of that, for a test bed or a mail system on loopback."""
    port: Port = 25
    """TCP port of the hosts, unless the nexthop says another."""
    resolver: ResolverOptions = ResolverOptions()
    race: RaceOptions = RaceOptions()
    deadline: Timeout = 15 * MINUTES
    """How long one message may take; then it is deferred. ``--deadline`` says otherwise for a call. The answer to its end may take 10 minutes more."""
    transaction: TransactionOptions = TransactionOptions()
    greeting_5xx: GreetingPolicy = GreetingPolicy.NEXT
    """A 5yz greeting: ``next`` host (it may be the firewall that speaks) or ``bounce``."""
    nxdomain: NxdomainPolicy = NxdomainPolicy.BOUNCE
    """A domain that does not exist: ``bounce`` or ``defer``."""
    long_lines: LongLines = LongLines.FOLD
    """Lines over 998 bytes: ``fold`` as Postfix does, or ``pass``."""
    limits: LimitOptions = LimitOptions()
    memory: MemoryOptions = MemoryOptions()
    journal: JournalOptions = JournalOptions()
    kick: KickOptions = KickOptions()
    tls: TlsOptions = TlsOptions()
    lmtp: LmtpOptions = LmtpOptions()
    policy: AccessPolicyOptions = AccessPolicyOptions()
    listen: ListenOptions = ListenOptions()
    log: LogOptions = LogOptions()
    state: Directory = ""
    """Directory for what is remembered, and for the journal. Default: ``$STATE_DIRECTORY``, else ``/var/lib/mxpolicy``."""


def is_record(kind: object) -> bool:
    """Return whether *kind*, a field's type or a value, is a record of options."""
    return hasattr(kind, "_field_defaults")
