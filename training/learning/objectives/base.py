"""What a method of prompt learning is: parameters to start from, examples to learn on, losses, and how
parameters become prompts.

The loop knows nothing more. `Tuning` is what all methods here have in common, a default for whatever most of
them do alike.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Cost, Features, Pixels, Progress, Seeds
from training.data.labelled import LabelledImages
from training.learning.inner import TowerPrecision
from training.learning.objectives.contexts import Parameters
from training.processes import ALONE, Processes

WARM_UP_RATE = 1e-5
WARM_UP_SHARE = 0.05  # of a phase of fewer than
WHOLE_EPOCHS = 20
WHOLE_LABELS = 256  # of more labels, the states of so many at a time are kept for the backward

Notes = Mapping[str, float]
_NOTHING: Notes = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples. `take` gives the inputs of an index tensor; `cost`, `seconds` say what preparing them took,
    whenever that was.

    pixels     the pictures behind an index tensor, for methods that attack again while they learn
    constants  tensors that a method computed once: [n, ...] a row an example, or [C, E] a row a label
    divided    whether each process takes but its own share of a batch: where an image tower looks at the
               inputs
    """

    targets: Tensor
    take: Callable[[Tensor], Tensor]
    cost: Cost
    seconds: float
    pixels: Callable[[Tensor], Pixels] | None = None
    constants: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    divided: bool = False

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Task:
    """One training. `memory` is what a method carries from step to step besides parameters: changed in place,
    kept in checkpoints.

    precision  of the towers in the passes that prompts learn from; prompts, features and losses are float32
    """

    clip: Clip
    labels: tuple[str, ...]
    examples: Examples
    memory: dict[str, Tensor]
    processes: Processes = ALONE
    precision: TowerPrecision = "float32"


class Batch(NamedTuple):
    """`inputs` are what the method's `prepare` made of pictures (embeddings, pixels): [B, ...], or of
    `divided` examples this process's share. `targets`, `seeds`, `rows` [B] are everyone's.

    rows    which examples these are
    epoch   counts from 0; with the share of it that is done: 2.5 is the middle of the third
    """

    inputs: Tensor
    targets: Tensor
    seeds: Seeds
    rows: Tensor
    epoch: float


class Answers(NamedTuple):
    """How somebody answers a batch: the shares of the most frequent answer and of the most frequent target,
    and the cross-entropy.
    """

    who: str
    share: float
    expected: float
    cross_entropy: float


class Signs(NamedTuple):
    """What collapse shows in: the mean divergence of attacked from reference predictions, and a cross-entropy
    (METHODS L1).

    `answers`: of those who might come to answer one label whatever they see, although nobody agrees with
    them.
    """

    divergence: float
    cross_entropy: float
    answers: tuple[Answers, ...] = ()


class Step(NamedTuple):
    """Named loss terms ([] each; their sum is minimised), training accuracies [] of the batch on what was and
    was not attacked, and the bill.

    A bank's embeddings count as inputs that were not attacked. `notes` are numbers worth a curve.
    """

    losses: dict[str, Tensor]
    accuracy: Tensor | None
    robust: Tensor | None = None
    signs: Signs | None = None
    cost: Cost = Cost()
    text_passes: int = 1
    notes: Notes = _NOTHING


class Tended(NamedTuple):
    """What was done between two epochs: its cost and numbers worth a curve."""

    cost: Cost = Cost()
    text_passes: int = 0
    notes: Notes = _NOTHING


class Objective(Protocol):
    """A frozen pydantic model: its fields are the command line's options and, as JSON, the manifest's record
    of how a set was made.
    """

    @property
    def kind(self) -> str: ...

    @property
    def batch(self) -> int: ...

    @property
    def average(self) -> float: ...

    def phases(self) -> tuple[int, ...]:
        """Epochs of each part of a run; every part has a schedule of its own."""
        ...

    def rate(self, epoch: float) -> float:
        """The learning rate at a point of the run: 2.5 is the middle of the third epoch."""
        ...

    def share_of_rate(self, parameter: str) -> float:
        """What the learning rate is multiplied by for a parameter of `new_parameters`, by its name."""
        ...

    def new_parameters(self, clip: Clip, labels: tuple[str, ...], seed: int) -> Parameters:
        """Where learning starts: plain float32 tensors, drawn from the seed."""
        ...

    def fold(self, clip: Clip, parameters: Mapping[str, Tensor]) -> Prompts:
        """The prompts that parameters mean: what is exported."""
        ...

    def companions(self, clip: Clip, parameters: Mapping[str, Tensor]) -> dict[str, Prompts]:
        """Further prompts that were learned beside and are measured, not exported: a teacher's."""
        ...

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
        """Whatever is done once before the loop; results worth keeping go under `folder`, which all processes
        see.
        """
        ...

    def new_memory(self, examples: Examples, parameters: Parameters) -> dict[str, Tensor]: ...

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        """Of the whole batch, in every process: differentiable in `parameters`."""
        ...

    def tend(self, task: Task, parameters: Parameters, *, epoch: int, seeds: Seeds) -> Tended:
        """What is due before every epoch but the first; seeds [n], a row an example, are this epoch's own."""
        ...

    def weakened(self) -> Self | None:
        """The same with half the consistency term, to restart with after a collapse; None if there is no such
        term.
        """
        ...

    def bill(self, pictures: int) -> Cost:
        """Image passes of a whole run, preparing included, known before it starts."""
        ...

    def attack_facts(self) -> dict[str, object] | None:
        """The attack used in training, for the manifest; None if there is none."""
        ...


