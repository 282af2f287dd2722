"""How the weights do during pretraining, on held-out training pictures."""

import torch
from torch import Tensor

from robustclip.types import Logits
from training.foundry.corpus import UNLABELLED, Corpus
from training.learning.losses import TowerPrecision


def autocast(device: torch.device, precision: TowerPrecision) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def decisions(corpus: Corpus, rows: Tensor, logits: Logits) -> dict[str, float]:
    """By data set the per cent of labelled pictures that are right among the names of the set."""
    among = logits.masked_fill(~corpus.members_of(rows), -torch.inf)
    return _shares(corpus, rows, among.argmax(dim=1) == corpus.name[rows], corpus.name[rows] >= 0, "{}")


def agreement(corpus: Corpus, rows: Tensor, logits: Logits, answers: Tensor) -> dict[str, float]:
    """By data set the per cent of pictures that are answered as the teacher does, among ImageNet's names."""
    unlabelled = torch.tensor([name in UNLABELLED for name in corpus.sets])[corpus.source[rows]]
    alike = logits.argmax(dim=1) == answers
    return _shares(corpus, rows, alike, unlabelled, "{}, as the teacher") | {
        "as the teacher": round(100 * alike.float().mean().item(), 1)
    }


def _shares(corpus: Corpus, rows: Tensor, hits: Tensor, counted: Tensor, key: str) -> dict[str, float]:
    source = corpus.source[rows]
    return {
        key.format(name): round(100 * hits[chosen].float().mean().item(), 1)
        for index, name in enumerate(corpus.sets)
        if bool((chosen := counted & (source == index)).any())
    }
