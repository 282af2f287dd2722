"""From features to ranked labels."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustclip.classifier import ZeroShotClassifier
from service.problems import Problem


class Ranked(NamedTuple):
    """One picture's labels, best first: [(label, score, logit)], and by how much the first score leads."""

    predictions: list[tuple[str, float, float]]
    margin: float


def rank(classifier: ZeroShotClassifier, features: Tensor, temperature: float | None, top_k: int) -> list[Ranked]:
    """The labels of unit features [B, E]; `top_k` 0 keeps all. Raises Problem `nonfinite-scores` rather than answer with NaN."""
    with torch.inference_mode():
        logits = classifier.judge(features.to(classifier.weights.device)).float().cpu() / (temperature or 1.0)
        if not bool(logits.isfinite().all()):
            raise Problem("nonfinite-scores", "a score is not a finite number.")
        count = len(classifier.labels)
        order = logits.argsort(dim=1, descending=True, stable=True)
        sorted_logits = logits.gather(1, order)
        scores = sorted_logits.softmax(dim=1)
    kept = slice(0, min(top_k or count, count))
    margins = (scores[:, 0] - scores[:, 1]).tolist()
    columns = (order[:, kept].tolist(), scores[:, kept].tolist(), sorted_logits[:, kept].tolist())
    return [
        Ranked([(classifier.labels[index], score, logit) for index, score, logit in zip(*row, strict=True)], margin)
        for *row, margin in zip(*columns, margins, strict=True)
    ]
