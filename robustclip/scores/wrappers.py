"""Scores of scores: how a gradient is got, who is asked, who pays.

Each is a score again, so they nest: `averaged(guarded(score, ...), 8)` guards each chunk of the 8 draws. None
knows what the inner score is about.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robustclip.errors import Cancelled, DeadlineExceeded, InvalidInput
from robustclip.seeds import derive, row_normal
from robustclip.types import Cost, Defense, Evaluation, Pixels, Score, Seeds


@dataclass(frozen=True, eq=False)
class Averaged:
    """Expectation over a randomized defense (Athalye et al. 2018, arXiv 1707.07397): means over `draws` rows
    with fresh seeds.
    """

    score: Score
    draws: int

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        every = drawn(self.score, pixels, seeds, draws=self.draws, grad=grad)

        def mean(quantity: Tensor) -> Tensor:
            return quantity.unflatten(0, (self.draws, len(pixels))).mean(dim=0)

        optional = [None if part is None else mean(part) for part in (every.grad, every.logits)]
        return Evaluation(mean(every.value), mean(every.margin), optional[0], every.cost, optional[1])

    def select(self, rows: Tensor) -> "Averaged":
        return replace(self, score=self.score.select(rows))


def averaged(score: Score, draws: int) -> Averaged:
    """The score as the mean over `draws` draws of the victim's own randomness; the draws are rows of one
    batch.
    """
    if draws < 1:
        raise InvalidInput(f"expected at least 1 draw, found {draws}.", field="draws")
    return Averaged(score, draws)


def drawn(score: Score, pixels: Pixels, seeds: Seeds, *, draws: int, grad: bool) -> Evaluation:
    """[draws * B] the score of every row again and again, draw by draw, each with fresh seeds, as rows of one
    batch.
    """
    rows = torch.arange(len(pixels), device=pixels.device).repeat(draws)
    fresh = torch.cat([derive(seeds, f"eot-{draw}") for draw in range(draws)])
    return score.select(rows)(pixels[rows], fresh, grad=grad)


@dataclass(eq=False)
class _Tally:
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Sums up what a score and all its selections cost. The one wrapper with a memory; not for threads that
    share it.
    """

    score: Score
    _tally: _Tally = field(default_factory=_Tally)

    @property
    def cost(self) -> Cost:
        return self._tally.cost

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        evaluation = self.score(pixels, seeds, grad=grad)
        self._tally.cost = self._tally.cost.plus(evaluation.cost)
        return evaluation

    def select(self, rows: Tensor) -> "Recorded":
        return replace(self, score=self.score.select(rows))


def recorded(score: Score) -> Recorded:
    """The score with a bill: `.cost` counts image rows through the tower, selections included."""
    return Recorded(score)


@dataclass(frozen=True, eq=False)
class Guarded:
    """A score that shares its device: the rows go in chunks, each under the lock, none after the deadline or
    a cancellation.
    """

    score: Score
    lock: AbstractContextManager[Any]
    deadline: float | None = None
    cancelled: Callable[[], bool] | None = None
    chunk_rows: int | None = None

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        size = self.chunk_rows or max(len(pixels), 1)
        if len(pixels) <= size:
            return self._one(self.score, pixels, seeds, grad)
        rows = torch.arange(len(pixels), device=pixels.device)
        parts = [
            self._one(self.score.select(chunk), pixels[chunk], seeds[chunk.to(seeds.device)], grad)
            for chunk in rows.split(size)
        ]
        cost = Cost()
        for part in parts:
            cost = cost.plus(part.cost)
        gradients = [part.grad for part in parts if part.grad is not None]
        logits = [part.logits for part in parts if part.logits is not None]
        value, margin = torch.cat([part.value for part in parts]), torch.cat([part.margin for part in parts])
        return Evaluation(
            value,
            margin,
            torch.cat(gradients) if gradients else None,
            cost,
            torch.cat(logits) if logits else None,
        )

    def select(self, rows: Tensor) -> "Guarded":
        return replace(self, score=self.score.select(rows))

    def _one(self, score: Score, pixels: Pixels, seeds: Seeds, grad: bool) -> Evaluation:
        with self.lock:  # time may pass while waiting, so ask inside
            if self.cancelled is not None and self.cancelled():
                raise Cancelled("the caller is gone, the attack stopped.")
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise DeadlineExceeded(
                    "the attack did not end in time.",
                    help="Ask for fewer steps or restarts, or for more time.",
                )
            return score(pixels, seeds, grad=grad)


