"""Checks of the gradient: is it there, of the right size, true, and of a loss that is not saturated?"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from robustclip.attacks.pgd import PGD, SIDE_BY_SIDE
from robustclip.sanity.symptoms import (
    CLIMB_STEPS,
    DIRECTIONS,
    FLAT_LOSS,
    GRADIENT_SCALE,
    SATURATION,
    WRONG_GRADIENT,
    ZERO_GRADIENT,
    Diagnostic,
    Finding,
    GoalCheck,
    Suspicion,
    at_its_word,
    draws_of,
)
from robustclip.scores import LossName, decision, restated
from robustclip.seeds import derive, row_uniform
from robustclip.threat import BallSpec, Linf
from robustclip.types import Attacked, Cost, Evaluation, Pixels, Score, Seeds

_STEP = 0.25 / 255
_BESIDE = Linf(radius=1 / 255)


class Climb(NamedTuple):
    """What was recorded from a random start: value and margin [T], largest share of zero gradient entries."""

    value: Tensor
    margin: Tensor
    zero_share: float


class Climbing:
    """Records an attack on one picture that climbs `score`.

    Only random starts are used: the picture itself may be a stationary point of the score.
    """

    def __init__(self, score: Score) -> None:
        self.score = Watched(score)

    def of(self, attack: PGD, attacked: Attacked) -> Climb:
        """What was recorded from the first random start."""
        seen = attack.seen_from("random")
        points = slice(seen.start, seen.stop)
        wave, row = divmod(seen.start // len(seen), SIDE_BY_SIDE)  # several starts share a batch, a row each
        calls = self.score.shares[wave * len(seen) : (wave + 1) * len(seen)]
        zero_share = max((share for shares in calls for share in shares[row : row + 1].tolist()), default=0.0)
        return Climb(attacked.trace_value[points, 0], attacked.trace_margin[points, 0], zero_share)


def climbs(attack: object, ball: BallSpec) -> TypeGuard[PGD]:
    """Whether an attack says enough about gradients: PGD, random start, ten steps or more, no early stop."""
    if not isinstance(attack, PGD) or attack.ball != ball or attack.stop != "never":
        return False
    return attack.steps >= CLIMB_STEPS and bool(attack.seen_from("random"))


def climb_of(ball: BallSpec) -> PGD:
    """The cheapest attack for which `climbs` is true."""
    return PGD(ball=ball, steps=CLIMB_STEPS, starts=("random",), stop="never")


def zero_gradient(
    score: Score, pixels: Pixels, seeds: Seeds, *, along: float = 0.0
) -> tuple[Diagnostic, Cost]:
    """M1 at a random neighbour of the pixels (the picture may be a stationary point) and along an attack."""
    near = _BESIDE.sample(pixels, derive(seeds, "gradient"))
    evaluation = score(near, seeds, grad=True)
    return zero_gradient_along(max(along, _zero_share(evaluation, near).max().item())), evaluation.cost


def zero_gradient_along(zero_share: float) -> Diagnostic:
    """M1 from the largest share of zeros that an attack met."""
    return ZERO_GRADIENT.seen(zero_share, zero_share > ZERO_GRADIENT.threshold)


def gradient_scale(
    defended: Score, undefended: Score, pixels: Pixels, seeds: Seeds
) -> tuple[Diagnostic, Cost]:
    """M2: gradient norm through the defense over the norm without it; a ratio above 1e4 fires, too."""
    through, without = defended(pixels, seeds, grad=True), undefended(pixels, seeds, grad=True)
    norms = [0.0 if part.grad is None else part.grad.double().norm().item() for part in (through, without)]
    ratio = norms[0] / max(norms[1], 1e-30)
    return GRADIENT_SCALE.seen(
        ratio, not GRADIENT_SCALE.threshold <= ratio <= 1 / GRADIENT_SCALE.threshold
    ), through.cost.plus(without.cost)


def wrong_gradient(score: Score, pixels: Pixels, seeds: Seeds) -> tuple[Diagnostic, Cost]:
    """M3: correlation of autograd with central differences (0.25/255) along 16 random sign directions.

    For gradients declared exact. All points share one draw, so the check also holds for a randomized defense.
    """
    evaluation = score(pixels, seeds, grad=True)
    gradient = torch.zeros_like(pixels) if evaluation.grad is None else evaluation.grad
    streams = torch.cat([derive(seeds, f"direction-{index}") for index in range(DIRECTIONS)])
    directions = (row_uniform(streams, tuple(pixels.shape[1:]), like=pixels) - 0.5).sign()
    rows = torch.zeros(DIRECTIONS, dtype=torch.int64, device=pixels.device)
    ahead = score.select(rows)(pixels + _STEP * directions, seeds.repeat(DIRECTIONS), grad=False)
    behind = score.select(rows)(pixels - _STEP * directions, seeds.repeat(DIRECTIONS), grad=False)
    measured = (ahead.value - behind.value) / (2 * _STEP)
    predicted = (gradient * directions).flatten(1).sum(dim=1)
    correlation = _correlation(measured, predicted)
    return WRONG_GRADIENT.seen(correlation, correlation < WRONG_GRADIENT.threshold), evaluation.cost.plus(
        ahead.cost
    ).plus(behind.cost)


def saturation(
    score: Score,
    pixels: Pixels,
    seeds: Seeds,
    ball: BallSpec,
    *,
    standing: bool,
    judge: GoalCheck = at_its_word,
) -> Finding:
    """M4: a clean decision so sure that cross-entropy has no slope left.

    If cross-entropy failed (`standing`), other losses are tried. Where one of them succeeds the flag is hard:
    the decision is broken, and the attack that failed says nothing.
    """
    seen = score(pixels, seeds, grad=False)
    surest, cost = 0.0 if seen.logits is None else seen.logits.double().softmax(dim=1).max().item(), seen.cost
    if standing and seen.logits is not None and decision(score).loss == "cross_entropy":
        attack = climb_of(ball)
        tries: tuple[tuple[LossName, float], ...] = (("margin", 1.0), ("cross_entropy", 10.0))
        for loss, temperature in tries:
            attacked = attack(
                restated(score, loss, temperature=temperature), pixels, derive(seeds, "saturation")
            )
            reached, paid = judge(attacked.pixels, attacked.margin)
            cost = cost.plus(attacked.cost).plus(paid)
            if bool(reached.any()):
                return Finding(
                    SATURATION.seen(1.0, fired=True, severity="hard"),
                    cost,
                    Suspicion(attacked.pixels, attack, draws_of(score), loss),
                )
    return Finding(SATURATION.seen(surest, surest > SATURATION.threshold), cost)


def flat_loss(value: Tensor, margin: Tensor) -> Diagnostic:
    """M14 from value and margin [T] of an attack from one start: does the loss rise in the last half?

    An attack that reached its goal had no need to rise further and raises no flag.
    """
    half = (len(value) + 1) // 2
    spread = (value.max() - value.min()).item()
    rise = (value[half:].max() - value[:half].max()).item() / spread if spread > 0 else 0.0
    return FLAT_LOSS.seen(rise, rise < FLAT_LOSS.threshold and not bool((margin > 0).any()))


@dataclass(frozen=True, eq=False)
class Watched:
    """A score that records the share of zero gradient entries per row and call (0 without a gradient)."""

    score: Score
    shares: list[Tensor] = field(default_factory=list[Tensor])

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        evaluation = self.score(pixels, seeds, grad=grad)
        self.shares.append(_zero_share(evaluation, pixels) if grad else torch.zeros_like(evaluation.value))
        return evaluation

    def select(self, rows: Tensor) -> "Watched":
        return replace(self, score=self.score.select(rows))


def _zero_share(evaluation: Evaluation, pixels: Pixels) -> Tensor:
    """[B] the share of gradient entries that are exactly zero; all of them where there is no gradient."""
    return (
        torch.ones_like(evaluation.value)
        if evaluation.grad is None
        else (evaluation.grad == 0).flatten(1).float().mean(dim=1)
    )


def _correlation(first: Tensor, second: Tensor) -> float:
    first, second = (part.double() - part.double().mean() for part in (first, second))
    return (first @ second / (first.norm() * second.norm()).clamp_min(1e-300)).item()
