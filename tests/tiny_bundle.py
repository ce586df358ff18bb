"""A bundle of small random networks, for tests: S=4, A=2, Z=3, E=2, H=5, all different so that a swapped axis shows."""

import hashlib
import io
import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.export import Dim

from training.contract.bundle import Bundle, GoldenVectors, Provenance, write_bundle
from training.contract.spec import (
    GRAPH_INPUTS,
    GRAPH_OUTPUTS,
    LEARNER_WEIGHTS,
    META_POLICY,
    MODEL_CARD,
    SKILL_DECODER,
    TASK_ENCODER,
    ModelSpec,
    VectorSpec,
)

S, A, Z, E, H, MAX_CONTEXT, WIDTH = 4, 2, 3, 2, 5, 64, 8

TINY_SPEC = ModelSpec(
    env_id="Tiny-v0",
    observation=VectorSpec(names=("x", "y", "vx", "vy"), units=("m", "m", "m/s", "m/s"), low=(-9.0,) * S, high=(9.0,) * S),
    action=VectorSpec(names=("ax", "ay"), units=("N", "N"), low=(-1.0,) * A, high=(1.0,) * A),
    skill_dim=Z,
    skill_horizon=H,
    task_embedding_dim=E,
    max_context=MAX_CONTEXT,
    episode_steps=30,
    control_period_s=0.1,
)


class Decoder(nn.Module):
    """state [B, S], skill [B, Z] -> action [B, A]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(S + Z, WIDTH), nn.Tanh(), nn.Linear(WIDTH, A), nn.Tanh())

    def forward(self, state: Tensor, skill: Tensor) -> Tensor:
        return self.body(torch.cat([state, skill], -1))


class MetaPolicy(nn.Module):
    """state [B, S], task embedding [B, E] -> skill and prior distributions [B, Z]."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Sequential(nn.Linear(S, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2 * Z))
        self.residual = nn.Sequential(nn.Linear(S + E, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2 * Z))

    def forward(self, state: Tensor, task_embedding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prior_mean, prior_log = self.prior(state).chunk(2, -1)
        mean, log = self.residual(torch.cat([state, task_embedding], -1)).chunk(2, -1)
        return prior_mean + mean, (prior_log + log).exp(), prior_mean, prior_log.exp()


class Encoder(nn.Module):
    """context [B, N, D], mask [B, N] -> posterior [B, E]: a product of Gaussian factors, so that no row gives the prior exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2 * S + Z + 2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2 * E))

    def forward(self, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mean, log = self.body(context).chunk(2, -1)
        precision = log.exp() * mask[..., None]  # [B, N, E]
        total = 1.0 + precision.sum(1)
        return (precision * mean).sum(1) / total, total.rsqrt()


def make_tiny_bundle(path: Path, *, name: str = "tiny", seed: int = 0) -> Bundle:
    """Export the three random graphs and write a bundle at ``path``."""
    torch.manual_seed(seed)
    dim_batch, dim_rows = Dim("B"), Dim("N")
    rows = torch.randn(3, 7, TINY_SPEC.skill_transition_dim)
    state, skill, embedding = torch.randn(3, S), torch.randn(3, Z), torch.randn(3, E)
    graphs = {
        SKILL_DECODER: (Decoder(), (state, skill), ({0: dim_batch}, {0: dim_batch})),
        META_POLICY: (MetaPolicy(), (state, embedding), ({0: dim_batch}, {0: dim_batch})),
        TASK_ENCODER: (Encoder(), (rows, torch.ones(3, 7)), ({0: dim_batch, 1: dim_rows}, {0: dim_batch, 1: dim_rows})),
    }
    files, golden = {}, {}
    for file, (module, inputs, axes) in graphs.items():
        files[file], golden[file] = _export(file, module.eval(), inputs, axes)
    files[LEARNER_WEIGHTS] = save_tensors({key: value.contiguous() for key, value in graphs[META_POLICY][0].state_dict().items()})
    files[MODEL_CARD] = b"# tiny\n\nRandom networks for tests.\n"
    config = {"seed": seed}
    return write_bundle(
        path,
        files,
        name=name,
        spec=TINY_SPEC,
        golden=golden,
        networks={},
        finetuning={"kl_limit": 50.0},
        provenance=Provenance(
            created_at="2026-01-01T00:00:00Z",
            config=config,
            config_sha256=hashlib.sha256(json.dumps(config).encode()).hexdigest(),
            seed=seed,
            commit="0" * 40,
            command="tests",
            metrics={},
        ),
    )


def _export(file: str, module: nn.Module, inputs: tuple[Tensor, ...], axes: tuple[dict[int, Dim], ...]) -> tuple[bytes, GoldenVectors]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own use of torch
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=list(GRAPH_INPUTS[file]),
            output_names=list(GRAPH_OUTPUTS[file]),
            dynamic_shapes=axes,
        )
    stream = io.BytesIO()
    program.save(stream)
    data = stream.getvalue()
    feed = {key: value.numpy() for key, value in zip(GRAPH_INPUTS[file], inputs, strict=True)}
    with torch.no_grad():
        outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(list(GRAPH_OUTPUTS[file]), feed)
    for got, want in zip(found, outputs, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    return data, GoldenVectors(
        inputs={key: value.tolist() for key, value in feed.items()},
        outputs={key: value.tolist() for key, value in zip(GRAPH_OUTPUTS[file], found, strict=True)},
    )