def guarded(
    score: Score,
    lock: AbstractContextManager[Any] | None = None,
    *,
    deadline: float | None = None,
    cancelled: Callable[[], bool] | None = None,
    chunk_rows: int | None = None,
) -> Guarded:
    """The score as a good neighbour: at most `chunk_rows` rows under one hold of the lock, so that others get
    in between.

    deadline is a `time.monotonic()`; past it DeadlineExceeded is raised, and Cancelled (its child) as soon as
    `cancelled()` says so.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise InvalidInput(f"expected at least 1 row a chunk, found {chunk_rows}.", field="chunk_rows")
    return Guarded(score, lock or nullcontext(), deadline, cancelled, chunk_rows)


@dataclass(frozen=True, eq=False)
class Estimated:
    """Gradients from values alone, for victims that offer none: antithetic Gaussian differences (NES; Ilyas
    et al. 2018, arXiv 1804.08598).
    """

    score: Score
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
        asked = torch.cat([pixels[rows] + self.sigma * noise, pixels[rows] - self.sigma * noise])
        answers = self.score.select(torch.cat([rows, rows]))(asked, torch.cat([streams, streams]), grad=False)
        ahead, behind = answers.value.chunk(2)
        slopes = ((ahead - behind) / (2 * self.sigma)).reshape(-1, 1, 1, 1)
        return seen._replace(
            grad=(slopes * noise).unflatten(0, (pairs, len(pixels))).mean(dim=0),
            cost=seen.cost.plus(answers.cost),
        )

    def select(self, rows: Tensor) -> "Estimated":
        return replace(self, score=self.score.select(rows))


def estimated(score: Score, samples: int = 40, *, sigma: float = 1 / 255) -> Estimated:
    """The score with gradients guessed from `samples` values around each point, an even number: samples + 1
    forward passes a gradient.
    """
    if samples < 2 or samples % 2:
        raise InvalidInput(
            f"expected an even number of samples, 2 or more, found {samples}.", field="samples"
        )
    return Estimated(score, samples, sigma)


@dataclass(frozen=True, eq=False)
class Transferred:
    """Climbs `score`, which is about a stand-in, while the margin is the `victim`'s."""

    score: Score
    victim: Score

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        climbed, judged = self.score(pixels, seeds, grad=grad), self.victim(pixels, seeds, grad=False)
        return climbed._replace(margin=judged.margin, cost=climbed.cost.plus(judged.cost))

    def select(self, rows: Tensor) -> "Transferred":
        return replace(self, score=self.score.select(rows), victim=self.victim.select(rows))


def transferred(source: Score, victim: Score) -> Transferred:
    """The score of another model (undefended, other prompts, other backbone), judged on the victim at every
    point: a forward pass more each.
    """
    return Transferred(source, victim)


@dataclass(frozen=True, eq=False)
class Bypassed:
    """Value and margin through the defense, the gradient past it: as if its output moved exactly as its input
    does.
    """

    score: Score
    defense: Defense

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        with torch.no_grad():
            defended = self.defense(pixels, seeds)
        seen = self.score(defended, seeds, grad=grad)
        return seen._replace(cost=seen.cost.plus(self.defense.toll.passes.times(len(pixels))))

    def select(self, rows: Tensor) -> "Bypassed":
        return replace(self, score=self.score.select(rows))


def bypassed(score: Score, defense: Defense) -> Bypassed:
    """The score of the undefended classifier behind a defense, with an identity backward: BPDA (Athalye et
    al. 2018, arXiv 1802.00420, section 4.1).

    For defenses that have no gradient or whose gradient is not believed. Raises InvalidInput for one that
    does not work on pixels.
    """
    if defense.stage != "pixels":
        raise InvalidInput(
            f"only a pixel defense can be bypassed, found one on {defense.stage}.", field="defense"
        )
    return Bypassed(score, defense)


@dataclass(frozen=True, eq=False)
class Pooled:
    """The mean of several scores, each in units of the spread of its own logits, so that none outshouts the
    others.
    """

    scores: tuple[Score, ...]

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        parts = [score(pixels, seeds, grad=grad) for score in self.scores]
        shares = [1 / (len(parts) * _spread(part)) for part in parts]
        cost = Cost()
        for part in parts:
            cost = cost.plus(part.cost)
        gradients = [
            part.grad * share.reshape(-1, 1, 1, 1)
            for part, share in zip(parts, shares, strict=True)
            if part.grad is not None
        ]
        value, margin = (
            torch.stack([quantity * share for quantity, share in zip(quantities, shares, strict=True)]).sum(
                dim=0
            )
            for quantities in ([part.value for part in parts], [part.margin for part in parts])
        )
        return Evaluation(value, margin, torch.stack(gradients).sum(dim=0) if gradients else None, cost)

    def select(self, rows: Tensor) -> "Pooled":
        return Pooled(tuple(score.select(rows) for score in self.scores))


def pooled(scores: Sequence[Score]) -> Pooled:
    """One score over several stand-ins of a victim, to be `transferred`."""
    if not scores:
        raise InvalidInput("expected at least 1 score, found none.", field="scores")
    return Pooled(tuple(scores))


@dataclass(frozen=True, eq=False)
class Reduced:
    """Searches in bfloat16, judges in float32: rows whose margin comes near the goal are asked again at full
    precision, and that margin counts.
    """

    score: Score
    slack: float

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        with torch.autocast(pixels.device.type, torch.bfloat16):
            seen = self.score(pixels, seeds, grad=grad)
        near = (seen.margin > -self.slack).nonzero().flatten()
        if not len(near):
            return seen
        exact = self.score.select(near)(pixels[near], seeds[near.to(seeds.device)], grad=False)
        value, margin = (
            seen.value.float().index_copy(0, near, exact.value),
            seen.margin.float().index_copy(0, near, exact.margin),
        )
        return seen._replace(value=value, margin=margin, cost=seen.cost.plus(exact.cost))

    def select(self, rows: Tensor) -> "Reduced":
        return replace(self, score=self.score.select(rows))


def reduced(score: Score, *, slack: float = 0.5) -> Reduced:
    """The score in bfloat16 where that is enough. `slack` in units of the margin: about what bfloat16 gets
    wrong at CLIP's logit scale of 100.

    Wrap it outside `averaged`, so that the mean is what is asked again. What it costs a search: values tie in
    bfloat16, so that APGD sees fewer steps rise (15 to 20 of 30 instead of 22 to 26), halves its steps
    earlier, and ends 0.01 to 0.04 of a logit lower: well inside the slack.
    """
    return Reduced(score, slack)


def _spread(part: Evaluation) -> Tensor:
    return torch.ones_like(part.value) if part.logits is None else part.logits.std(dim=1).clamp_min(1e-12)
