"""The pictures of pretraining: pixels and the teacher's opinions, in a cache folder.

Each is a memory-mapped array that is whole or absent, so that a killed run does not find half of one.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.errors import InvalidInput
from robustclip.files import replacing, write_atomically
from robustclip.types import Pixels, Progress
from training.data.folders import load_data
from training.data.labelled import LabelledImages
from training.foundry.pretraining.captions import Names, gather_names
from training.teachers import TEACHER_SIZE

TRAINING_SETS = ("tiny-imagenet-200", "cifar-10", "caltech-101", "clothing-small")
HELD_OUT_SET, HELD_OUT_EVERY = "tiny-imagenet-200", 10  # every tenth class of it is never trained on
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Corpus:
    """n training pictures. `name` [n] indexes `names.texts`, `source` [n] indexes `sets`."""

    names: Names
    sets: tuple[str, ...]
    images: Any  # uint8 [n, 3, S, S]
    teacher: Any  # float16 [n, 1000] probabilities; None without a teacher
    name: Tensor
    source: Tensor
    validation: Tensor  # [n] bool

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
    """Decode the train files under `root`, and ask the teacher if there is one. `limit` > 0: pictures a set.

    DataRefused if one of the four data sets is missing; InvalidInput, which names the `option` that chose the
    cache, if that was made from other pictures.
    """
    cache.mkdir(parents=True, exist_ok=True)
    sets = {name: load_data(root / name, "train") for name in TRAINING_SETS}
    _claim(cache / f"corpus-{size}-{limit}.json", {name: data.digest for name, data in sets.items()}, option)
    names = gather_names({name: _trained_labels(name, data) for name, data in sets.items()})
    rows = {name: _trained_rows(name, data, limit) for name, data in sets.items()}
    count = sum(len(kept) for kept in rows.values())

    def decode() -> Iterator[Any]:
        for name, data in sets.items():
            for chunk in rows[name].split(_CHUNK):
                yield (data.pixels(chunk, size) * 255).round().to(torch.uint8).numpy()

    shape = (count, 3, size, size)
    images = cached_array(
        cache / f"images-{size}-{limit}.npy", shape, np.uint8, decode, progress, "decoding pictures"
    )
    opinion = None
    if teacher is not None:
        shape, path = (count, 1000), cache / f"teacher-{limit}.npy"
        opinion = cached_array(
            path, shape, np.float16, lambda: _opinions(images, teacher), progress, "asking the teacher"
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
    path: Path,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: Callable[[], Iterable[Any]],
    progress: Progress,
    what: str,
) -> Any:
    """The array at `path`, memory-mapped; if it is missing it is made from `chunks`, its rows in order."""
    if not path.exists():
        with replacing(path) as partial:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
            done = 0
            for chunk in chunks():
                array[done : done + len(chunk)] = chunk
                done += len(chunk)
                progress(done, shape[0], what)
            array.flush()
    return np.load(path, mmap_mode="r")


def _opinions(images: Any, teacher: Callable[[], nn.Module]) -> Iterator[Any]:
    """[<= 256, 1000] float16 at a time."""
    network = teacher().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for start in range(0, len(images), _CHUNK):
        pixels = torch.from_numpy(np.array(images[start : start + _CHUNK])).float() / 255
        size = (TEACHER_SIZE, TEACHER_SIZE)
        large = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits = network(large.to(memory_format=torch.channels_last))
        yield logits.float().softmax(dim=1).half().numpy()


def _claim(path: Path, digests: dict[str, str], option: str) -> None:
    """Write which pictures a cache is made from. InvalidInput if it is made from others."""
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
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        rows = rows[order[:limit]].sort().values
    return rows


def _trained_labels(name: str, data: LabelledImages) -> tuple[str, ...]:
    return tuple(
        label
        for index, label in enumerate(data.labels)
        if name != HELD_OUT_SET or index % HELD_OUT_EVERY != HELD_OUT_EVERY - 1
    )
