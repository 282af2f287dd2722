"""The threat model: a ball of changes around a picture, cut by the box [0, 1].

Radii are in pixel units of [0, 1], written like "4/255". A radius belongs to the ball, or to each row
(`radius=` [B]) when the rows of a batch are one picture at several radii.
"""

import math
import re
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.seeds import derive, row_normal, row_uniform
from robustclip.types import Pixels, Seeds

Norm: TypeAlias = Literal["linf", "l2"]

LEVELS = 255
MAX_L2_RADIUS = 10_000.0  # longer than the diagonal of a picture of 3000 pixels a side
_NO_DIRECTION = 1e-12  # a shorter gradient has no direction
_LEVEL_SLACK = 1e-5  # levels; a radius of n/255 kept in float32 is up to 4e-6 levels short of n
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d{1,3}))?\s*(?:/\s*(\d{1,6})\s*)?", re.ASCII)


def parse_radius(text: str | float, field: str = "radius") -> float:
    """A radius in pixel units from "4/255", "0.0157" or a number. Raises InvalidInput for NaN, infinity,
    negatives and other text.
    """
    radius = _number(text)
    if radius is None:
        raise InvalidInput(
            f"expected a radius of 0 or more, found {text!r:.40}.",
            field=field,
            help='Write it like "4/255" or 0.0157.',
        )
    return radius


def radius_text(radius: float, norm: Norm = "linf") -> str:
    """A radius as text: "4/255", or "0.5" and "0" if that is short and exact; for L2 three digits, "1.33"."""
    decimal = f"{radius:.3g}"
    return decimal if norm == "l2" or float(decimal) == radius else f"{radius * LEVELS:.6g}/{LEVELS}"


def _number(text: object) -> float | None:
    if isinstance(text, str):
        match = _NUMBER.fullmatch(text) if len(text) <= 40 else None
        if match is None or int(match[3] or 1) == 0:
            return None
        value = float(f"{match[1]}e{match[2] or 0}") / int(match[3] or 1)
    elif isinstance(text, int | float) and not isinstance(text, bool):
        value = float(text) if abs(text) < 1e300 else math.inf
    else:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _validate(value: object, info: ValidationInfo) -> float:
    radius = _number(value)
    if radius is None:
        raise PydanticCustomError(
            "radius",
            '{field} must be a number of 0 or more, like "4/255" or 0.0157',
            {"field": info.field_name or "radius"},
        )
    return radius


def _schema(maximum: float) -> WithJsonSchema:
    fraction = r"^[0-9]{1,2}(\.[0-9]{1,4})?/255$"
    schemas: list[dict[str, Any]] = [
        {"type": "number", "minimum": 0, "maximum": maximum},
        {"type": "string", "pattern": fraction},
    ]
    return WithJsonSchema({"anyOf": schemas, "examples": ["4/255", 0.0157]}, mode="validation")


Radius: TypeAlias = Annotated[float, BeforeValidator(_validate), Field(ge=0), _schema(MAX_L2_RADIUS)]
LinfRadius: TypeAlias = Annotated[float, BeforeValidator(_validate), Field(ge=0, le=1), _schema(1.0)]
L2Radius: TypeAlias = Annotated[
    float, BeforeValidator(_validate), Field(ge=0, le=MAX_L2_RADIUS), _schema(MAX_L2_RADIUS)
]


