"""Does the forward pass do what it says: draw where it is randomized, go without autograd, judge each row by
itself?

Each check says how many rows it asked about.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustclip.sanity.base import DRAWS, M9, M10, M11, M12, MATES, Diagnostic
from robustclip.seeds import derive, row_uniform
from robustclip.types import Classifier, Logits, Pixels, Seeds

ROUNDED = 0.1  # of a logit; `counterattack` on `tiny` moved by 0.014 at most in 100 decisions


def randomness(
    classifier: Classifier, pixels: Pixels, seeds: Seeds, *, declared: bool, eot: int
) -> tuple[list[Diagnostic], int]:
    """M9: logits differ between draws and the attack averaged none. M10: declared randomized, yet the draws
    are identical.

    What M10 asks of replayed noise beside that is left to the verdict, which counts successes on fresh draws
    only.
    """
    streams = torch.cat([derive(seeds, f"draw-{index}") for index in range(DRAWS)])
    with torch.no_grad():
        logits = classifier(pixels.expand(DRAWS, -1, -1, -1), streams)
    spread = (logits - logits[:1]).abs().max().item()
    return [
        M9.seen(spread, spread > M9.threshold and eot < 2),
        M10.seen(spread, declared and spread <= M10.threshold),
    ], DRAWS


def forward_static(
    classifier: Classifier, pixels: Pixels, seeds: Seeds, *, exact: bool
) -> tuple[Diagnostic, int, Logits]:
    """M11: a forward pass that optimises has no exact gradient to give; `exact` says that one was claimed,
    and no other way tried.

    With the logits of that pass.
    """
    with torch.no_grad(), _Recorder() as recorder:
        logits = classifier(pixels, seeds)
    return (
        M11.seen(float(recorder.operations), exact and recorder.operations > M11.threshold),
        len(pixels),
        logits,
    )


def rows_independent(
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
    return M12.seen(change, change > M12.threshold), 2 * (1 + MATES)


class _Recorder(TorchFunctionMode):
    """Counts operations that record a gradient although the caller asked for none: somebody switched autograd
    on again.
    """

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
