"""More load than the service can take: bounded latency, refusals that say so, nothing lost, itself again at once."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from benchmarks.overload import overload
from tests.service.running import RunningService
from training.contract.bundle import Bundle

CONNECTIONS, LIMIT = 48, 8


def test_past_its_capacity_the_service_refuses_loses_nothing_and_recovers_at_once(
    tiny_bundle: Bundle, tmp_path: Path, tally: Callable[[str], None]
) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner", SKILLET_MAX_IN_FLIGHT=str(LIMIT)) as service:
        url = f"http://127.0.0.1:{service.pool.port}"
        found = asyncio.run(overload(url, connections=CONNECTIONS, seconds=3.0, factor=4.0))
        metrics = service.get("/metrics").text
    tally(str(found))
    assert found.answered > 0
    assert found.refused > 0
    assert found.problems == ["503 overloaded"]
    assert f'skillet_errors_total{{code="overloaded"}} {found.refused}.0' in metrics
    assert found.lost == 0
    assert found.refused_afterwards == 0
    assert found.median_ms < 20 * LIMIT * found.alone_ms  # bounded by the limit, not by how many ask
