"""Networks of a bundle as ONNX graphs, and fine-tuned versions of its meta-policy. Pure functions of their arguments, no torch."""

import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from service.errors import PolicyOutputInvalid
from service.graphs import Graph, TunableGraph, Weights, check_graph
from training.contract.belief import Belief
from training.contract.bundle import Bundle
from training.contract.context import ContextLayout, Floats, pack_rows, select_context, unpack_rows
from training.contract.envelope import Envelope, Guard, Range
from training.contract.errors import BundleCorrupt
from training.contract.novelty import Novelty
from training.contract.spec import (
    GRAPH_INPUTS,
    GRAPH_OUTPUTS,
    META_POLICY,
    REWARD_DECODER,
    SKILL_DECODER,
    SKILL_DYNAMICS,
    TASK_ENCODER,
    ModelSpec,
)

_TRIED = 64


@dataclass(frozen=True)
class MetaPolicy:
    """Chooses skills: the bundle's own policy (version 0), or a fine-tuned version with the task embedding [E] it was tuned for."""

    graph: Graph
    version: int = 0
    task_embedding: Floats | None = None
    temperature: float = 1.0

    def choose_skill(self, state: Floats, task_embedding: Floats, noise: Floats | None, *, use_skill_prior: bool) -> Floats:
        """A skill [Z] for ``state`` [S] and ``task_embedding`` [E]: mean + temperature * std * noise [Z]; without noise the mean.

        The skill prior has no temperature. Raises PolicyOutputInvalid when it is not finite.
        """
        mean, std, prior_mean, prior_std = self.graph.run_one(state, task_embedding)
        if use_skill_prior:
            mean, std = prior_mean, prior_std
        elif self.temperature != 1.0:
            std = np.float32(self.temperature) * std
        skill: Floats = mean if noise is None else mean + std * noise
        return _finite(skill, "skill", self.version)


@dataclass(frozen=True)
class RewardDecoder:
    """Says where a task embedding expects a reward."""

    graph: Graph

    def probability(self, states: Floats, task_embeddings: Floats) -> Floats:
        """Probability of a reward [B] in states [B, S] for task embeddings [B, E]. Raises PolicyOutputInvalid when it is not finite."""
        return _finite(self.graph.run(states, task_embeddings)[0], "reward probability", 0)


