"""The base of all methods of prompt learning, and what passes between a method and the training loop.

A method is an `Objective`: parameters to start from, examples to learn on, a loss, and how parameters become
prompts. Most methods derive from `TextTuning`, `PictureTuning` or `BothTowers`, which need a loss alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustclip.models import Clip, Prompts
from robustclip.types import Cost, Pixels, Progress, Seeds
from training.data.labelled import LabelledImages
from training.learning.losses import TowerPrecision
from training.learning.objectives.contexts import Parameters
from training.processes import ALONE, Processes

WARM_UP_RATE = 1e-5
WARM_UP_SHARE = 0.05  # of a phase of fewer than
WHOLE_EPOCHS = 20

Notes = Mapping[str, float]
_NOTHING: Notes = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples. `take` gives the inputs of an index tensor; `cost` and `seconds` are those of preparing
    them, in this run or an earlier one.

    pixels     the pictures of an index tensor, for methods that attack again while they learn
    constants  tensors that a method computed once: [n, ...] a row an example, or [C, E] a row a label
    divided    whether each process takes its own share of a batch only, because an image tower encodes it
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
    """One training. `memory`: tensors besides the parameters that a method carries from step to step; changed
    in place, kept in checkpoints.

    precision  of the towers in the passes that prompts learn from; prompts, features and losses are float32
    """

    clip: Clip
    labels: tuple[str, ...]
    examples: Examples
    memory: dict[str, Tensor]
    processes: Processes = ALONE
    precision: TowerPrecision = "float32"


class Batch(NamedTuple):
    """`inputs` [B, ...] are what the method's `prepare` made of pictures (embeddings, pixels), or this
    process's share of them if examples are `divided`. `targets`, `seeds`, `rows` [B] are those of the whole
    batch.

    rows    the indices of the examples
    epoch   counts from 0 and holds a fraction: 2.5 is the middle of the third epoch
    """

    inputs: Tensor
    targets: Tensor
    seeds: Seeds
    rows: Tensor
    epoch: float


class Answers(NamedTuple):
    """How a model (`who`) answers a batch: the shares of the most frequent answer and of the most frequent
    target, and the cross-entropy.
    """

    who: str
    share: float
    expected: float
    cross_entropy: float


class Signs(NamedTuple):
    """Signs of collapse: the mean divergence of attacked from reference predictions, and a cross-entropy.

    `answers` are of models that might answer one label whatever the picture without agreeing with another.
    """

    divergence: float
    cross_entropy: float
    answers: tuple[Answers, ...] = ()


class Step(NamedTuple):
    """Named loss terms ([] each; their sum is minimised), training accuracies [] of the batch on inputs that
    were not (`accuracy`) and were attacked (`robust`), and the cost.

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
    """The work between two epochs: its cost, and numbers worth a curve."""

    cost: Cost = Cost()
    text_passes: int = 0
    notes: Notes = _NOTHING


class Objective(BaseModel):
    """A method: SGD over epochs of batches. Its fields are the command line's options and, as JSON, the
    manifest's record of how a set was made; a new one adds `kind` and what it changes.
    """

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

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        """Of the whole batch, in every process: differentiable in `parameters`."""
        raise NotImplementedError

    def new_parameters(self, clip: Clip, labels: tuple[str, ...], seed: int) -> Parameters:
        """Where learning starts: plain float32 tensors, drawn from the seed."""
        raise NotImplementedError

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
        """Everything that is computed once before the loop; what is worth keeping goes under `folder`, which
        all processes see.
        """
        raise NotImplementedError

    def bill(self, pictures: int) -> Cost:
        """Image passes of a whole run, preparing included, known before it starts."""
        raise NotImplementedError

    def attack_facts(self) -> dict[str, object] | None:
        """The attack used in training, for the manifest; None if there is none."""
        return None

    def fold(self, clip: Clip, parameters: Mapping[str, Tensor]) -> Prompts:
        """The prompts that parameters mean: what is exported."""
        return Prompts(parameters.get("text"), parameters.get("visual"))

    def companions(self, clip: Clip, parameters: Mapping[str, Tensor]) -> dict[str, Prompts]:
        """Further prompts that are learned beside and measured, not exported: a teacher's."""
        return {}

    def new_memory(self, examples: Examples, parameters: Parameters) -> dict[str, Tensor]:
        """The task's memory before the first step."""
        return {}

    def tend(self, task: Task, parameters: Parameters, *, epoch: int, seeds: Seeds) -> Tended:
        """Work before every epoch but the first; seeds [n], a row an example, are of this epoch alone."""
        return Tended()

    def phases(self) -> tuple[int, ...]:
        """Epochs of each part of a run; every part has a schedule of its own."""
        return (self.epochs,)

    def rate(self, epoch: float) -> float:
        """The learning rate at a point of the run: 2.5 is the middle of the third epoch."""
        *before, last = self.phases()
        for epochs in before:
            if epoch < epochs:
                return cosine_after_warm_up(self.learning_rate, epoch, epochs)
            epoch -= epochs
        return cosine_after_warm_up(self.learning_rate, epoch, last)

    def share_of_rate(self, parameter: str) -> float:
        """The factor of the learning rate for a parameter of `new_parameters`, by its name."""
        return 1.0

    def weakened(self) -> Self | None:
        """The same with half the weight `consistency`, to restart with after a collapse; None without one."""
        weight = getattr(self, "consistency", 0.0)
        return self.model_copy(update={"consistency": weight / 2}) if weight else None


def cosine_after_warm_up(rate: float, epoch: float, epochs: int) -> float:
    """The learning rate at a point of a phase: 1e-5 in the first epoch, then a cosine from `rate` toward 0,
    epoch by epoch (CoOp's code).

    Deviation: in fewer than 20 epochs, where that would spend a large part on the warm-up and stop half way
    down, the warm-up is the first twentieth and the cosine goes down to 0 step by step: a run that a cap on
    passes has shortened is annealed like the others.
    """
    if epochs >= WHOLE_EPOCHS:
        return WARM_UP_RATE if epoch < 1 else _cosine(rate, (int(epoch) - 1) / epochs)
    warm = WARM_UP_SHARE * epochs
    return WARM_UP_RATE if epoch < warm else _cosine(rate, (epoch - warm) / (epochs - warm))


def _cosine(rate: float, share: float) -> float:
    return rate * (1 + math.cos(math.pi * share)) / 2
