"""The lab's name service: a signed root and a signed `lab.test`, nsd, unbound.

nsd serves both zones on 203.0.113.53, behind the firewall. unbound beside the mail
server knows only that root and its key, validates, and is all that resolv.conf names.
There is no other DNS: a name outside `lab.test` does not exist, provably.

For zones that cannot be looked up: `LAME` is the address of a server that refuses every
question, and at `DEAD` nobody answers. Both lie among the SMTP hosts, where none comes.
"""

import re
import time
from collections.abc import Iterable

from .world import World

DOMAIN = "lab.test"
NAME_SERVER = "203.0.113.53"
LAME = "198.19.255.1"
DEAD = "198.19.255.2"
MAIL_SERVER = "192.0.2.25"

_HOME = "/run/lab/dns"

_NSD = f"""
server:
    ip-address: {NAME_SERVER}
    username: ""
    chroot: ""
    zonesdir: "{_HOME}"
    database: ""
    pidfile: "{_HOME}/nsd.pid"
    xfrdfile: "{_HOME}/xfrd.state"
    zonelistfile: "{_HOME}/zone.list"
    server-count: 1
    hide-version: yes
    # All queries come from one address, and an all-at-once start asks for everything.
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: "."
    zonefile: "root.zone.signed"
zone:
    name: "{DOMAIN}"
    zonefile: "{DOMAIN}.zone.signed"
"""

_NSD_LAME = f"""
server:
    ip-address: {LAME}
    username: ""
    chroot: ""
    zonesdir: "{_HOME}"
    database: ""
    pidfile: "{_HOME}/lame.pid"
    xfrdfile: "{_HOME}/lame.state"
    zonelistfile: "{_HOME}/lame.list"
    server-count: 1
    rrl-ratelimit: 0
remote-control:
    control-enable: no
"""

_UNBOUND = f"""
server:
    interface: 127.0.0.1
    access-control: 127.0.0.0/8 allow
    username: ""
    chroot: ""
    directory: "{_HOME}"
    pidfile: "{_HOME}/unbound.pid"
    use-syslog: no
    do-daemonize: no
    val-log-level: 2
    module-config: "validator iterator"
    root-hints: "{_HOME}/root.hints"
    trust-anchor-file: "{_HOME}/root.anchor"
    # lab.test is below a name reserved by RFC 6761, which unbound answers by itself.
    local-zone: "test." nodefault
remote-control:
    control-enable: yes
    control-interface: {_HOME}/unbound.ctl
    control-use-cert: no
"""

_START_OF_ZONE = """
$ORIGIN {origin}
$TTL 3600
@ SOA ns.lab.test. hostmaster.lab.test. 1 3600 600 86400 60
@ NS ns.lab.test.
"""


class NameService:
    """nsd and unbound, running.

    *records* are lines of a master file for `lab.test`; those of the owners *forged*
    (in full, with the final dot) get signatures that are wrong.
    """

    def __init__(
        self, world: World, records: Iterable[str], forged: Iterable[str] = ()
    ) -> None:
        self._world = world
        world.path(_HOME).mkdir()
        lines = [f"ns A {NAME_SERVER}", f"mail A {MAIL_SERVER}", *records]
        delegation_signer = self._sign(DOMAIN, f"{DOMAIN}.", lines)
        self._forge(forged)
        delegation = [
            f"{DOMAIN}. NS ns.{DOMAIN}.",
            f"ns.{DOMAIN}. A {NAME_SERVER}",
            delegation_signer,
        ]
        self._sign("root", ".", delegation)
        self._write("root.hints", f". NS ns.{DOMAIN}.\nns.{DOMAIN}. A {NAME_SERVER}\n")
        self._write("nsd.conf", _NSD)
        self._write("lame.conf", _NSD_LAME)
        self._write("unbound.conf", _UNBOUND)
        self._start_both()

    def _sign(self, name: str, origin: str, lines: Iterable[str]) -> str:
        """Write and sign a zone; return its DS record. The key is made for this run."""
        text = _START_OF_ZONE.format(origin=origin) + "\n".join(lines) + "\n"
        self._write(f"{name}.zone", text)
        script = (
            f'cd {_HOME} && key=$(ldns-keygen -k -a ECDSAP256SHA256 "{origin}") && '
            f'ldns-signzone -o "{origin}" {name}.zone "$key" && '
            f'cp "$key.key" {name}.anchor && cat "$key.ds"'
        )
        return self._world.run("net", ["sh", "-c", script]).stdout.decode().strip()

    def _forge(self, owners: Iterable[str]) -> None:
        """Spoil the signatures of what *owners* have; what they say stays."""
        path = self._world.path(f"{_HOME}/{DOMAIN}.zone.signed")
        text = path.read_text()
        for owner in owners:
            line = rf"^({re.escape(owner)}\s.*\sRRSIG\s+(?:MX|A|AAAA)\s.*\s)(.)(\S+)$"
            text, found = re.subn(line, _spoil, text, flags=re.M)
            if not found:
                raise ValueError(f"{owner} has no signature to spoil")
        path.write_text(text)

    def _write(self, name: str, text: str) -> None:
        self._world.path(f"{_HOME}/{name}").write_text(text)

    def stop_resolver(self) -> None:
        """End unbound: nothing listens any more where resolv.conf points to."""
        for process in self._world.processes():
            if process.command.startswith("unbound "):
                self._world.run("mta", ["kill", str(process.pid)])

    def start_resolver(self) -> None:
        """Start unbound, with an empty cache; wait until it answers."""
        logs = f"{_HOME}/log"
        self._world.start("mta", ["unbound", "-c", f"{_HOME}/unbound.conf"], log=logs)
        self._await_answer()

    def _start_both(self) -> None:
        logs = f"{_HOME}/log"
        for name in ("nsd", "lame"):
            command = ["nsd", "-d", "-c", f"{_HOME}/{name}.conf"]
            self._world.start("net", command, log=logs)
        self.start_resolver()

    def _await_answer(self) -> None:
        until = time.monotonic() + 15
        while "ad" not in self._flags_of(f"ns.{DOMAIN}"):
            if time.monotonic() > until:
                words = self._world.path(f"{_HOME}/log").read_text()
                raise RuntimeError(f"no validated answer from unbound:\n{words}")
            time.sleep(0.05)

    def _flags_of(self, name: str) -> list[str]:
        ask = ["dig", "+dnssec", "+tries=1", "+time=2", "@127.0.0.1", name, "A"]
        answer = self._world.run("mta", ask, check=False).stdout.decode()
        for line in answer.splitlines():
            if line.startswith(";; flags:"):
                return line.split(";")[2].removeprefix(" flags:").split()
        return []


def _spoil(line: re.Match[str]) -> str:
    return line[1] + ("A" if line[2] != "A" else "B") + line[3]
