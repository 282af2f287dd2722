"""What a method of prompt learning is: prompts to start from, examples to learn on, and losses. The loop knows nothing more.

Also what methods share that only learn text over stored image embeddings: `TextTuning`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.classifier import text_weights
from robustclip.clip import Clip
from robustclip.errors import InvalidInput
from robustclip.prompts import LEARNED_TEMPLATE, Prompts
from robustclip.types import Cost, Progress, Seeds
from training.cache import Rows
from training.data import LabelledImages
from training.sampling import seeded

CONTEXT_DEVIATION = 0.02


class Batch(NamedTuple):
    """`inputs` [B, ...] are what the method's `prepare` made of pictures (embeddings, pixels); `targets`, `seeds` [B]."""

    inputs: Tensor
    targets: Tensor
    seeds: Seeds


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples. `take` gives the inputs of an index tensor; `cost`, `seconds` say what preparing them took, whenever that was."""

    targets: Tensor
    take: Callable[[Tensor], Tensor]
    cost: Cost
    seconds: float

    def __len__(self) -> int:
        return len(self.targets)


class Step(NamedTuple):
    """Named loss terms ([] each; their sum is minimised) and the training accuracy [] of the batch."""

    losses: dict[str, Tensor]
    accuracy: Tensor


class Objective(Protocol):
    """A frozen pydantic model: its fields are the command line's options and, as JSON, the manifest's record of how a set was made."""

    @property
    def kind(self) -> str: ...

    @property
    def epochs(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    def new_prompts(self, clip: Clip, labels: tuple[str, ...], seed: int) -> Prompts:
        """Where learning starts: plain tensors, drawn from the seed."""
        ...

    def prepare(self, clip: Clip, data: LabelledImages, indices: Tensor, *, seed: int, folder: Path, progress: Progress) -> Examples:
        """Whatever is done once before the loop; results worth keeping go under `folder`."""
        ...

    def loss(self, clip: Clip, prompts: Prompts, labels: tuple[str, ...], batch: Batch) -> Step:
        """Differentiable in the tensors of `prompts`."""
        ...

    def attack_facts(self) -> dict[str, object] | None:
        """The attack used in training, for the manifest; None if there is none."""
        ...


class TextTuning(BaseModel):
    """A text context at the input layer, before the class name (METHODS 2.1). A step is one text pass and one matrix product, no image pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    vectors: int = Field(32, ge=1, le=70, description="learned vectors before the class name")
    words: str = Field("", description="start from the embeddings of these words instead of N(0, 0.02^2); their tokens must number `vectors`")
    class_specific: bool = Field(False, description="one context a label; such a set serves its training labels only")
    epochs: int = Field(100, ge=1, le=10_000, description="passes over the training pictures")
    batch: int = Field(32, ge=1, le=65_536, description="pictures a step")
    learning_rate: float = Field(0.002, gt=0, le=10, description="SGD, momentum 0.9, weight decay 5e-4; one epoch at 1e-5, then cosine")

    def new_prompts(self, clip: Clip, labels: tuple[str, ...], seed: int) -> Prompts:
        """[1, N, W] vectors, or [C, 1, N, W]: N(0, 0.02^2) from the seed, or the words' embeddings."""
        if self.words:
            context = _embedded(clip, self.words)
            if context.shape[1] != self.vectors:
                raise InvalidInput(
                    f"{self.words!r} is {context.shape[1]} tokens, but there are {self.vectors} vectors.",
                    field="--objective.words",
                    help=f"Use --objective.vectors {context.shape[1]}.",
                )
            context = context.expand(len(labels), -1, -1, -1).clone() if self.class_specific else context
        else:
            shape = (len(labels),) if self.class_specific else ()
            noise = torch.randn(*shape, 1, self.vectors, clip.text_width, generator=seeded(seed, "prompts"))
            context = CONTEXT_DEVIATION * noise
        return Prompts(text=context.to(clip.device), templates=(LEARNED_TEMPLATE,), class_specific=self.class_specific)

    def loss(self, clip: Clip, prompts: Prompts, labels: tuple[str, ...], batch: Batch) -> Step:
        """mean CE(s <A / |A|, t_c>, y) over the batch and, where a picture has M embeddings [B, M, E], over them."""
        weights = text_weights(clip, prompts, labels)
        features = F.normalize(batch.inputs, dim=-1).flatten(0, 1)  # [B*M, E]
        logits = clip.logit_scale * features @ weights.T
        targets = batch.targets.repeat_interleave(batch.inputs.shape[1])
        accuracy = (logits.detach().argmax(dim=1) == targets).float().mean()
        return Step({"cross_entropy": F.cross_entropy(logits, targets)}, accuracy)


def bank_examples(bank: Rows, targets: Tensor, clip: Clip) -> Examples:
    """The rows of a bank as examples on the CLIP's device."""
    rows = bank.rows.to(clip.device)
    return Examples(targets.to(clip.device), lambda indices: rows[indices.to(rows.device)], bank.cost, bank.seconds)


def _embedded(clip: Clip, words: str) -> Tensor:
    tokens = clip.tokenize([words])[0]
    length = int(tokens.argmax())  # [SOS] words [EOS]: the end has the highest id
    with torch.no_grad():
        return clip.model.token_embedding(tokens[1:length].to(clip.device))[None].float()  # [1, N, W]
