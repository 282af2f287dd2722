"""What a check says, and what it may cost: the catalogue of symptoms, by the identifiers of ROBUSTNESS.md
section 3.

M15 is missing: it compares accuracies over many pictures, which is an evaluation's to do.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from robustclip.attacks.noise import Noise
from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square
from robustclip.sanity.symptoms import Diagnostic
from robustclip.scores.losses import LossName
from robustclip.scores.wrappers import Averaged
from robustclip.types import FREE, Cost, Pixels, Score

GoalCheck: TypeAlias = Callable[
    [Pixels, Tensor], tuple[Tensor, Cost]
]  # (points [n, 3, S, S], their margins [n]) -> which reach the goal [n] bool


def at_its_word(points: Pixels, margins: Tensor) -> tuple[Tensor, Cost]:
    """The search's own margins decide."""
    return margins > 0, Cost()


def draws_of(score: Score) -> int:
    """How many draws are averaged in each answer."""
    return score.draws if isinstance(score, Averaged) else 1


class Suspicion(NamedTuple):
    """A point [1, 3, S, S] of the ball that a check takes for one that reaches the goal: to be judged like
    any other attack's.

    `attack` came there, with `draws` averaged in each answer, and raised `loss` if that is not what the
    attacked score raises.
    """

    pixels: Pixels
    attack: PGD | Square | Noise
    draws: int
    loss: LossName | None = None


class Finding(NamedTuple):
    """What a check says, what it took, and what it found on its way."""

    diagnostic: Diagnostic
    cost: Cost = FREE
    suspicion: Suspicion | None = None
