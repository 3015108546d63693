"""What is said about Postfix's limits, where no Postfix is needed to say it."""

from __future__ import annotations

import pytest

from mxpolicy.check.master_cf import parse_services
from mxpolicy.check.postfix import judge_places
from mxpolicy.check.report import Level
from mxpolicy.options import LimitOptions, Options


@pytest.mark.parametrize(
    ("limits", "places", "level", "said", "mend"),
    [
        pytest.param("60", 60, Level.OK, "is 60, as in master.cf", "", id="as_contrib"),
        pytest.param("-", 100, Level.OK, "is 100, as", "", id="default_of_postfix"),
        pytest.param("30 30", 60, Level.OK, "is 60, as", "", id="two_transports"),
        pytest.param(
            "20",
            60,
            Level.WARN,
            "allows 20: a destination that does not answer can take all",
            "limits: {processes: 20}",
            id="fewer_in_master_cf",
        ),
        pytest.param(
            "60 60",
            60,
            Level.WARN,
            "allows 120: mail for a destination that does not answer is put off sooner",
            "limits: {processes: 120}",
            id="more_in_master_cf",
        ),
        pytest.param("4", 4, Level.OK, "cannot take all", "", id="few"),
        *(
            pytest.param(
                str(few), few, Level.WARN, "takes all of them", "", id=f"too_few_{few}"
            )
            for few in (1, 2, 3)
        ),
        pytest.param("60", 0, Level.WARN, "is 0", "limits: {processes: 60}", id="off"),
        pytest.param("0 60", 60, Level.WARN, "any number", "", id="no_limit_at_all"),
    ],
)
def test_places_are_compared_with_master_cf(
    limits: str, places: int, level: Level, said: str, mend: str
) -> None:
    services = parse_services(
        "\n".join(
            f"mxpolicy{number} unix - n n - {limit} pipe flags=q argv=/opt/mxpolicy pipe"
            for number, limit in enumerate(limits.split())
        )
    )
    settings = {"default_process_limit": "100"}
    options = Options(limits=LimitOptions(processes=places))
    item = judge_places(services, settings, options)
    assert (item.level, item.mend) == (level, mend)
    assert said in item.text
