"""The losses that label scores raise, as functions of logits alone.

Every loss is [B] and rises as the decision for `targets` [B] gets worse. y is the target, z_(k) the k-th
largest logit.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.types import Logits

LossName: TypeAlias = Literal["cross_entropy", "margin", "dlr", "targeted_margin", "targeted_dlr"]

LEAST_LABELS: dict[LossName, int] = {
    "cross_entropy": 2,
    "margin": 2,
    "dlr": 3,
    "targeted_margin": 2,
    "targeted_dlr": 4,
}
_NO_GAP = 1e-12  # keeps the ratio finite where the leading logits tie


def untargeted_margin(logits: Logits, targets: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y: > 0 means another label wins. A tie is not a win.

    As a loss it is f_6 of Carlini & Wagner 2017 (arXiv 1608.04644), not clamped at 0. There is no softmax
    that could saturate.
    """
    own = targets[:, None]
    return logits.scatter(1, own, -torch.inf).max(dim=1).values - logits.gather(1, own)[:, 0]


def cross_entropy(logits: Logits, targets: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """-log softmax(z / temperature)_y; the temperature may be one a row.

    At CLIP's logit scale of 100 and temperature 1 the gradient of a row whose margin is 17 logits vanishes in
    float32; at temperature 10 it does not.
    """
    scale = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device).reshape(-1, 1)
    return F.cross_entropy(logits / scale, targets, reduction="none")


def dlr(logits: Logits, targets: Tensor) -> Tensor:
    """The margin over z_(1) - z_(3) (Croce & Hein 2020, arXiv 2003.01690, equation 6).

    No scale or shift of the logits changes it. Three labels or more.
    """
    first, _, third = logits.topk(3, dim=1).values.unbind(dim=1)
    return untargeted_margin(logits, targets) / (first - third + _NO_GAP)


def targeted_margin(logits: Logits, targets: Tensor, rivals: Tensor) -> Tensor:
    """z_t - z_y: it rises toward the label t = `rivals` [B] alone."""
    return logits.gather(1, rivals[:, None])[:, 0] - logits.gather(1, targets[:, None])[:, 0]


def targeted_dlr(logits: Logits, targets: Tensor, rivals: Tensor) -> Tensor:
    """`targeted_margin` over z_(1) - (z_(3) + z_(4)) / 2 (Croce & Hein 2020, equation 7). Four labels or
    more.
    """
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(dim=1)
    return targeted_margin(logits, targets, rivals) / (first - (third + fourth) / 2 + _NO_GAP)


UNTARGETED: dict[LossName, Callable[[Logits, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": untargeted_margin,
    "dlr": dlr,
}
TARGETED: dict[LossName, Callable[[Logits, Tensor, Tensor], Tensor]] = {
    "targeted_margin": targeted_margin,
    "targeted_dlr": targeted_dlr,
}


def runners_up(logits: Logits, targets: Tensor, count: int) -> Tensor:
    """[B, min(count, C - 1)] the labels beside the target, those of the highest logits first."""
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices
