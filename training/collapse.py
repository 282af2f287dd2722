"""The trivial solution of consistency losses: clean and attacked predictions agree because both are uniform (METHODS L1)."""

import math
from dataclasses import dataclass

from robustclip.errors import RobustClipError
from training.objectives.base import Signs

DIVERGENCE = 1e-2  # nats
GUESSING = 0.95  # of ln C
PATIENCE = 50  # consecutive steps


class TrainingFailed(RobustClipError):
    """Training that must not go on from where it is."""


class TrainingDiverged(TrainingFailed):
    """A loss that is no number any more."""

    code = "training-diverged"


class TrainingCollapsed(TrainingFailed):
    """Predictions that are the same for all pictures."""

    code = "training-collapsed"


@dataclass
class CollapseWatch:
    """Counts consecutive steps that look collapsed. Not told about the first epoch, whose learning rate changes nothing yet."""

    labels: int
    streak: int = 0

    def observe(self, signs: Signs | None) -> None:
        """Raises TrainingCollapsed at the 50th step in a row."""
        if signs is None:
            return
        collapsed = signs.divergence < DIVERGENCE and signs.cross_entropy > GUESSING * math.log(self.labels)
        self.streak = self.streak + 1 if collapsed else 0
        if self.streak >= PATIENCE:
            raise TrainingCollapsed(
                f"for {PATIENCE} steps clean and attacked predictions are the same guess: cross-entropy {signs.cross_entropy:.2f} of {self.labels} "
                f"labels, divergence {signs.divergence:.1e}.",
                help="Lower --objective.consistency or --objective.learning_rate, or give more shots.",
            )
