"""The nouns of the library: tensors with their shapes, and the protocols that everything else implements.

Imports only torch, and knows no implementation.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

Pixels: TypeAlias = Tensor  # [B, 3, S, S] float32 in [0, 1], not normalised; S is the CLIP's input size
Logits: TypeAlias = Tensor  # [B, C], C = len(labels); temperature applied, no softmax
Features: TypeAlias = Tensor  # [B, E] unit norm
Seeds: TypeAlias = Tensor  # [B] int64: all randomness of row i comes from seeds[i], whatever the batch


class Classifier(Protocol):
    """Maps pixels to logits, differentiable in the pixels."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits: ...


class ImageEncoder(Protocol):
    """Maps pixels to unit features. There is one in torch and one in ONNX Runtime; they must agree."""

    @property
    def backend(self) -> str: ...

    def __call__(self, pixels: Pixels, visual: Tensor | None) -> Features: ...


class Cost(NamedTuple):
    """Rows that pass through the image tower, forward and backward. One charged pass = F + 2 B."""

    forward: int = 0
    backward: int = 0

    @property
    def charged(self) -> int:
        return self.forward + 2 * self.backward

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward)

    def times(self, rows: int) -> "Cost":
        return Cost(self.forward * rows, self.backward * rows)

    def through(self, toll: "Toll") -> "Cost":
        """The cost of the same passes if each picture costs `toll` more."""
        return self.plus(toll.passes.times(self.forward)).plus(toll.gradient_passes.times(self.backward))


FREE = Cost()


class Toll(NamedTuple):
    """What a picture costs beside the pass that classifies it, in passes through the image tower.

    `passes` for every picture; `gradient_passes` on top, if a gradient is recorded.
    """

    passes: Cost = FREE
    gradient_passes: Cost = FREE

    @staticmethod
    def of(tolls: "Iterable[Toll]") -> "Toll":
        """The sum of all."""
        total = Toll()
        for toll in tolls:
            total = Toll(total.passes.plus(toll.passes), total.gradient_passes.plus(toll.gradient_passes))
        return total


NO_TOLL = Toll()


@runtime_checkable
class Spending(Protocol):
    """What costs more than one pass a picture: a defense, or a classifier behind one."""

    @property
    def toll(self) -> Toll: ...


def price(classifier: Classifier, rows: int, *, grad: bool = False) -> Cost:
    """Cost of classifying so many rows, with `grad` of their gradients, too."""
    cost = Cost(rows, rows if grad else 0)
    return cost.through(classifier.toll) if isinstance(classifier, Spending) else cost


class Evaluation(NamedTuple):
    """A score's answer for a batch.

    value   [B] rises with harm
    margin  [B] > 0 means that the goal is reached
    grad    d value / d pixels
    cost    of this call, however often the score ran its classifier
    logits  of a score about labels, for attacks that choose a label to go for
    """

    value: Tensor
    margin: Tensor
    grad: Tensor | None
    cost: Cost = Cost()
    logits: Logits | None = None

    def rows(self, index: Tensor) -> "Evaluation":
        """Those rows alone, at no cost: the whole call was paid once."""
        grad, logits = (None if part is None else part[index] for part in (self.grad, self.logits))
        return Evaluation(self.value[index], self.margin[index], grad, logits=logits)


class Score(Protocol):
    """Says per row how much harm is done. `select` keeps the rows of an index, with their targets."""

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation: ...

    def select(self, rows: Tensor) -> "Score": ...


class Attacked(NamedTuple):
    """The result of an attack, a row an image.

    pixels         [B, 3, S, S] inside the ball and in [0, 1]
    value, margin  [B] at those pixels
    first_success  [B] int64, the step (over all starts) that first reached the goal, -1 if none did
    trace_value, trace_margin  [T, B] by step, NaN after a row has left the batch
    """

    pixels: Pixels
    value: Tensor
    margin: Tensor
    first_success: Tensor
    trace_value: Tensor
    trace_margin: Tensor
    cost: Cost


class Attack(Protocol):
    """Raises a score inside a ball. A frozen pydantic model: configuration, request schema and repr."""

    def __call__(self, score: Score, pixels: Pixels, seeds: Seeds) -> Attacked: ...


Stage: TypeAlias = Literal["pixels", "features"]


class Defense(Spending, Protocol):
    """Maps inputs to inputs of the same shape and range. Rows do not influence each other.

    `pixels` works before the image tower, `features` behind it. A chain may do `both`; then each part (`at`)
    is called by itself.
    """

    @property
    def stage(self) -> Stage | Literal["both"]: ...

    @property
    def randomized(self) -> bool: ...

    @property
    def gradient(self) -> str:
        """How gradients pass: `exact`, `ste`, `surrogate:<name>` or `none`."""
        ...

    def at(self, stage: Stage) -> "Defense | None":
        """The part that works at this stage, or None."""
        ...

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor: ...


Embed: TypeAlias = Callable[[Pixels, Seeds], Features]  # through all defenses and the image tower
Guard: TypeAlias = Callable[[Score], Score]  # wraps an attacked score, as with a device's lock or a deadline
Share: TypeAlias = Callable[[Classifier], Classifier]  # the same for a classifier that only judges
Progress: TypeAlias = Callable[[int, int, str], None]  # (done, total, what): the library reports, others draw
