"""Super-resolvers of others, mounted by the user and recognised by spandrel, an optional dependency:
safetensors only, since a pickle is code.
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
    """[B, 3, H, W] pixels -> [B, 3, scale H, scale W]. Unlike spandrel's own call it lets gradients
    through.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.network = cast(nn.Module, descriptor.model)
        self.scale: int = descriptor.scale
        wanted = descriptor.size_requirements
        self.multiple, self.least, self.square = (
            int(wanted.multiple_of),
            int(wanted.minimum),
            bool(wanted.square),
        )

    def forward(self, pixels: Pixels) -> Tensor:
        height, width = pixels.shape[-2:]
        sides = [-(-max(side, self.least) // self.multiple) * self.multiple for side in (height, width)]
        tall, wide = [max(sides)] * 2 if self.square else sides
        padded = F.pad(pixels, (0, wide - width, 0, tall - height), mode="replicate")
        return self.network(padded)[..., : self.scale * height, : self.scale * width]


def load_mounted(path: Path) -> Mounted:
    """A network that enlarges RGB pictures. Raises FeatureNotInstalled without spandrel, PurifierRefused for
    any other file.
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
            found = cast(Any, ModelLoader().load_from_state_dict(state))
    except (OSError, SafetensorError, UnsupportedModelError, RuntimeError) as error:
        raise PurifierRefused(
            f"{path} is no network that spandrel knows: {first_line(error)}",
            field="weights",
            help="Give another .safetensors file.",
        ) from error
    facts = (found.purpose, found.scale > 1, found.input_channels, found.output_channels)
    if facts != ("SR", True, 3, 3):
        raise PurifierRefused(
            f"{path} holds {found.architecture.name} for {found.purpose}, scale {found.scale}, "
            f"{found.input_channels} channels to "
            f"{found.output_channels}; expected one that enlarges RGB pictures.",
            field="weights",
        )
    return Mounted(found)


def first_line(error: Exception) -> str:
    """What went wrong in a few words: some errors of libraries go on for pages, some say nothing but their
    name.
    """
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
