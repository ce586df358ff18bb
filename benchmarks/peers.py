"""Other servers of models, each in an environment of its own: made once, in the user's cache folder, by pip."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skillet-benchmarks"
INSTALL_TIMEOUT_S = 900
ACT = '{"episode": 0, "step": %%d, "observation": %s}'
INFER = '{"id": "%%d", "inputs": [{"name": "observation", "shape": [1, %d], "datatype": "FP32", "data": %s}]}'


@dataclass(frozen=True)
class Peer:
    """A server: what pip installs, how it is started (``{port}``), the path that answers. ``v2``: it speaks Open Inference Protocol v2."""

    name: str
    package: str
    command: tuple[str, ...]
    path: str
    v2: bool = False

    @property
    def folder(self) -> Path:
        """The environment."""
        return CACHE / self.name.replace(" ", "-").lower()

    def install(self) -> None:
        """Make the environment unless it is there. Raises RuntimeError with the last line that pip said."""
        if (self.folder / "ready").exists():
            return
        python = self.folder / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", self.package, "numpy", "onnxruntime"]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True, capture_output=True)
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"pip install {self.package} failed: {str(error.stderr).strip().splitlines()[-1:]}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"pip install {self.package} took more than {INSTALL_TIMEOUT_S} s") from error
        (self.folder / "ready").touch()

    def start_command(self, port: int) -> list[str]:
        """The command line of the server."""
        return [str(self.folder / "bin" / self.command[0]), *(part.format(port=port) for part in self.command[1:])]

    def body(self, observation: str, length: int) -> str:
        """A request for one observation, given as JSON."""
        return INFER % (length, observation) if self.v2 else ACT % observation


PEERS = (
    Peer("LitServe", "litserve", ("python", "-m", "benchmarks.servers.lit", "{port}"), "/predict"),
    Peer("BentoML", "bentoml", ("bentoml", "serve", "benchmarks.servers.bento:ActionService", "--port", "{port}"), "/act"),
    Peer("Ray Serve", "ray[serve]", ("python", "-m", "benchmarks.servers.ray_serve", "{port}"), "/act"),
    Peer("MLServer", "mlserver", ("python", "-m", "benchmarks.servers.mlserver_model", "{port}"), "/v2/models/decoder/infer", v2=True),
)
