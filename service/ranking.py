"""From features to ranked labels."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustclip.certificates.vote import Ballot, count_votes, elect
from robustclip.defenses.smoothing import Smoothing
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.types import Logits
from service.problems import Problem


class Ranked(NamedTuple):
    """One picture's labels, best first: [(label, score, logit)], and by how much the first score leads. After
    a vote, how that went; if it proves nothing there are no predictions.

    Under `sigmoid` the answer may be `none_of_these`; then the first label is not the answer.
    """

    predictions: list[tuple[str, float, float]]
    margin: float | None
    none_of_these: bool | None = None
    ballot: Ballot | None = None


def rank(
    classifier: ZeroShotClassifier,
    features: Tensor,
    rule: Smoothing | None,
    temperature: float | None,
    top_k: int,
) -> list[Ranked]:
    """The labels of pictures from unit features [B, V, E]; `top_k` 0 keeps all.

    Without a rule V is 1. Under smoothing these are V noisy copies: scores are shares of the votes, logits
    their means. Raises Problem `nonfinite-scores` rather than answer with NaN.
    """
    with torch.inference_mode():
        if rule is not None:
            return [_by_votes(classifier, copies, rule, temperature, top_k) for copies in features]
        logits = _logits(classifier, features[:, 0], temperature)
        return [
            _best(classifier, scores, own, top_k)
            for scores, own in zip(classifier.scores(logits), logits, strict=True)
        ]


def _by_votes(
    classifier: ZeroShotClassifier, copies: Tensor, rule: Smoothing, temperature: float | None, top_k: int
) -> Ranked:
    logits = _logits(classifier, copies, temperature)
    counts = count_votes(logits)
    ballot = elect(counts, classifier.labels, rule)
    best = _best(classifier, counts / len(copies), logits.mean(dim=0), top_k)
    return Ranked([], None, ballot=ballot) if ballot.abstained else best._replace(ballot=ballot)


def _logits(classifier: ZeroShotClassifier, features: Tensor, temperature: float | None) -> Logits:
    logits = classifier.judge(features.to(classifier.weights.device)).float().cpu() / (temperature or 1.0)
    if not bool(logits.isfinite().all()):
        raise Problem("nonfinite-scores", "a score is not a finite number.")
    return logits


def _best(classifier: ZeroShotClassifier, scores: Tensor, logits: Tensor, top_k: int) -> Ranked:
    """The `top_k` labels by score and then by logit, and the lead of the first outcome."""
    by_logit = logits.argsort(descending=True, stable=True)
    order = by_logit[scores[by_logit].argsort(descending=True, stable=True)]
    first, second = scores[order[:2]].tolist()
    none = None if classifier.scoring == "softmax" else len(classifier.labels) - 1
    kept = order[order != none][: top_k or None] if none is not None else order[: top_k or None]
    columns = (kept.tolist(), scores[kept].tolist(), logits[kept].tolist())
    return Ranked(
        [(classifier.labels[index], score, logit) for index, score, logit in zip(*columns, strict=True)],
        first - second,
        None if none is None else int(order[0]) == none,
    )
