"""Examples to learn on: the embeddings of a bank, or the pictures themselves."""

import torch
from torch import Tensor

from robustclip.models.clip import Clip
from robustclip.threat import LEVELS
from robustclip.types import Cost, Pixels, Progress
from training.cache import Rows
from training.data.labelled import LabelledImages
from training.learning.objectives.base import Examples
from training.processes import ALONE, Processes

KEPT_BYTES = 2 * 2**30  # pictures beyond this are decoded again for every batch


def bank_examples(bank: Rows, targets: Tensor, clip: Clip) -> Examples:
    """The rows of a bank as examples on the CLIP's device."""
    rows = bank.rows.to(clip.device)

    def take(indices: Tensor) -> Tensor:
        return torch.index_select(rows, 0, indices.to(rows.device))

    return Examples(targets.to(clip.device), take, bank.cost, bank.seconds)


def picture_examples(
    clip: Clip,
    data: LabelledImages,
    indices: Tensor,
    *,
    constants: dict[str, Tensor],
    progress: Progress,
    processes: Processes = ALONE,
) -> Examples:
    """Pictures as examples: decoded once and kept as bytes on the CLIP's device if that takes at most 2 GiB,
    else decoded again for each batch.
    """
    size = clip.image_size
    if len(indices) * 3 * size * size > KEPT_BYTES:

        def pixels(rows: Tensor) -> Pixels:
            return data.pixels(indices[rows.cpu()], clip.preprocessing).to(clip.device)

    else:
        kept = torch.empty(len(indices), 3, size, size, dtype=torch.uint8, device=clip.device)
        for chosen in torch.arange(len(indices)).split(64 * processes.count):
            levels = (
                (data.pixels(indices[processes.own(chosen)], clip.preprocessing) * LEVELS)
                .round()
                .to(clip.device, torch.uint8)
            )
            kept[chosen[0] : chosen[-1] + 1] = processes.whole(levels, len(chosen))
            progress(int(chosen[-1]) + 1, len(indices), "reading pictures")

        def pixels(rows: Tensor) -> Pixels:
            return kept[rows.to(kept.device)].float() / LEVELS

    return Examples(
        data.targets[indices].to(clip.device),
        pixels,
        Cost(),
        0.0,
        pixels=pixels,
        constants=constants,
        divided=True,
    )
