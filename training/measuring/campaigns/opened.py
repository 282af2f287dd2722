"""What the trainings and cells of a campaign share: CLIPs and pictures, opened once, and how fast they go
here.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip, load_clip
from robustclip.models.prompts import Prompts
from training.data.labelled import LabelledImages
from training.data.sources import Source
from training.learning.tuning.run import Run, TrainingPictures, open_training
from training.measuring.evaluation.plan import seconds_per_pass
from training.processes import Processes


@dataclass(frozen=True, eq=False)
class Opened:
    """CLIPs and training pictures, each opened once, and how fast they are."""

    processes: Processes
    _clips: dict[tuple[str, str | None], Clip] = field(default_factory=dict[tuple[str, str | None], Clip])
    _pictures: dict[tuple[Path, Path | None], TrainingPictures] = field(
        default_factory=dict[tuple[Path, Path | None], TrainingPictures]
    )
    _sources: dict[Source, LabelledImages] = field(default_factory=dict[Source, LabelledImages])
    _paces: dict[str, float] = field(default_factory=dict[str, float])

    def clip(self, backbone: str, pretrained: str | None) -> Clip:
        key = (backbone, pretrained)
        if key not in self._clips:
            self._clips[key] = load_clip(*key, device=self.processes.device)
        return self._clips[key]

    def pictures(self, folder: Path, classes: Path | None) -> TrainingPictures:
        key = (folder, classes)
        if key not in self._pictures:
            self._pictures[key] = open_training(*key)
        return self._pictures[key]

    def source(self, source: Source) -> LabelledImages:
        if source not in self._sources:
            self._sources[source] = source.open()
        return self._sources[source]

    def seconds(self, run: Run, text_passes: int) -> float:
        """How long a run takes at the present pace: its image passes and its text passes, timed once each for
        a CLIP, labels and a method.
        """
        labels = run.pictures.data.labels
        image, text = run.clip.fingerprint, repr((run.clip.fingerprint, labels, run.objective.kind))
        if image not in self._paces:
            self._paces[image] = seconds_per_pass(run.clip)
        if text not in self._paces:
            self._paces[text] = _seconds_per_text_pass(run)
        return run.bill() * self._paces[image] + text_passes * self._paces[text]


def _seconds_per_text_pass(run: Run) -> float:
    """One pass over all labels, forward and backward to the vectors; 0 where no text is learned."""
    start = run.starting_prompts()
    if start.text is None:
        return 0.0
    taken: list[float] = []
    for _ in range(2):
        began = time.monotonic()
        vectors = start.text.clone().requires_grad_()
        prompts = Prompts(vectors, None, start.templates, start.class_specific)
        text_weights(run.clip, prompts, run.pictures.data.labels).sum().backward()
        taken.append(time.monotonic() - began)
    return min(taken)
