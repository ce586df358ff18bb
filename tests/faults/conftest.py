"""How many faults: few with the whole suite, hundreds by ``make test-faults``."""

import sys
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def kills(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--kills"))


@pytest.fixture(scope="session")
def network_faults(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--network-faults"))


@pytest.fixture
def tally(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line that is seen whether the test passes or not."""

    def tell(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{line}\n")

    return tell
