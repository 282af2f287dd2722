"""Labelled pictures for hardening, from pretraining's data sets or any other folder, and what a step draws
from them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.types import Pixels, Progress
from training.data.classes import imagenet_words
from training.data.folders import load_data
from training.data.labelled import LabelledImages
from training.data.sampling import TRAIN, balanced_subset, carve_validation, seeded
from training.foundry.pretraining.captions import Names, gather_names
from training.foundry.pretraining.corpus import TRAINING_SETS, augment, build_corpus
from training.teachers import picture_teacher

T = TypeVar("T")
BLOCK = 16  # pictures that share a generator: who computes a block, and beside which others, changes nothing
CORPUS_SEED = 0  # pretraining's default: what it kept back is kept back again


class Supply(Protocol):
    """n labelled pictures; `training.foundry.pretraining.corpus.Corpus` is one. `teacher` [n, 1000] or
    None.
    """

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
    """One data set as `load_data` reads it, decoded as it is asked for, by `workers` threads; no teacher was
    asked about it.
    """

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

        def read(row: Tensor) -> Pixels:
            return self.data.pixels(row, self.size)

        with ThreadPoolExecutor(self.workers) as pool:  # decoding and resizing leave Python's lock alone
            return torch.cat(list(pool.map(read, rows.split(1))))


def folder_supply(data: LabelledImages, size: int, *, workers: int = 0) -> Folder:
    """The tenth of each class that `train` holds out is held out here too. Class folders named as in ImageNet
    (n01440764) get its names.
    """
    key = data.folder.name
    names = gather_names({key: imagenet_words(data.labels)})
    validation = torch.zeros(len(data), dtype=torch.bool)
    validation[carve_validation(data)[1]] = True
    return Folder(
        data,
        size,
        names,
        (key,),
        names.members[key][data.targets],
        torch.zeros_like(data.targets),
        validation,
        workers,
    )


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
    """Pretraining's data sets if `root` holds one of them, else the split `train` of the one data set that it
    is.

    Pretraining's are decoded once, into the cache that `robustclip pretrain` keeps: what it kept back is kept
    back again, classes that it never saw stay out. `taught`: with the opinion of its teacher.
    """
    if any((root / name).is_dir() for name in TRAINING_SETS):
        teacher = picture_teacher if taught else None
        return build_corpus(
            root,
            cache,
            size=size,
            teacher=teacher,
            seed=CORPUS_SEED,
            limit=limit,
            option="--cache",
            progress=progress,
        )
    data = load_data(root, TRAIN)
    return folder_supply(
        data.subset(balanced_subset(data, limit, CORPUS_SEED), TRAIN) if limit else data,
        size,
        workers=workers,
    )


def refuse_unshareable(supply: Supply, *, batch: int, parts: int) -> None:
    """InvalidInput for a batch that so many processes x parts don't share evenly in blocks, and for pictures
    that are all kept back or none.
    """
    if batch % (BLOCK * parts):
        raise InvalidInput(
            f"{batch} pictures can't be shared evenly by {parts} processes x parts in blocks of {BLOCK}.",
            field="--batch",
            help=f"Use a multiple of {BLOCK * parts}.",
        )
    if not bool(supply.validation.any()) or bool(supply.validation.all()):
        raise InvalidInput(
            "pictures to learn from and pictures to check on are both needed.",
            field="--data",
            help="Give more pictures.",
        )


class Draw(NamedTuple):
    """Pictures of a step: their rows [B], pixels [B, 3, S, S], and noise in [-1, 1] for the start of the
    attack.
    """

    rows: Tensor
    pixels: Pixels
    noise: Tensor


def draw_blocks(
    supply: Supply, trained: Tensor, blocks: Iterable[int], *, seed: int, step: int, augmented: bool
) -> Draw:
    """Some blocks of a step."""

    def draw(rows: Tensor, generator: torch.Generator) -> Draw:
        pixels = supply.pixels(rows)
        pixels = augment(pixels, generator) if augmented else pixels
        return Draw(rows, pixels, 2 * torch.rand(pixels.shape, generator=generator) - 1)

    return Draw(*in_blocks(draw, trained, blocks, seed=seed, stream=f"step-{step}"))


def in_blocks(
    draw: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]],
    trained: Tensor,
    blocks: Iterable[int],
    *,
    seed: int,
    stream: str,
) -> Iterator[Tensor]:
    """What `draw` makes of 16 random rows a block, joined part by part. A block depends on seed, stream and
    its number alone.
    """
    drawn: list[tuple[Tensor, ...]] = []
    for block in blocks:
        generator = seeded(seed, f"{stream}-{block}")
        drawn.append(draw(trained[torch.randint(len(trained), (BLOCK,), generator=generator)], generator))
    return (torch.cat(parts) for parts in zip(*drawn, strict=True))


def ahead(make: Callable[..., T], order: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """What `make` gives for each tuple of arguments, in order, the next one made while the caller uses the
    present one.
    """
    with ThreadPoolExecutor(1) as thread:
        coming: deque[Future[T]] = deque()
        for arguments in order:
            coming.append(thread.submit(make, *arguments))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
