"""Skill transitions: the unit of context and of replay.

One skill transition is a float32 row of ``D = 2 S + Z + 2`` numbers::

    state [S] | skill [Z] | reward (sum over the skill's steps) [1] | terminated (0 or 1) [1] | next state [S]

Only the last environment step *inside* a skill says whether it terminated; a time limit (truncation) is not stored, since the value of
the next state is bootstrapped through it (SiMPL, section 4.2; Pardo et al. 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_LITTLE_FLOAT = np.dtype("<f4")


@dataclass(frozen=True)
class ContextLayout:
    """Columns of a skill transition for state dimension ``S`` and skill dimension ``Z``."""

    state_dim: int
    skill_dim: int

    @property
    def width(self) -> int:
        """``D``, the length of a row."""
        return 2 * self.state_dim + self.skill_dim + 2

    @property
    def state(self) -> slice:
        """Columns of the state in which the skill began."""
        return slice(0, self.state_dim)

    @property
    def skill(self) -> slice:
        """Columns of the skill."""
        return slice(self.state_dim, self.state_dim + self.skill_dim)

    @property
    def reward(self) -> int:
        """Column of the summed reward."""
        return self.state_dim + self.skill_dim

    @property
    def terminated(self) -> int:
        """Column of the termination flag."""
        return self.state_dim + self.skill_dim + 1

    @property
    def next_state(self) -> slice:
        """Columns of the state after the skill's last step."""
        return slice(self.state_dim + self.skill_dim + 2, self.width)

    def row(self, state: Floats, skill: Floats, reward: float, terminated: bool, next_state: Floats) -> Floats:
        """Pack one skill transition. Returns float32 [D]."""
        return np.concatenate([state, skill, [reward, float(terminated)], next_state]).astype(np.float32)


def select_context(rows: Floats, layout: ContextLayout, capacity: int) -> Floats:
    """At most ``capacity`` rows of the context [N, D], chosen deterministically, in their old order. Returns [min(N, capacity), D].

    Rewarded rows say most about the task and are rare where reward is sparse, so they are kept first (evenly thinned to half of the
    capacity if there are more); the rest is filled with unrewarded rows at even spacing.
    """
    if len(rows) <= capacity:
        return rows
    rewarded = rows[:, layout.reward] != 0
    hits, misses = np.flatnonzero(rewarded), np.flatnonzero(~rewarded)
    kept_hits = _evenly(hits, max(capacity // 2, capacity - len(misses)))
    chosen: Floats = rows[np.sort(np.concatenate([kept_hits, _evenly(misses, capacity - len(kept_hits))]))]
    return chosen


def _evenly(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)]


def pack_rows(rows: Sequence[Floats] | Floats) -> bytes:
    """Rows as little-endian float32 bytes."""
    return np.ascontiguousarray(rows, dtype="<f4").tobytes()


def unpack_vector(data: bytes) -> Floats:
    """One row, or any other vector, from its bytes: float32, read-only, not copied."""
    return np.frombuffer(data, _LITTLE_FLOAT)


def unpack_rows(data: bytes, width: int) -> Floats:
    """The inverse of `pack_rows`: float32 [N, width]. Raises ValueError when the bytes are no whole number of rows."""
    if len(data) % (4 * width):
        raise ValueError(f"expected a multiple of {4 * width} bytes ({width} float32 columns), got {len(data)} bytes")
    return np.frombuffer(data, dtype="<f4").reshape(-1, width).astype(np.float32)
