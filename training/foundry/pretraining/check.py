"""How the averaged weights do during pretraining."""

import copy
from typing import Any

import torch
from torch import Tensor

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image
from training.foundry.corpus import Corpus
from training.learning.losses import TowerPrecision


def autocast(device: torch.device, precision: TowerPrecision) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.inference_mode()
def accuracies(average: Any, clip: Clip, corpus: Corpus, *, precision: TowerPrecision) -> dict[str, float]:
    """Per cent by data set, on held-out training pictures, among the names of the set that are trained."""
    model, device = copy.deepcopy(average), clip.device
    copied = clip.with_model(model, "validation", fingerprint="validation")
    result: dict[str, float] = {}
    for index, name in enumerate(corpus.sets):
        members = corpus.names.members[name]
        names = tuple(corpus.names.texts[member] for member in members.tolist())
        weights = text_weights(copied, Prompts(), names)
        hits: list[Tensor] = []
        for rows in torch.nonzero(corpus.validation & (corpus.source == index)).squeeze(1).split(256):
            with autocast(device, precision):
                features = encode_image(copied, corpus.pixels(rows).to(device))
            hits.append(members[(features.float() @ weights.T).argmax(dim=1).cpu()] == corpus.name[rows])
        result[name] = round(100 * torch.cat(hits).float().mean().item(), 1) if any(map(len, hits)) else 0.0
    return result
