"""What attacks raise: losses on logits, the scores made of them, and wrappers around scores."""

from robustclip.scores.kinds import EmbeddingShift, decision, label_score, restated
from robustclip.scores.losses import LEAST_LABELS, LossName, runners_up
from robustclip.scores.surrogates import transferred
from robustclip.scores.wrappers import Averaged, averaged, drawn, guarded, reduced

__all__ = [
    "LEAST_LABELS",
    "Averaged",
    "EmbeddingShift",
    "LossName",
    "averaged",
    "decision",
    "drawn",
    "guarded",
    "label_score",
    "reduced",
    "restated",
    "runners_up",
    "transferred",
]
