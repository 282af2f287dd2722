"""The base of methods that learn text alone over stored image embeddings: a step is one text pass and one
matrix product, no image pass.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks import PGD
from robustclip.models import Clip, Prompts
from robustclip.types import Cost, Logits, Progress
from training.data.labelled import LabelledImages
from training.learning.objectives.base import Batch, Examples, Objective, Step, Task
from training.learning.objectives.contexts import Parameters, embedded_words, noise, split_words
from training.learning.objectives.predictions import bank_examples, label_features, share_right
from training.processes import ALONE, Processes
from training.threats.bank import bank_cost, embedding_bank, feature_attack


class TextContext(Objective):
    """A text context at the input layer, before the class name."""

    vectors: int = Field(32, ge=1, le=70, description="learned vectors before the class name")
    words: str = Field(
        "",
        description="start from these words' embeddings instead of N(0, 0.02^2); further words than vectors "
        "stay in the template",
    )
    class_specific: bool = Field(
        False, description="one context a label; such a set serves its training labels only"
    )

    def new_parameters(self, clip: Clip, labels: tuple[str, ...], seed: int) -> Parameters:
        """`text` [1, N, W], or [C, 1, N, W]: N(0, 0.02^2) from the seed, or the words' embeddings."""
        clip.require("text prompts", field="--objective.kind", help="Serve it with hand-written templates.")
        copies = (len(labels),) if self.class_specific else ()
        if self.words:
            context = embedded_words(clip, self.words, self.vectors).expand(*copies, 1, -1, -1).clone()
        else:
            context = noise((*copies, 1, self.vectors, clip.text_width), seed)
        return {"text": context.to(clip.device)}

    def fold(self, clip: Clip, parameters: Mapping[str, Tensor]) -> Prompts:
        return Prompts(
            text=parameters["text"],
            templates=(split_words(self.words, self.vectors)[1],),
            class_specific=self.class_specific,
        )


class Bank(NamedTuple):
    """The embeddings of each picture in a bank: `copies` attacked ones, and the clean one if asked."""

    attack: PGD
    copies: int = 1
    clean: bool = False


class TextTuning(TextContext):
    """Cross-entropy of a text context over a bank of embeddings, by default the clean ones."""

    def bank(self) -> Bank:
        """An attack of radius 0 gives the clean embeddings."""
        return Bank(feature_attack(0.0, steps=1))

    def terms(self, logits: Logits, targets: Tensor) -> dict[str, Tensor]:
        """The loss terms [] of logits [B * M, C] and targets [B * M]: M embeddings of each picture."""
        return {"cross_entropy": F.cross_entropy(logits, targets)}

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        """The terms of logits s <A / |A|, t_c> of the batch's embeddings A [B, M, E]."""
        weights = label_features(task, self.fold(task.clip, parameters))
        features = F.normalize(batch.inputs, dim=-1).flatten(0, 1)  # [B * M, E]
        logits = task.clip.logit_scale * features @ weights.T
        targets = batch.targets.repeat_interleave(batch.inputs.shape[1])
        return Step(self.terms(logits, targets), share_right(logits, targets))

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
        bank = self.bank()
        rows = embedding_bank(
            clip,
            data,
            indices,
            bank.attack,
            copies=bank.copies,
            clean=bank.clean,
            seed=seed,
            folder=folder,
            progress=progress,
            processes=processes,
        )
        return bank_examples(rows, data.targets[indices], clip)

    def bill(self, pictures: int) -> Cost:
        bank = self.bank()
        return bank_cost(bank.attack, copies=bank.copies, clean=bank.clean).times(pictures)
