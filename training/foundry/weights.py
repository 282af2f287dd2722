"""Weights that learn: their average, their groups in the optimizer, their learning rate."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn


@torch.no_grad()
def average_into(average: nn.Module, current: nn.Module, *, decay: float, step: int) -> None:
    """An exponential moving average. Its decay grows to the full value, so that it forgets the start."""
    weight = min(decay, (1 + step) / (10 + step))
    for mean, new in zip(average.parameters(), current.parameters(), strict=True):
        mean.lerp_(new, 1 - weight)


def inside_stem(name: str) -> bool:
    """Whether a parameter of a CLIP or its tower is of the first convolutions, 1x1 projection excluded."""
    return name.removeprefix("visual.").startswith("conv1.") and "conv1.project." not in name


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, rate: float, stem_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: first convolutions have `stem_rate`, vectors and tables don't decay."""
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
    """The factor of the learning rate at a step: up to 1 over `warm_up` steps, then down a cosine to 0.01."""
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
