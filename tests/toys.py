"""Small classifiers of synthetic pictures, for tests that need a decision to attack and no CLIP."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.models.scoring import outcomes, with_none
from robustclip.seeds import row_normal, row_uniform
from robustclip.types import Classifier, Defense, Logits, Pixels, Seeds

TOY_SIZE = 32
TOY_LABELS = ("level", "rising", "upright", "falling")


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """weights [C, 3 * S * S] @ pixels + bias [C]: the smallest radius that breaks it is known exactly."""

    weights: Tensor
    bias: Tensor

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f"label {index}" for index in range(len(self.bias)))

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        return pixels.flatten(1) @ self.weights.T + self.bias


def linear(labels: int, size: int = 4) -> LinearClassifier:
    """Random directions without a bias, the same in every process."""
    generator = torch.Generator().manual_seed(labels)
    return LinearClassifier(torch.randn(labels, 3 * size * size, generator=generator), torch.zeros(labels))


GRAY = torch.full((3, 4, 4), 0.5)


def half_spaces(distance: float) -> LinearClassifier:
    """Two labels, separated by a plane at that L2 distance from GRAY."""
    normal = torch.randn(48, generator=torch.Generator().manual_seed(3))
    normal /= normal.norm()
    return LinearClassifier(
        torch.stack([normal, -normal]),
        torch.tensor([distance, -distance]) - torch.stack([normal, -normal]) @ GRAY.flatten(),
    )


def smallest_radius(toy: LinearClassifier, picture: Tensor, target: int, kind: str) -> float:
    """The exact radius at which some label catches up with the target, by bisection in float64."""
    x = picture.flatten().double()
    logits = toy.weights.double() @ x + toy.bias.double()
    best = float("inf")
    for other in range(len(logits)):
        v, gap = (toy.weights[other] - toy.weights[target]).double(), float(logits[target] - logits[other])
        low, high = 0.0, 1e3
        for _ in range(80) if other != target else ():
            middle = (low + high) / 2
            change = torch.clamp(middle * (v.sign() if kind == "linf" else v), -x, 1 - x)
            low, high = (low, middle) if v @ change >= gap else (middle, high)
        if other != target and high < 999:
            change = torch.clamp(high * (v.sign() if kind == "linf" else v), -x, 1 - x)
            best = min(best, float(change.abs().max() if kind == "linf" else change.norm()))
    return best


def drawn_linear(labels: int = 4, scale: float = 1.0) -> LinearClassifier:
    """A linear toy with random weights over 32 x 32 pixels."""
    generator = torch.Generator().manual_seed(labels)
    return LinearClassifier(
        scale * torch.randn(labels, 3 * 32 * 32, generator=generator) / 50, torch.zeros(labels)
    )


@dataclass(frozen=True, eq=False)
class Noisy:
    """A toy whose logits carry seeded noise of standard deviation 1."""

    classifier: LinearClassifier

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        logits = self.classifier(pixels, seeds)
        return logits + row_normal(seeds, tuple(logits.shape[1:]), like=logits)


@dataclass(frozen=True, eq=False)
class OfSigmoids:
    """A toy that decides by a sigmoid for each label, with that bias."""

    classifier: Classifier
    bias: float

    @property
    def labels(self) -> tuple[str, ...]:
        return outcomes(self.classifier.labels, "sigmoid")

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        return with_none(self.classifier(pixels, seeds) + self.bias)


@dataclass(frozen=True)
class Lottery:
    """Three draws in ten are wrong by 10 whatever the picture, the others from a brightness of 1 / 400 above
    grey.

    Up to there the mean margin over draws lies above 0, and most draws are right.
    """

    labels: tuple[str, ...] = ("dark", "bright")

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        luck = torch.where(row_uniform(seeds, (), like=pixels) < 0.3, 10.0, -1.0)
        margin = luck + 400 * (pixels.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


@dataclass(frozen=True, eq=False)
class ConvClassifier:
    """Two convolutions, the mean over places, a linear readout."""

    first: Tensor  # [F, 3, 5, 5]
    second: Tensor  # [G, F, 3, 3]
    readout: Tensor  # [C, G]
    labels: tuple[str, ...] = TOY_LABELS

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        hidden = F.conv2d(2 * pixels - 1, self.first, stride=2, padding=2).relu()
        return F.conv2d(hidden, self.second, stride=2, padding=1).relu().mean(dim=(2, 3)) @ self.readout.T


@dataclass(frozen=True, eq=False)
class Purified:
    """A toy behind a defense, as `robustclip.models.classifier.Defended` is a CLIP behind one."""

    classifier: Classifier
    defense: Defense

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        return self.classifier(self.defense(pixels, seeds), seeds)


def gratings(count: int, *, seed: int, directions: int = 4, size: int = TOY_SIZE) -> tuple[Pixels, Tensor]:
    """[count, 3, size, size] stripes in one of a few directions, on the k/255 lattice, and their class:
    learnable in a second, and attackable.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(directions, (count,), generator=generator)
    angle = targets * torch.pi / directions + 0.2 * (torch.rand(count, generator=generator) - 0.5)
    wave = 2 * torch.pi / (4 + 4 * torch.rand(count, generator=generator))  # radians a pixel
    phase = 2 * torch.pi * torch.rand(count, generator=generator)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = angle.sin()[:, None, None] * column - angle.cos()[:, None, None] * row
    stripes = (wave[:, None, None] * along + phase[:, None, None]).sin()[:, None]
    tint = 0.02 + 0.02 * torch.rand(count, 3, 1, 1, generator=generator)
    noise = 0.03 * torch.randn(count, 3, size, size, generator=generator)
    return ((0.5 + tint * stripes + noise).clamp(0, 1) * 255).round() / 255, targets


