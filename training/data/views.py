"""Random views of training pictures: a crop, resized to the full square, and a flip; a seed for each row."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.seeds import row_uniform
from robustclip.types import Pixels, Seeds

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


def random_views(pixels: Pixels, seeds: Seeds) -> Pixels:
    """Random resized crops (area 8 to 100 %, sides 3:4 to 4:3) and flips as in CoOp's toolbox, [B, 3, S, S].

    Deviations: the crop is taken from the picture at model resolution instead of the file, it is bilinear,
    and one that does not fit is shrunk.
    """
    draws = row_uniform(seeds, (5,), like=pixels)
    area = AREA[0] + (AREA[1] - AREA[0]) * draws[:, 0]
    ratio = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * draws[:, 1])
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)  # of the side
    flip = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * draws[:, 3] - 1), (1 - height) * (2 * draws[:, 4] - 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return _sampled(pixels, grid).clamp(0, 1)


def _sampled(pixels: Pixels, grid: Tensor) -> Pixels:
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
