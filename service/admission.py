"""How much may be on its way at once. Beyond that a request is refused at once: that costs nothing, an answer
too late costs all the work.
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
    """A budget of images. Lives on the event loop, so that it needs no lock."""

    def __init__(self, images: int, metrics: Metrics) -> None:
        self._free = self._budget = images
        self._metrics = metrics
        self._rate = 0.0  # images a second, exponential average
        self._updated = time.monotonic()

    @contextmanager
    def images(self, count: int) -> Generator[None]:
        """Take room for `count` images while the block runs. Raises Problem `queue-full` with the time after
        which to ask again.
        """
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
        kept = math.exp(-elapsed / _HORIZON_SECONDS)
        self._rate = self._rate * kept + done / _HORIZON_SECONDS

    def _retry_after(self, images: int) -> int:
        return max(1, min(_LONGEST_WAIT_SECONDS, math.ceil(images / self._rate) if self._rate > 0 else 1))
