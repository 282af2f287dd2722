"""Score wrappers with another gradient than the victim's own: estimated from values, taken past a defense, or
taken from other models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.scores.wrappers import Wrapper, cost_of
from robustclip.seeds import derive, row_normal
from robustclip.types import Defense, Evaluation, Pixels, Score, Seeds


@dataclass(frozen=True, eq=False)
class Estimated(Wrapper):
    """Gradients from values: antithetic Gaussian differences (NES; Ilyas et al. 2018, arXiv 1804.08598)."""

    samples: int
    sigma: float

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        seen = self.score(pixels, seeds, grad=False)
        if not grad:
            return seen
        pairs = self.samples // 2
        rows = torch.arange(len(pixels), device=pixels.device).repeat(pairs)
        streams = torch.cat([derive(seeds, f"nes-{pair}") for pair in range(pairs)])
        noise = row_normal(streams, tuple(pixels.shape[1:]), like=pixels)
        around = torch.cat([pixels[rows] + self.sigma * noise, pixels[rows] - self.sigma * noise])
        answers = self.score.select(torch.cat([rows, rows]))(
            around, torch.cat([streams, streams]), grad=False
        )
        ahead, behind = answers.value.chunk(2)
        slopes = ((ahead - behind) / (2 * self.sigma)).reshape(-1, 1, 1, 1)
        return seen._replace(
            grad=(slopes * noise).unflatten(0, (pairs, len(pixels))).mean(dim=0),
            cost=seen.cost.plus(answers.cost),
        )


def estimated(score: Score, samples: int = 40, *, sigma: float = 1 / 255) -> Estimated:
    """The score with gradients estimated from an even number of `samples` around each point: samples + 1
    forward passes a gradient.
    """
    if samples < 2 or samples % 2:
        raise InvalidInput(
            f"expected an even number of samples, 2 or more, found {samples}.", field="samples"
        )
    return Estimated(score, samples, sigma)


@dataclass(frozen=True, eq=False)
class Transferred(Wrapper):
    """Value and gradient of `score`, which is about a stand-in; the margin is the `victim`'s."""

    victim: Score

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        climbed, judged = self.score(pixels, seeds, grad=grad), self.victim(pixels, seeds, grad=False)
        return climbed._replace(margin=judged.margin, cost=climbed.cost.plus(judged.cost))

    def select(self, rows: Tensor) -> "Transferred":
        return replace(self, score=self.score.select(rows), victim=self.victim.select(rows))


def transferred(source: Score, victim: Score) -> Transferred:
    """The score of another model (undefended, other prompts, other backbone) with the victim's margin: one
    more forward pass a point.
    """
    return Transferred(source, victim)


@dataclass(frozen=True, eq=False)
class Bypassed(Wrapper):
    """Value and margin through the defense; the gradient is taken as if the defense were the identity."""

    defense: Defense

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        with torch.no_grad():
            defended = self.defense(pixels, seeds)
        seen = self.score(defended, seeds, grad=grad)
        return seen._replace(cost=seen.cost.plus(self.defense.toll.passes.times(len(pixels))))


def bypassed(score: Score, defense: Defense) -> Bypassed:
    """The undefended classifier's score behind a defense, with the identity as its backward: BPDA (Athalye et
    al. 2018, arXiv 1802.00420, section 4.1).

    For defenses without a gradient, or with a doubtful one. Raises InvalidInput for one that does not work on
    pixels.
    """
    if defense.stage != "pixels":
        raise InvalidInput(
            f"only a pixel defense can be bypassed, found one on {defense.stage}.", field="defense"
        )
    return Bypassed(score, defense)


@dataclass(frozen=True, eq=False)
class Pooled:
    """The mean of several scores, each divided by the standard deviation of its logits, so that none
    dominates.
    """

    scores: tuple[Score, ...]

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        parts = [score(pixels, seeds, grad=grad) for score in self.scores]
        shares = [1 / (len(parts) * _spread(part)) for part in parts]
        gradients = [
            part.grad * share.reshape(-1, 1, 1, 1)
            for part, share in zip(parts, shares, strict=True)
            if part.grad is not None
        ]

        def mean(quantities: Sequence[Tensor]) -> Tensor:
            return torch.stack([each * share for each, share in zip(quantities, shares, strict=True)]).sum(
                dim=0
            )

        value, margin = mean([part.value for part in parts]), mean([part.margin for part in parts])
        gradient = torch.stack(gradients).sum(dim=0) if gradients else None
        return Evaluation(value, margin, gradient, cost_of(parts))

    def select(self, rows: Tensor) -> "Pooled":
        return Pooled(tuple(score.select(rows) for score in self.scores))


def pooled(scores: Sequence[Score]) -> Pooled:
    """One score over several stand-ins of a victim, to be `transferred`."""
    if not scores:
        raise InvalidInput("expected at least 1 score, found none.", field="scores")
    return Pooled(tuple(scores))


def _spread(part: Evaluation) -> Tensor:
    return torch.ones_like(part.value) if part.logits is None else part.logits.std(dim=1).clamp_min(1e-12)
