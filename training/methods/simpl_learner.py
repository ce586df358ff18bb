"""Fine-tuning at SiMPL's pace."""

from training.contract.context import Floats
from training.finetuning import Finetuner


class OneStepATransition(Finetuner):
    """One gradient step for each new skill transition, none before the replay holds a whole batch (SiMPL's released code)."""

    def add_episode(self, rows: Floats, log_chosen: Floats | None = None) -> bool:
        """Add one complete episode's skill transitions [n, D]. The task embedding stays."""
        self.replay.add(0, rows)
        self.episodes += 1
        if self.replay.size(0) >= self.config.batch:
            self.owed += len(rows)
        return False
