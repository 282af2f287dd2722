"""How a probe shares the device, and when it has to stop: it computes a few rows at a time, and
classification goes first.
"""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from robustclip.errors import Cancelled, DeadlineExceeded
from robustclip.scores.wrappers import guarded
from robustclip.types import DeviceAccess, PixelFunction, Pixels, Score, Seeds
from service.device import DeviceLock, Priority


@dataclass(frozen=True)
class Leave:
    """`deadline` is a `time.monotonic()`; `gone` and `closing` say that nobody waits any more. `rows` bound
    one gradient step.
    """

    device: DeviceLock
    rows: int
    deadline: float
    gone: threading.Event
    closing: threading.Event

    def cancelled(self) -> bool:
        return self.gone.is_set() or self.closing.is_set()

    def check_wanted(self) -> None:
        """Raises Cancelled when nobody waits any more."""
        if self.cancelled():
            raise Cancelled("the caller left, the probe was stopped.")

    def check(self) -> None:
        """Raises Cancelled, or DeadlineExceeded when the time is over."""
        self.check_wanted()
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded(
                "the probe did not end in time.",
                help="Ask for fewer steps, attacks or reports, or give deadline_ms more.",
            )

    @property
    def access(self) -> DeviceAccess:
        """The device for a probe: all it computes is cut into turns that end when nobody waits any more."""
        return DeviceAccess(self._guard, self._share, self._hold)

    def _guard(self, score: Score) -> Score:
        turn = self.device.at(Priority.PROBE)
        return guarded(score, turn, deadline=self.deadline, cancelled=self.cancelled, chunk_rows=self.rows)

    def _share(self, function: PixelFunction) -> PixelFunction:
        """In turns of more rows than under a gradient."""
        rows = self.rows * 4

        def in_turns(pixels: Pixels, seeds: Seeds) -> Tensor:
            parts: list[Tensor] = []
            for chunk, chunk_seeds in zip(pixels.split(rows), seeds.split(rows), strict=True):
                with self._hold():
                    parts.append(function(chunk, chunk_seeds))
            return torch.cat(parts)

        return in_turns

    @contextmanager
    def _hold(self) -> Generator[None]:
        with self.device.at(Priority.PROBE):
            self.check()
            yield
