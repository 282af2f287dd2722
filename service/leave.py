"""How a probe shares the device, and when it has to stop: it computes a few rows at a time, and
classification goes first.
"""

import threading
import time
from dataclasses import dataclass

import torch

from robustclip.errors import Cancelled, DeadlineExceeded
from robustclip.scores.wrappers import guarded
from robustclip.types import Classifier, Logits, Pixels, Score, Seeds
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

    def guard(self, score: Score) -> Score:
        """The score, computed a chunk of rows at a time under the device's lock."""
        turn = self.device.at(Priority.PROBE)
        return guarded(score, turn, deadline=self.deadline, cancelled=self.cancelled, chunk_rows=self.rows)

    def share(self, classifier: Classifier) -> Classifier:
        """The classifier, likewise; it makes no gradients, so it takes four times the rows."""
        return _Shared(classifier, self)


@dataclass(frozen=True, eq=False)
class _Shared:
    classifier: Classifier
    leave: Leave

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        parts: list[Logits] = []
        rows = self.leave.rows * 4
        for chunk, own in zip(pixels.split(rows), seeds.split(rows), strict=True):
            with self.leave.device.at(Priority.PROBE):
                self.leave.check()
                parts.append(self.classifier(chunk, own))
        return torch.cat(parts)
