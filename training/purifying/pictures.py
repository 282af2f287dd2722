"""Pictures for purifiers: those of pretraining, no teacher asked, or any folder; and the squares that a step cuts from them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import InvalidInput
from robustclip.files import write_atomically
from robustclip.types import Pixels, Progress
from training.captions import gather_names
from training.corpus import HELD_OUT_EVERY, HELD_OUT_SET, TRAINING_SETS, Corpus, cached_array
from training.data import LabelledImages, load_data
from training.hardening.supply import BLOCK, CORPUS_SEED, Supply, open_supply
from training.sampling import TRAIN, seeded

_CHUNK = 256


def open_pictures(root: Path, cache: Path, *, size: int, limit: int = 0, progress: Progress) -> Supply:
    """The split `train` of pretraining's data sets, if `root` holds one of them, else of the one data set that it is.

    Pictures of pretraining's are decoded once, into the very file that `robustclip pretrain` keeps in its cache, in its order; what it kept back is
    kept back again, and classes that it never saw stay out.
    """
    if not any((root / name).is_dir() for name in TRAINING_SETS):
        return open_supply(root, cache, size=size, limit=limit, progress=progress)
    sets = {name: load_data(root / name, TRAIN) for name in TRAINING_SETS}
    record = cache / f"corpus-{size}-{limit}.json"
    digests = {name: data.digest for name, data in sets.items()}
    if not record.exists():
        write_atomically(record, json.dumps(digests, indent=2).encode())
    elif json.loads(record.read_text()) != digests:
        raise InvalidInput(f"{cache} was made from other pictures.", field="--cache", help="Use another folder, or delete that one.")
    rows = {name: _trained(name, data, limit) for name, data in sets.items()}
    count = sum(len(kept) for kept in rows.values())

    def decode() -> Any:
        for name, data in sets.items():
            for chunk in rows[name].split(_CHUNK):
                yield (data.pixels(chunk, size) * 255).round().to(torch.uint8).numpy()

    images = cached_array(cache / f"images-{size}-{limit}.npy", (count, 3, size, size), np.uint8, decode, progress, "decoding pictures")
    names = gather_names({name: tuple(data.labels[label] for label in _classes(name, data)) for name, data in sets.items()})
    position = {text: index for index, text in reversed(list(enumerate(names.texts)))}
    name = torch.tensor([position[data.labels[int(target)]] for key, data in sets.items() for target in data.targets[rows[key]]])
    source = torch.cat([torch.full((len(kept),), index) for index, kept in enumerate(rows.values())])
    validation = torch.rand(count, generator=torch.Generator().manual_seed(CORPUS_SEED)) < 0.02
    return Corpus(names, tuple(sets), images, None, name, source, validation)


class Draw(NamedTuple):
    """Squares of a step [B, 3, size, size], and for each a time [B] in [0, 1) and noise like it."""

    pixels: Pixels
    time: Tensor
    noise: Tensor


def draw_blocks(supply: Supply, trained: Tensor, blocks: list[int], *, size: int, seed: int, step: int) -> Draw:
    """Some blocks of a step. A block depends on seed, step and its number alone."""
    drawn: list[Draw] = []
    for block in blocks:
        generator = seeded(seed, f"purify-{step}-{block}")
        rows = trained[torch.randint(len(trained), (BLOCK,), generator=generator)]
        pixels = squares(supply.pixels(rows), size, generator)
        drawn.append(Draw(pixels, torch.rand(BLOCK, generator=generator), torch.randn(pixels.shape, generator=generator)))
    return Draw(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))


def squares(pixels: Pixels, size: int, generator: torch.Generator) -> Pixels:
    """[B, 3, S, S] -> [B, 3, size, size]: all shrunk alike, to anything between S and `size`, then a place and a mirror of its own for each.

    Pictures of 64 pixels and less that were enlarged are smooth; shrunk, they are as sharp as photographs at the size that a CLIP sees.
    """
    full = pixels.shape[-1]
    side = int(torch.randint(size, full + 1, (), generator=generator))
    if side < full:
        pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    corners = torch.randint(side - size + 1, (len(pixels), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(pixels), generator=generator) < 0.5).tolist()
    cut = [picture[:, top : top + size, left : left + size] for picture, (top, left) in zip(pixels, corners, strict=True)]
    return torch.stack([picture.flip(-1) if mirror else picture for picture, mirror in zip(cut, mirrored, strict=True)])


def _classes(name: str, data: LabelledImages) -> list[int]:
    """Those that pretraining learned from."""
    return [label for label in range(len(data.labels)) if name != HELD_OUT_SET or label % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]


def _trained(name: str, data: LabelledImages, limit: int) -> Tensor:
    rows = torch.isin(data.targets, torch.tensor(_classes(name, data))).nonzero().flatten()
    return rows if not limit else rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:limit]].sort().values
