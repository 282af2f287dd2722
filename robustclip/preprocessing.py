"""How a picture becomes the pixels that a CLIP was trained on, in the terms of open_clip's configuration.

Mean and deviation are no part of it: attacks and defenses see pixels in [0, 1], and the towers normalise.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy
import torch
from PIL import Image

from robustclip.types import Pixels

ResizeMode: TypeAlias = Literal["shortest", "squash", "longest"]
Interpolation: TypeAlias = Literal["bicubic", "bilinear"]
Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB picture to [3, size, size] pixels; by default as OpenAI's CLIPs were trained.

    resize_mode    shortest: the shorter side becomes `size`, then the centre is cropped; squash: both sides
                   become `size`; longest: the longer side does, and `fill_color` fills the rest
    interpolation  of the antialiased resize
    fill_color     grey level, 0 to 255
    """

    size: int
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill_color: int = 0

    @property
    def difference(self) -> str:
        """What differs from OpenAI's CLIPs, such as `squash-bilinear`; empty if nothing does."""
        mode = f"longest-{self.fill_color}" if self.resize_mode == "longest" else self.resize_mode
        return "-".join(part for part in (mode, self.interpolation) if part not in ("shortest", "bicubic"))

    @property
    def name(self) -> str:
        """Size and difference, for names of cached files: `224`, `384-squash`."""
        return "-".join(part for part in (str(self.size), self.difference) if part)


def to_pixels(image: Image.Image, preprocessing: Preprocessing | int) -> Pixels:
    """[3, S, S] float32 multiples of 1/255 of an RGB picture; a size alone stands for `Preprocessing(size)`.

    Equal to open_clip's transform before its normalisation, except for `shortest` (within one level on
    photographs): it uses the same filter as torchvision's Resize and CenterCrop, but computes only the crop,
    so a 16384 x 1 picture costs no more than a square one; Pillow may order its two passes differently.
    """
    chosen = Preprocessing(preprocessing) if isinstance(preprocessing, int) else preprocessing
    size, resample = chosen.size, Image.Resampling[chosen.interpolation.upper()]
    if chosen.resize_mode == "longest":
        return _levels(_letterboxed(image, size, resample, chosen.fill_color))
    box = _centre(*image.size, size) if chosen.resize_mode == "shortest" else None
    return _levels(image.resize((size, size), resample, box=box))


def _centre(width: int, height: int, size: int) -> Box:
    """The part of the picture that is left after resizing its shorter side and cropping."""
    short = min(width, height)
    full = (size * width // short, size * height // short)  # size of the whole picture after resizing
    left, top = (round((side - size) / 2) for side in full)
    across, down = width / full[0], height / full[1]
    return left * across, top * down, min((left + size) * across, width), min((top + size) * down, height)


def _letterboxed(image: Image.Image, size: int, resample: Image.Resampling, fill: int) -> Image.Image:
    ratio = max(image.size) / size
    width, height = (max(1, round(side / ratio)) for side in image.size)
    whole = Image.new("RGB", (size, size), (fill, fill, fill))
    whole.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
    return whole


def _levels(image: Image.Image) -> Pixels:
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous().to(torch.float32) / 255
