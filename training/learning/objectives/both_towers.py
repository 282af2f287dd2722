"""The base of methods with vectors in both towers, attacked anew in every step."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from robustclip.models import Clip, Prompts, has_stem, patch_tokens
from robustclip.types import Cost, Features, Progress
from training.data.labelled import LabelledImages
from training.learning.objectives.base import Batch, Examples, Task
from training.learning.objectives.contexts import Coupling, Parameters, Towers, fold, new_contexts
from training.learning.objectives.pictures import PictureTuning, opponent_of
from training.learning.objectives.predictions import KEPT_BYTES, PATCHES, Look, look, look_untouched
from training.processes import ALONE, Processes


class BothTowers(PictureTuning):
    """Vectors in the first layers of both towers; a term ties attacked predictions to a reference."""

    vectors: int = Field(2, ge=1, le=70, description="learned vectors a layer and tower")
    depth: int = Field(
        9, ge=1, le=64, description="layers with vectors of their own; capped at what a tower has"
    )
    words: str = Field(
        "a photo of a",
        description="start from these words' embeddings; further words than vectors stay in the template",
    )
    class_specific: bool = Field(
        False,
        description="one text context a label, without coupling; such a set serves its training labels only",
    )
    image_rate: float = Field(
        1.0, gt=0, le=100, description="learning rate of the image tower's vectors, times that of all else"
    )
    consistency: float = Field(
        1.0, ge=0, description="weight of the divergence of attacked predictions from their reference"
    )

    def prepare(
        self,
        clip: Clip,
        data: LabelledImages,
        indices: Tensor,
        *,
        seed: int,
        folder: Path,
        progress: Progress,
        processes: Processes = ALONE,
    ) -> Examples:
        """The pictures, and the outputs of a stem: vectors come behind it, so that these never change."""
        examples = super().prepare(
            clip, data, indices, seed=seed, folder=folder, progress=progress, processes=processes
        )
        if not self.looks_at_pictures_as_they_are() or not has_stem(clip):
            return examples
        with torch.no_grad():
            one = patch_tokens(clip, examples.take(torch.zeros(1, dtype=torch.int64)))
            if len(indices) * one.nbytes > KEPT_BYTES:
                return examples
            patches = one.new_empty(len(indices), *one.shape[1:])
            for rows in torch.arange(len(indices)).split(64 * processes.count):
                own = patch_tokens(clip, examples.take(processes.own(rows)))
                patches[rows] = processes.whole(own, len(rows))
                progress(int(rows[-1]) + 1, len(indices), "stem")
        return replace(examples, constants={**examples.constants, PATCHES: patches})

    def looks_at_pictures_as_they_are(self) -> bool:
        """Whether untouched pictures are the same in every epoch."""
        return True

    def share_of_rate(self, parameter: str) -> float:
        return self.image_rate if parameter.endswith("visual") else 1.0

    def fold(self, clip: Clip, parameters: Mapping[str, Tensor]) -> Prompts:
        return fold(
            clip, parameters, vectors=self.vectors, words=self.words, class_specific=self.class_specific
        )

    def contexts(
        self,
        clip: Clip,
        labels: tuple[str, ...],
        seed: int,
        *,
        coupling: Coupling = "none",
        towers: Towers = "both",
    ) -> Parameters:
        return new_contexts(
            clip,
            vectors=self.vectors,
            depth=self.depth,
            words=self.words,
            coupling=coupling,
            towers=towers,
            seed=seed,
            copies=len(labels) if self.class_specific else None,
        )

    def look_twice(
        self, task: Task, batch: Batch, weights: Features, prompts: Prompts
    ) -> tuple[Look, Look, Cost]:
        """Predictions for the clean and the attacked pictures, and their cost with the attack's."""
        opponent = opponent_of(self, task.clip, weights, prompts)
        clean = look_untouched(task, batch, batch.inputs, weights, prompts.visual)
        pixels, climbed = self.perturb(task, batch, batch.inputs, opponent, clean=clean.logits)
        attacked = look(task, pixels, weights, prompts.visual, count=len(batch.rows))
        return clean, attacked, climbed.plus(clean.cost).plus(attacked.cost)
