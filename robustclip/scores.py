"""How badly a classifier is doing, row by row, with the gradient that says how to make it worse. Attacks raise scores and know nothing else.

Rows are independent: gradients come from the sum of the values, so that a row's gradient is the same in any batch. Wrappers are scores again and
nest: `averaged(guarded(score, ...), 8)` guards each chunk of the 8 draws.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import Cancelled, DeadlineExceeded, InvalidInput, NoDecisionToAttack
from robustclip.seeds import derive
from robustclip.types import Classifier, Cost, Evaluation, Logits, Pixels, Score, Seeds

AnyScoreName: TypeAlias = Literal["cross_entropy", "margin"]
Distance: TypeAlias = Literal["kl", "cosine", "l2"]


def untargeted_margin(logits: Logits, targets: Tensor) -> Tensor:
    """[B] best wrong logit minus the target's: > 0 means another label wins. A tie is not a win."""
    own = targets[:, None]
    return logits.scatter(1, own, -torch.inf).max(dim=1).values - logits.gather(1, own)[:, 0]


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """-log softmax(z / temperature)_y; `targeted`: its negative, and the goal is that label y wins.

    At CLIP's logit scale of 100 and temperature 1 the gradient of a row that is 17 logits sure vanishes in float32; 10 cures that.
    """

    classifier: Classifier
    targets: Tensor
    temperature: float = 1.0
    targeted: bool = False

    def __post_init__(self) -> None:
        _check_labels(self.classifier)

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        def judge(inputs: Pixels) -> tuple[Tensor, Tensor]:
            logits = self.classifier(inputs, seeds).float()
            loss = F.cross_entropy(logits / self.temperature, self.targets, reduction="none")
            margin = untargeted_margin(logits, self.targets)
            return (-loss, -margin) if self.targeted else (loss, margin)

        return _evaluate(judge, pixels, grad=grad)

    def select(self, rows: Tensor) -> "CrossEntropy":
        return replace(self, targets=self.targets[rows])


@dataclass(frozen=True, eq=False)
class Margin:
    """max_{i != y} z_i - z_y (Carlini & Wagner 2017, arXiv 1608.04644, f_6, not clamped at 0): no softmax that could saturate.

    `targeted`: its negative, and the goal is that label y wins. The gap to the present label alone would leave every third label free to win: among
    ten labels it reached 39 % of the goals at 8/255 where this reaches all (`tiny`, PGD-20, 64 pictures of noise).
    """

    classifier: Classifier
    targets: Tensor
    targeted: bool = False

    def __post_init__(self) -> None:
        _check_labels(self.classifier)

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        def judge(inputs: Pixels) -> tuple[Tensor, Tensor]:
            margin = untargeted_margin(self.classifier(inputs, seeds).float(), self.targets)
            return (-margin, -margin) if self.targeted else (margin, margin)

        return _evaluate(judge, pixels, grad=grad)

    def select(self, rows: Tensor) -> "Margin":
        return replace(self, targets=self.targets[rows])


@dataclass(frozen=True, eq=False)
class EmbeddingShift:
    """How far the raw image embedding moved from `clean` [B, D]: no labels, no prompts, nothing to reach (the margin is -inf).

    kl      KL(softmax(clean) || softmax(embedding)) over the D coordinates (AdvPT 2023, arXiv 2311.11261, as its code does it)
    cosine  1 - cosine
    l2      squared Euclidean distance; the square because its gradient exists at distance 0

    All have gradient 0 at the clean picture: start at random.
    """

    encode: Callable[[Pixels], Tensor]
    clean: Tensor
    distance: Distance = "kl"

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        def judge(inputs: Pixels) -> tuple[Tensor, Tensor]:
            value = _shift(self.encode(inputs).float(), self.clean.detach().float(), self.distance)
            return value, torch.full_like(value, -torch.inf)

        return _evaluate(judge, pixels, grad=grad)

    def select(self, rows: Tensor) -> "EmbeddingShift":
        return replace(self, clean=self.clean[rows])


def label_score(name: AnyScoreName, classifier: Classifier, targets: Tensor, goals: Tensor | None = None) -> Score:
    """The score of that name about `targets` [B]: any other label wins, or with `goals` [B] exactly that one.

    Raises NoDecisionToAttack for fewer than two labels, InvalidInput for an index outside them or a goal equal to its target.
    """
    _check_labels(classifier)
    for what, indices in (("targets", targets), ("goals", goals)):
        if indices is not None and indices.numel() and not _within(indices, len(classifier.labels)):
            raise InvalidInput(f"expected label indices below {len(classifier.labels)}, found {indices.tolist()!s:.60}.", field=what)
    if goals is not None and bool((goals == targets).any()):
        raise InvalidInput("a goal equals its target.", field="goals", help="Ask for another label than the present one.")
    wanted = targets if goals is None else goals
    if name == "cross_entropy":
        return CrossEntropy(classifier, wanted, targeted=goals is not None)
    return Margin(classifier, wanted, targeted=goals is not None)


