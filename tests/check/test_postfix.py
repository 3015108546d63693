"""What is said of a Postfix, by what a real one has answered; no Postfix is needed."""

from __future__ import annotations

import ast
import inspect
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from mxpolicy.check import (
    command,
    postfix,
    postfix_rows,
    status_filter,
    time_limit,
    transport_rows,
)
from mxpolicy.check.access import Account
from mxpolicy.check.machine import HERE
from mxpolicy.check.master_cf import parse_services
from mxpolicy.check.postconf import Postconf
from mxpolicy.check.postfix import Postfix
from mxpolicy.check.programs import Ended
from mxpolicy.check.report import Item, Level
from mxpolicy.check.status_filter import FILTER
from mxpolicy.check.time_limit import judge_time, parse_time
from mxpolicy.options import LimitOptions, Options
from mxpolicy.pipe_command import parse_arguments
from tests.check import recorded
from tests.check.mistakes import MISTAKES

FUTURE = "from __future__ import annotations"
CHECKOUT = Path(__file__).parents[2]


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield (level, sentence, mend) of each row in the source, as patterns."""
    modules = (command, postfix_rows, status_filter, time_limit, transport_rows)
    texts = [inspect.getsource(one) for one in modules]
    for call in ast.walk(ast.parse("\n".join(texts).replace(FUTURE, ""))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            level, arguments = call.func.id, [*call.args, None]
            if level in {"ok", "warn", "fail"}:
                yield level, pattern(arguments[1]), pattern(arguments[2])


def pattern(text: ast.expr | None) -> str:
    if text is None:
        return ""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    fixed = [str(one.value) if isinstance(one, ast.Constant) else "" for one in parts]
    return "".join(re.escape(one) or ".*" for one in fixed)


ROWS = list(rows())

PLACES_OF = {"three_processes": 3, "processes_not_counted": 0}


def look(name: str) -> list[Item]:
    """Return what is said of a recorded configuration."""
    options = Options(
        helo="mail.lab.test",
        own_addresses=("198.51.100.7",),
        limits=LimitOptions(processes=PLACES_OF.get(name, 60)),
    )
    config = "/srv/looked-at.yaml" if name == "configuration_of_its_own" else None
    seen = postfix.see(Postconf(recorded.Replay(name)))
    return postfix.look(seen, options, config, recorded.MACHINE)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_told_and_nothing_is_said_twice(name: str) -> None:
    items = look(name)
    _, level, said = MISTAKES[name]
    assert [one.level.value for one in items if said in one.text] == [level]
    assert len({one.text for one in items}) == len(items)


def test_nothing_fails_with_contrib() -> None:
    assert [one for one in look("contrib") if one.level is not Level.OK] == []


def test_every_row_is_shown_by_one_recording_and_not_by_another() -> None:
    items = {name: look(name) for name in MISTAKES}
    assert len(ROWS) > 40
    for row in ROWS:
        names = {name for name in MISTAKES if any(is_by(row, it) for it in items[name])}
        assert names, row
        assert names != set(MISTAKES), row


def is_by(row: tuple[str, str, str], item: Item) -> bool:
    """Return whether *item* was made by *row*."""
    level, sentence, mend = row
    return (
        item.level.value == level
        and re.fullmatch(sentence, item.text) is not None
        and re.fullmatch(mend, item.mend) is not None
    )


def test_all_mail_by_lmtp_is_all_mail() -> None:
    seen = postfix.see(Postconf(recorded.Replay("contrib")))
    settings = defaultdict(str, {**seen.settings, "default_transport": "mxlmtp:"})
    seen = seen._replace(settings=settings, to_daemon="mxlmtp")
    items = postfix.look(seen, Options(), None, recorded.MACHINE)
    said = "default_transport is mxlmtp:: all mail that leaves goes by mxpolicy"
    assert said in [one.text for one in items]


def test_postfix_that_does_not_run_us_is_told_nothing_else() -> None:
    [item] = look("no_service_of_ours")
    assert item.level is Level.WARN
    seen = postfix.see(Postconf(recorded.Replay("no_service_of_ours")))
    [item] = postfix.look(seen, Options(), None, recorded.MACHINE, is_alone=False)
    assert (item.level, item.mend) == (Level.OK, "")


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
    settings = defaultdict(str, default_process_limit="100")
    options = Options(limits=LimitOptions(processes=places))
    seen = Postfix(Postconf(nothing_filtered), tuple(services), settings)
    items = postfix.look(seen, options, None, recorded.MACHINE)
    [item] = [one for one in items if one.text.startswith("limits.processes")]
    assert (item.level, item.mend) == (level, mend)
    assert said in item.text


def nothing_filtered(*argv: str) -> Ended:
    return Ended(1, "", "")


WITH_DEADLINE = ("pipe", "-f", "x", "--deadline", "2900s", "--", "y")
NO_DEADLINE = ("pipe", "-f", "x", "--", "y")
SHORT = ("pipe", "-f", "x", "--deadline", "300s", "--", "y")


@pytest.mark.parametrize(
    ("argv", "limit", "levels"),
    [
        pytest.param(WITH_DEADLINE, "3600s", ["ok"], id="contrib"),
        pytest.param(WITH_DEADLINE, "1h", ["ok"], id="contrib_in_hours"),
        pytest.param(WITH_DEADLINE, "3500s", ["fail"], id="no_room_for_the_alarm"),
        pytest.param(WITH_DEADLINE, "3000s", ["fail"], id="no_room_for_the_dot"),
        pytest.param(WITH_DEADLINE, "1000s", ["fail"], id="postfix_default"),
        pytest.param(NO_DEADLINE, "1000s", ["ok"], id="nothing_configured"),
        pytest.param(NO_DEADLINE, "900s", ["fail"], id="lower_than_we_assume"),
        pytest.param(SHORT, "3600s", ["ok", "fail"], id="short_deadline"),
    ],
)
def test_postfix_must_not_kill_before_the_dot_has_had_its_time(
    argv: tuple[str, ...], limit: str, levels: list[str]
) -> None:
    entry = "mxpolicy unix - n n - 20 pipe user=mxpolicy argv=/usr/bin/mxpolicy "
    [service] = parse_services(entry + " ".join(argv))
    settings = {"mxpolicy_time_limit": limit, "daemon_timeout": "18000s"}
    assert service.arguments is not None
    arguments = parse_arguments(service.arguments[1:], {})
    items = judge_time(service, settings, arguments.deadline, Options())
    assert [one.level.value for one in items] == levels


def test_filter_is_the_one_in_contrib() -> None:
    sample = (CHECKOUT / "contrib/postfix/main.cf").read_text()
    assert FILTER in " ".join(sample.split())


@pytest.mark.parametrize(
    ("text", "unit", "seconds"),
    [
        ("3600s", "s", 3600.0),
        ("5", "d", 432000.0),
        ("2h", "s", 7200.0),
        ("1w", "s", 604800.0),
        ("0", "d", 0.0),
        ("soon", "s", None),
        ("", "s", None),
        ("-5s", "s", None),
    ],
)
def test_times_are_read_as_postfix_does(
    text: str, unit: str, seconds: float | None
) -> None:
    assert parse_time(text, unit) == seconds


@pytest.mark.parametrize(
    ("owner", "mode", "has_file", "mend"),
    [
        pytest.param(0, 0o700, True, "chmod a+x {}", id="root_alone"),
        # Whether there is a file cannot be seen, and mail is deferred then, too.
        pytest.param(0, 0o700, False, "chmod a+x {}", id="root_alone_and_empty"),
        pytest.param(54321, 0o700, True, "chmod a+r {}/mxpolicy.yaml", id="its_own"),
        pytest.param(54321, 0o700, False, "", id="its_own_and_empty"),
        pytest.param(0, 0o755, True, "chmod a+r {}/mxpolicy.yaml", id="closed_file"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_configuration_counts_as_the_account_sees_it(
    owner: int, mode: int, has_file: bool, mend: str
) -> None:
    other = Account("other", 54321, frozenset((54321,)))
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        directory = Path(made) / "mxpolicy"
        directory.mkdir()
        file = directory / "mxpolicy.yaml"
        if has_file:
            file.touch(0o600)
        directory.chmod(mode)
        os.chown(directory, owner, owner)
        found = HERE.unreadable(other, str(file))
        assert found.mend == mend.format(directory)
        if found.why:
            assert os.system(found.mend) == 0
            if has_file:
                file.chmod(0o644)
            assert not HERE.unreadable(other, str(file)).why


def test_readme_shows_what_is_said() -> None:
    [item] = [
        one
        for one in look("recipient_limit_missing")
        if "recipient_limit is" in one.text
    ]
    readme = " ".join((CHECKOUT / "README.md").read_text().split())
    assert f"warn {item.text} {item.mend}" in readme
    assert item.level is Level.WARN


def test_one_instance_of_two_that_share_their_places_is_warned_of() -> None:
    [item] = postfix_rows.judge_places(120, [60])
    assert item.level is Level.WARN
    assert "limits.processes is 120, master.cf allows 60" in item.text
