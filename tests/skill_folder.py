"""An independent folding of environment steps into skill transitions, to compare the service's and the rollout's with."""

from dataclasses import dataclass, field

from training.contract.context import ContextLayout, Floats


@dataclass
class SkillFolder:
    """Folds environment steps into skill transitions while an episode runs.

    ``begin`` is called with the state and skill at a skill's first step, ``add`` with each step's outcome. ``add`` returns the packed row
    when the skill's last step (its ``H``-th, or the episode's last) has come in, else None.
    """

    layout: ContextLayout
    horizon: int
    _state: Floats | None = None
    _skill: Floats | None = None
    _reward: float = 0.0
    _steps: int = field(default=0)

    def begin(self, state: Floats, skill: Floats) -> None:
        """Start a skill: float32 [S] and [Z]. Raises RuntimeError when the last skill is still open."""
        if self._state is not None:
            raise RuntimeError(f"the skill begun {self._steps} steps ago is still open (horizon {self.horizon})")
        self._state, self._skill, self._reward, self._steps = state, skill, 0.0, 0

    def add(self, reward: float, next_state: Floats, *, terminated: bool, truncated: bool) -> Floats | None:
        """Add one environment step. Returns float32 [D] when it completes the skill, else None."""
        if self._state is None or self._skill is None:
            raise RuntimeError("no skill is open: call begin first")
        self._reward += reward
        self._steps += 1
        if self._steps < self.horizon and not terminated and not truncated:
            return None
        row = self.layout.row(self._state, self._skill, self._reward, terminated, next_state)
        self._state = self._skill = None
        return row
