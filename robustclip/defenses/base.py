"""What defenses share: the straight-through gradient, the chain, and a base for those that work on pixels and need no model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.seeds import derive
from robustclip.types import Defense, ImageEncoder, Pixels, Seeds, Stage

Status: TypeAlias = Literal["sound", "experimental", "broken-adaptively"]
Purify: TypeAlias = Callable[[Pixels], Pixels]


def unchanged(pixels: Pixels) -> Pixels:
    """The surrogate of a defense whose output is close to its input."""
    return pixels


def straight_through(purify: Purify, pixels: Pixels, surrogate: Purify = unchanged) -> Pixels:
    """Exactly `purify(pixels)`, with the gradient of `surrogate(pixels)`: BPDA (Athalye et al. 2018, arXiv 1802.00420, section 4.1).

    The surrogate is evaluated only where a gradient is recorded: serving does not pay for it.
    """
    with torch.no_grad():
        purified = purify(pixels.detach())
    if not (torch.is_grad_enabled() and pixels.requires_grad):
        return purified
    return _Replace.apply(surrogate(pixels), purified)  # pyright: ignore[reportReturnType] - torch leaves `apply` untyped


class _Replace(torch.autograd.Function):
    """The second argument forward, the first one backward; bit for bit, which `a + (b - a).detach()` is not."""

    @staticmethod
    def forward(ctx: Any, approximate: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class PixelDefense(BaseModel):
    """A defense that is nothing but its parameters, so that the specification is also the thing that runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: ClassVar[Status]  # what an attacker who knows the defense makes of it
    cost: ClassVar[str]  # per picture, in words
    strength: ClassVar[str]  # the parameter that a number after a colon sets, as in "jpeg:75"

    @property
    def stage(self) -> Stage:
        return "pixels"

    @property
    def randomized(self) -> bool:
        return False

    @property
    def gradient(self) -> str:
        return "exact"

    def bind(self, encoder: ImageEncoder) -> Self:
        """Itself: it needs no encoder."""
        return self


@dataclass(frozen=True)
class Identity:
    """No defense."""

    stage: Stage = "pixels"
    randomized: bool = False
    gradient: str = "exact"

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        return inputs


@dataclass(frozen=True)
class Chain:
    """Defenses one after the other, each with its own stream of randomness. Raises InvalidInput for one that does not work on pixels."""

    defenses: tuple[Defense, ...]
    stage: Stage = "pixels"

    def __post_init__(self) -> None:
        for index, defense in enumerate(self.defenses):
            if defense.stage != "pixels":
                raise InvalidInput(f"a chain takes pixel defenses, found one on {defense.stage}.", field=f"defenses/{index}")

    @property
    def randomized(self) -> bool:
        return any(defense.randomized for defense in self.defenses)

    @property
    def gradient(self) -> str:
        """`none` if a link has none, else the links that are not exact, joined by `+`."""
        links = [defense.gradient for defense in self.defenses]
        inexact = dict.fromkeys(link for link in links if link != "exact")
        return "none" if "none" in links else "+".join(inexact) or "exact"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        for index, defense in enumerate(self.defenses):
            inputs = defense(inputs, derive(seeds, f"defense-{index}"))
        return inputs
