"""The active self-test: problems that certainly have an answer, given to the attack that found none
(Zimmermann et al. 2022, arXiv 2206.13991).

In the ball around the picture one point of the surface is told from many inside by a linear readout of the
victim's own features, through its defense. That point is an adversarial of the two-label classifier so made.
An attack that can't find one says nothing by failing elsewhere.

Deviations: the readout is a discriminant with shrunk covariance instead of a logistic regression: in closed
form, and for a single point against a cloud of one shape the same direction. A problem whose surface point
can't be told apart is void.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks.pgd import PGD
from robustclip.sanity.base import S1, Diagnostic
from robustclip.scores.kinds import label_score
from robustclip.scores.wrappers import averaged
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


class SelfTest(BaseModel):
    """What came of the problems: `found` of `valid` were solved; `easy` fall to random points, too, and
    `void` could not be posed.

    random_rate  the largest share of fresh random points that solve one of the problems
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    found: int
    valid: int
    easy: int
    void: int
    random_rate: float

    def diagnostic(self) -> Diagnostic | None:
        """S1, or None where no problem was valid: then the test says nothing."""
        return S1.seen(self.found / self.valid, self.found < self.valid) if self.valid else None


def bill(eot: int, *, problems: int = PROBLEMS) -> Cost:
    """Upper bound of what a self-test costs when a gradient averages `eot` draws, if a feature costs one
    pass.
    """
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
    """Pose problems in the ball around one picture [1, 3, S, S], and attack each by margin PGD-20 from the
    picture and from a random point.

    `embed` gives features [B, E] through the defense (`Defended.features`), differentiable as the victim is
    attacked. `eot` draws of a randomized defense are averaged in each gradient, and where a point is judged;
    `toll` is what it takes.
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
    """The classifier of a problem: how far features lie from `center` [E] along `weights` [E], against a
    threshold.
    """

    embed: Embed
    toll: Toll
    weights: Tensor
    center: Tensor  # subtracted first: the features of a small ball differ in their last digits only
    threshold: float
    labels: tuple[str, ...] = ("inner", "boundary")

    @property
    def passes(self) -> Cost:
        return self.toll.passes

    @property
    def gradient_passes(self) -> Cost:
        return self.toll.gradient_passes

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        level = (self.embed(pixels, seeds).float() - self.center) @ self.weights - self.threshold
        return torch.stack([-level / 2, level / 2], dim=1)


class _Problem(NamedTuple):
    readout: _Readout
    random_rate: float


def _pose(
    embed: Embed, pixels: Pixels, seeds: Seeds, ball: BallSpec, eot: int, toll: Toll, access: DeviceAccess
) -> tuple[_Problem | None, Cost]:
    """Draw the points, fit the readout, put its threshold midway between the surface point and the nearest
    inner one; None if it lies inside.
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
    """Whether the attack finds a point beyond the threshold, judged again on fresh draws."""
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
