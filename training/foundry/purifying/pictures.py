"""The squares that purifying networks learn from, and their halves for a super-resolver."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustclip.purifiers.super_resolver import SCALE, shrunk
from robustclip.types import Pixels
from training.foundry.corpus import Corpus


class Draw(NamedTuple):
    """Squares of a step [B, 3, size, size], and for each a time [B] in [0, 1) and noise like it."""

    pixels: Pixels
    time: Tensor
    noise: Tensor


def draw(corpus: Corpus, rows: Tensor, generator: torch.Generator, *, size: int) -> Draw:
    pixels = squares(corpus.pixels(rows), size, generator)
    time = torch.rand(len(rows), generator=generator)
    return Draw(pixels, time, torch.randn(pixels.shape, generator=generator))


def squares(pixels: Pixels, size: int, generator: torch.Generator) -> Pixels:
    """[B, 3, S, S] -> [B, 3, size, size]: all shrunk to one random side from `size` to S, then each cut at a
    random place and perhaps mirrored.

    Enlarged pictures of 64 pixels and less are smooth. Shrunk, they are as sharp as photographs at a CLIP's
    size.
    """
    full = pixels.shape[-1]
    side = int(torch.randint(size, full + 1, (), generator=generator))
    if side < full:
        pixels = shrunk(pixels, side, side).clamp(0, 1)
    corners = torch.randint(side - size + 1, (len(pixels), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(pixels), generator=generator) < 0.5).tolist()
    cut = [
        picture[:, top : top + size, left : left + size]
        for picture, (top, left) in zip(pixels, corners, strict=True)
    ]
    return torch.stack(
        [picture.flip(-1) if mirror else picture for picture, mirror in zip(cut, mirrored, strict=True)]
    )


def halved(pixels: Pixels) -> Pixels:
    """[B, 3, H, W] -> [B, 3, H // 2, W // 2], in the 8-bit levels that a file of them could hold."""
    height, width = pixels.shape[-2:]
    return (shrunk(pixels, height // SCALE, width // SCALE).clamp(0, 1) * 255).round() / 255