class Linf(BaseModel):
    """No value changes by more than `radius`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["linf"] = "linf"
    radius: LinfRadius

    def sample(
        self, origin: Pixels, seeds: Seeds, *, one_sided: bool = False, radius: Tensor | None = None
    ) -> Pixels:
        """Uniform in the ball, a draw a row; `one_sided`: only brighter, U[0, radius)."""
        noise = row_uniform(seeds, tuple(origin.shape[1:]), like=origin)
        return self.project(
            origin + self._radius(radius, origin) * (noise if one_sided else 2 * noise - 1),
            origin,
            radius=radius,
        )

    def ascend(self, pixels: Pixels, gradient: Tensor, step: float | Tensor) -> Pixels:
        """One step of length `step` (or [B]) up the gradient's signs. Entries without a sign (0, NaN)
        stay.
        """
        return pixels + _column(step, pixels) * gradient.sign().nan_to_num(0.0)

    def project(self, pixels: Pixels, origin: Pixels, *, radius: Tensor | float | None = None) -> Pixels:
        """The nearest point in ball and box."""
        limit = self._radius(radius, origin)
        return pixels.clamp(origin - limit, origin + limit).clamp(0.0, 1.0)

    def shrink(self, pixels: Pixels, origin: Pixels, radius: Tensor | float) -> Pixels:
        """The pixels brought into a ball of another radius around the same origin."""
        return self.project(pixels, origin, radius=radius)

    def distance(self, pixels: Pixels, origin: Pixels) -> Tensor:
        """[B] the largest change of any value."""
        return (pixels - origin).flatten(1).abs().amax(dim=1)

    def to_uint8(self, pixels: Pixels, origin: Pixels, *, radius: Tensor | None = None) -> Pixels:
        """The picture that a PNG can hold: rounded to k/255, then into the integer ball |k - k0| <= floor(255
        radius) around the rounded origin.
        """
        center = _levels(origin)
        limit = (self._radius(radius, origin) * LEVELS + _LEVEL_SLACK).floor()
        return _levels(pixels).clamp(center - limit, center + limit).clamp(0, LEVELS) / LEVELS

    def _radius(self, radius: Tensor | float | None, like: Tensor) -> Tensor:
        return _column(self.radius if radius is None else radius, like)


class L2(BaseModel):
    """The Euclidean length of the change, over all 3 * S * S values, is at most `radius`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["l2"] = "l2"
    radius: L2Radius

    def sample(
        self, origin: Pixels, seeds: Seeds, *, one_sided: bool = False, radius: Tensor | None = None
    ) -> Pixels:
        """Uniform in the ball (a Gaussian direction of length radius * u^(1/d)), then into the box;
        `one_sided`: only brighter.
        """
        direction = row_normal(derive(seeds, "direction"), tuple(origin.shape[1:]), like=origin)
        direction = direction.abs() if one_sided else direction
        share = row_uniform(derive(seeds, "length"), (1, 1, 1), like=origin) ** (1 / origin.shape[1:].numel())
        return self.project(
            origin + self._radius(radius, origin) * share * direction / _length(direction),
            origin,
            radius=radius,
        )

    def ascend(self, pixels: Pixels, gradient: Tensor, step: float | Tensor) -> Pixels:
        """One step of length `step` (or [B]) along the gradient. Rows without a direction (shorter than
        1e-12, not finite) stay.
        """
        length = _length(gradient)
        clear = (length >= _NO_DIRECTION) & length.isfinite()
        return pixels + torch.where(clear, _column(step, pixels) * gradient / length, 0.0)

    def project(self, pixels: Pixels, origin: Pixels, *, radius: Tensor | float | None = None) -> Pixels:
        """Scaled into the ball, then clamped to the box, which can only shorten the change."""
        change = pixels - origin
        length = _length(change)
        limit = self._radius(radius, origin)
        inside = torch.where(length > limit, change * (limit / length.clamp_min(_NO_DIRECTION)), change)
        return (origin + inside).clamp(0.0, 1.0)

    def shrink(self, pixels: Pixels, origin: Pixels, radius: Tensor | float) -> Pixels:
        """The pixels brought into a ball of another radius around the same origin."""
        return self.project(pixels, origin, radius=radius)

    def distance(self, pixels: Pixels, origin: Pixels) -> Tensor:
        """[B] the Euclidean length of the change."""
        return _length(pixels - origin).flatten()

    def to_uint8(self, pixels: Pixels, origin: Pixels, *, radius: Tensor | None = None) -> Pixels:
        """The picture that a PNG can hold: rounded to k/255; rows that rounding put outside the ball go
        toward the origin until they are inside.
        """
        center = _levels(origin)
        limit = self._radius(radius, origin) * LEVELS + _LEVEL_SLACK
        change = pixels * LEVELS - center
        rounded = (center + change).round().clamp(0, LEVELS)
        while bool((outside := (length := _length(rounded - center)) > limit).any()):
            # this ends: below half a level everything rounds to the origin
            factor = (limit / length.clamp_min(_NO_DIRECTION)).clamp_max(0.99)
            change = torch.where(outside, change * factor, change)
            rounded = torch.where(outside, (center + change).round().clamp(0, LEVELS), rounded)
        return rounded / LEVELS

    def _radius(self, radius: Tensor | float | None, like: Tensor) -> Tensor:
        return _column(self.radius if radius is None else radius, like)


BallSpec: TypeAlias = Annotated[Linf | L2, Field(discriminator="kind")]


def _levels(pixels: Pixels) -> Tensor:
    return (pixels * LEVELS).round()


def _length(change: Tensor) -> Tensor:
    return torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    """[B or 1, 1, 1, 1], to stand beside pixels."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1, 1, 1)
