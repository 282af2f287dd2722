"""How many images may be in work at the same time. Beyond that a request is refused immediately: a refusal
costs nothing, an answer that comes too late costs all the work.
"""

import math
import time
from collections.abc import Generator
from contextlib import contextmanager

from service.metrics import Metrics
from service.problems import Problem

_HORIZON_SECONDS = 5.0  # over which the throughput is averaged
_LONGEST_WAIT_SECONDS = 60


class Admission:
    """A budget of images. Only the event loop uses it, so it needs no lock."""

    def __init__(self, images: int, metrics: Metrics) -> None:
        self._free = self._budget = images
        self._metrics = metrics
        self._rate = 0.0  # images a second, exponential average
        self._updated = time.monotonic()

    @contextmanager
    def images(self, count: int) -> Generator[None]:
        """Reserve room for `count` images during the block. Raises Problem `queue-full` with Retry-After."""
        if count > self._free:
            waiting = self._budget - self._free
            raise Problem(
                "queue-full",
                f"{waiting} images are waiting, {self._budget} may.",
                headers={"Retry-After": str(self._retry_after(waiting + count))},
            )
        self._take(count)
        try:
            yield
        finally:
            self._take(-count)
            self._count(count)

    def _take(self, count: int) -> None:
        self._free -= count
        self._metrics.queued.set(self._budget - self._free)

    def _count(self, done: int) -> None:
        now = time.monotonic()
        elapsed, self._updated = now - self._updated, now
        decay = math.exp(-elapsed / _HORIZON_SECONDS)
        self._rate = self._rate * decay + done / _HORIZON_SECONDS

    def _retry_after(self, images: int) -> int:
        return max(1, min(_LONGEST_WAIT_SECONDS, math.ceil(images / self._rate) if self._rate > 0 else 1))
