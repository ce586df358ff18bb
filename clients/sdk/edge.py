"""Going on with a running skill on the robot itself, without the service. Needs onnxruntime beside the SDK."""

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

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
    """A bundle's skill decoder in onnxruntime, on one thread, as the service runs it. Used by one thread."""

    def __init__(self, data: bytes) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        widths = {each.name: each.shape[-1] for each in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._state, self._skill, self._action = (np.zeros((1, widths[name]), np.float32) for name in ("state", "skill", "action"))
        self._bound = self._session.io_binding()  # fixed buffers: a quarter less time than arguments by name
        for name, buffer in (("state", self._state), ("skill", self._skill)):
            self._bound.bind_input(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        self._bound.bind_output("action", "cpu", 0, np.float32, self._action.shape, self._action.ctypes.data)

    @classmethod
    def download(cls, client: "SkilletClient", bundle: str, *, cache: Path | None = None) -> "OnnxDecoder":
        """The decoder of a bundle that the service has, its SHA-256 checked, from ``cache`` (a folder) if it is there.

        Raises UnexpectedReply when what came does not fit.
        """
        wanted = client.call("GET", f"/v1/bundles/{quote(bundle, safe='')}")["files"][_FILE]["sha256"]
        kept = None if cache is None else cache / f"{wanted}.onnx"
        if kept is not None and kept.is_file() and hashlib.sha256(data := kept.read_bytes()).hexdigest() == wanted:
            return cls(data)
        data = client.fetch(f"/v1/bundles/{quote(bundle, safe='')}/{_FILE}")
        if (found := hashlib.sha256(data).hexdigest()) != wanted:
            raise UnexpectedReply(f"{_FILE} was damaged on its way", expected=wanted, received=found, action="download it again")
        if kept is not None:
            _keep(kept, data)
        return cls(data)

    def __call__(self, state: Floats, skill: Floats) -> Floats:
        """The action [A] of ``skill`` [Z] in ``state`` [S]."""
        self._state[0], self._skill[0] = state, skill
        self._session.run_with_iobinding(self._bound)
        action: Floats = self._action[0].copy()
        return action


def _keep(file: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
        part.write(data)
    Path(part.name).replace(file)
