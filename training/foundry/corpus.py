"""Pictures to learn from: pretraining's data sets, decoded into a cache, or any other labelled folder.

An array in the cache is memory-mapped and whole or absent, so that a killed run does not find half of one.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.files import replacing, write_atomically
from robustclip.models import imagenet_names
from robustclip.preprocessing import Preprocessing
from robustclip.types import Pixels, Progress
from training.data.classes import imagenet_words
from training.data.folders import load_data, load_pictures
from training.data.labelled import LabelledImages
from training.data.sampling import TRAIN, balanced_subset, carve_validation

# the share of each data set in a step; three fifths are small pictures, two fifths photographs of 160 pixels
TRAINING_SETS = {
    "tiny-imagenet-200": 0.40,
    "cifar-10": 0.20,
    "caltech-101-160": 0.16,
    "clothing-small-160": 0.08,
    "osie-700": 0.06,
    "bsds500": 0.05,
    "trashnet-6": 0.02,
    "coco-few": 0.02,
    "urban-sunhays": 0.01,
}
UNLABELLED = ("osie-700", "bsds500", "trashnet-6", "coco-few", "urban-sunhays")
HELD_OUT_SET, HELD_OUT_EVERY = "tiny-imagenet-200", 10  # every tenth class of it is never trained on
PRIVATE_SET, PRIVATE_LABELS = "caltech-101-160", 2  # its first two labels are faces of private people
SCENES, SCENES_EVERY = ("osie-700", "bsds500"), 3  # a third of these is held out, to compare with a teacher
IMAGENET = 1000  # names that come first, in the order of ImageNet classifiers
CORPUS_SEED = 0  # the default of pretraining, so that the same pictures are held out
_CHUNK = 256


@dataclass(frozen=True)
class Names:
    """All names of the pictures and of the teacher. `members[set]` [labels] indexes into `texts`.

    The first 1000 are ImageNet's, in the teacher's order.
    """

    texts: tuple[str, ...]
    members: dict[str, Tensor]


def gather_names(label_sets: Mapping[str, tuple[str, ...]]) -> Names:
    """ImageNet's 1000 names, then new ones of the data sets. Equal texts are one name.

    A data set without labels has ImageNet's names, since a teacher names its pictures.
    """
    texts = list(imagenet_names())
    members = {"imagenet": torch.arange(len(texts))}
    position = _positions(texts)
    for data_set, labels in label_sets.items():
        for label in labels:
            if label not in position:
                position[label] = len(texts)
                texts.append(label)
        rows = [position[label] for label in labels]
        members[data_set] = torch.tensor(rows) if rows else members["imagenet"]
    return Names(tuple(texts), members)


@dataclass(frozen=True, eq=False)
class Corpus:
    """n pictures. `name` [n] indexes `names.texts`, -1 without a label; `source` [n] indexes `sets`.

    `pixels` gives [B, 3, S, S] float32 in [0, 1] of B rows; `validation` [n] bool are held out; `shares` are
    those of the sets in a step.
    """

    names: Names
    sets: tuple[str, ...]
    pixels: Callable[[Tensor], Pixels]
    name: Tensor
    source: Tensor
    validation: Tensor
    shares: tuple[float, ...]

    def members_of(self, rows: Tensor) -> Tensor:
        """[B, names] bool: the names of each picture's data set."""
        every = torch.arange(len(self.names.texts))
        table = torch.stack([torch.isin(every, self.names.members[name]) for name in self.sets])
        return table[self.source[rows]]

    @cached_property
    def trained(self) -> tuple[Tensor, ...]:
        """By data set the rows that are not held out."""
        return tuple(
            torch.nonzero(~self.validation & (self.source == index)).squeeze(1)
            for index in range(len(self.sets))
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` random rows of those that are not held out, with replacement."""
        shares = torch.tensor(
            [share if len(rows) else 0.0 for share, rows in zip(self.shares, self.trained, strict=True)]
        )
        sets = torch.multinomial(shares, count, replacement=True, generator=generator)
        luck = torch.rand(count, generator=generator)
        sizes = torch.tensor([len(rows) for rows in self.trained])
        starts = sizes.cumsum(0) - sizes
        return torch.cat(self.trained)[starts[sets] + (luck * sizes[sets]).long().minimum(sizes[sets] - 1)]


def open_corpus(
    root: Path,
    cache: Path,
    *,
    size: Preprocessing | int,
    limit: int = 0,
    workers: int = 0,
    progress: Progress,
) -> Corpus:
    """Pretraining's data sets if `root` holds one of them, else the split `train` of that data set.

    Pretraining's are decoded once, into the cache of `robustclip pretrain`. The same pictures are held out
    and the same classes are left out.
    """
    if any((root / name).is_dir() for name in TRAINING_SETS):
        return build_corpus(
            root, cache, size=size, seed=CORPUS_SEED, limit=limit, option="--cache", progress=progress
        )
    data = load_data(root, TRAIN)
    chosen = data.subset(balanced_subset(data, limit, CORPUS_SEED), TRAIN) if limit else data
    return folder_corpus(chosen, size, workers=workers)


def folder_corpus(data: LabelledImages, size: Preprocessing | int, *, workers: int = 0) -> Corpus:
    """One data set, decoded on request by `workers` threads.

    Holds out the tenth of each class that `train` does. Folders such as n01440764 get ImageNet's names.
    """

    def pixels(rows: Tensor) -> Pixels:
        if not workers:
            return data.pixels(rows, size)
        with ThreadPoolExecutor(workers) as pool:  # decoding and resizing release Python's lock
            return torch.cat(list(pool.map(data.pixels, rows.split(1), itertools.repeat(size))))

    key = data.folder.name
    names = gather_names({key: imagenet_words(data.labels)})
    validation = torch.zeros(len(data), dtype=torch.bool)
    validation[carve_validation(data)[1]] = True
    name, source = names.members[key][data.targets], torch.zeros_like(data.targets)
    return Corpus(names, (key,), pixels, name, source, validation, (1.0,))


def build_corpus(
    root: Path,
    cache: Path,
    *,
    size: Preprocessing | int,
    seed: int,
    limit: int = 0,
    option: str = "--run",
    progress: Progress,
) -> Corpus:
    """Decode the train files under `root`. `limit` > 0: pictures a set.

    DataRefused if one of the data sets is missing; InvalidInput, which names the `option` that chose the
    cache, if that was made from other pictures.
    """
    cache.mkdir(parents=True, exist_ok=True)
    chosen = Preprocessing(size) if isinstance(size, int) else size
    sets = {
        name: load_pictures(root / name, TRAIN) if name in UNLABELLED else load_data(root / name, TRAIN)
        for name in TRAINING_SETS
    }
    _claim(
        cache / f"corpus-{chosen.name}-{limit}.json",
        {name: data.digest for name, data in sets.items()},
        option,
    )
    labels = {
        name: tuple(data.labels[row] for row in _trained_labels(name, data)) for name, data in sets.items()
    }
    names = gather_names(labels)
    rows = {name: _trained_rows(name, data, limit) for name, data in sets.items()}
    count = sum(len(kept) for kept in rows.values())

    def decode() -> Iterator[Any]:
        for name, data in sets.items():
            for chunk in rows[name].split(_CHUNK):
                yield (data.pixels(chunk, chosen) * 255).round().to(torch.uint8).numpy()

    shape = (count, 3, chosen.size, chosen.size)
    images = cached_array(
        cache / f"images-{chosen.name}-{limit}.npy", shape, np.uint8, decode, progress, "decoding pictures"
    )
    position = _positions(names.texts)
    name = torch.tensor(
        [
            -1 if target < 0 else position[data.labels[target]]
            for key, data in sets.items()
            for target in data.targets[rows[key]].tolist()
        ]
    )
    source = torch.cat([torch.full((len(rows[key]),), index) for index, key in enumerate(sets)])
    validation = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.02
    for key in SCENES:
        places = torch.nonzero(source == [*sets].index(key)).squeeze(1)
        validation[places] = rows[key] % SCENES_EVERY == 0
    return Corpus(
        names, tuple(sets), pixels_of(images), name, source, validation, tuple(TRAINING_SETS.values())
    )


def pixels_of(images: Any) -> Callable[[Tensor], Pixels]:
    """The pixels of rows of an array [n, 3, S, S] of uint8."""
    return lambda rows: torch.from_numpy(images[rows.numpy()]).float() / 255


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
    rows = torch.arange(len(data))
    if name not in UNLABELLED:
        rows = rows[torch.isin(data.targets, torch.tensor(_trained_labels(name, data)))]
    if limit:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        rows = rows[order[:limit]].sort().values
    return rows


def _trained_labels(name: str, data: LabelledImages) -> list[int]:
    """The labels whose pictures and names are trained on; without labels none."""
    labels = range(len(data.labels))
    if name == PRIVATE_SET:
        return [*labels][PRIVATE_LABELS:]
    return [each for each in labels if name != HELD_OUT_SET or each % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]


def _positions(texts: Iterable[str]) -> dict[str, int]:
    """The first place of each text: ImageNet repeats a few names."""
    return {text: index for index, text in reversed(list(enumerate(texts)))}
