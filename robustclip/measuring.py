"""Accuracy over batches of pictures, clean or attacked, with intervals and paired tests.

Results are kept a picture each (`correct` [n]), so that two methods can be compared on the same pictures.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.certificates.vote import elect
from robustclip.defenses.smoothing import Smoothing
from robustclip.errors import InvalidInput
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import Attack, Classifier, Cost, Pixels, Score, Seeds, price

Z = 1.959963984540054  # two-sided 95 %
BOOTSTRAP_DRAWS = 10_000
_BOOTSTRAP_CHUNK = 200

ScoreOf: TypeAlias = Callable[
    [Classifier, Tensor], Score
]  # (classifier, targets [B]) -> what an attack raises


class LabelledBatch(NamedTuple):
    """`pixels` [B, 3, S, S], the right labels' indices `targets` [B], row seeds [B]; `transferred`: attacked
    versions that were made elsewhere.
    """

    pixels: Pixels
    targets: Tensor
    seeds: Seeds
    transferred: Pixels | None = None


class Jury(NamedTuple):
    """How a picture is judged: by one answer, by more than half of several draws of a randomized classifier,
    or by the vote that is served.
    """

    draws: int = 1
    rule: Smoothing | None = None

    @staticmethod
    def of(rule: Smoothing) -> "Jury":
        """As many draws as the rule has votes. An answer that it would not give is not right."""
        return Jury(rule.votes, rule)


ONE_ANSWER = Jury()


class Measured(NamedTuple):
    """`correct` [n] bool, a picture each in the order of the batches; `correct_8bit` the same after rounding
    to what a PNG can hold; what it took.

    `abstained` [n] bool: the served vote gave no answer, at the attacked picture where there is one; None
    where nothing is voted.
    """

    correct: Tensor
    correct_8bit: Tensor
    cost: Cost
    seconds: float
    abstained: Tensor | None = None


class Outcome(NamedTuple):
    """Which pictures were decided rightly and which not at all, [B] bool each, and the cost."""

    right: Tensor
    silent: Tensor
    cost: Cost


class Interval(NamedTuple):
    """An estimate with its 95 % interval, fractions of 1."""

    value: float
    low: float
    high: float


def measure(
    classifier: Classifier,
    batches: Iterable[LabelledBatch],
    *,
    attack: Attack | None = None,
    score: ScoreOf | None = None,
    ball: BallSpec | None = None,
    jury: Jury = ONE_ANSWER,
) -> Measured:
    """Which pictures are classified rightly, after `attack` on `score` if they are given (both or none), or
    as `transferred` has them.

    Pictures that are wrong untouched count as broken and are not attacked. What an attack returns is judged
    by a fresh forward pass with fresh seeds: its own claim of success does not count. `ball` is where
    rounding to 8 bits has to stay; without it nothing is rounded.
    """
    if (attack is None) != (score is None):
        raise InvalidInput("an attack needs a score, a score an attack.", field="attack")
    began = time.monotonic()
    cost = Cost()
    correct: list[Tensor] = []
    correct_8bit: list[Tensor] = []
    abstained: list[Tensor] = []

    def judge(pixels: Pixels, targets: Tensor, seeds: Seeds) -> tuple[Tensor, Tensor]:
        nonlocal cost
        outcome = verdict(classifier, pixels, targets, seeds, jury)
        cost = cost.plus(outcome.cost)
        return outcome.right, outcome.silent

    for batch in batches:
        right, silent = judge(batch.pixels, batch.targets, derive(batch.seeds, "judge-clean"))
        right_8bit = right.clone()
        standing = right.nonzero().flatten()
        origin, targets, seeds = (
            batch.pixels[standing],
            batch.targets[standing],
            batch.seeds[standing.to(batch.seeds.device)],
        )
        changed = None if batch.transferred is None else batch.transferred[standing]
        if attack is not None and score is not None and len(standing):
            attacked = attack(score(classifier, targets), origin, derive(seeds, "attack"))
            changed, cost = attacked.pixels, cost.plus(attacked.cost)
        if changed is not None and len(standing):
            right[standing], silent[standing] = judge(changed, targets, derive(seeds, "judge-attacked"))
            rounded = None if ball is None else ball.to_uint8(changed, origin)
            right_8bit[standing] = (
                right[standing]
                if rounded is None
                else judge(rounded, targets, derive(seeds, "judge-8bit"))[0]
            )
        for column, rows in ((correct, right), (correct_8bit, right_8bit), (abstained, silent)):
            column.append(rows.cpu())
    whole, whole_8bit, silence = (
        torch.cat([torch.zeros(0, dtype=torch.bool), *column])
        for column in (correct, correct_8bit, abstained)
    )
    return Measured(whole, whole_8bit, cost, time.monotonic() - began, None if jury.rule is None else silence)


def verdict(classifier: Classifier, pixels: Pixels, targets: Tensor, seeds: Seeds, jury: Jury) -> Outcome:
    """A jury's decisions about pictures, on draws of `seeds` [B]."""
    with torch.no_grad():
        answers = torch.stack(
            [classifier(pixels, derive(seeds, f"draw-{draw}")).argmax(dim=1) for draw in range(jury.draws)]
        )
    return Outcome(
        *_decided(answers, targets, classifier.labels, jury), price(classifier, len(pixels) * jury.draws)
    )


