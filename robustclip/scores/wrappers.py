"""Score wrappers: means over draws, cost, sharing of a device, precision. Those with another gradient are in
`surrogates`.

A wrapped score is a score again, so wrappers nest: `averaged(guarded(score, ...), 8)` guards each chunk of
the 8 draws. None depends on what the inner score is about.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Self

import torch
from torch import Tensor

from robustclip.errors import Cancelled, DeadlineExceeded, InvalidInput
from robustclip.seeds import derive
from robustclip.types import FREE, Cost, Evaluation, Pixels, Score, Seeds


@dataclass(frozen=True, eq=False)
class Wrapper:
    """A score around another one."""

    score: Score

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        raise NotImplementedError

    def select(self, rows: Tensor) -> Self:
        return replace(self, score=self.score.select(rows))


def cost_of(parts: Iterable[Evaluation]) -> Cost:
    return reduce(Cost.plus, (part.cost for part in parts), FREE)


@dataclass(frozen=True, eq=False)
class Averaged(Wrapper):
    """The mean over `draws` fresh draws (Athalye et al. 2018, arXiv 1707.07397)."""

    draws: int

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        every = drawn(self.score, pixels, seeds, draws=self.draws, grad=grad)

        def mean(quantity: Tensor) -> Tensor:
            return quantity.unflatten(0, (self.draws, len(pixels))).mean(dim=0)

        optional = [None if part is None else mean(part) for part in (every.grad, every.logits)]
        return Evaluation(mean(every.value), mean(every.margin), optional[0], every.cost, optional[1])


def averaged(score: Score, draws: int) -> Averaged:
    """The mean over `draws` draws of the victim's randomness; the draws are rows of one batch."""
    if draws < 1:
        raise InvalidInput(f"expected at least 1 draw, found {draws}.", field="draws")
    return Averaged(score, draws)


def drawn(score: Score, pixels: Pixels, seeds: Seeds, *, draws: int, grad: bool) -> Evaluation:
    """[draws * B] the score of every row with fresh seeds for each draw, draw by draw, in one batch."""
    rows = torch.arange(len(pixels), device=pixels.device).repeat(draws)
    fresh = torch.cat([derive(seeds, f"eot-{draw}") for draw in range(draws)])
    return score.select(rows)(pixels[rows], fresh, grad=grad)


@dataclass(eq=False)
class _Tally:
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, eq=False)
class Recorded(Wrapper):
    """Sums up the cost of a score and all its selections. The one wrapper with state; not for several
    threads.
    """

    _tally: _Tally = field(default_factory=_Tally)

    @property
    def cost(self) -> Cost:
        return self._tally.cost

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        evaluation = self.score(pixels, seeds, grad=grad)
        self._tally.cost = self._tally.cost.plus(evaluation.cost)
        return evaluation


def recorded(score: Score) -> Recorded:
    """The score with a sum: `.cost` counts image rows through the tower, selections included."""
    return Recorded(score)


@dataclass(frozen=True, eq=False)
class Guarded(Wrapper):
    """Evaluates rows in chunks, each under the lock, none after the deadline or a cancellation."""

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
        gradients = [part.grad for part in parts if part.grad is not None]
        logits = [part.logits for part in parts if part.logits is not None]
        return Evaluation(
            torch.cat([part.value for part in parts]),
            torch.cat([part.margin for part in parts]),
            torch.cat(gradients) if gradients else None,
            cost_of(parts),
            torch.cat(logits) if logits else None,
        )

    def _one(self, score: Score, pixels: Pixels, seeds: Seeds, grad: bool) -> Evaluation:
        with self.lock:  # time may pass while waiting, so check inside
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
    """The score for a shared device: at most `chunk_rows` rows under the lock at once, so that others get in
    between.

    deadline is a `time.monotonic()`; past it DeadlineExceeded is raised, and Cancelled, its child, once
    `cancelled()` is true.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise InvalidInput(f"expected at least 1 row a chunk, found {chunk_rows}.", field="chunk_rows")
    return Guarded(score, lock or nullcontext(), deadline, cancelled, chunk_rows)


@dataclass(frozen=True, eq=False)
class Reduced(Wrapper):
    """Searches in bfloat16; rows with a margin near the goal are evaluated again in float32."""

    slack: float

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        with torch.autocast(pixels.device.type, torch.bfloat16):
            seen = self.score(pixels, seeds, grad=grad)
        near = (seen.margin > -self.slack).nonzero().flatten()
        if not len(near):
            return seen
        exact = self.score.select(near)(pixels[near], seeds[near.to(seeds.device)], grad=False)
        return seen._replace(
            value=seen.value.float().index_copy(0, near, exact.value),
            margin=seen.margin.float().index_copy(0, near, exact.margin),
            cost=seen.cost.plus(exact.cost),
        )


def reduced(score: Score, *, slack: float = 0.5) -> Reduced:
    """The score in bfloat16 where that is enough. `slack`, in units of the margin, is about bfloat16's error
    at CLIP's logit scale of 100.

    Wrap it around `averaged`, so that the mean is evaluated again. In bfloat16 values tie: APGD counts fewer
    steps that rise (15 to 20 of 30, not 22 to 26), halves its step earlier, and ends 0.01 to 0.04 of a logit
    lower, well inside the slack.
    """
    return Reduced(score, slack)
