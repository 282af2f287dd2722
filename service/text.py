"""Text features of label lists: cached, computed in pieces between pictures, and ahead of time for a set that
is about to be served.
"""

import threading
import time
from collections import OrderedDict

import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.models.classifier import LabelCache
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from service.device import DeviceLock, Priority, Turns
from service.loaded import LoadedSet
from service.metrics import Metrics

RECENT_LISTS = 8
WARM_SECONDS = 0.5  # a set must be served soon after its pointer moved, even if label lists are long


class TextWeights:
    """[C, E] unit text features by prompts and labels. Blocks: call it from a worker thread."""

    def __init__(self, clip: Clip, cache: LabelCache, device: DeviceLock, metrics: Metrics) -> None:
        self._clip = clip
        self._cache = cache
        self._device = device
        self._metrics = metrics
        self._recent: OrderedDict[tuple[str, ...], None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, loaded: LoadedSet, labels: tuple[str, ...], *, recent: bool = True) -> Tensor:
        """The features, from the cache if it has them.

        Raises InvalidInput for labels that the set does not know, or that CLIP can't read or tell apart.

        `recent`: remember the list, so that the next set is warmed with it.
        """
        weights = self._get(loaded.prompt_set.prompts_for(labels), labels)
        if recent:
            with self._lock:
                self._recent[labels] = None
                self._recent.move_to_end(labels)
                while len(self._recent) > RECENT_LISTS:
                    self._recent.popitem(last=False)
        return weights

    def warm(self, loaded: LoadedSet) -> None:
        """Compute features for the labels of recent requests, latest first, for half a second at most."""
        until = time.monotonic() + WARM_SECONDS
        with self._lock:
            lists = list(reversed(self._recent))
        for labels in lists:
            if time.monotonic() > until:
                return
            try:
                self._get(loaded.prompt_set.prompts_for(labels), labels)
            except InvalidInput:  # labels that this set can't take: a request that has them will be refused
                continue

    def _get(self, prompts: Prompts, labels: tuple[str, ...]) -> Tensor:
        with Turns(self._device, Priority.TEXT) as turns, torch.no_grad():

            def next_chunk() -> None:
                self._metrics.text_forwards.inc()
                turns.next_piece()

            return self._cache.get(self._clip, prompts, labels, on_chunk=next_chunk)
