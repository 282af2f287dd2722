"""The image tower as a module, with copies of it: one of them shares its memory."""

import copy

import torch
from torch import Tensor, nn

from robustclip.models.clip import Clip
from robustclip.models.towers import encode_image
from robustclip.types import Pixels


class ImageTower(nn.Module):
    """Pixels [B, 3, S, S] -> float32 raw embeddings [B, E]. Has the parameters of the image tower alone."""

    def __init__(self, clip: Clip, *, bf16: bool) -> None:
        super().__init__()
        self.visual: nn.Module = clip.model.visual
        self.clip, self.bf16 = clip, bf16

    def forward(self, pixels: Pixels) -> Tensor:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            embeddings = encode_image(self.clip, pixels)
        return embeddings.float()

    def frozen_copy(self) -> "ImageTower":
        """The tower as it is now, without gradients of weights."""
        model = self.clip.with_model(copy.deepcopy(self.clip.model), "copy", fingerprint="copy")
        return ImageTower(model, bf16=self.bf16)

    def frozen_view(self) -> "ImageTower":
        """The same weights in the same memory, without gradients: an attack computes those of pixels only.

        It follows in-place updates.
        """
        view = self.frozen_copy()
        for parameter, shared in zip(view.parameters(), self.parameters(), strict=True):
            parameter.data = shared.data
        return view
