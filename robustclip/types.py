"""The nouns of the library and the shapes that travel between them.

Everything else implements one of these protocols or passes these tensors on. This file imports only torch and
must not know any implementation.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

Pixels: TypeAlias = (
    Tensor  # [B, 3, S, S] float32 in [0, 1]; S is the CLIP's input size, before any mean/std normalisation
)
Logits: TypeAlias = Tensor  # [B, C], C = len(labels); temperature applied, not softmaxed
Features: TypeAlias = Tensor  # [B, E] unit norm
Seeds: TypeAlias = (
    Tensor  # [B] int64, one a row: all randomness of row i comes from seeds[i], whatever its batch mates are
)


class Classifier(Protocol):
    """Maps pixels to logits, differentiable in the pixels."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits: ...


class ImageEncoder(Protocol):
    """Maps pixels to unit features; a torch and an ONNX Runtime implementation exist and must agree."""

    @property
    def backend(self) -> str: ...

    def __call__(self, pixels: Pixels, visual: Tensor | None) -> Features: ...


class Cost(NamedTuple):
    """Image rows through the tower: forward and backward passes. One charged pass = F + 2 B (ROBUSTNESS
    2.9).
    """

    forward: int = 0
    backward: int = 0

    @property
    def charged(self) -> int:
        return self.forward + 2 * self.backward

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward)

    def times(self, rows: int) -> "Cost":
        return Cost(self.forward * rows, self.backward * rows)

    def through(self, spending: "Spending") -> "Cost":
        """The same passes, of a classifier that spends more of each picture."""
        return self.plus(spending.passes.times(self.forward)).plus(
            spending.gradient_passes.times(self.backward)
        )


FREE = Cost()


@runtime_checkable
class Spending(Protocol):
    """What takes more of a picture than the pass that classifies, in passes through the image tower: a
    defense, and a classifier behind one.
    """

    @property
    def passes(self) -> Cost:
        """Of every picture."""
        ...

    @property
    def gradient_passes(self) -> Cost:
        """More, where a gradient is recorded, beside the backward pass of the one that classifies."""
        ...


class Toll(NamedTuple):
    """All that several take."""

    passes: Cost = FREE
    gradient_passes: Cost = FREE

    @staticmethod
    def of(parts: "Iterable[Spending]") -> "Toll":
        toll = Toll()
        for part in parts:
            toll = Toll(toll.passes.plus(part.passes), toll.gradient_passes.plus(part.gradient_passes))
        return toll


NO_TOLL = Toll()


def price(classifier: Classifier, rows: int, *, grad: bool = False) -> Cost:
    """What it takes to ask for so many rows, or for their gradients."""
    cost = Cost(rows, rows if grad else 0)
    return cost.through(classifier) if isinstance(classifier, Spending) else cost


class Evaluation(NamedTuple):
    """What a score says about a batch: `value` [B] rises with harm, `margin` [B] > 0 means the goal is
    reached, `grad` = d value / d pixels.

    `cost` is what this one call took: a score that asks its classifier several times a row says so here, and
    whoever sums it up is right. `logits`, where the score is about labels, are for those who choose which
    label to go for.
    """

    value: Tensor
    margin: Tensor
    grad: Tensor | None
    cost: Cost = Cost()
    logits: Logits | None = None

    def rows(self, index: Tensor) -> "Evaluation":
        """Those rows alone, at no cost: the call was paid once, for all of them."""
        grad, logits = (None if part is None else part[index] for part in (self.grad, self.logits))
        return Evaluation(self.value[index], self.margin[index], grad, logits=logits)


class Score(Protocol):
    """Says per row how badly the classifier is doing. Rows are independent; `select` keeps the rows of an
    index (targets follow their pixels).
    """

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation: ...

    def select(self, rows: Tensor) -> "Score": ...


class Attacked(NamedTuple):
    """The result of an attack, a row an image.

    `pixels` [B, 3, S, S] inside the ball and the box; `value`, `margin` [B] at those pixels; `first_success`
    [B] int64, the step (over all starts) at which the goal was first reached, -1 if never; `trace_value`,
    `trace_margin` [T, B], NaN where a row had already left the batch.
    """

    pixels: Pixels
    value: Tensor
    margin: Tensor
    first_success: Tensor
    trace_value: Tensor
    trace_margin: Tensor
    cost: Cost


class Attack(Protocol):
    """Raises a score inside a ball. A frozen pydantic model: its own configuration, request schema and
    repr.
    """

    def __call__(self, score: Score, pixels: Pixels, seeds: Seeds) -> Attacked: ...


Stage: TypeAlias = Literal["pixels", "features"]


class Defense(Spending, Protocol):
    """Maps inputs to inputs of the same shape and range, row by row: a batch mate changes nothing.

    `pixels` before the image tower, `features` behind it; a chain may do `both`, and then is called in the
    parts that it has `at` each stage.
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
        """What of it works there, None if nothing does."""
        ...

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor: ...


class DefenseSpec(Protocol):
    """A defense as data (a frozen pydantic model with `kind`); `bind` gives the thing that runs, and may cost
    a pass through a tower: bind once.
    """

    @property
    def kind(self) -> str: ...

    def bind(self, encoder: ImageEncoder) -> Defense: ...


PixelFunction: TypeAlias = Callable[[Pixels, Seeds], Tensor]  # one row a picture: logits, or features
Embed: TypeAlias = Callable[[Pixels, Seeds], Features]  # through whatever stands before the image tower


class DeviceAccess(NamedTuple):
    """How work reaches a device that others use too; by default nobody else does.

    `guard` wraps every score that is attacked, `share` everything that is only evaluated, and `hold()` is
    entered around passes that are neither, such as binding a defense. No pass goes past the three.
    """

    guard: Callable[[Score], Score] = lambda score: score
    share: Callable[[PixelFunction], PixelFunction] = lambda function: function
    hold: Callable[[], AbstractContextManager[object]] = nullcontext

    def shared(self, classifier: Classifier) -> Classifier:
        """The classifier with its evaluation shared. Its cost is that of the classifier itself."""
        return _Shared(classifier.labels, self.share(classifier))


class _Shared(NamedTuple):
    labels: tuple[str, ...]
    function: PixelFunction

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        return self.function(pixels, seeds)


DIRECT = DeviceAccess()
Progress: TypeAlias = Callable[
    [int, int, str], None
]  # (done, total, what): library code reports, applications draw
