"""From trained networks to a bundle: each graph exported to ONNX, compared with torch, and written only when they agree."""

import hashlib
import io
import json
import logging
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.belief import TrainedBelief
from training.config import TrainingConfig
from training.config_comparison import digested
from training.contract.bundle import Bundle, GoldenVectors, write_bundle
from training.contract.envelope import Envelope
from training.contract.errors import BundleError
from training.contract.spec import (
    GRAPH_INPUTS,
    GRAPH_OUTPUTS,
    LEARNER_WEIGHTS,
    META_POLICY,
    MODEL_CARD,
    REWARD_DECODER,
    SKILL_DECODER,
    SKILL_DYNAMICS,
    TASK_ENCODER,
    ModelSpec,
)
from training.finetuning import LearnerNetworks
from training.meta_learner import MetaNetworks
from training.networks.meta_policy import MetaPolicy

TOLERANCE = 1e-5
"""Largest difference between a graph and the torch module it came from, of values beyond one as a share of them."""


@dataclass(frozen=True)
class ExportedGraph:
    """A graph in ONNX, with one recorded answer."""

    model: bytes
    golden: GoldenVectors
    largest_difference: float


def export_bundle(
    path: Path,
    *,
    config: TrainingConfig,
    networks: MetaNetworks,
    coefficient: float,
    spec: ModelSpec,
    metrics: Mapping[str, float],
    command: str,
    envelope: Envelope | None = None,
    belief: TrainedBelief | None = None,
) -> Bundle:
    """Write a bundle. ``coefficient`` is the posterior KL coefficient that meta-training came to; ``envelope`` see `learn_envelope`.
    Without ``belief`` its sessions cannot explore by one.

    Raises BundleError when a graph and its torch module differ by more than `TOLERANCE`; nothing is written then.
    """
    graphs = export_graphs(networks, spec, belief)
    learner = LearnerNetworks.pack(networks.policy, networks.critic, networks.target_critic, coefficient)
    dump = config.model_dump(mode="json")
    provenance = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": dump,
        "config_sha256": config_digest(config),
        "seed": config.seed,
        "commit": _commit(),
        "command": command,
        "metrics": dict(metrics),
    }
    files = {name: graph.model for name, graph in graphs.items()} | {LEARNER_WEIGHTS: learner}
    files[MODEL_CARD] = _model_card(config, spec, metrics, command, graphs, envelope).encode()
    return write_bundle(
        path,
        files,
        name=config.domain.name,
        spec=spec,
        golden={name: graph.golden for name, graph in graphs.items()},
        networks={key: dump[key] for key in ("features", "skills", "networks")},
        finetuning=dump["finetuning"],
        exploration=dump["evaluate"]["exploration"],
        conditioning_episodes=config.evaluate.conditioning_episodes,
        skill_temperature=config.evaluate.skill_temperature,
        particles=None if belief is None else belief.particles.tolist(),
        places=None if belief is None or belief.novelty is None else belief.novelty.places.tolist(),
        provenance=provenance,
        envelope=envelope,
    )


def config_digest(config: TrainingConfig) -> str:
    """SHA-256 of a configuration."""
    return hashlib.sha256(json.dumps(digested(config), sort_keys=True).encode()).hexdigest()


