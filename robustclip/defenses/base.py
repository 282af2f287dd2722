"""What defenses share: declaration and binding, the chain, the straight-through gradient, two transforms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.models import Clip
from robustclip.purifiers import NamedNetwork
from robustclip.seeds import derive
from robustclip.types import NO_TOLL, Defense, ImageEncoder, Pixels, Seeds, Stage, Toll

Status: TypeAlias = Literal["sound", "experimental", "broken-adaptively"]
Purify: TypeAlias = Callable[[Pixels], Pixels]


def unchanged(pixels: Pixels) -> Pixels:
    """The surrogate gradient of a defense whose output is close to its input."""
    return pixels


def straight_through(purify: Purify, pixels: Pixels, surrogate: Purify = unchanged) -> Pixels:
    """Exactly `purify(pixels)`, with the gradient of `surrogate(pixels)`.

    This is BPDA (Athalye et al. 2018, arXiv 1802.00420, section 4.1). The surrogate runs only where a
    gradient is recorded, so serving does not pay for it.
    """
    with torch.no_grad():
        purified = purify(pixels.detach())
    if not (torch.is_grad_enabled() and pixels.requires_grad):
        return purified
    return _Replace.apply(surrogate(pixels), purified)  # pyright: ignore[reportReturnType] - torch leaves `apply` untyped


class _Replace(torch.autograd.Function):
    """Forward the second argument, backward the first, bit for bit; `a + (b - a).detach()` rounds."""

    @staticmethod
    def forward(ctx: Any, approximate: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Declared(BaseModel):
    """The parameters of a defense, and its properties before it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    status: ClassVar[Status]  # against an attacker who knows the defense
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

    @property
    def networks(self) -> tuple[NamedNetwork, ...]:
        """The purifying networks that it runs: an answer depends on their weights, not only on names."""
        return ()

    @property
    def toll(self) -> Toll:
        return NO_TOLL


class PixelDefense(Declared):
    """A defense that is nothing but its parameters: the specification is also what runs."""

    def bind(self, encoder: ImageEncoder) -> Self:
        """Itself: it needs no encoder."""
        return self

    def at(self, stage: Stage) -> Self | None:
        return self if stage == self.stage else None


@runtime_checkable
class _OfClip(Protocol):
    @property
    def clip(self) -> Clip: ...


def clip_of(encoder: ImageEncoder) -> Clip:
    """The CLIP that an encoder runs, with torch's gradients and text tower. InvalidInput if it has none."""
    if not isinstance(encoder, _OfClip):
        raise InvalidInput(
            f"this defense needs the CLIP behind the encoder, and {encoder.backend} names none.",
            field="encoder",
        )
    return encoder.clip


@dataclass(frozen=True, eq=False)
class Identity:
    """No defense."""

    stage: Stage = "pixels"
    randomized: bool = False
    gradient: str = "exact"
    toll: Toll = NO_TOLL

    def at(self, stage: Stage) -> Self | None:
        return self if stage == self.stage else None

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        return inputs


@dataclass(frozen=True, eq=False)
class Bound(Identity):
    """A defense that needs a CLIP, after `bind`: the properties of its specification, and what runs."""

    run: Callable[[Tensor, Seeds], Tensor] = field(kw_only=True)

    @classmethod
    def of(cls, spec: Declared, run: Callable[[Tensor, Seeds], Tensor]) -> Self:
        return cls(spec.stage, spec.randomized, spec.gradient, spec.toll, run=run)

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        return self.run(inputs, seeds)


@dataclass(frozen=True)
class Chain:
    """Defenses in a row, those on features last, each with its own stream of random numbers.

    They compute in float32 under autocast, too (float64 stays), and answer in the type of their inputs: an
    attack that searches in bfloat16 faces the same purifier. A chain on both stages is called in parts
    (`at`). Raises InvalidInput for a defense on pixels behind one on features.
    """

    defenses: tuple[Defense, ...]

    def __post_init__(self) -> None:
        check_order([defense.stage for defense in self.defenses], "defenses")

    @property
    def stage(self) -> Stage | Literal["both"]:
        stages = {defense.stage for defense in self.defenses}
        return "pixels" if stages <= {"pixels"} else "features" if stages == {"features"} else "both"

    @property
    def randomized(self) -> bool:
        return any(defense.randomized for defense in self.defenses)

    @property
    def gradient(self) -> str:
        """`none` if one defense has none; else all that are not exact, joined by `+`."""
        links = [defense.gradient for defense in self.defenses]
        inexact = dict.fromkeys(link for link in links if link != "exact")
        return "none" if "none" in links else "+".join(inexact) or "exact"

    @property
    def toll(self) -> Toll:
        return Toll.of(defense.toll for defense in self.defenses)

    def at(self, stage: Stage) -> "Chain | None":
        links = tuple(defense for defense in self.defenses if defense.stage == stage)
        return Chain(links) if links else None

    def __call__(self, inputs: Tensor, seeds: Seeds) -> Tensor:
        if self.stage == "both":
            raise InvalidInput(
                "this chain works on pixels and on features; call it in two parts.", field="defenses"
            )
        stream = "defense" if self.stage == "pixels" else "features-defense"
        with torch.autocast(inputs.device.type, enabled=False):
            outputs = inputs if inputs.dtype == torch.float64 else inputs.float()
            for index, defense in enumerate(self.defenses):
                outputs = defense(outputs, derive(seeds, f"{stream}-{index}"))
        return outputs.to(inputs.dtype)


def check_order(stages: Sequence[str], field: str) -> None:
    """InvalidInput if a defense on pixels follows one on features; the field names it."""
    for index, (before, after) in enumerate(pairwise(stages), start=1):
        if (before, after) == ("features", "pixels"):
            raise InvalidInput(
                "works on pixels, found behind one on features.",
                field=f"{field}/{index}",
                help="Put defenses on pixels first: the tower lies between.",
            )


_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def to_ycbcr(pixels: Pixels) -> Tensor:
    """[B, 3, H, W] brightness and two colors around 0, in the units of the pixels (ITU-T T.871)."""
    return _mix(pixels, _TO_YCBCR)


def to_rgb(planes: Tensor) -> Pixels:
    """The inverse of `to_ycbcr`, to six digits."""
    return _mix(planes, _TO_RGB)


def _mix(planes: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("oc,bchw->bohw", torch.tensor(matrix).to(planes), planes)


def cosines(size: int) -> Tensor:
    """[size, size] the orthonormal cosine transform (DCT-II); row k has k / (2 size) cycles a sample."""
    frequency, sample = torch.arange(size)[:, None], torch.arange(size)[None, :]
    waves = torch.cos(torch.pi * (sample + 0.5) * frequency / size) * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves
