"""What is fuzzed: each target takes bytes, and either accepts them or raises one of the errors that it may raise."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from service import frames, numpy_frames, schemas
from service.decoding import decode
from service.errors import InvalidRequest
from service.policies import _load_graph
from tests.conftest import state, transition
from training.contract.bundle import Bundle
from training.contract.errors import BundleCorrupt, BundleError
from training.contract.spec import LEARNER_WEIGHTS, MANIFEST


@dataclass(frozen=True)
class Target:
    """``run`` takes an input; ``refusals`` are the errors that it may raise for one; ``share`` of the inputs are enough for a slow one."""

    seeds: list[bytes]
    run: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]
    share: float = 1.0


ACT = {"episode": 0, "step": 3, "observation": state(0, 3)}
FRAMES: list[dict[str, Any]] = [
    {"type": "open", "id": 1, "body": {"seed": 3, "bundle": "tiny", "exploration": "switching"}, "key": "k"},
    {"type": "attach", "session_id": "0" * 32},
    {"type": "start", "key": "k"},
    {"type": "act", "id": 2**40, "body": ACT, "deadline_ms": 50.0, "sent_ms": 1e6},
    {"type": "step", "body": transition(0, 3, state(0, 4))},
    {"type": "steps", "body": {"transitions": [transition(0, step, state(0, step)) for step in range(3)]}},
    {"type": "transitions", "body": {"transitions": [transition(0, 1, state(0, 2), reward=None)]}},
    {"type": "rewards", "body": {"rewards": [{"episode": 0, "step": 1, "reward": 0.5}]}},
    {"type": "end", "id": 7},
]


def frames_target() -> Target:
    """Frames of `/v1/stream`, with and without their digest."""
    packed = [msgspec.msgpack.encode(frame) for frame in FRAMES]

    def run(data: bytes) -> None:
        frames.number_of(data)
        with suppress(InvalidRequest):
            frames.decode(frames.unsealed(data))
        frames.decode(data)

    return Target([*packed, *map(frames.sealed, packed)], run, (InvalidRequest,))


def openpi_target() -> Target:
    """Messages of openpi's clients."""
    array = numpy_frames.pack({"state": np.arange(4, dtype=np.float32), "reward": np.array(0.5), "reset": np.array(True)})
    plain = numpy_frames.pack({"observation/state": [0.1, 2, -3.5, 0.25], "reward": 1.5, "terminated": False})
    scalar = msgspec.msgpack.encode({"state": [1.0], "reward": {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}})

    def run(data: bytes) -> None:
        message = numpy_frames.unpack(data)
        for name, value in message.items():
            for read in (numpy_frames.vector, numpy_frames.number, numpy_frames.flag):
                with suppress(InvalidRequest):
                    read(value, name)

    return Target([array, plain, scalar], run, (InvalidRequest,))


def bodies_target() -> Target:
    """JSON bodies, each read as every kind of request."""
    bodies: list[Any] = [frame["body"] for frame in FRAMES if "body" in frame]
    bodies += [{"items": [{**ACT, "session_id": "0" * 32}]}, {"items": [{**transition(0, 1, state(0, 2)), "session_id": "0" * 32}]}]
    bodies += [{"phase": None}, {"version": 3}, {"paused": True}, {"role": "robot", "name": "arm", "lifetime_s": 60}, {}]
    kinds = list(schemas.Request.__subclasses__())

    def run(data: bytes) -> None:
        refusals = []
        for kind in kinds:
            try:
                decode(data, kind)
            except InvalidRequest as error:
                refusals.append(error)
        if len(refusals) == len(kinds):
            raise refusals[0]

    return Target([msgspec.json.encode(body) for body in bodies], run, (InvalidRequest,))


def manifest_target(bundle: Bundle, folder: Path) -> Target:
    """Manifests whose own digest is right wherever they are JSON at all, so that what they say is looked at."""
    for name in bundle.manifest.files:
        (folder / name).write_bytes(bundle.read(name))
    content = json.loads((bundle.path / MANIFEST).read_text())
    content["golden"] = {}  # numbers upon numbers
    content["particles"] = content["particles"][:1]

    def run(data: bytes) -> None:
        with suppress(ValueError, RecursionError):
            changed = json.loads(data)
            if isinstance(changed, dict):
                changed.pop("sha256", None)
                canonical = json.dumps(changed, sort_keys=True, separators=(",", ":"))
                data = json.dumps(changed | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}).encode()
        (folder / MANIFEST).write_bytes(data)
        loaded = Bundle.load(folder)
        _ = loaded.manifest.digest, loaded.manifest.limits, loaded.manifest.explorations

    return Target([json.dumps(content).encode()], run, (BundleError,), 0.25)


def weights_target(bundle: Bundle) -> Target:
    """The learner's weights."""
    from training.finetuning import LearnerNetworks

    def run(data: bytes) -> None:
        LearnerNetworks.from_bundle(SimpleNamespace(manifest=bundle.manifest, path=bundle.path, read=lambda name: data))  # type: ignore[arg-type]

    return Target([bundle.read(LEARNER_WEIGHTS)], run, (BundleCorrupt,), 0.25)


def graph_target(bundle: Bundle) -> Target:
    """The graphs, each loaded as a service does it: opened, compared with the spec, run on its golden vectors."""
    files = [name for name in bundle.manifest.files if name.endswith(".onnx")]

    def run(data: bytes) -> None:
        file = files[data[0] % len(files)] if data else files[0]
        _load_graph(SimpleNamespace(manifest=bundle.manifest, path=bundle.path, read=lambda name: data[1:]), file)  # type: ignore[arg-type]

    return Target([bytes([index]) + bundle.read(file) for index, file in enumerate(files)], run, (BundleCorrupt,), 0.25)