@dataclass(frozen=True, eq=False)
class Averaged:
    """Expectation over a randomized defense (Athalye et al. 2018, arXiv 1707.07397): means over `draws` rows with fresh seeds."""

    score: Score
    draws: int

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        rows = torch.arange(len(pixels), device=pixels.device).repeat(self.draws)  # draw by draw
        fresh = torch.cat([derive(seeds, f"eot-{draw}") for draw in range(self.draws)])
        every = self.score.select(rows)(pixels[rows], fresh, grad=grad)

        def mean(quantity: Tensor) -> Tensor:
            return quantity.unflatten(0, (self.draws, len(pixels))).mean(dim=0)

        return Evaluation(mean(every.value), mean(every.margin), None if every.grad is None else mean(every.grad), every.cost)

    def select(self, rows: Tensor) -> "Averaged":
        return replace(self, score=self.score.select(rows))


def averaged(score: Score, draws: int) -> Averaged:
    """The score as the mean over `draws` draws of the victim's own randomness; the draws are rows of one batch."""
    if draws < 1:
        raise InvalidInput(f"expected at least 1 draw, found {draws}.", field="draws")
    return Averaged(score, draws)


@dataclass(eq=False)
class _Tally:
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Sums up what a score and all its selections cost. The one wrapper with a memory; not for threads that share it."""

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
    """A score that shares its device: the rows go in chunks, each under the lock, none after the deadline or a cancellation."""

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
        parts = [self._one(self.score.select(chunk), pixels[chunk], seeds[chunk.to(seeds.device)], grad) for chunk in rows.split(size)]
        cost = Cost()
        for part in parts:
            cost = cost.plus(part.cost)
        gradients = [part.grad for part in parts if part.grad is not None]
        return Evaluation(
            torch.cat([part.value for part in parts]), torch.cat([part.margin for part in parts]), torch.cat(gradients) if gradients else None, cost
        )

    def select(self, rows: Tensor) -> "Guarded":
        return replace(self, score=self.score.select(rows))

    def _one(self, score: Score, pixels: Pixels, seeds: Seeds, grad: bool) -> Evaluation:
        with self.lock:  # time may pass while waiting, so ask inside
            if self.cancelled is not None and self.cancelled():
                raise Cancelled("the caller is gone, the attack stopped.")
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise DeadlineExceeded("the attack did not end in time.", help="Ask for fewer steps or restarts, or for more time.")
            return score(pixels, seeds, grad=grad)


def guarded(
    score: Score,
    lock: AbstractContextManager[Any] | None = None,
    *,
    deadline: float | None = None,
    cancelled: Callable[[], bool] | None = None,
    chunk_rows: int | None = None,
) -> Guarded:
    """The score as a good neighbour: at most `chunk_rows` rows under one hold of the lock, so that others get in between.

    deadline is a `time.monotonic()`; past it DeadlineExceeded is raised, and Cancelled (its child) as soon as `cancelled()` says so.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise InvalidInput(f"expected at least 1 row a chunk, found {chunk_rows}.", field="chunk_rows")
    return Guarded(score, lock or nullcontext(), deadline, cancelled, chunk_rows)


def _check_labels(classifier: Classifier) -> None:
    if len(classifier.labels) < 2:
        raise NoDecisionToAttack(f"expected at least 2 labels, found {len(classifier.labels)}.", field="labels", help="Name the alternatives.")


def _within(indices: Tensor, count: int) -> bool:
    return int(indices.min()) >= 0 and int(indices.max()) < count


def _shift(moved: Tensor, clean: Tensor, distance: Distance) -> Tensor:
    if distance == "cosine":
        return 1 - F.cosine_similarity(moved, clean, dim=1)
    if distance == "l2":
        return (moved - clean).square().sum(dim=1)
    return F.kl_div(moved.log_softmax(dim=1), clean.log_softmax(dim=1), log_target=True, reduction="none").sum(dim=1)


def _evaluate(judge: Callable[[Pixels], tuple[Tensor, Tensor]], pixels: Pixels, *, grad: bool) -> Evaluation:
    """Value, margin and, if asked, d sum(value) / d pixels, nothing else. A value that does not depend on the pixels has gradient 0."""
    with torch.set_grad_enabled(grad):
        inputs = pixels.detach().requires_grad_(grad)
        value, margin = judge(inputs)
        gradient: Tensor | None = None
        if grad and value.requires_grad:
            gradient = torch.autograd.grad(value.sum(), inputs, materialize_grads=True)[0]
        elif grad:
            gradient = torch.zeros_like(pixels)
    return Evaluation(value.detach(), margin.detach(), gradient, Cost(len(pixels), len(pixels) if grad else 0))
