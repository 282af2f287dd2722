"""Runs that draw the pictures of a step in blocks, each with its seed.

A block does not depend on who draws it and beside which others. So processes and parts can share a step in
any way, and a killed run continues with the same pictures.
"""

import itertools
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.types import Progress
from training.data.sampling import seeded
from training.foundry.corpus import Corpus
from training.foundry.recipe import BLOCK
from training.foundry.run import N, Phase, R, Run, Terms
from training.processes import Processes

T = TypeVar("T")
D = TypeVar("D", bound=tuple[Tensor, ...])  # a NamedTuple of tensors with one row a picture


class BlockRun(Run[R, N], Generic[R, N, D]):
    """A run on the pictures of a corpus that are not held out; `workers` > 0 draws a part ahead in a thread.

    Raises InvalidInput for a batch that processes and parts can't share evenly, and unless some pictures are
    held out and some are not.
    """

    stream: ClassVar[str]  # of random numbers, one a step

    def __init__(
        self,
        corpus: Corpus,
        recipe: R,
        folder: Path,
        processes: Processes,
        progress: Progress,
        *,
        batch: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        super().__init__(recipe, folder, processes, progress)
        refuse_unshareable(corpus, batch=batch, parts=processes.count * processes.parts)
        self.corpus, self.seed, self.workers, self.parts = corpus, seed, workers, processes.parts

    @abstractmethod
    def draw(self, rows: Tensor, generator: torch.Generator) -> D:
        """The pictures of these rows, and random values for them."""

    @abstractmethod
    def terms(self, draw: D) -> Terms:
        """The terms of the loss, averaged over the pictures drawn."""

    def losses(self, phase: Phase, start: int) -> Iterator[Iterable[Terms]]:
        count, index = self.processes.count, self.processes.index
        blocks = torch.arange(phase.batch // BLOCK).chunk(count * self.parts)[index::count]

        def draw(step: int, part: Tensor) -> D:
            stream = f"{self.stream}-{step}"
            return draw_blocks(self.draw, self.corpus, part.tolist(), seed=self.seed, stream=stream)

        order = itertools.product(range(start, phase.steps), blocks)
        draws = ahead(draw, order) if self.workers else itertools.starmap(draw, order)
        while True:
            yield map(self.terms, itertools.islice(draws, self.parts))


def draw_blocks(
    draw: Callable[[Tensor, torch.Generator], D],
    corpus: Corpus,
    blocks: Iterable[int],
    *,
    seed: int,
    stream: str,
) -> D:
    """What `draw` gives for 16 random rows a block. A block depends on seed, stream and its number alone."""
    drawn: list[D] = []
    for block in blocks:
        generator = seeded(seed, f"{stream}-{block}")
        drawn.append(draw(corpus.draw(BLOCK, generator), generator))
    return type(drawn[0])(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))


def ahead(make: Callable[..., T], order: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """What `make` gives for each tuple of arguments, in order; one is made while the caller uses the last."""
    with ThreadPoolExecutor(1) as thread:
        coming: deque[Future[T]] = deque()
        for arguments in order:
            coming.append(thread.submit(make, *arguments))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def refuse_unshareable(corpus: Corpus, *, batch: int, parts: int) -> None:
    """InvalidInput, as `BlockRun` says; `parts` are those of all processes."""
    if batch % (BLOCK * parts):
        raise InvalidInput(
            f"{batch} pictures can't be shared evenly by {parts} processes x parts in blocks of {BLOCK}.",
            field="--batch",
            help=f"Use a multiple of {BLOCK * parts}.",
        )
    if not bool(corpus.validation.any()) or bool(corpus.validation.all()):
        raise InvalidInput(
            "pictures to learn from and pictures to check on are both needed.",
            field="--data",
            help="Give more pictures.",
        )
