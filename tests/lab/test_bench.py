"""The measurements of `tests.bench` still measure; what comes out is not judged."""

import re

import pytest

from tests.bench import bounds, doors, faults, imports, large, memory, mixed, processor

from .packages import LabUnavailable
from .world import World

pytestmark = [pytest.mark.lab, pytest.mark.long]

NAMES = ("mxpolicy", "Postfix smtp(8)", "Exim smtp")


@pytest.fixture(scope="module", autouse=True)
def _lab_is_possible() -> None:
    try:
        World().close()
    except LabUnavailable as why:
        pytest.skip(str(why))


def cells(table: str) -> list[list[str]]:
    """Return the cells of a Markdown table that is alone in a text, row by row."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_faults_gives_each_client_a_time_and_two_a_ratio(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert faults.main(["good", "reset"]) == 0
    head, _, *rows = cells(capsys.readouterr().out)
    assert [name for name in head if name in NAMES] == list(NAMES)
    assert len(rows) == 2
    for _, ours, postfix, first, exim, second in rows:
        for time in (ours, postfix, exim):
            assert re.fullmatch(r"[\d.]+ m?s", time)
        for ratio in (first, second):
            assert re.fullmatch(r"[\d.]+x", ratio)


def test_processor_has_a_row_for_each_client_and_a_yard_stick(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert processor.main(["3"]) == 0
    _, _, *rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == [*NAMES, "`python3 -I -c pass`"]
    assert rows[0][2] == "1.0x"


def test_large_has_time_and_memory_by_each_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert large.main(["2", "--runs", "1"]) == 0
    head, _, *rows = cells(capsys.readouterr().out)
    assert head[0] == "2 MiB"
    assert len(rows) == 5
    for row in rows:
        assert re.fullmatch(r"[\d.]+ MiB", row[4])
        assert row[4] != "0.0 MiB", "its process was never seen"


def test_doors_has_a_rate_and_its_price_for_each_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert doors.main(["10", "--rounds", "1"]) == 0
    fed, waiting, more = capsys.readouterr().out.split("\n\n")[:3]
    for table in (fed, waiting):
        _, _, first, *rows = cells(table)
        assert first[2] == "1.00x"
        assert len(rows) == 4
        for row in rows:
            assert re.fullmatch(r"[\d.]+/s", row[1])
            assert re.fullmatch(r"[\d.]+ ms", row[3])
    assert len(cells(more)) >= 2 + 5


def test_mixed_ends_as_the_host_has_said_by_both_ways(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mixed.main(["100"]) == 0
    head, _, *rows = cells(capsys.readouterr().out)
    assert head[-3:] == ["83 sent", "10 deferred", "5 bounced"]
    for row in rows:
        assert row[-3:] == ["83", "10", "5"]


def test_memory_has_rates_and_their_ratio_for_both_clients(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert memory.main(["2"]) == 0
    _, _, *rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(NAMES[:2])
    for _, first, *rates, ratio in rows:
        assert re.fullmatch(r"[\d.]+ m?s", first)
        assert all(re.fullmatch(r"[\d.]+/s", rate) for rate in rates)
        assert re.fullmatch(r"[\d.]+x", ratio)


def test_imports_counts_both_deliveries_and_tells_of_the_dearest_modules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert imports.main(["5", "3"]) == 0
    costs, shares, packages, modules = capsys.readouterr().out.split("\n\n")[:4]
    _, _, bare, without, configured = cells(costs)
    assert bare[0] == "`python3 -I -c pass`"
    assert (bare[2], bare[4]) == ("1.0x", "1.0x")
    for row in (without, configured):
        assert float(row[2].rstrip("x")) > 2
    _, _, *parts, of_file = cells(shares)
    assert abs(sum(int(part[2].rstrip(" %")) for part in parts) - 100) < 5
    assert "configuration" in of_file[0]
    assert cells(packages)[-1][2] == "100.0 %"
    assert len(cells(modules)) == 2 + 5


def test_bounds_are_told_of_each_thing_and_in_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bounds.main([]) == 0
    _, _, *rows, whole = cells(capsys.readouterr().out)
    assert len(rows) == len(bounds.THINGS)
    assert 50 < float(whole[3].removesuffix(" MiB")) < 500
