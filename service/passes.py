"""Passes through the image tower behind its defenses, under the device's lock."""

import time
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from robustclip.certificates.vote import smoothing_of
from robustclip.defenses import AnyDefense, bind_chain
from robustclip.defenses.smoothing import Smoothing
from robustclip.models.classifier import FeatureExtractor, ZeroShotClassifier, classifier_of
from robustclip.models.clip import Clip
from robustclip.models.scoring import Scoring
from robustclip.types import Defense, ImageEncoder, Pixels, Seeds
from service.batching import Pass
from service.device import DeviceLock, Priority
from service.loaded import LoadedSet
from service.timing import TimedDefense


@dataclass(frozen=True)
class Lane:
    """Pictures that can share a pass: equal visual prompts (the first part of `key`), equal defenses."""

    key: tuple[str, tuple[AnyDefense, ...]]
    visual: Tensor | None = field(compare=False)

    @classmethod
    def of(cls, loaded: LoadedSet, chain: tuple[AnyDefense, ...]) -> "Lane":
        return cls((loaded.lane, chain), loaded.prompts.visual)

    @property
    def rule(self) -> Smoothing | None:
        """How the answer is voted for, if it is."""
        return smoothing_of(self.key[1])


class Passes:
    """Runs the served encoder for lanes of pictures."""

    def __init__(self, clip: Clip, encoder: ImageEncoder, device: DeviceLock) -> None:
        self._clip = clip
        self._encoder = encoder
        self._device = device

        @lru_cache(64)
        def bound(chain: tuple[AnyDefense, ...]) -> Defense:
            return bind_chain(chain, encoder=encoder)

        self._bound = bound

    def run(self, lane: Lane, pixels: Pixels, seeds: Seeds, priority: Priority = Priority.CLASSIFY) -> Pass:
        """One batch through the deployed chain, up to the features: labels join later."""
        with self._device.at(priority), torch.inference_mode():
            defense = TimedDefense(self._bound(lane.key[1]))
            extract = FeatureExtractor(self._encoder, lane.visual, defense)
            started = time.perf_counter()
            features = extract(pixels.to(self._clip.device), seeds).float().cpu()
            total = time.perf_counter() - started
        return Pass(features, defense.seconds, total - defense.seconds)

    def classifier(
        self, labels: tuple[str, ...], weights: Tensor, lane: Lane, scoring: Scoring
    ) -> ZeroShotClassifier:
        """The undefended classifier that a lane's pictures share, for a list of labels."""
        encoder = self._encoder
        return classifier_of(self._clip, labels, weights, scoring, encoder=encoder, visual=lane.visual)
