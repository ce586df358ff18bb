"""The policy that every stateless server runs: the bundle's skill decoder, always with the same skill."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

BUNDLE = "BENCHMARK_BUNDLE"  # environment variable: the bundle's folder


class Decoder:
    """One ONNX Runtime session on one thread."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        graph = Path(os.environ[BUNDLE]) / "skill_decoder.onnx"
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        (skill,) = (each for each in self._session.get_inputs() if each.name == "skill")
        self._skill = np.zeros((1, skill.shape[1]), np.float32)

    def __call__(self, observation: list[float]) -> list[float]:
        """The action for one observation."""
        state: NDArray[np.float32] = np.asarray([observation], np.float32)
        (action,) = self._session.run(["action"], {"state": state, "skill": self._skill})
        return action[0].tolist()
