"""Detects trivial solutions: all predictions are uniform, or teacher and student always answer one label.

The first satisfies consistency losses (clean and attacked predictions agree), the second distillation, where
teacher and student need not even agree.
"""

import math
from dataclasses import dataclass, field

from robustclip.errors import RobustClipError
from training.learning.objectives.base import Signs

DIVERGENCE = 1e-2  # nats
GUESSING = 0.95  # of ln C
PATIENCE = 50  # consecutive steps
ONE_ANSWER = 0.95  # of a batch: nearly all
ONE_TARGET = 0.8  # a batch with more of one label than this says nothing about answering that label


class TrainingFailed(RobustClipError):
    """Training that can't go on from its present state."""


class TrainingDiverged(TrainingFailed):
    """A loss that is not finite."""

    code = "training-diverged"


class TrainingCollapsed(TrainingFailed):
    """Predictions that are the same for all pictures."""

    code = "training-collapsed"


@dataclass
class CollapseWatch:
    """Counts consecutive steps that look collapsed, after the first epoch of each phase, in which a guess is
    normal.

    Two symptoms: clean and attacked predictions are the same guess; a model answers one label for nearly all
    pictures and is no better than a guess.
    """

    labels: int
    streaks: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def streak(self) -> int:
        """The longest present streak."""
        return max(self.streaks.values(), default=0)

    def observe(self, signs: Signs | None) -> None:
        """Raises TrainingCollapsed at the 50th step in a row."""
        if signs is None:
            return
        guess = GUESSING * math.log(self.labels)
        if self._lasts("agreement", signs.divergence < DIVERGENCE and signs.cross_entropy > guess):
            raise TrainingCollapsed(
                f"for {PATIENCE} steps clean and attacked predictions are the same guess: cross-entropy "
                f"{signs.cross_entropy:.2f} of {self.labels} "
                f"labels, divergence {signs.divergence:.1e}.",
                help="Lower --objective.consistency or --objective.learning_rate, or give more shots.",
            )
        for found in signs.answers:
            if found.expected > ONE_TARGET:
                continue  # pictures of one label: nothing can be said
            if self._lasts(found.who, found.share >= ONE_ANSWER and found.cross_entropy > guess):
                raise TrainingCollapsed(
                    f"for {PATIENCE} steps {found.who} answers one label for nearly all pictures: "
                    f"{found.share:.0%} of the last batch, cross-entropy "
                    f"{found.cross_entropy:.2f} of {self.labels} labels.",
                    help="Lower --objective.learning_rate or --objective.eps, or give more shots.",
                )

    def _lasts(self, what: str, seen: bool) -> bool:
        self.streaks[what] = self.streaks.get(what, 0) + 1 if seen else 0
        return self.streaks[what] >= PATIENCE
