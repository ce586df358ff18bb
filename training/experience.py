"""What meta-training has collected, kept beside its checkpoint, so that one that was interrupted goes on as if it never had been.

Networks alone are not enough: where rewards are rare, the replay holds the few episodes that found any, and contexts are made of the pool.
"""

import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from training.checkpoint import below, load_checkpoint, save_checkpoint
from training.context_pool import Collected, ContextPool
from training.contract.errors import CheckpointCorrupt
from training.replay import TaskReplay

_log = logging.getLogger(__name__)
_PREFIX: Final = "meta-experience-"


def is_experience(file: Path) -> bool:
    """Whether a file of a run's folder holds what was collected, which is of no use without its checkpoint."""
    return file.name.startswith(_PREFIX)


class Experience:
    """A file ``meta-experience-NAME.safetensors`` of a run's folder: what was collected by the checkpoint that has its name.

    It is written before its checkpoint and those of earlier ones are removed after it, so that whatever the checkpoint says, its own is
    there.
    """

    def __init__(self, folder: Path, replay: TaskReplay, pool: ContextPool | None) -> None:
        self.folder, self.replay, self.pool = folder, replay, pool

    def save(self, generators: Mapping[str, Tensor]) -> str:
        """Write all that was collected, and the states of the random ``generators``. Returns the name.

        On a disk that has no room for it, training goes on without.
        """
        tensors = {f"replay/{name}": value for name, value in self.replay.held().items()}
        tensors |= {f"generator/{name}": state for name, state in generators.items()}
        if self.pool is not None:
            tensors |= {f"pool/{name}": value for name, value in _packed(self.pool.collected()).items()}
        name = secrets.token_hex(4)
        try:
            save_checkpoint(self._file(name), modules={}, tensors=tensors)
        except (OSError, SafetensorError) as error:
            for unfinished in self.folder.glob(f"{_PREFIX}*.partial"):
                unfinished.unlink()
            _log.warning("what was collected is not kept (%s): if meta-training is interrupted, it collects anew", error)
        return name

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Take up what was collected. Returns the generators' states; None where it was not kept. Raises CheckpointCorrupt."""
        file = self._file(name)
        if not file.exists():
            return None
        tensors = load_checkpoint(file, modules={})[0]
        try:
            self.replay.hold(below(tensors, "replay/"))
            if self.pool is not None:
                for each in _unpacked(below(tensors, "pool/")):
                    self.pool.add(each)
        except (KeyError, RuntimeError) as error:
            raise CheckpointCorrupt(f"{file} is of another training ({error}): delete it, and episodes are collected anew") from error
        return below(tensors, "generator/")

    def keep_only(self, name: str | None) -> None:
        """Remove the files of all other names; of all (None), once training is complete."""
        for file in self.folder.glob(f"{_PREFIX}*"):
            if name is None or file != self._file(name):
                file.unlink()

    def _file(self, name: str) -> Path:
        return self.folder / f"{_PREFIX}{name}.safetensors"


def _packed(collected: list[Collected]) -> dict[str, Tensor]:
    """Episodes end to end, with the task and the lengths of each."""
    if not collected:
        return {}
    counts = [(each.task, len(each.rows), len(each.path)) for each in collected]
    rows, paths = (np.concatenate([getattr(each, part) for each in collected]) for part in ("rows", "path"))
    return {"counts": torch.tensor(counts), "rows": torch.from_numpy(rows), "paths": torch.from_numpy(paths)}


def _unpacked(tensors: dict[str, Tensor]) -> list[Collected]:
    if not tensors:
        return []
    tasks, rows, paths = tensors["counts"].T
    each = zip(tasks.tolist(), tensors["rows"].split(rows.tolist()), tensors["paths"].split(paths.tolist()), strict=True)
    return [Collected(task, row.numpy(), path.numpy()) for task, row, path in each]
