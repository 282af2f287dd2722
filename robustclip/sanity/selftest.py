"""The active self-test: the attack that failed gets problems that have a solution.

After Zimmermann et al. 2022 (arXiv 2206.13991). In the ball around the picture, a linear readout of the
victim's features (through its defense) separates one point of the surface from many points inside. That point
is an adversarial example for the two-label classifier so defined. If the attack can't find one here, its
failure elsewhere proves nothing.

Deviations: the readout is a discriminant with shrunk covariance instead of a logistic regression. It has a
closed form, and for one point against a cloud it has the same direction. A problem is void if the readout
can't separate its surface point, as where the defense's own noise moves features further than the ball does.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks import PGD
from robustclip.sanity.symptoms import SELF_TEST_FAILED, Diagnostic
from robustclip.scores import averaged, label_score
from robustclip.seeds import derive, row_normal
from robustclip.threat import BallSpec, Linf
from robustclip.types import DIRECT, NO_TOLL, Cost, DeviceAccess, Embed, Logits, Pixels, Seeds, Toll, price

PROBLEMS = 3
INNER = 255
FRESH = 64
STEPS = 20
_INNER_SHARE = 0.9  # of the radius
_EASY = 0.05
_SHRINKAGE = 0.1  # of the covariance toward a multiple of the identity


class SelfTest(BaseModel, frozen=True, extra="forbid"):
    """How many of the `valid` problems the attack solved: `found`.

    `easy` ones are solved by random points, too; `void` ones could not be constructed. random_rate: the
    largest share of fresh random points that solve one problem.
    """

    found: int
    valid: int
    easy: int
    void: int
    random_rate: float

    def diagnostic(self) -> Diagnostic | None:
        """S1, or None if no problem was valid: then the test says nothing."""
        return SELF_TEST_FAILED.seen(self.found / self.valid, self.found < self.valid) if self.valid else None


def bill(eot: int, *, problems: int = PROBLEMS) -> Cost:
    """Upper bound of a self-test's cost if a gradient averages `eot` draws and a feature costs one pass."""
    attack = PGD(ball=Linf(radius=0), steps=STEPS).bill(1)
    return attack.plus(Cost(2)).times(eot).plus(Cost(INNER + FRESH)).times(problems)


def self_test(
    embed: Embed,
    pixels: Pixels,
    seeds: Seeds,
    ball: BallSpec,
    *,
    eot: int = 1,
    problems: int = PROBLEMS,
    toll: Toll = NO_TOLL,
    access: DeviceAccess = DIRECT,
) -> tuple[SelfTest, Cost]:
    """Pose problems in the ball around one picture [1, 3, S, S] and attack each by margin PGD-20.

    Each attack starts at the picture and at a random point.

    embed   features [B, E] through the defense (`Defended.features`), differentiable as in the attack
    eot     draws of a randomized defense that each gradient and each judgement averages
    toll    what `embed` costs beside its pass
    access  through which everything is evaluated
    """
    found = valid = easy = void = 0
    random_rate = 0.0
    cost = Cost()
    for index in range(problems):
        streams = derive(seeds, f"problem-{index}")
        problem, paid = _pose(embed, pixels, streams, ball, eot, toll, access)
        cost = cost.plus(paid)
        if problem is None:
            void += 1
            continue
        random_rate = max(random_rate, problem.random_rate)
        if problem.random_rate > _EASY:
            easy += 1
            continue
        solved, paid = _attack(problem.readout, pixels, streams, ball, eot, access)
        cost = cost.plus(paid)
        valid, found = valid + 1, found + solved
    return SelfTest(found=found, valid=valid, easy=easy, void=void, random_rate=random_rate), cost


@dataclass(frozen=True, eq=False)
class _Readout:
    """A problem's classifier: features projected on `weights` [E] from `center` [E], against a threshold."""

    embed: Embed
    toll: Toll
    weights: Tensor
    center: Tensor  # subtracted first: the features of a small ball differ in their last digits only
    threshold: float
    labels: tuple[str, ...] = ("inner", "boundary")

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        level = (self.embed(pixels, seeds).float() - self.center) @ self.weights - self.threshold
        return torch.stack([-level / 2, level / 2], dim=1)


class _Problem(NamedTuple):
    readout: _Readout
    random_rate: float


def _pose(
    embed: Embed, pixels: Pixels, seeds: Seeds, ball: BallSpec, eot: int, toll: Toll, access: DeviceAccess
) -> tuple[_Problem | None, Cost]:
    """Draw the points, fit the readout, put its threshold midway between surface and nearest inner point.

    None if the surface point lies among the inner ones.
    """
    streams = torch.cat([derive(seeds, f"point-{index}") for index in range(INNER + FRESH)])
    within = ball.model_copy(update={"radius": _INNER_SHARE * ball.radius}).sample(
        pixels.expand(INNER + FRESH, -1, -1, -1), streams
    )
    surface = _surface(ball, pixels, seeds).expand(eot, -1, -1, -1)
    draws = torch.cat([derive(seeds, f"surface-{index}") for index in range(eot)])
    with torch.no_grad():
        features = access.share(embed)(torch.cat([within, surface]), torch.cat([streams, draws])).double()
    cost = Cost(len(features)).through(toll)
    inner, fresh, boundary = features.split([INNER, FRESH, eot])
    center = inner.mean(dim=0)
    away = boundary.mean(dim=0) - center
    deviations = inner - center
    covariance = deviations.T @ deviations / INNER
    spread = covariance.diagonal().mean()
    if not bool(spread > 0):
        return None, cost
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * spread * torch.eye(
        len(center), dtype=center.dtype, device=center.device
    )
    weights = F.normalize(torch.linalg.solve(shrunk, away), dim=0) / spread.sqrt()
    nearest, reached = (deviations @ weights).max().item(), (away @ weights).item()
    if not reached > nearest:
        return None, cost
    readout = _Readout(embed, toll, weights.float(), center.float(), (nearest + reached) / 2)
    rate = ((fresh - center) @ weights > readout.threshold).double().mean().item()
    return _Problem(readout, rate), cost


def _attack(
    readout: _Readout, pixels: Pixels, seeds: Seeds, ball: BallSpec, eot: int, access: DeviceAccess
) -> tuple[bool, Cost]:
    """Whether the attack finds a point beyond the threshold, confirmed on fresh draws."""
    score = access.guard(
        label_score("margin", readout, torch.zeros(1, dtype=torch.int64, device=pixels.device))
    )
    if eot > 1:  # the first mean above 0 may be a lucky one
        score = averaged(score, eot)
    attacked = PGD(ball=ball, steps=STEPS, stop="broken" if eot == 1 else "never")(
        score, pixels, derive(seeds, "attack")
    )
    draws = torch.cat([derive(seeds, f"judged-{index}") for index in range(eot)])
    with torch.no_grad():
        logits = access.share(readout)(attacked.pixels.expand(eot, -1, -1, -1), draws).mean(dim=0)
    return bool(logits[1] > logits[0]), attacked.cost.plus(price(readout, eot))


def _surface(ball: BallSpec, pixels: Pixels, seeds: Seeds) -> Pixels:
    """A random corner of an Linf ball, a random point of an L2 sphere, in the box."""
    direction = row_normal(derive(seeds, "surface"), tuple(pixels.shape[1:]), like=pixels)
    direction = (
        direction.sign()
        if isinstance(ball, Linf)
        else F.normalize(direction.flatten(1), dim=1).reshape(pixels.shape)
    )
    return ball.project(pixels + ball.radius * direction, pixels)
