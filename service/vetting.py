"""What a prompt set has to show before it is served: sound features, and its answers to stored witnesses."""

from collections.abc import Sequence

import torch

from robustclip.defenses import AnyDefense
from robustclip.errors import PromptSetRefused
from robustclip.models.clip import Clip
from robustclip.models.scoring import Scoring, scoring_for
from robustclip.reports.replay import Replay, replay
from robustclip.reports.witnesses import Witness
from robustclip.seeds import draw_seeds
from robustclip.types import Features, Logits, Pixels, Seeds
from service.device import Priority
from service.loaded import LoadedSet
from service.passes import Lane, Passes
from service.text import TextWeights

_CANARY_LABELS = ("cat", "dog")
_GATE_DRAWS = 32  # of a randomized default chain, on each stored witness


class Vetting:
    """Tries prompt sets on a service's own tower and text features."""

    def __init__(
        self,
        clip: Clip,
        passes: Passes,
        text: TextWeights,
        default_chain: tuple[AnyDefense, ...],
        *,
        chunk_rows: int,
    ) -> None:
        self._clip = clip
        self._passes = passes
        self._text = text
        self._default_chain = default_chain
        self._chunk_rows = chunk_rows

    def admit(self, loaded: LoadedSet) -> None:
        """Try a set before it is served, and compute text features for it ahead of time.

        Raises PromptSetRefused (`canary`) when text or image features are not finite and of unit norm.
        """
        manifest = loaded.prompt_set.manifest
        labels = manifest.labels if manifest.class_specific else _CANARY_LABELS
        weights = self._text.of(loaded, labels, recent=False)
        grey = torch.full((1, 3, self._clip.image_size, self._clip.image_size), 0.5)
        features = self._passes.run(Lane.of(loaded, ()), grey, draw_seeds(0, 1)).features
        for what, rows in (("text", weights), ("image", features)):
            if not bool(((rows.norm(dim=-1) - 1).abs() < 1e-3).all()):
                raise PromptSetRefused(
                    f"its {what} features are not finite and of unit norm.",
                    reason="canary",
                    field="prompt_set",
                )
        self._text.warm(loaded)

    def replay(self, loaded: LoadedSet, witnesses: Sequence[Witness]) -> Replay:
        """Judge stored witnesses by a set behind the default chain, a few rows at a time."""
        lane = Lane.of(loaded, self._default_chain)

        def encode(pixels: Pixels, seeds: Seeds) -> Features:
            return self._passes.run(lane, pixels, seeds, Priority.GATE).features

        def judge(features: Features, labels: tuple[str, ...], scoring: Scoring) -> Logits:
            classifier = self._passes.classifier(
                labels, self._text.of(loaded, labels, recent=False), lane, scoring_for(self._clip, scoring)
            )
            return classifier.judge(features.to(classifier.weights.device))

        draws = _GATE_DRAWS if any(part.randomized for part in self._default_chain) else 1
        return replay(
            witnesses, encode, judge, size=self._clip.image_size, draws=draws, rows=self._chunk_rows
        )
