"""What ``mxpolicy check`` says of our name and our addresses."""

from __future__ import annotations

from mxpolicy.check.our_name import judge_sources
from mxpolicy.options import Options


def test_address_behind_nat_is_named() -> None:
    _, item = judge_sources(["10.0.0.5"], Options())
    assert item.text.startswith("the world does not see 10.0.0.5, but another address")
    assert item.mend == "own_addresses: [THE ADDRESS THE WORLD SEES]"
    assert len(judge_sources(["10.0.0.5"], Options(own_addresses=("1.1.1.1",)))) == 1
