"""Going on with a running skill on the robot itself, without the service. Needs onnxruntime beside the SDK."""

import hashlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from clients.sdk.errors import UnexpectedReply
from clients.sdk.models import Floats

if TYPE_CHECKING:
    from clients.sdk.client import SkilletClient

_FILE = "skill_decoder.onnx"


class Decoder(Protocol):
    """Makes actions of a skill."""

    def __call__(self, state: Floats, skill: Floats) -> Floats:
        """The action [A] of ``skill`` [Z] in ``state`` [S]."""
        ...


class OnnxDecoder:
    """A bundle's skill decoder in onnxruntime, on one thread, as the service runs it."""

    def __init__(self, data: bytes) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    @classmethod
    def download(cls, client: "SkilletClient", bundle: str) -> "OnnxDecoder":
        """The decoder of a bundle that the service has, its SHA-256 checked. Raises UnexpectedReply when it does not fit."""
        entry = client.call("GET", f"/v1/bundles/{bundle}")["files"][_FILE]
        data = client.fetch(f"/v1/bundles/{bundle}/{_FILE}")
        if (found := hashlib.sha256(data).hexdigest()) != entry["sha256"]:
            raise UnexpectedReply(f"{_FILE} was damaged on its way", expected=entry["sha256"], received=found, action="download it again")
        return cls(data)

    def __call__(self, state: Floats, skill: Floats) -> Floats:
        """The action [A] of ``skill`` [Z] in ``state`` [S]."""
        (action,) = self._session.run(["action"], {"state": state[None], "skill": skill[None]})
        return np.asarray(action[0], np.float32)
