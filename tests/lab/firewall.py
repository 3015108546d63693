"""The firewall between mail server and Internet: nftables rules by destination address.

Treatments, for TCP and whatever else goes to the address, or comes from it:

`drop`      no answer at all; the verdict `filtered`
`reset`     RST, as from a host where nothing listens; `refused`
`prohibit`  ICMP administratively prohibited; `prohibited`
`hold`      acknowledgements that come alone are lost: only what it says has one
"""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Literal, get_args

from .world import World

Treatment = Literal["", "drop", "reset", "prohibit", "hold"]

TREATMENTS: tuple[Treatment, ...] = tuple(name for name in get_args(Treatment) if name)

_ACTIONS = {
    "drop": "drop",
    "reset": "meta l4proto tcp reject with tcp reset",
    "prohibit": "reject with icmpx type admin-prohibited",
    # At most: IPv6, TCP, and its options.
    "hold": f"tcp flags == ack meta length <= {40 + 20 + 40} drop",
}


class Firewall:
    """The rules in force; they can be changed while mail is under way."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._nft(_ruleset())

    def treat(self, treatment: Treatment, addresses: Iterable[str]) -> None:
        """Treat packets to *addresses* so from now on; "" lets them pass again."""
        commands = []
        for address in addresses:
            version = ip_address(address).version
            for name in TREATMENTS:
                commands.append(_element("add", name, version, address))
                if name != treatment:
                    # nft's delete fails where there is nothing; so add first.
                    commands.append(_element("delete", name, version, address))
        self._nft("\n".join(commands))

    def add_rule(self, rule: str) -> None:
        """Append a rule in nft's words to those that packets on their way pass."""
        self._nft(f"add rule inet lab added {rule}")

    def forget_rules(self) -> None:
        """Take away what `add_rule` added."""
        self._nft("flush chain inet lab added")

    def _nft(self, script: str) -> None:
        self._world.run("fw", ["nft", "-f", "-"], stdin=script.encode())


def _element(verb: str, treatment: str, version: int, address: str) -> str:
    return f"{verb} element inet lab {treatment}{version} {{ {address} }}"


def _ruleset() -> str:
    sets, rules = [], []
    for name in TREATMENTS:
        for version, family in ((4, "ip"), (6, "ip6")):
            sets.append(f"set {name}{version} {{ type ipv{version}_addr; }}")
            end = "saddr" if name == "hold" else "daddr"
            rules.append(f"{family} {end} @{name}{version} {_ACTIONS[name]}")
    chain = "type filter hook forward priority 0; policy accept;"
    return "\n".join(
        [
            *("table inet lab {", *sets, "chain added {}"),
            *(f"chain forward {{ {chain}", *rules, "jump added", "}", "}"),
        ]
    )
