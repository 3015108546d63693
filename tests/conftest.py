"""Every session is guarded: see `tests.guard`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests import guard

# Sessions run beside each other: how long an example takes says nothing of the code.
settings.register_profile(
    "beside others", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("beside others")


def pytest_sessionstart(session: pytest.Session) -> None:
    try:
        guard.begin()
    except OSError as why:
        pytest.exit(f"no tests without a guard ({why}): see contrib/venv dev", 1)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Fail whatever touched what the machine itself uses."""
    trespasses = guard.reports()
    if trespasses:
        pytest.fail("\n".join(trespasses), pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Say so too where a process did it that outlived its test."""
    trespasses = guard.close()
    if trespasses:
        print(*trespasses, sep="\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
