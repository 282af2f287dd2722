"""What a CLIP costs: the memory of its weights and of a gradient pass, and its pace on this machine."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustclip.models.capabilities import image_size

_BATCH, _SECONDS = 4, 0.5  # pictures of a timed pass, and how long one kind of passes is timed


@dataclass(frozen=True)
class Memory:
    """In bytes: float32 weights of both towers, and what a gradient pass holds for each picture."""

    weights: int
    gradient: int

    def needed(self, rows: int) -> int:
        """For loading (the file beside the model), or for the weights and a gradient pass of `rows`."""
        return self.weights + max(self.weights, rows * self.gradient)


@dataclass(frozen=True)
class Pace:
    """Pictures a second through the image tower, forward alone and with the gradient in pixels."""

    forward: float
    gradient: float


def size_text(size: int | None) -> str:
    """A size in memory for people: `577 MiB`, `3.2 GiB`, and a dash for None."""
    if size is None:
        return "-"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def memory_of(model: nn.Module) -> Memory | None:
    """Counted from what autograd keeps for the image tower; the model may be on the meta device.

    None for pictures that are not square. Buffers of single kernels are not counted.
    """
    size = image_size(model)
    if size is None:
        return None
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    storages = {_storage(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # by storage: two views of one tensor take its memory once

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor
        return tensor

    device = next(model.parameters()).device
    pixels = torch.zeros(1, 3, size, size, device=device, requires_grad=True)
    with _frozen(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cast(Any, model).encode_image(pixels)
    held = sum(
        tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in storages
    )
    return Memory(weights, held)


def pace_of(model: nn.Module, *, batch: int = _BATCH, seconds: float = _SECONDS) -> Pace:
    """Timed for so long each, at least one pass, with whatever else the machine does at the time."""
    size = image_size(model) or 0
    pixels = torch.zeros(batch, 3, size, size, device=next(model.parameters()).device)

    def forward() -> None:
        with torch.inference_mode():
            cast(Any, model).encode_image(pixels)

    def gradient() -> None:
        cast(Any, model).encode_image(pixels.clone().requires_grad_()).sum().backward()

    with _frozen(model):
        return Pace(*(batch / _duration(run, seconds) for run in (forward, gradient)))


def _duration(run: Callable[[], None], seconds: float) -> float:
    """The mean time of a run, after one that warms up."""
    run()
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        run()
        count += 1
    return (time.perf_counter() - began) / count


@contextmanager
def _frozen(model: nn.Module) -> Generator[None]:
    """The model in eval mode and without gradients of weights, and afterwards as it was."""
    training, learning = model.training, [each for each in model.parameters() if each.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in learning:
            parameter.requires_grad_()


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor has; on the meta device no address tells."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
