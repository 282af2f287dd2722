"""Labelled pictures to learn from, of pretraining's data sets or of any other folder."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from robustclip.types import Pixels, Progress
from training.data.classes import imagenet_words
from training.data.folders import load_data
from training.data.labelled import LabelledImages
from training.data.sampling import TRAIN, balanced_subset, carve_validation
from training.foundry.pretraining.captions import Names, gather_names
from training.foundry.pretraining.corpus import TRAINING_SETS, build_corpus
from training.teachers import picture_teacher

CORPUS_SEED = 0  # the default of pretraining, so that the same pictures are held out


class Supply(Protocol):
    """n labelled pictures, such as a `Corpus` of pretraining. `teacher`: [n, 1000] or None."""

    @property
    def names(self) -> Names: ...
    @property
    def sets(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> Tensor: ...
    @property
    def source(self) -> Tensor: ...
    @property
    def validation(self) -> Tensor: ...
    @property
    def teacher(self) -> Any: ...
    def pixels(self, rows: Tensor) -> Pixels: ...


@dataclass(frozen=True, eq=False)
class Folder:
    """One data set as `load_data` reads it, decoded on request by `workers` threads; without a teacher."""

    data: LabelledImages
    size: int
    names: Names
    sets: tuple[str, ...]
    name: Tensor
    source: Tensor
    validation: Tensor
    workers: int = 0
    teacher: None = None

    def pixels(self, rows: Tensor) -> Pixels:
        if not self.workers:
            return self.data.pixels(rows, self.size)
        with ThreadPoolExecutor(self.workers) as pool:  # decoding and resizing release Python's lock
            return torch.cat(list(pool.map(self.data.pixels, rows.split(1), itertools.repeat(self.size))))


def folder_supply(data: LabelledImages, size: int, *, workers: int = 0) -> Folder:
    """Holds out the tenth of each class that `train` does. Folders such as n01440764 get ImageNet's names."""
    key = data.folder.name
    names = gather_names({key: imagenet_words(data.labels)})
    validation = torch.zeros(len(data), dtype=torch.bool)
    validation[carve_validation(data)[1]] = True
    name, source = names.members[key][data.targets], torch.zeros_like(data.targets)
    return Folder(data, size, names, (key,), name, source, validation, workers)


def open_supply(
    root: Path,
    cache: Path,
    *,
    size: int,
    limit: int = 0,
    workers: int = 0,
    taught: bool = True,
    progress: Progress,
) -> Supply:
    """Pretraining's data sets if `root` holds one of them, else the split `train` of that data set.

    Pretraining's are decoded once, into the cache of `robustclip pretrain`. The same pictures are held out
    and the
     same classes are left out. `taught`: with the teacher's opinion.
    """
    if any((root / name).is_dir() for name in TRAINING_SETS):
        return build_corpus(
            root,
            cache,
            size=size,
            teacher=picture_teacher if taught else None,
            seed=CORPUS_SEED,
            limit=limit,
            option="--cache",
            progress=progress,
        )
    data = load_data(root, TRAIN)
    chosen = data.subset(balanced_subset(data, limit, CORPUS_SEED), TRAIN) if limit else data
    return folder_supply(chosen, size, workers=workers)


def own_names(supply: Supply, rows: Tensor) -> Tensor:
    """[B, names] bool: the names of each picture's data set."""
    every = torch.arange(len(supply.names.texts))
    table = torch.stack([torch.isin(every, supply.names.members[name]) for name in supply.sets])
    return table[supply.source[rows]]
