"""What a check returns: its diagnostic, its cost, and the adversarial example that it may have met."""

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

# (points [n, 3, S, S], their margins [n]) -> which reach the goal [n] bool
GoalCheck: TypeAlias = Callable[[Pixels, Tensor], tuple[Tensor, Cost]]


def at_its_word(points: Pixels, margins: Tensor) -> tuple[Tensor, Cost]:
    """Take the margins that the search reported."""
    return margins > 0, Cost()


def draws_of(score: Score) -> int:
    """How many draws of the defense each answer of the score averages."""
    return score.draws if isinstance(score, Averaged) else 1


class Suspicion(NamedTuple):
    """A point [1, 3, S, S] of the ball that a check says reaches the goal; the probe has yet to judge it.

    `attack` found it with `draws` averaged in each answer. It raised `loss`, if that is not the score's own
    loss.
    """

    pixels: Pixels
    attack: PGD | Square | Noise
    draws: int
    loss: LossName | None = None


class Finding(NamedTuple):
    """What a check says, what it cost, and the point that it met, if any."""

    diagnostic: Diagnostic
    cost: Cost = FREE
    suspicion: Suspicion | None = None
