"""The table of symptoms (what each check measures, when it fires, what it says, and what it may cost), and
what a check returns.

M15 is missing here: it compares accuracies over many pictures (training/measuring/evaluation/checks.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel
from torch import Tensor

from robustclip.attacks import PGD, Noise, Square
from robustclip.scores import Averaged, LossName
from robustclip.types import FREE, Cost, Pixels, Score

Severity: TypeAlias = Literal["hard", "soft"]


class Diagnostic(BaseModel, frozen=True, extra="forbid"):
    """The result of one check: `number` is what it measured, and `sentence` says what that is."""

    id: str
    name: str
    fired: bool
    severity: Severity
    number: float
    threshold: float
    sentence: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """A sign of masked gradients, and how a check looks for it.

    cost   most passes that the check takes with one draw of the defense; free if an attack or another check
           has paid already
    draws  most draws of a randomized defense that the check averages
    """

    id: str
    name: str
    severity: Severity
    threshold: float
    sentence: str
    advice: str
    cost: Cost = FREE
    draws: int = 1

    def bill(self, eot: int) -> Cost:
        """Most passes if the attack averages `eot` draws in each gradient."""
        return self.cost.times(self.averages(eot))

    def averages(self, eot: int) -> int:
        """How many draws the check averages if the attack averages `eot`."""
        return min(eot, self.draws)

    def seen(self, number: float, fired: bool, *, severity: Severity | None = None) -> Diagnostic:
        return Diagnostic(
            id=self.id,
            name=self.name,
            fired=fired,
            severity=severity or self.severity,
            number=number,
            threshold=self.threshold,
            sentence=self.sentence,
            advice=self.advice,
        )


CLIMB_STEPS = 10  # fewer steps say too little about an attack's gradients
HALF_STEPS = 5  # of the attack on half the radius
DIRECTIONS = 16
NOISY_COPIES = 8
QUERIES = 64
DRAWS = 5
MATES = 3
DOUBTS = 16  # fresh draws of a randomized defense on which a success must be confirmed

CLIMB = Cost(CLIMB_STEPS + 1, CLIMB_STEPS)
_THROUGH = "Attack through a surrogate (BPDA), from the undefended model, or without gradients (Square)."

ZERO_GRADIENT = Symptom(
    id="M1",
    name="zero gradient",
    severity="hard",
    threshold=0.01,
    sentence="largest share of gradient entries that are exactly zero, beside the picture and along an "
    "attack",
    advice=_THROUGH,
    cost=Cost(1, 1).plus(CLIMB),
    draws=4,
)
GRADIENT_SCALE = Symptom(
    id="M2",
    name="gradient scale",
    severity="soft",
    threshold=1e-4,
    sentence="gradient norm through the defense over the norm without it",
    advice="Attack in float32, through a surrogate (BPDA), or from the undefended model.",
    cost=Cost(2, 2),
    draws=4,
)
WRONG_GRADIENT = Symptom(
    id="M3",
    name="wrong gradient",
    severity="hard",
    threshold=0.5,
    sentence="correlation of the gradient with finite differences",
    advice=_THROUGH,
    cost=Cost(1 + 2 * DIRECTIONS, 1),
)
SATURATION = Symptom(
    id="M4",
    name="saturation",
    severity="soft",
    threshold=1 - 1e-6,
    sentence="largest probability on the clean picture, or 1 where another loss broke what cross-entropy "
    "did not",
    advice="Raise the margin, DLR, or cross-entropy at a higher temperature.",
    cost=Cost(1),
    draws=4,
)
TRANSFER_BEATS_ADAPTIVE = Symptom(
    id="M5",
    name="transfer beats adaptive",
    severity="hard",
    threshold=0.5,
    sentence="1 if an attack on another model succeeded where the adaptive one failed",
    advice="Believe the transferred attack; attack past the defense (BPDA with the identity).",
)
BLACK_BOX_BEATS_WHITE_BOX = Symptom(
    id="M6",
    name="black box beats white box",
    severity="hard",
    threshold=0.5,
    sentence="1 if an attack that only asks for values succeeded where gradients failed",
    advice="Attack without gradients (Square with more queries, NES) or through a surrogate (BPDA).",
    cost=Cost(2 + QUERIES),
    draws=4,
)
NOISE_BEATS_GRADIENT = Symptom(
    id="M7",
    name="noise beats gradient",
    severity="hard",
    threshold=0.0,
    sentence=f"share of {NOISY_COPIES} noisy copies that reach the goal",
    advice="Attack without gradients (noise, Square) or through a surrogate (BPDA).",
    cost=Cost(NOISY_COPIES),
    draws=4,
)
NOT_MONOTONE = Symptom(
    id="M8",
    name="not monotone",
    severity="hard",
    threshold=0.0,
    sentence="attacks that failed although a smaller radius or fewer steps sufficed",
    advice="Take smaller steps and more restarts, or attack without gradients (Square).",
    cost=Cost(HALF_STEPS + 1, HALF_STEPS).plus(Cost(2, 1)),
    draws=4,
)
ONE_DRAW_NOT_ENOUGH = Symptom(
    id="M9",
    name="one draw is not enough",
    severity="hard",
    threshold=1e-4,
    sentence="largest change of a logit between draws, attacked without averaging",
    advice="Average gradients over draws (EOT 8 or more).",
    cost=Cost(DRAWS),
)
FIXED_RANDOMNESS = Symptom(
    id="M10",
    name="fixed randomness",
    severity="hard",
    threshold=ONE_DRAW_NOT_ENOUGH.threshold,  # equal rows of a batch may differ by rounding
    sentence="change of a logit between draws of a defense declared randomized",
    advice="Draw fresh noise at every call, in attack and judgement.",
)
DYNAMIC_FORWARD = Symptom(
    id="M11",
    name="dynamic forward",
    severity="hard",
    threshold=0.0,
    sentence="operations that recorded a gradient inside the victim's own forward pass, called exact",
    advice="Declare a surrogate: unroll the inner loop, or attack past it (BPDA with the identity).",
    cost=Cost(1),
)
BATCH_COUPLING = Symptom(
    id="M12",
    name="batch coupling",
    severity="hard",
    threshold=1e-3,
    sentence="change of a logit when the picture has batch mates",
    advice="Judge each picture alone, and take the defense's batch statistics away.",
    cost=Cost(2 * (1 + MATES)),
)
UNBOUNDED_ATTACK_FAILS = Symptom(
    id="M13",
    name="unbounded attack fails",
    severity="hard",
    threshold=0.5,
    sentence="1 if even a radius of 64/255 changed nothing",
    advice=_THROUGH,
)
FLAT_LOSS = Symptom(
    id="M14",
    name="flat loss",
    severity="soft",
    threshold=0.01,
    sentence="rise in the last half of an attack in vain, as a share of the range it went through",
    advice="Take smaller steps, another loss, or fresh draws in each gradient.",
)
SELF_TEST_FAILED = Symptom(
    id="S1",
    name="self-test failed",
    severity="hard",
    threshold=1.0,
    sentence="share of problems with a known answer that the attack solved",
    advice="The attack misses adversarials that exist: attack through a surrogate (BPDA), with more draws, "
    "or without gradients.",
)

SYMPTOMS: tuple[Symptom, ...] = (
    ZERO_GRADIENT,
    GRADIENT_SCALE,
    WRONG_GRADIENT,
    SATURATION,
    TRANSFER_BEATS_ADAPTIVE,
    BLACK_BOX_BEATS_WHITE_BOX,
    NOISE_BEATS_GRADIENT,
    NOT_MONOTONE,
    ONE_DRAW_NOT_ENOUGH,
    FIXED_RANDOMNESS,
    DYNAMIC_FORWARD,
    BATCH_COUPLING,
    UNBOUNDED_ATTACK_FAILS,
    FLAT_LOSS,
    SELF_TEST_FAILED,
)


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