def export_graphs(networks: MetaNetworks, spec: ModelSpec, belief: TrainedBelief | None = None) -> dict[str, ExportedGraph]:
    """The three graphs, and those of the ``belief`` where there is one, checked against torch for several batch and context sizes."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(spec.observation.low), torch.tensor(spec.observation.high)
    finite_low, finite_high = low.clamp_min(-10), high.clamp_max(10)

    def states(*shape: int) -> Tensor:
        return finite_low + (finite_high - finite_low) * torch.rand(*shape, spec.state_dim, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def context(batch: int, count: int) -> Tensor:
        flags = (torch.rand(2, batch, count, 1, generator=generator) < 0.1).float()
        return torch.cat([states(batch, count), normal(batch, count, spec.skill_dim), flags[0], flags[1], states(batch, count)], -1)

    batches, lengths = (1, 3), (0, 1, 7, spec.max_context)
    cases: dict[str, list[tuple[Tensor, ...]]] = {
        SKILL_DECODER: [(states(b), normal(b, spec.skill_dim)) for b in batches],
        META_POLICY: [(states(b), normal(b, spec.task_embedding_dim)) for b in batches],
        TASK_ENCODER: [(context(b, n), torch.ones(b, n)) for b in batches for n in lengths],
    }
    batch, count = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("count", min=0, max=1 << 16)
    axes = {
        SKILL_DECODER: ({0: batch}, {0: batch}),
        META_POLICY: ({0: batch}, {0: batch}),
        TASK_ENCODER: ({0: batch, 1: count}, {0: batch, 1: count}),
    }
    modules: dict[str, nn.Module] = {SKILL_DECODER: networks.skills.decoder, META_POLICY: networks.policy, TASK_ENCODER: networks.encoder}
    traced_with = {
        SKILL_DECODER: cases[SKILL_DECODER][1],
        META_POLICY: cases[META_POLICY][1],
        TASK_ENCODER: (context(2, 5), torch.ones(2, 5)),
    }
    if belief is not None:
        modules[REWARD_DECODER] = belief.decoder
        for table in (cases, traced_with, axes):
            table[REWARD_DECODER] = table[META_POLICY]  # it takes what the meta-policy takes
    if belief is not None and belief.novelty is not None:
        modules[SKILL_DYNAMICS] = belief.novelty.dynamics
        for table in (cases, traced_with, axes):
            table[SKILL_DYNAMICS] = table[SKILL_DECODER]  # noise is as wide as a skill
    return {name: export_graph(name, modules[name], traced_with[name], axes[name], cases[name]) for name in modules}


def export_graph(
    name: str, module: nn.Module, example: tuple[Tensor, ...], axes: tuple[dict[int, Any], ...], cases: list[tuple[Tensor, ...]]
) -> ExportedGraph:
    """Export one module and compare it with torch on ``cases``; the third last case becomes the golden vectors."""
    model = _to_onnx(module.eval(), example, GRAPH_INPUTS[name], GRAPH_OUTPUTS[name], axes)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    golden: GoldenVectors | None = None
    for case in cases:
        with torch.no_grad():
            answer = module(*case)
        expected = [t.numpy() for t in (answer if isinstance(answer, tuple) else (answer,))]
        inputs = {key: value.numpy() for key, value in zip(GRAPH_INPUTS[name], case, strict=True)}
        got = session.run(list(GRAPH_OUTPUTS[name]), inputs)
        # numpy's maximum keeps NaN, Python's drops it
        largest = float(np.max([largest, *(_difference(a, b) for a, b in zip(expected, got, strict=True))]))
        if golden is None or (len(cases) > 2 and case[0].shape[1] == 7):
            outputs = dict(zip(GRAPH_OUTPUTS[name], got, strict=True))
            golden = GoldenVectors(inputs={k: v.tolist() for k, v in inputs.items()}, outputs={k: v.tolist() for k, v in outputs.items()})
    if golden is None or not largest <= TOLERANCE:
        raise BundleError(f"{name}: ONNX and torch differ by {largest:.2e}, more than {TOLERANCE:.0e}; the bundle was not written")
    return ExportedGraph(model, golden, largest)


def _difference(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """The largest difference, of values beyond one as a share of them: float32 rounds large numbers by more."""
    return float((np.abs(expected - got) / np.maximum(1.0, np.abs(expected))).max(initial=0.0))


def _to_onnx(module: nn.Module, example: tuple[Tensor, ...], inputs: tuple[str, ...], outputs: tuple[str, ...], axes: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module, example, dynamo=True, input_names=list(inputs), output_names=list(outputs), dynamic_shapes=axes, verbose=False
        )
    buffer = io.BytesIO()
    kept = set(program.model.graph.initializers)  # type: ignore[union-attr]
    if isinstance(module, MetaPolicy) and (lost := set(module.residual_parameters()) - kept):
        raise BundleError(f"the exporter folded {sorted(lost)} away: fine-tuned weights could not replace them; the bundle was not written")
    program.save(buffer)  # type: ignore[union-attr]
    return _without_traces(buffer.getvalue())


def _without_traces(data: bytes) -> bytes:
    """The graph without the exporter's notes, which hold stack traces and with them the paths of the machine that it was made on."""
    model = onnx.load_model_from_string(data)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for noted in (model, model.graph, *nodes, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del noted.metadata_props[:]
    return model.SerializeToString()


def _commit() -> str:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def _model_card(
    config: TrainingConfig,
    spec: ModelSpec,
    metrics: Mapping[str, float],
    command: str,
    graphs: Mapping[str, ExportedGraph],
    envelope: Envelope | None,
) -> str:
    def table(title: str, names: tuple[str, ...], units: tuple[str, ...], low: tuple[float, ...], high: tuple[float, ...]) -> str:
        rows = "\n".join(f"| {i} | {n} | {u} | {a:g} | {b:g} |" for i, (n, u, a, b) in enumerate(zip(names, units, low, high, strict=True)))
        return f"## {title}\n\n| index | name | unit | low | high |\n|---|---|---|---|---|\n{rows}\n"

    observation, action = spec.observation, spec.action
    figures = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    parity = "\n".join(f"| `{name}` | {graph.largest_difference:.1e} |" for name, graph in graphs.items())
    limits = f"Safety envelope, in the manifest: {envelope.source}." if envelope else "It carries no safety envelope."
    return f"""---
library_name: skillet
tags: [reinforcement-learning, meta-learning, skills, onnx]
---
# {config.domain.name}

Skill decoder, task encoder and meta-policy for `{spec.env_id}`, trained by skill-based meta-reinforcement learning (SiMPL, ICLR 2022).
A skill lasts {spec.skill_horizon} steps of {spec.control_period_s:g} s; an episode at most {spec.episode_steps} steps.
Serve it with `python -m service --bundle DIRECTORY`. Made by `{command}`, seed {config.seed}.
{limits}

{table("Observation", observation.names, observation.units, observation.low, observation.high)}
{table("Action", action.names, action.units, action.low, action.high)}
## Measured at export

| figure | value |
|---|---|
{figures}

| graph | largest difference from torch |
|---|---|
{parity}
"""