@dataclass(frozen=True)
class SkillDynamics:
    """Says where skills lead."""

    graph: Graph

    def imagine(self, states: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """Skills [B, Z] that the skill prior draws in states [B, S] with noise [B, Z], and the states [B, S] that they lead to.

        Raises PolicyOutputInvalid when they are not finite.
        """
        skills, after = self.graph.run(states, noise)
        return _finite(skills, "imagined skill", 0), _finite(after, "imagined state", 0)


class Networks:
    """The graphs of one bundle, and the guard of its safety envelope (without ``envelope``: of its spec's limits)."""

    def __init__(self, bundle: Bundle, *, envelope: bool = True) -> None:
        self.bundle = bundle
        self.spec: ModelSpec = bundle.manifest.spec
        self.digest = bundle.manifest.digest
        self.guard = Guard(bundle.manifest.limits if envelope else Envelope.of_spec(self.spec))
        self.packing = struct.Struct(f"<{self.spec.state_dim}f")
        """Of an observation [S]."""
        self.layout = ContextLayout(self.spec.state_dim, self.spec.skill_dim)
        self._meta_policy_bytes = bundle.read(META_POLICY)
        graphs = self.graphs = {file: _load_graph(bundle, file) for file in GRAPH_INPUTS if file in bundle.manifest.files}
        self._decoder, self._encoder = graphs[SKILL_DECODER], graphs[TASK_ENCODER]
        self.skill_temperature = bundle.manifest.skill_temperature
        self.meta_policy = MetaPolicy(graphs[META_POLICY], temperature=self.skill_temperature)
        particles = bundle.manifest.particles
        places = bundle.manifest.places
        novelty = None if places is None else Novelty(_array(places), SkillDynamics(graphs[SKILL_DYNAMICS]).imagine)
        self.belief = None if particles is None else Belief(_array(particles), RewardDecoder(graphs[REWARD_DECODER]).probability, novelty)
        self.goes_beyond = self.belief is not None and bool(bundle.manifest.finetuning.get("infer_again", False))
        """Whether sessions may explore beyond what they know: there is a belief, and the task shows bit by bit."""
        self.takes_detours = self.goes_beyond and bool(bundle.manifest.finetuning.get("detours", False))
        """Whether their episodes may leave the way before that too (`training.contract.exploration.detour_after`)."""
        self._tunable: TunableGraph | None = None
        self._limits = Range(self.spec.action.low, self.spec.action.high)
        self._decodes_alike = self._decode_alike()

    def decode(self, state: Floats, skill: Floats) -> Floats:
        """The action [A] of ``skill`` [Z] in ``state`` [S], within the action limits. Raises PolicyOutputInvalid when it is not finite."""
        (action,) = self._decoder.run_one(state, skill)
        held = self._limits.hold(action)
        if held is action and self._limits.bounded:
            return action
        return self._limits.hold(_finite(action, "action", 0))

    def decode_many(self, pairs: Sequence[tuple[Floats, Floats]]) -> "list[Floats | None]":
        """`decode` of each pair of state [S] and skill [Z], to the bit, in one call of the graph. None for what is not finite."""
        if self._decodes_alike and len(pairs) > 1:
            states, skills = zip(*pairs, strict=True)
            actions = list(self._decoder.run(np.array(states), np.array(skills))[0])
        else:
            actions = [self._decoder.run_one(state, skill)[0] for state, skill in pairs]
        held = [self._limits.hold(action) for action in actions]
        return [
            kept if (kept is action and self._limits.bounded) or np.isfinite(action).all() else None
            for action, kept in zip(actions, held, strict=True)
        ]

    def _decode_alike(self) -> bool:
        """Whether this machine's decoder gives the same bits for many examples at once as for each alone."""
        numbers = np.random.default_rng(0)
        states, skills = (numbers.standard_normal((_TRIED, dim)).astype(np.float32) for dim in (self.spec.state_dim, self.spec.skill_dim))
        alone = np.stack([self._decoder.run_one(state, skill)[0] for state, skill in zip(states, skills, strict=True)])
        return all(
            np.array_equal(self._decoder.run(states[:count], skills[:count])[0], alone[:count]) for count in (2, 3, 7, 16, 32, 33, _TRIED)
        )

    def infer_task(self, rows: Floats) -> tuple[Floats, Floats]:
        """Mean and scale [E] of the task posterior for context rows [N, D], N > 0."""
        context = select_context(rows, self.layout, self.spec.max_context)
        mean, scale = self._encoder.run(context[None], np.ones((1, len(context)), np.float32))
        return _finite(mean[0], "task posterior", 0), _finite(scale[0], "task posterior", 0)

    def with_weights(self, weights: "PolicyWeights", version: int) -> MetaPolicy:
        """The meta-policy with fine-tuned weights. Raises ValueError or onnxruntime's errors when they do not fit the graph."""
        arrays = weights.arrays()
        tunable = self._tunable or TunableGraph(META_POLICY, self._meta_policy_bytes, {name: array.shape for name, array in arrays.items()})
        task_embedding = unpack_rows(weights.task_embedding, self.spec.task_embedding_dim)[0]
        policy = MetaPolicy(tunable.with_weights(arrays), version, task_embedding, self.skill_temperature)
        self._tunable = tunable
        return policy


class PolicyWeights(Struct, frozen=True):
    """Weights of a fine-tuned meta-policy by initializer name, and the task embedding [E] they were tuned for. No pickle: msgpack."""

    task_embedding: bytes
    tensors: dict[str, tuple[tuple[int, ...], bytes]]

    @classmethod
    def pack(cls, task_embedding: Floats, weights: Weights) -> "PolicyWeights":
        """From arrays."""
        return cls(pack_rows(task_embedding), {name: (array.shape, pack_rows(array)) for name, array in weights.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "PolicyWeights":
        """From `to_bytes`."""
        return msgspec.msgpack.decode(data, type=cls)

    def to_bytes(self) -> bytes:
        """As stored in Redis."""
        return msgspec.msgpack.encode(self)

    def arrays(self) -> Weights:
        """To arrays."""
        return {name: np.frombuffer(data, "<f4").reshape(shape).astype(np.float32) for name, (shape, data) in self.tensors.items()}


class PolicyCache:
    """Fine-tuned policies that are ready to act, the least recently used dropped first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._policies: OrderedDict[tuple[str, int], MetaPolicy] = OrderedDict()

    def get(self, session_id: str, version: int) -> MetaPolicy | None:
        """The policy, if it is here."""
        policy = self._policies.get((session_id, version))
        if policy is not None:
            self._policies.move_to_end((session_id, version))
        return policy

    def put(self, session_id: str, policy: MetaPolicy) -> None:
        """Keep a policy."""
        self._policies[(session_id, policy.version)] = policy
        while len(self._policies) > self._capacity:
            self._policies.popitem(last=False)


def _load_graph(bundle: Bundle, file: str) -> Graph:
    try:
        data = bundle.read(file)
        check_graph(file, data, bundle.manifest.spec)
        graph = Graph(file, data)
        golden = bundle.manifest.golden[file]
        found = graph.run(*(_array(golden.inputs[name]) for name in GRAPH_INPUTS[file]))
        wanted = [_array(golden.outputs[name]) for name in GRAPH_OUTPUTS[file]]
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise BundleCorrupt(f"{file} in {bundle.path} cannot be run: {type(error).__name__}: {error}") from error
    for name, got, want in zip(GRAPH_OUTPUTS[file], found, wanted, strict=True):
        if got.shape != want.shape or not np.abs(got - want).max(initial=0.0) <= golden.tolerance:
            raise BundleCorrupt(f"{file} in {bundle.path}: output {name} differs from its golden vector by more than {golden.tolerance}")
    return graph


def _array(values: Any) -> Floats:
    return np.asarray(values, np.float32)


def _finite(values: Floats, what: str, version: int) -> Floats:
    if not np.isfinite(values).all():
        raise PolicyOutputInvalid(
            f"policy version {version} gave a {what} that is not finite",
            action="Roll back to an earlier policy version, or check the bundle and the observation's units.",
        )
    return values
