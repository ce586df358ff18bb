"""Checkpoints as one safetensors file: modules, Adam states, other tensors, and a JSON note. No pickle; written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.contract.errors import CheckpointCorrupt


def save_checkpoint(
    path: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically. ``note`` must be JSON."""
    flat = {f"tensor/{name}": value for name, value in (tensors or {}).items()}
    for name, module in modules.items():
        flat |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in (optimizers or {}).items():
        for index, entries in optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{name}/{index}/{key}": value for key, value in entries.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    # A copy of each: modules share sub-modules (the state features), and safetensors refuses shared memory.
    save_file(
        {key: value.detach().cpu().contiguous().clone() for key, value in flat.items()}, scratch, {"note": json.dumps(dict(note or {}))}
    )
    os.replace(scratch, path)


def load_checkpoint(
    path: Path, *, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load into ``modules`` and ``optimizers``; returns the other tensors and the note. Raises CheckpointCorrupt."""
    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
        for name, module in modules.items():
            module.load_state_dict(below(flat, f"module/{name}/"))
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointCorrupt(
            f"{path} is cut, damaged or of other networks ({reason}): delete it, and what it held is made anew"
        ) from error
    for name, optimizer in (optimizers or {}).items():
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in below(flat, f"optimizer/{name}/").items():
            index, entry = key.split("/")
            states.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return below(flat, "tensor/"), note


def generator_states(generators: Mapping[str, torch.Generator], device: str) -> dict[str, Tensor]:
    """The states of random generators by name, and of torch's own, on the CPU and the device, for `save_checkpoint`'s tensors."""
    states = {name: generator.get_state() for name, generator in generators.items()} | {"torch": torch.get_rng_state()}
    return states if device == "cpu" else states | {"cuda": torch.cuda.get_rng_state(device)}


def set_generators(generators: Mapping[str, torch.Generator], states: Mapping[str, Tensor], device: str) -> None:
    """Set generators, and torch's own, to `generator_states`. A training that changes its device goes on with other numbers there."""
    torch.set_rng_state(states["torch"])
    for name, generator in generators.items():
        if states[name].shape == generator.get_state().shape:  # else it is that of another device's
            generator.set_state(states[name])
    if device != "cpu" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def below(flat: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
