"""Whatever bytes come, a decoder takes them or says in its own words why not: no crash, no other error, no memory that is not given back.

A few hundred inputs with the whole suite, 112,500 by ``make fuzz``.
"""

import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.fuzz.mutations import inputs
from tests.fuzz.targets import Target
from training.contract.bundle import Bundle

MOST_MEMORY_MIB = 512
SLOWEST_S = 5.0
MAKERS: dict[str, Callable[[Bundle, Path], Target]] = {
    "frames": lambda bundle, folder: targets.frames_target(),
    "openpi": lambda bundle, folder: targets.openpi_target(),
    "bodies": lambda bundle, folder: targets.bodies_target(),
    "manifest": targets.manifest_target,
    "weights": lambda bundle, folder: targets.weights_target(bundle),
    "graph": lambda bundle, folder: targets.graph_target(bundle),
}


def fuzz(name: str, bundle: Path, folder: Path, count: int, told: "multiprocessing.SimpleQueue[object]") -> None:
    """Run one target in a process of its own, whose death is seen; tells the tally, or the input that went wrong."""
    target = MAKERS[name](Bundle.load(bundle), folder)
    found: Counter[str] = Counter()
    before, slowest = _memory_mib(), 0.0
    for number, data in enumerate(inputs(target.seeds, max(1, int(count * target.share)))):
        Path(folder / "last").write_bytes(data)
        began = time.process_time()  # a busy machine is not the input's fault
        try:
            target.run(data)
            found["accepted"] += 1
        except target.refusals:
            found["refused"] += 1
        except Exception as error:
            told.put(f"input {number} met {type(error).__name__}: {error}; {data[:200]!r}")
            return
        slowest = max(slowest, time.process_time() - began)
    told.put((found.total(), dict(found), round(_memory_mib() - before), round(slowest, 3)))


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MAKERS)
def test_no_input_makes_a_decoder_fail_or_grow(
    tiny_bundle: Bundle, tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    count, context = int(pytestconfig.getoption("--fuzz")), multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    process = context.Process(target=fuzz, args=(name, tiny_bundle.path, tmp_path, count, told))
    process.start()
    process.join()
    assert process.exitcode == 0, f"exit code {process.exitcode} at {(tmp_path / 'last').read_bytes()[:300]!r}"
    tally = told.get()
    assert isinstance(tally, tuple), tally
    done, found, grown_mib, slowest_s = tally
    with capsys.disabled():
        sys.stdout.write(f"\nfuzz {name}: {done} inputs, {found}, {grown_mib} MiB more memory at most, slowest {slowest_s} s\n")
    assert found.get("refused", 0) > done / 4  # else the inputs say nothing
    assert grown_mib < MOST_MEMORY_MIB
    assert slowest_s < SLOWEST_S
