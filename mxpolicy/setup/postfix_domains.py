"""Domains that a transport table must not take from this mail system: its own.

A table goes before all that main.cf says of where a domain is delivered (transport(5)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.check.master_cf import words
from mxpolicy.setup.disk import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

__all__ = ["OWN_DOMAINS", "Own", "own"]

# Where the domains are that are delivered here.
OWN_DOMAINS = ("mydestination", "virtual_mailbox_domains", "virtual_alias_domains")


class Own(NamedTuple):
    """What was found of one domain that was asked for.

    Attributes:
        name: The domain of our own that would be taken; empty where there is none.
        setting: The parameter that has it.
        unlisted: Tables that do not say what is in them, for ``.example.com``.
    """

    name: str = ""
    setting: str = ""
    unlisted: tuple[str, ...] = ()


def own(
    domain: str,
    settings: Mapping[str, str],
    look: Callable[[str, str], str],
    listed: Callable[[str], Collection[str] | None],
    names: Collection[str] = OWN_DOMAINS,
) -> Own:
    """Return which of our own domains *domain* would take.

    Args:
        domain: ``.example.com`` is all below it.
        settings: Those of *names* as Postfix understands them.
        look: Returns what a table has for a domain, empty where it has none.
        listed: Returns the keys of a table, None where it does not list them.
        names: The parameters that are looked at.
    """
    unlisted = []
    for setting in names:
        for pattern in _patterns(settings[setting]):
            if ":" not in pattern:
                found: Collection[str] | None = [pattern]
            elif not domain.startswith("."):
                found = [domain] if look(domain, pattern) else []
            else:
                found = listed(pattern)
            if found is None:
                unlisted.append(pattern)
            for name in map(str.lower, found or ()):
                if name == domain or (
                    domain[0] == "." and name.endswith(domain) and "@" not in name
                ):
                    return Own(name, setting)
    return Own(unlisted=tuple(dict.fromkeys(unlisted)))


def _patterns(text: str) -> Iterator[str]:
    """Yield what a list of domains has, with files in it read (postconf(5))."""
    for word in words(text, " \t\r\n,"):
        if not word.startswith("/"):
            # What is left out by "!" is not our own.
            if not word.startswith("!"):
                yield word
            continue
        lines = (read_text(word) or "").splitlines()
        yield from _patterns(
            " ".join(one for one in lines if not one.lstrip().startswith("#"))
        )
