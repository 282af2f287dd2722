"""What pretraining, hardening and purifiers' training do alike with the weights that learn: averages, groups
for the optimizer, rates, resuming.
"""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn


@torch.no_grad()
def average_into(average: nn.Module, current: nn.Module, *, decay: float, step: int) -> None:
    """An exponential moving average that forgets its start: the decay grows to its full value over the first
    steps.
    """
    weight = min(decay, (1 + step) / (10 + step))
    for own, new in zip(average.parameters(), current.parameters(), strict=True):
        own.lerp_(new, 1 - weight)


def inside_stem(name: str) -> bool:
    """Whether a parameter of a CLIP or of its image tower belongs to the first convolutions (a stem's 1x1
    projection is no part of them).
    """
    own = name.removeprefix("visual.")
    return own.startswith("conv1.") and not own.startswith("conv1.project.")


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, rate: float, stem_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """For AdamW, of those that learn: the first convolutions at their own rate; vectors and tables don't
    decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decay = weight_decay if parameter.ndim > 1 and "embedding" not in name else 0.0
        if parameter.requires_grad:
            groups.setdefault((stem_rate if inside_stem(name) else rate, decay), []).append(parameter)
    return [
        cast(dict[str, Any], {"params": group, "lr": lr, "weight_decay": decay})
        for (lr, decay), group in groups.items()
    ]


def share_of_rate(step: int, steps: int, *, warm_up: int) -> float:
    """Of the learning rate, at a step: up to all of it over `warm_up` steps, then down a cosine to a
    hundredth.
    """
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
