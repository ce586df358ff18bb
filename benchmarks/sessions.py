"""What many sessions cost: ``python -m benchmarks.sessions [--sessions 1 100 1000 10000] [--tuned N] [--json FILE] [--plot FILE]``.

One API process (and one that stands by) without a learner. A step goes to each session in turn, so that no session's step follows its own.
Memory is resident memory of the API process that serves and of its Redis. Then as many sessions as `--tuned` says act with a fine-tuned
policy of their own, whose weights this program publishes.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.http_load import Walk, drive
from benchmarks.processes import peak_mb, resident_mb
from benchmarks.skillet_service import SkilletService, act_body, observation_of, step_body
from service.keys import SessionKeys
from service.policies import PolicyWeights
from service.storage import connect
from service.versions import Candidate, VersionStore
from training.contract.bundle import Bundle
from training.finetuning import Finetuner

LEARNER = "benchmark"


@dataclass(frozen=True)
class Figures:
    """With so many sessions: latency of a step, and memory."""

    sessions: int
    tuned: bool
    p50_ms: float
    p99_ms: float
    api_mb: float
    redis_mb: float


class Fleet:
    """A service and its sessions, each of which has acted."""

    def __init__(self, bundle: Path, folder: Path, stack: ExitStack) -> None:
        began = time.monotonic()
        self._service = SkilletService(bundle, folder, stack)
        self.start_s = time.monotonic() - began
        self._api, self._redis = self._service.processes("api_worker"), self._service.processes("redis-server")
        self.start_mb = max(peak_mb([pid]) for pid in self._api)
        self._url, self._observation = f"unix://{folder}/data/redis.sock", observation_of(bundle)
        self._bundle, self._paths, self._steps = bundle, list[str](), 0

    def grow(self, count: int) -> None:
        """To so many sessions."""
        while len(self._paths) < count:
            self._paths.append(self._service.open_session())
            self._service.post(f"{self._paths[-1]}/act", json.loads(act_body(self._observation) % 0))
        self._steps = 0

    def tune(self, count: int) -> None:
        """Replace all sessions by ones that act with a version of their own."""
        self._paths, self._steps = [], 0
        bundle = Bundle.load(self._bundle)
        embedding = np.zeros(bundle.manifest.spec.task_embedding_dim, np.float32)
        own = Finetuner.from_bundle(bundle, embedding, 0)
        with connect(self._url, 5.0) as redis:
            versions = VersionStore(redis)
            for number in range(count):
                weights = {name: array + np.float32(1e-6 * number) for name, array in own.policy_weights().items()}
                packed = PolicyWeights.pack(embedding, weights)
                path = self._service.open_session(conditioning_episodes=0)
                keys = SessionKeys(path.rpartition("/")[2])
                redis.set(keys.lease, LEARNER, px=60_000)
                versions.publish(keys, LEARNER, Candidate(packed, "benchmark", 0, 0, {}, b""), kept=8)
                self._service.post(f"{path}/episodes", {})
                reply = self._service.post(f"{path}/act", {"episode": 1, "step": 0, "observation": self._observation})
                if reply["policy_version"] != 1:
                    raise RuntimeError(f"expected version 1 to act, got {reply}")
                self._paths.append(path)

    def measure(self, seconds: int, *, tuned: bool = False) -> Figures:
        """Step through all sessions in turn."""
        body = step_body(self._observation)
        body = body.replace('"episode": 0', '"episode": 1') if tuned else body
        walks = self._walks(seconds)
        load = drive(self._service.port, walks, body, connections=1, seconds=seconds)
        api = max(resident_mb([pid]) for pid in self._api)
        return Figures(len(self._paths), tuned, load.p50_ms, load.p99_ms, api, resident_mb(self._redis))

    def _walks(self, seconds: int) -> Sequence[Walk]:
        """One step of each session, again and again, from where they all stand."""
        if len(self._paths) == 1:
            return [Walk(f"{self._paths[0]}/step", self._service.get(self._paths[0])["step"] - 1)]
        stands = {path: self._service.get(path)["step"] - 1 for path in self._paths}
        rounds = 1 + seconds * 8000 // len(self._paths)
        return [Walk(f"{path}/step", stands[path] + number, 1) for number in range(rounds) for path in self._paths]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.sessions", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"), help="a bundle's folder (default: %(default)s)")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 100, 1000, 10_000], help="that are open (default: %(default)s)")
    parser.add_argument("--tuned", type=int, default=1000, help="of them that act by weights of their own, at most (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="of one row (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        fleet = Fleet(options.bundle, folder, stack)
        print(f"ready after {fleet.start_s:.1f} s, an API process then has {fleet.start_mb:.0f} MB")
        print("| sessions | p50 ms | p99 ms | API MB | Redis MB |\n|---|---|---|---|---|")
        figures = []
        for count in options.sessions:
            fleet.grow(count)
            fleet.measure(1)
            figures.append(_told(fleet.measure(options.seconds)))
        if options.tuned:
            fleet.tune(options.tuned)
            fleet.measure(1, tuned=True)
            figures.append(_told(fleet.measure(options.seconds, tuned=True)))
    if options.json:
        found = {"start_s": fleet.start_s, "start_mb": fleet.start_mb, "rows": [asdict(each) for each in figures]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        plot(figures, options.plot)


def _told(each: Figures) -> Figures:
    own = ", each with its own fine-tuned policy" if each.tuned else ""
    print(f"| {each.sessions:,}{own} | {each.p50_ms:.3f} | {each.p99_ms:.3f} | {each.api_mb:.0f} | {each.redis_mb:.0f} |", flush=True)
    return each


def plot(figures: Sequence[Figures], file: Path) -> None:
    """Latency and memory against the number of sessions."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for tuned, marker in ((False, "o-"), (True, "s")):
        rows = [each for each in figures if each.tuned is tuned]
        counts, name = [each.sessions for each in rows], " (own policies)" if tuned else ""
        axes[0].plot(counts, [each.p50_ms for each in rows], marker, label=f"p50{name}")
        axes[1].plot(counts, [each.api_mb for each in rows], marker, label=f"API process{name}")
        axes[1].plot(counts, [each.redis_mb for each in rows], marker, label=f"Redis{name}")
    axes[0].set(xscale="log", xlabel="sessions", ylabel="a step, ms", ylim=(0, None))
    axes[1].set(xscale="log", xlabel="sessions", ylabel="MB", ylim=(0, None))
    for axis in axes:
        axis.legend(fontsize=8)
    drawn.tight_layout()
    drawn.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