def tinted_gratings(count: int, *, seed: int) -> tuple[Pixels, Tensor]:
    """[count, 3, 16, 16] stripes in one of five directions, warm or cold: ten classes."""
    pixels, directions = gratings(count, seed=seed, directions=5, size=16)
    cold = torch.rand(count, generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    shift = (
        0.04
        * torch.tensor([1.0, 0.0, -1.0])[None, :, None, None]
        * torch.where(cold, -1, 1)[:, None, None, None]
    )
    return ((pixels + shift).clamp(0, 1) * 255).round() / 255, directions + 5 * cold


@cache
def trained_conv() -> ConvClassifier:
    """A ConvClassifier that knows the gratings: the same in every process, about a second to train."""
    return _trained(gratings, TOY_LABELS, steps=60)


@cache
def trained_conv_of_ten() -> ConvClassifier:
    """A ConvClassifier that knows the tinted gratings."""
    return _trained(
        tinted_gratings,
        tuple(f"{tint} {angle}" for tint in ("warm", "cold") for angle in range(0, 180, 36)),
        steps=200,
    )


def _trained(
    draw: Callable[..., tuple[Pixels, Tensor]], labels: tuple[str, ...], *, steps: int
) -> ConvClassifier:
    generator = torch.Generator().manual_seed(7)
    shapes = {"first": (16, 3, 5, 5), "second": (32, 16, 3, 3), "readout": (len(labels), 32)}
    weights = {
        name: torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        for name, shape in shapes.items()
    }
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), lr=0.01)
    for step in range(steps):
        pixels, targets = draw(64, seed=1000 + step)
        size = pixels.shape[-1]
        left, right, top, bottom = torch.randint(4, (4,), generator=generator).tolist()
        pixels = F.pad(
            pixels[:, :, top : size - bottom, left : size - right], (left, right, top, bottom)
        )  # black borders mean nothing
        loss = F.cross_entropy(4 * ConvClassifier(**weights)(pixels, targets), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ConvClassifier(**{name: weight.detach() for name, weight in weights.items()}, labels=labels)
