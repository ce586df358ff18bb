"""Fine-tuning at SiMPL's pace."""

from training.contract.context import Floats
from training.finetuning import Finetuner


class OneStepATransition(Finetuner):
    """One gradient step for each new skill transition, none before the replay holds a whole batch (SiMPL's released code)."""

    def add_episode(self, rows: Floats, log_chosen: Floats | None = None) -> bool:
        """Add one complete episode's skill transitions [n, D]; none is held back. Returns whether the task is to be inferred anew."""
        owed = self.owed
        infer_again = super().add_episode(rows)
        self.owed = owed + len(rows) if self.replay.size(0) >= self.config.batch else owed
        return infer_again