def _decided(answers: Tensor, targets: Tensor, labels: Sequence[str], jury: Jury) -> tuple[Tensor, Tensor]:
    """Which pictures [B] were decided rightly and which not at all, from the labels [draws, B] that their
    draws had.
    """
    if jury.rule is None:
        return (answers == targets).float().mean(dim=0) > 0.5, torch.zeros_like(targets, dtype=torch.bool)
    counts = F.one_hot(answers, len(labels)).sum(dim=0)
    silent = torch.tensor(
        [elect(votes, labels, jury.rule).abstained for votes in counts],
        dtype=torch.bool,
        device=targets.device,
    )
    return ~silent & (counts.argmax(dim=1) == targets), silent


def accuracy(correct: Tensor) -> Interval:
    """The share of true entries with its Wilson interval. Raises InvalidInput for none at all."""
    return wilson(int(correct.sum()), len(correct))


def wilson(successes: int, trials: int) -> Interval:
    """The score interval of a proportion (Wilson 1927)."""
    if trials < 1 or not 0 <= successes <= trials:
        raise InvalidInput(
            f"expected 0 to n successes in n >= 1 trials, found {successes} of {trials}.", field="n"
        )
    share, square = successes / trials, Z * Z
    middle = share + square / (2 * trials)
    half = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    scale = 1 + square / trials
    return Interval(share, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def mcnemar(first: Tensor, second: Tensor) -> float:
    """The exact two-sided p-value that two methods are equally often right, from the pictures on which they
    disagree (McNemar 1947).
    """
    only_first, only_second = _disagreements(first, second)
    disagreeing = only_first + only_second
    tail = sum(math.comb(disagreeing, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**disagreeing)


def paired_difference(
    first: Tensor, second: Tensor, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Interval:
    """accuracy(first) - accuracy(second) on the same pictures, with the percentile interval of a bootstrap
    over pictures.
    """
    _disagreements(first, second)
    generator = torch.Generator().manual_seed(seed)
    gain = first.float() - second.float()
    means = [
        gain[
            torch.randint(len(gain), (min(_BOOTSTRAP_CHUNK, draws - start), len(gain)), generator=generator)
        ].mean(dim=1)
        for start in range(0, draws, _BOOTSTRAP_CHUNK)
    ]
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval(float(gain.mean()), low, high)


def _disagreements(first: Tensor, second: Tensor) -> tuple[int, int]:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise InvalidInput(
            f"expected two equal, non-empty lists of pictures, found {list(first.shape)} and "
            f"{list(second.shape)}.",
            field="correct",
        )
    return int((first & ~second).sum()), int((second & ~first).sum())
