"""What a bundle expects and returns: vector specs with names, units and limits, model dimensions, graph inputs and outputs.

Shapes, one legend for the whole project: ``B`` batch, ``T`` tasks, ``N`` context length, ``H`` skill horizon (environment steps in a
skill), ``S`` state, ``A`` action, ``Z`` skill, ``E`` task embedding, ``D = 2 S + Z + 2`` a skill transition.
"""

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION: Final = 4
"""Version of the bundle directory format. A reader refuses a bundle whose version is newer.

2 added the safety envelope; 3 the belief (particles and reward decoder) and the number of conditioning episodes, both optional; 4
what exploring by novelty takes (places and a model of where skills lead), optional too.
"""

SKILL_DECODER: Final = "skill_decoder.onnx"
META_POLICY: Final = "meta_policy.onnx"
TASK_ENCODER: Final = "task_encoder.onnx"
REWARD_DECODER: Final = "reward_decoder.onnx"
"""Only in a bundle that offers a belief."""
SKILL_DYNAMICS: Final = "skill_dynamics.onnx"
"""Only in a bundle whose sessions can explore by novelty."""
LEARNER_WEIGHTS: Final = "learner.safetensors"
MODEL_CARD: Final = "README.md"
MANIFEST: Final = "manifest.json"

GRAPH_INPUTS: Final[dict[str, tuple[str, ...]]] = {
    SKILL_DECODER: ("state", "skill"),  # [B, S], [B, Z]
    META_POLICY: ("state", "task_embedding"),  # [B, S], [B, E]
    TASK_ENCODER: ("context", "mask"),  # [B, N, D], [B, N] with 1.0 for a real row and 0.0 for padding
    REWARD_DECODER: ("state", "task_embedding"),  # [B, S], [B, E]
    SKILL_DYNAMICS: ("state", "noise"),  # [B, S], [B, Z]
}
GRAPH_OUTPUTS: Final[dict[str, tuple[str, ...]]] = {
    SKILL_DECODER: ("action",),  # [B, A], inside the action limits
    META_POLICY: ("skill_mean", "skill_std", "prior_mean", "prior_std"),  # each [B, Z]
    TASK_ENCODER: ("mean", "std"),  # each [B, E]; N = 0 or an all-zero mask gives exactly the task prior N(0, I)
    REWARD_DECODER: ("probability",),  # [B]
    SKILL_DYNAMICS: ("drawn_skill", "next_state"),  # [B, Z] by the skill prior with that noise, [B, S] where it leads
}


MAX_DIM: Final = 65_536
"""Of any vector: what is made for it must fit in memory, whatever a manifest says."""


def graph_shapes(file: str, spec: "ModelSpec") -> tuple[dict[str, tuple[int | None, ...]], dict[str, tuple[int | None, ...]]]:
    """Shapes of a graph's inputs and outputs by name, as the comments above have them; None where any size goes."""
    wide = {
        "state": spec.state_dim, "skill": spec.skill_dim, "task_embedding": spec.task_embedding_dim, "action": spec.action_dim,
        "mean": spec.task_embedding_dim, "std": spec.task_embedding_dim, "next_state": spec.state_dim,
    }  # fmt: skip
    others = {"context": (None, None, spec.skill_transition_dim), "mask": (None, None), "probability": (None,)}

    def shapes(names: tuple[str, ...]) -> dict[str, tuple[int | None, ...]]:
        return {name: others.get(name, (None, wide.get(name, spec.skill_dim))) for name in names}

    return shapes(GRAPH_INPUTS[file]), shapes(GRAPH_OUTPUTS[file])


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VectorSpec(Frozen):
    """One float32 vector at the Gymnasium edge: a name, a unit and limits for each entry (the same length each)."""

    names: tuple[str, ...] = Field(description="name of each entry")
    units: tuple[str, ...] = Field(description="unit of each entry, e.g. 'm/s'")
    low: tuple[float, ...] = Field(description="smallest value of each entry")
    high: tuple[float, ...] = Field(description="largest value of each entry")

    @property
    def dim(self) -> int:
        """Number of entries."""
        return len(self.names)

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        lengths = {"names": len(self.names), "units": len(self.units), "low": len(self.low), "high": len(self.high)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"names, units, low and high must have one length, got {lengths}")
        return self


class ModelSpec(Frozen):
    """Everything a client or a server has to know about a bundle's models."""

    env_id: str = Field(description="Gymnasium id of the environment that the bundle was trained in")
    observation: VectorSpec
    action: VectorSpec
    skill_dim: int = Field(gt=0, le=MAX_DIM)
    skill_horizon: int = Field(gt=0, description="environment steps that one skill lasts (H)")
    task_embedding_dim: int = Field(gt=0, le=MAX_DIM)
    max_context: int = Field(gt=0, le=2**20, description="skill transitions that the task encoder is given at most")
    episode_steps: int = Field(gt=0, description="time limit of an episode in environment steps")
    control_period_s: float = Field(gt=0, description="seconds between two actions")

    @property
    def state_dim(self) -> int:
        """Length of the state vector (S)."""
        return self.observation.dim

    @property
    def action_dim(self) -> int:
        """Length of the action vector (A)."""
        return self.action.dim

    @property
    def skill_transition_dim(self) -> int:
        """Length of one packed skill transition (D = 2 S + Z + 2)."""
        return 2 * self.state_dim + self.skill_dim + 2
