"""What methods share that learn text alone, over stored image embeddings: a step is one text pass and one
matrix product, no image pass.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from training.cache import Rows
from training.learning.objectives.base import Batch, Examples, Step, Task, Tuning, label_features, share_right
from training.learning.objectives.contexts import Parameters, embedded_words, noise, split_words


class TextContext(Tuning):
    """A text context at the input layer, before the class name (METHODS 2.1)."""

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


class TextTuning(TextContext):
    """Cross-entropy of a text context over a bank."""

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        """mean CE(s <A / |A|, t_c>, y) over the batch and, where a picture has M embeddings [B, M, E], over
        them.
        """
        weights = label_features(task, self.fold(task.clip, parameters))
        features = F.normalize(batch.inputs, dim=-1).flatten(0, 1)  # [B*M, E]
        logits = task.clip.logit_scale * features @ weights.T
        targets = batch.targets.repeat_interleave(batch.inputs.shape[1])
        return Step({"cross_entropy": F.cross_entropy(logits, targets)}, share_right(logits, targets))


def bank_examples(bank: Rows, targets: Tensor, clip: Clip) -> Examples:
    """The rows of a bank as examples on the CLIP's device."""
    rows = bank.rows.to(clip.device)

    def take(indices: Tensor) -> Tensor:
        return torch.index_select(rows, 0, indices.to(rows.device))

    return Examples(targets.to(clip.device), take, bank.cost, bank.seconds)
