"""How long the stages of a request take."""

import asyncio
import time
from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from torch import Tensor

from robustclip.types import Defense, Seeds, Stage, Toll

T = TypeVar("T")


@dataclass
class Timing:
    """Seconds by stage of one request, which begins now; of pictures that run side by side the slowest
    counts.
    """

    stages: dict[str, float] = field(default_factory=dict[str, float])
    started: float = field(default_factory=time.perf_counter)

    def slowest(self, stage: str, seconds: float) -> None:
        self.stages[stage] = max(self.stages.get(stage, 0.0), seconds)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Count the time of the block, unless it raises."""
        started = time.perf_counter()
        yield
        self.slowest(name, time.perf_counter() - started)

    async def given_up(self, stage: str, work: Awaitable[T]) -> T:
        """The result of `work`. If it is cancelled, its time until then counts: a deadline went there."""
        started = time.perf_counter()
        try:
            return await work
        except asyncio.CancelledError:
            self.slowest(stage, time.perf_counter() - started)
            raise

    @property
    def seconds(self) -> float:
        """Since the request began."""
        return time.perf_counter() - self.started

    def milliseconds(self) -> dict[str, float]:
        return {stage: round(seconds * 1000, 3) for stage, seconds in self.stages.items()}

    def with_total(self) -> dict[str, float]:
        """Milliseconds by stage, and in all."""
        return self.milliseconds() | {"total": round(self.seconds * 1000, 3)}


class TimedDefense:
    """A defense that measures its own time, so that a pass knows its share and the tower's."""

    def __init__(self, defense: Defense, whole: "TimedDefense | None" = None) -> None:
        self._defense = defense
        self._whole = whole or self
        self.seconds = 0.0

    @property
    def stage(self) -> Stage | Literal["both"]:
        return self._defense.stage

    @property
    def randomized(self) -> bool:
        return self._defense.randomized

    @property
    def gradient(self) -> str:
        return self._defense.gradient

    @property
    def toll(self) -> Toll:
        return self._defense.toll

    def at(self, stage: Stage) -> "TimedDefense | None":
        part = self._defense.at(stage)
        return None if part is None else TimedDefense(part, self._whole)

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        started = time.perf_counter()
        outputs = self._defense(inputs, seeds)
        self._whole.seconds += time.perf_counter() - started
        return outputs
