"""Scores: what attacks raise, a number for each row with its gradient in the pixels.

Rows are independent: gradients come from the sum of the values, so that a row's gradient is the same in any
batch. Whatever loss a score raises, its margin is that of the decision: an attack that climbs any loss still
finds and keeps the points that fool the classifier. Wrappers are in `wrappers` and `surrogates`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import InvalidInput, NoDecisionToAttack
from robustclip.scores.losses import (
    LEAST_LABELS,
    TARGETED,
    UNTARGETED,
    LossName,
    cross_entropy,
    untargeted_margin,
)
from robustclip.scores.wrappers import Wrapper
from robustclip.types import Classifier, Cost, Evaluation, Logits, Pixels, Score, Seeds, price

AnyScoreName: TypeAlias = Literal["cross_entropy", "margin"]  # those without a condition or a parameter
Distance: TypeAlias = Literal["kl", "cosine", "l2"]


@dataclass(frozen=True, eq=False)
class LabelScore:
    """A loss about the decision between a classifier's labels; made by `label_score`.

    Label y = `targets` [B] is to lose; `targeted`: it is to win, and value and margin have the other sign.
    Then the margin is z_y - max_{i != y} z_i, not the gap to the present label alone, which leaves every
    third label free to win: among ten labels that gap reached 39 % of the goals at 8/255, where the margin
    reached all (`tiny`, PGD-20, 64 pictures of noise).
    """

    classifier: Classifier
    targets: Tensor
    loss: LossName = "margin"
    rivals: Tensor | None = None  # [B] the label that a targeted loss goes for; the margin looks at all
    temperature: float | Tensor = 1.0
    targeted: bool = False

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        def judge(inputs: Pixels) -> _Judged:
            logits = self.classifier(inputs, seeds).float()
            value, margin = self._value(logits), untargeted_margin(logits, self.targets)
            return _Judged(-value, -margin, logits) if self.targeted else _Judged(value, margin, logits)

        return _evaluate(judge, pixels, price(self.classifier, len(pixels), grad=grad), grad=grad)

    def select(self, rows: Tensor) -> "LabelScore":
        return replace(
            self,
            targets=self.targets[rows],
            rivals=None if self.rivals is None else self.rivals[rows],
            temperature=self.temperature[rows] if isinstance(self.temperature, Tensor) else self.temperature,
        )

    def _value(self, logits: Logits) -> Tensor:
        if self.loss == "cross_entropy":
            return cross_entropy(logits, self.targets, self.temperature)
        if self.rivals is None:
            return UNTARGETED[self.loss](logits, self.targets)
        return TARGETED[self.loss](logits, self.targets, self.rivals)


@dataclass(frozen=True, eq=False)
class EmbeddingShift:
    """How far the raw image embedding moved from `clean` [B, D]: no labels, no prompts, nothing to reach (the
    margin is -inf).

    kl      KL(softmax(clean) || softmax(embedding)) over the D coordinates (AdvPT 2023, arXiv 2311.11261, as
            its code does it)
    cosine  1 - cosine
    l2      squared Euclidean distance; the square because its gradient exists at distance 0

    All have gradient 0 at the clean picture: start at random.
    """

    encode: Callable[[Pixels], Tensor]
    clean: Tensor
    distance: Distance = "kl"

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        def judge(inputs: Pixels) -> _Judged:
            value = _shift(self.encode(inputs).float(), self.clean.detach().float(), self.distance)
            return _Judged(value, torch.full_like(value, -torch.inf))

        return _evaluate(judge, pixels, Cost(len(pixels), len(pixels) if grad else 0), grad=grad)

    def select(self, rows: Tensor) -> "EmbeddingShift":
        return replace(self, clean=self.clean[rows])


def label_score(
    loss: LossName,
    classifier: Classifier,
    targets: Tensor,
    goals: Tensor | None = None,
    *,
    rivals: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> LabelScore:
    """The score of that loss about `targets` [B]: any other label wins, or with `goals` [B] exactly that one.

    `rivals` [B], for the targeted losses: the label to go for, while any other may win; `temperature` (or
    [B]) is cross-entropy's. Raises NoDecisionToAttack for fewer than two labels, InvalidInput for fewer
    labels than the loss needs, an index outside them, or a goal or rival equal to its target.
    """
    labels = len(classifier.labels)
    if labels < 2:
        raise NoDecisionToAttack(
            f"expected at least 2 labels, found {labels}.", field="labels", help="Name the alternatives."
        )
    if labels < LEAST_LABELS[loss]:
        raise InvalidInput(
            f"{loss} compares {LEAST_LABELS[loss]} labels, found {labels}.",
            field="score",
            help="Raise the margin instead.",
        )
    if (rivals is None) == (loss in TARGETED) or (rivals is not None and goals is not None):
        raise InvalidInput(f"{loss} {'needs' if rivals is None else 'takes no'} rivals here.", field="rivals")
    for what, indices in (("targets", targets), ("goals", goals), ("rivals", rivals)):
        if (
            indices is not None
            and indices.numel()
            and not (int(indices.min()) >= 0 and int(indices.max()) < labels)
        ):
            raise InvalidInput(
                f"expected label indices below {labels}, found {indices.tolist()!s:.60}.", field=what
            )
    for what, indices in (("goals", goals), ("rivals", rivals)):
        if indices is not None and bool((indices == targets).any()):
            raise InvalidInput(
                f"one of {what} equals its target.",
                field=what,
                help="Ask for another label than the present one.",
            )
    wanted = targets if goals is None else goals
    return LabelScore(classifier, wanted, loss, rivals, temperature, targeted=goals is not None)


def restated(
    score: Score, loss: LossName, *, rivals: Tensor | None = None, temperature: float | Tensor = 1.0
) -> Score:
    """The same decision about the same rows through the same wrappers, with another loss to raise.

    Raises InvalidInput for a score that is not about a decision between labels.
    """
    if isinstance(score, LabelScore):
        return replace(score, loss=loss, rivals=rivals, temperature=temperature)
    if isinstance(score, Wrapper):
        return replace(score, score=restated(score.score, loss, rivals=rivals, temperature=temperature))
    raise _no_decision()


def decision(score: Score) -> LabelScore:
    """The label score inside the wrappers. Raises InvalidInput where there is none."""
    while isinstance(score, Wrapper):
        score = score.score
    if isinstance(score, LabelScore):
        return score
    raise _no_decision()


def _no_decision() -> InvalidInput:
    return InvalidInput(
        "this attack changes a decision between labels, and the score is not about one.",
        field="attack",
        help="Use PGD.",
    )


class _Judged(NamedTuple):
    value: Tensor
    margin: Tensor
    logits: Tensor | None = None


def _shift(moved: Tensor, clean: Tensor, distance: Distance) -> Tensor:
    if distance == "cosine":
        return 1 - F.cosine_similarity(moved, clean, dim=1)
    if distance == "l2":
        return (moved - clean).square().sum(dim=1)
    return F.kl_div(
        moved.log_softmax(dim=1), clean.log_softmax(dim=1), log_target=True, reduction="none"
    ).sum(dim=1)


def _evaluate(judge: Callable[[Pixels], _Judged], pixels: Pixels, cost: Cost, *, grad: bool) -> Evaluation:
    """The judgement with, if `grad`, d sum(value) / d pixels: 0 where the value does not depend on the
    pixels.
    """
    with torch.set_grad_enabled(grad):
        inputs = pixels.detach().requires_grad_(grad)
        value, margin, logits = judge(inputs)
        gradient: Tensor | None = None
        if grad and value.requires_grad:
            gradient = torch.autograd.grad(value.sum(), inputs, materialize_grads=True)[0]
        elif grad:
            gradient = torch.zeros_like(pixels)
    return Evaluation(
        value.detach(), margin.detach(), gradient, cost, None if logits is None else logits.detach()
    )