class Tuning(BaseModel):
    """SGD over epochs of batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = Field(100, ge=1, le=10_000, description="passes over the training pictures")
    batch: int = Field(32, ge=1, le=65_536, description="pictures a step")
    learning_rate: float = Field(
        0.002,
        gt=0,
        le=10,
        description="SGD, momentum 0.9, weight decay 5e-4; a short time at 1e-5, then cosine",
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="also average the prompts, so much of the average kept a step, and publish the better; "
        "0: no",
    )

    def phases(self) -> tuple[int, ...]:
        return (self.epochs,)

    def rate(self, epoch: float) -> float:
        *before, last = self.phases()
        for epochs in before:
            if epoch < epochs:
                return cosine_after_warm_up(self.learning_rate, epoch, epochs)
            epoch -= epochs
        return cosine_after_warm_up(self.learning_rate, epoch, last)

    def share_of_rate(self, parameter: str) -> float:
        return 1.0

    def fold(self, clip: Clip, parameters: Mapping[str, Tensor]) -> Prompts:
        return Prompts(parameters.get("text"), parameters.get("visual"))

    def new_memory(self, examples: Examples, parameters: Parameters) -> dict[str, Tensor]:
        return {}

    def tend(self, task: Task, parameters: Parameters, *, epoch: int, seeds: Seeds) -> Tended:
        return Tended()

    def companions(self, clip: Clip, parameters: Mapping[str, Tensor]) -> dict[str, Prompts]:
        return {}

    def weakened(self) -> Self | None:
        return None


def cosine_after_warm_up(rate: float, epoch: float, epochs: int) -> float:
    """The learning rate at a point of a phase: at first 1e-5, then a cosine from `rate` toward 0 (METHODS
    1.9), epoch by epoch.

    Deviation: in fewer than 20 epochs, where that would idle for a large part and stop half way down, the
    warm-up is the first twentieth and the cosine goes from step to step, down to 0. What a cap on passes has
    cut short is then annealed like the rest.
    """
    if epochs >= WHOLE_EPOCHS:
        return WARM_UP_RATE if epoch < 1 else _cosine(rate, (int(epoch) - 1) / epochs)
    warm = WARM_UP_SHARE * epochs
    return WARM_UP_RATE if epoch < warm else _cosine(rate, (epoch - warm) / (epochs - warm))


def _cosine(rate: float, share: float) -> float:
    return rate * (1 + math.cos(math.pi * share)) / 2


def label_features(task: Task, prompts: Prompts) -> Features:
    """[C, E] unit text features in one pass, differentiable; a context that labels share is computed once for
    all of them.

    More than 256 labels go in chunks whose states are computed again in the backward, so that a thousand
    labels need the memory of 256.
    """
    if task.precision == "float32":
        return _label_features(task.clip, prompts, task.labels)
    with torch.autocast(task.clip.device.type, torch.bfloat16):
        features = _label_features(task.clip, prompts, task.labels)
    return F.normalize(features.float(), dim=-1)


def share_right(logits: Tensor, targets: Tensor) -> Tensor:
    """[] the share of rows whose highest logit is the target's."""
    return (logits.detach().argmax(dim=1) == targets).float().mean()


def _label_features(clip: Clip, prompts: Prompts, labels: tuple[str, ...]) -> Features:
    text = prompts.text
    if text is None or not text.requires_grad or len(labels) <= WHOLE_LABELS:
        return text_weights(clip, prompts, labels, chunk=WHOLE_LABELS)

    def part(own: Tensor, names: tuple[str, ...]) -> Features:
        parted = Prompts(own, None, prompts.templates, prompts.class_specific)
        return text_weights(clip, parted, names, chunk=WHOLE_LABELS)

    features: list[Tensor] = []
    for start in range(0, len(labels), WHOLE_LABELS):
        rows = slice(start, start + WHOLE_LABELS)
        own = text[rows] if prompts.class_specific else text
        features.append(checkpoint(part, own, labels[rows], use_reentrant=False, preserve_rng_state=False))
    return torch.cat(features)
