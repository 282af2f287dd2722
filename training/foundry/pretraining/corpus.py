"""The pictures of pretraining, prepared once and kept in a cache folder: pixels, the teacher's opinion,
features of the frozen stem.

Everything is a memory-mapped array, written to a temporary name and renamed when whole, so that a killed run
resumes with whole arrays or none.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.errors import InvalidInput
from robustclip.files import write_atomically
from robustclip.types import Pixels, Progress
from training.data.folders import load_data
from training.data.labelled import LabelledImages
from training.foundry.pretraining.captions import Names, gather_names
from training.teachers import TEACHER_SIZE

TRAINING_SETS = ("tiny-imagenet-200", "cifar-10", "caltech-101", "clothing-small")
HELD_OUT_SET, HELD_OUT_EVERY = (
    "tiny-imagenet-200",
    10,
)  # pictures of every tenth Tiny class are never trained on
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Corpus:
    """n training pictures. `name` [n] indexes `names.texts`; `source` [n] indexes `names.members` in order of
    `sets`; `validation` [n] bool.
    """

    names: Names
    sets: tuple[str, ...]
    images: Any  # uint8 [n, 3, S, S]
    teacher: Any  # float16 [n, 1000] probabilities; None if none was asked
    name: Tensor
    source: Tensor
    validation: Tensor

    def pixels(self, rows: Tensor) -> Pixels:
        """[B, 3, S, S] float32 in [0, 1]."""
        return torch.from_numpy(self.images[rows.numpy()]).float() / 255


def build_corpus(
    root: Path,
    cache: Path,
    *,
    size: int,
    teacher: Callable[[], nn.Module] | None,
    seed: int,
    limit: int = 0,
    option: str = "--run",
    progress: Progress,
) -> Corpus:
    """Read the train files under `root`, decode, ask the teacher if one is given. `limit` > 0 keeps that many
    pictures a set (for tests and trials).

    DataRefused if one of the four data sets is missing; InvalidInput, which names the `option` that chose the
    cache, if that was made from other pictures.
    """
    cache.mkdir(parents=True, exist_ok=True)
    sets = {name: load_data(root / name, "train") for name in TRAINING_SETS}
    _claim(cache / f"corpus-{size}-{limit}.json", {name: data.digest for name, data in sets.items()}, option)
    names = gather_names({name: _trained_labels(name, data) for name, data in sets.items()})
    rows = {name: _trained_rows(name, data, limit) for name, data in sets.items()}
    count = sum(len(kept) for kept in rows.values())

    def decode() -> Any:
        for name, data in sets.items():
            for start in range(0, len(rows[name]), _CHUNK):
                yield (
                    (data.pixels(rows[name][start : start + _CHUNK], size) * 255)
                    .round()
                    .to(torch.uint8)
                    .numpy()
                )

    images = cached_array(
        cache / f"images-{size}-{limit}.npy",
        (count, 3, size, size),
        np.uint8,
        decode,
        progress,
        "decoding pictures",
    )
    network: list[nn.Module] = []

    def ask() -> Any:
        assert teacher is not None
        network.append(teacher().to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
        for start in range(0, count, _CHUNK):
            pixels = torch.from_numpy(np.array(images[start : start + _CHUNK])).float() / 255
            large = F.interpolate(
                pixels, size=(TEACHER_SIZE, TEACHER_SIZE), mode="bicubic", antialias=True
            ).clamp(0, 1)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                logits = network[0](large.to(memory_format=torch.channels_last))
            yield logits.float().softmax(dim=1).half().numpy()

    kept = cache / f"teacher-{limit}.npy"
    opinion = (
        None
        if teacher is None
        else cached_array(kept, (count, 1000), np.float16, ask, progress, "asking the teacher")
    )
    position: dict[str, int] = {text: index for index, text in reversed(list(enumerate(names.texts)))}
    name = torch.cat(
        [
            torch.tensor([position[data.labels[int(t)]] for t in data.targets[rows[key]]])
            for key, data in sets.items()
        ]
    )
    source = torch.cat([torch.full((len(rows[key]),), index) for index, key in enumerate(sets)])
    validation = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.02
    return Corpus(names, tuple(sets), images, opinion, name, source, validation)


def cached_array(
    path: Path, shape: tuple[int, ...], dtype: Any, chunks: Callable[[], Any], progress: Progress, what: str
) -> Any:
    """The array at `path`, made from `chunks` (consecutive leading rows) if it is not there whole."""
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
        done = 0
        for chunk in chunks():
            array[done : done + len(chunk)] = chunk
            done += len(chunk)
            progress(done, shape[0], what)
        array.flush()
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def augment(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Random crop or shrinking, flip, loss of resolution, sharpness, grey, contrast, brightness, tint, each
    row its own: [B, 3, S, S] -> the same.

    The pictures are enlarged from 64 pixels or less and so lack fine detail; shrinking (mirrored margins
    around) and sharpening make them look like photographs of several hundred pixels.
    """
    batch, _, size, _ = pixels.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    shrunk, ratio = draw(0, 1) < 0.25, draw(-0.2, 0.2).exp()
    area = torch.where(shrunk, draw(1.0, 2.0), draw(0.4, 1.0))
    limit = torch.where(shrunk, 1.6, 1.0)
    wide, tall = (
        torch.minimum(area.sqrt() * ratio.sqrt(), limit),
        torch.minimum(area.sqrt() / ratio.sqrt(), limit),
    )
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide * mirror, tall
    theta[:, 0, 2], theta[:, 1, 2] = draw(-1, 1) * (1 - wide).abs(), draw(-1, 1) * (1 - tall).abs()
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    out = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    coarse = F.interpolate(
        F.interpolate(out, scale_factor=0.4, mode="area"),
        size=(size, size),
        mode="bilinear",
        align_corners=False,
    )
    out = torch.where((draw(0, 1) < 0.2)[:, None, None, None], coarse, out)
    sharpness = torch.where(draw(0, 1) < 0.5, draw(-0.7, 1.5), 0.0)[:, None, None, None]
    out = out + sharpness * (out - F.avg_pool2d(out, 3, stride=1, padding=1, count_include_pad=False))
    grey = out.mean(dim=1, keepdim=True).expand_as(out)
    out = torch.where((draw(0, 1) < 0.1)[:, None, None, None], grey, out)
    middle = out.mean(dim=(1, 2, 3), keepdim=True)
    contrast, brightness = draw(0.7, 1.3)[:, None, None, None], draw(-0.12, 0.12)[:, None, None, None]
    tint = 0.06 * torch.randn(batch, 3, 1, 1, generator=generator)
    return ((out - middle) * contrast + middle + brightness + tint).clamp(0, 1)


def _claim(path: Path, digests: dict[str, str], option: str) -> None:
    """Say which pictures a cache folder is about; refuse one that is about others."""
    if not path.exists():
        write_atomically(path, json.dumps(digests, indent=2).encode())
    elif changed := [
        name for name, digest in json.loads(path.read_text()).items() if digests.get(name) != digest
    ]:
        raise InvalidInput(
            f"{path.parent} was made from other pictures of {', '.join(changed)}.",
            field=option,
            help=f"Use another {option}, or delete that cache.",
        )


def _trained_rows(name: str, data: LabelledImages, limit: int) -> Tensor:
    targets = torch.as_tensor(data.targets)
    rows = torch.arange(len(targets))
    if name == HELD_OUT_SET:
        rows = rows[targets % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    if limit:
        rows = (
            rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:limit]].sort().values
        )
    return rows


def _trained_labels(name: str, data: LabelledImages) -> tuple[str, ...]:
    return tuple(
        label
        for index, label in enumerate(data.labels)
        if name != HELD_OUT_SET or index % HELD_OUT_EVERY != HELD_OUT_EVERY - 1
    )
