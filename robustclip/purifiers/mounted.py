"""Super-resolvers that users bring, recognised by spandrel (an optional dependency).

Safetensors only, since a pickle can run code.
"""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.errors import FeatureNotInstalled, PurifierRefused
from robustclip.types import Pixels


class Mounted(nn.Module):
    """[B, 3, H, W] pixels -> [B, 3, scale H, scale W]. Unlike spandrel's call it has a gradient."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.network = cast(nn.Module, descriptor.model)
        self.scale: int = descriptor.scale
        sizes = descriptor.size_requirements
        self.multiple, self.least = int(sizes.multiple_of), int(sizes.minimum)
        self.square = bool(sizes.square)

    def forward(self, pixels: Pixels) -> Tensor:
        height, width = pixels.shape[-2:]
        sides = [-(-max(side, self.least) // self.multiple) * self.multiple for side in (height, width)]
        tall, wide = [max(sides)] * 2 if self.square else sides
        padded = F.pad(pixels, (0, wide - width, 0, tall - height), mode="replicate")
        return self.network(padded)[..., : self.scale * height, : self.scale * width]


def load_mounted(path: Path) -> Mounted:
    """A network that enlarges RGB pictures.

    Raises FeatureNotInstalled without spandrel, PurifierRefused for any other file.
    """
    try:
        from spandrel import ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise FeatureNotInstalled(
            "networks of others are read by spandrel.", field="weights", help="Install robustclip[spandrel]."
        ) from error
    try:
        state = load_file(path)
        refuse_infinite(state, path)
        with torch.random.fork_rng(devices=[]):
            descriptor = cast(Any, ModelLoader().load_from_state_dict(state))
    except (OSError, SafetensorError, UnsupportedModelError, RuntimeError) as error:
        raise PurifierRefused(
            f"{path} is no network that spandrel knows: {first_line(error)}",
            field="weights",
            help="Give another .safetensors file.",
        ) from error
    facts = (descriptor.purpose, descriptor.scale > 1, descriptor.input_channels, descriptor.output_channels)
    if facts != ("SR", True, 3, 3):
        raise PurifierRefused(
            f"{path} holds {descriptor.architecture.name} for {descriptor.purpose}, scale "
            f"{descriptor.scale}, {descriptor.input_channels} channels to {descriptor.output_channels}; "
            f"expected one that enlarges RGB pictures.",
            field="weights",
        )
    return Mounted(descriptor)


def first_line(error: Exception) -> str:
    """The first line of an error's message; its class if it has none. Some libraries write pages."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def refuse_infinite(state: dict[str, Tensor], path: Path) -> None:
    """PurifierRefused for weights with NaN or infinity."""
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise PurifierRefused(
                f"{path}: {name} is not finite.",
                field="weights",
                help="Train it again, or give another file.",
            )
