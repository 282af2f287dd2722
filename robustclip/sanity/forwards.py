"""Checks of the forward pass: random when it should be, no autograd inside, the same in any batch?

Each check also returns how many rows it classified.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustclip.sanity.symptoms import (
    BATCH_COUPLING,
    DRAWS,
    DYNAMIC_FORWARD,
    FIXED_RANDOMNESS,
    MATES,
    ONE_DRAW_NOT_ENOUGH,
    Diagnostic,
)
from robustclip.seeds import derive, row_uniform
from robustclip.types import Classifier, Logits, Pixels, Seeds

ROUNDED = 0.1  # of a logit; `counterattack` on `tiny` moved by 0.014 at most in 100 decisions


def randomness(
    classifier: Classifier, pixels: Pixels, seeds: Seeds, *, declared: bool, eot: int
) -> tuple[list[Diagnostic], int]:
    """M9: logits differ between draws, but the attack averaged none. M10: all draws of random noise agree."""
    streams = torch.cat([derive(seeds, f"draw-{index}") for index in range(DRAWS)])
    with torch.no_grad():
        logits = classifier(pixels.expand(DRAWS, -1, -1, -1), streams)
    spread = (logits - logits[:1]).abs().max().item()
    return [
        ONE_DRAW_NOT_ENOUGH.seen(spread, spread > ONE_DRAW_NOT_ENOUGH.threshold and eot < 2),
        FIXED_RANDOMNESS.seen(spread, declared and spread <= FIXED_RANDOMNESS.threshold),
    ], DRAWS


def dynamic_forward(
    classifier: Classifier, pixels: Pixels, seeds: Seeds, *, exact: bool
) -> tuple[Diagnostic, int, Logits]:
    """M11: a forward pass that optimises has no exact gradient; `exact` says that the defense claims one.

    Also returns the logits of that pass.
    """
    with torch.no_grad(), _Recorder() as recorder:
        logits = classifier(pixels, seeds)
    return (
        DYNAMIC_FORWARD.seen(
            float(recorder.operations), exact and recorder.operations > DYNAMIC_FORWARD.threshold
        ),
        len(pixels),
        logits,
    )


def batch_coupling(
    classifier: Classifier, pixels: Pixels, seeds: Seeds, *, alone: Logits
) -> tuple[Diagnostic, int]:
    """M12: the logits of a row [1, C] among three noisy neighbours and among as many copies of itself, and
    `alone`.

    Both batches have one size. Another size may take other kernels, which round otherwise, and where a
    defense takes the sign of a slope near zero a whole pixel follows: the size of a batch counts only where
    it moves a logit by more than `ROUNDED`.
    """
    neighbours = row_uniform(
        torch.cat([derive(seeds, f"mate-{index}") for index in range(MATES)]),
        tuple(pixels.shape[1:]),
        like=pixels,
    )
    with torch.no_grad():
        among = classifier(
            torch.cat([pixels, neighbours]), torch.cat([seeds, derive(seeds.repeat(MATES), "mates")])
        )[:1]
        copies = classifier(pixels.expand(1 + MATES, -1, -1, -1), seeds.repeat(1 + MATES))[:1]
    change = (copies - among).abs().max().item()
    sized = (alone - copies).abs().max().item()
    change = max(change, sized) if sized > ROUNDED else change
    return BATCH_COUPLING.seen(change, change > BATCH_COUPLING.threshold), 2 * (1 + MATES)


class _Recorder(TorchFunctionMode):
    """Counts operations that record a gradient although the caller turned autograd off."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += isinstance(result, Tensor) and torch.is_grad_enabled() and result.requires_grad
        return result
