"""Symptoms of a false result: each check is a number, a threshold and a sentence. A hard flag that fires forbids any claim of robustness.

The identifiers are those of ROBUSTNESS.md section 3. Checks look at a victim through scores; they know neither prompts nor pictures' meaning.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from robustclip.seeds import derive, row_uniform
from robustclip.threat import BallSpec, Linf
from robustclip.types import Attack, Classifier, Cost, Pixels, Score, Seeds

Severity = Literal["hard", "soft"]

_DIRECTIONS = 16
_STEP = 0.25 / 255


def charged_passes(eot: int) -> int:
    """Upper bound of what all checks but M13 cost, in charged passes, when a gradient averages `eot` draws."""
    per_draw = 3 + 3 + 8  # M1, M2 through the defense, M7
    return per_draw * eot + 3 + (3 + 2 * _DIRECTIONS) + 5 + 9  # M2 without the defense, M3, M9 and M10, M12


class Diagnostic(BaseModel):
    """One symptom: `fired` says whether `number` crossed `threshold`, `sentence` says what that means to a reader."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    fired: bool
    severity: Severity
    number: float
    threshold: float
    sentence: str


def gradient_present(score: Score, pixels: Pixels, seeds: Seeds) -> tuple[Diagnostic, Cost]:
    """M1: the share of exactly zero gradient entries at a random neighbour of the pixels (the start itself may be a stationary point)."""
    near = Linf(radius=1 / 255).sample(pixels, derive(seeds, "gradient"))
    evaluation = score(near, seeds, grad=True)
    gradient = torch.zeros_like(near) if evaluation.grad is None else evaluation.grad
    share = (gradient == 0).float().mean().item()
    return _diagnostic("M1", "zero gradient", share > 0.01, "hard", share, 0.01, "share of gradient entries that are exactly zero"), evaluation.cost


def gradient_scale(defended: Score, undefended: Score, pixels: Pixels, seeds: Seeds) -> tuple[Diagnostic, Cost]:
    """M2: the norm of the gradient through the defense over the norm without it."""
    through, without = defended(pixels, seeds, grad=True), undefended(pixels, seeds, grad=True)
    norms = [0.0 if part.grad is None else part.grad.norm().item() for part in (through, without)]
    ratio = norms[0] / max(norms[1], 1e-30)
    fired = not 1e-4 <= ratio <= 1e4
    return _diagnostic(
        "M2", "gradient scale", fired, "soft", ratio, 1e-4, "gradient norm through the defense over the norm without it"
    ), through.cost.plus(without.cost)


def gradient_true(score: Score, pixels: Pixels, seeds: Seeds) -> tuple[Diagnostic, Cost]:
    """M3: correlation of autograd with central differences (0.25/255) along 16 random sign directions; for gradients declared exact."""
    evaluation = score(pixels, seeds, grad=True)
    gradient = torch.zeros_like(pixels) if evaluation.grad is None else evaluation.grad
    streams = torch.cat([derive(seeds, f"direction-{index}") for index in range(_DIRECTIONS)])
    directions = (row_uniform(streams, tuple(pixels.shape[1:]), like=pixels) - 0.5).sign()
    rows = torch.zeros(_DIRECTIONS, dtype=torch.int64, device=pixels.device)
    ahead = score.select(rows)(pixels + _STEP * directions, seeds.repeat(_DIRECTIONS), grad=False)
    behind = score.select(rows)(pixels - _STEP * directions, seeds.repeat(_DIRECTIONS), grad=False)
    measured = (ahead.value - behind.value) / (2 * _STEP)
    predicted = (gradient * directions).flatten(1).sum(dim=1)
    correlation = _correlation(measured, predicted)
    cost = evaluation.cost.plus(ahead.cost).plus(behind.cost)
    return _diagnostic(
        "M3", "wrong gradient", correlation < 0.5, "hard", correlation, 0.5, "correlation of the gradient with finite differences"
    ), cost


def transfer_weaker(static_success: bool, adaptive_success: bool) -> Diagnostic:
    """M5: an attack that does not know the defense must not succeed where one that does fails."""
    fired = static_success and not adaptive_success
    return _diagnostic(
        "M5", "transfer beats adaptive", fired, "hard", float(fired), 0.5, "1 if the static attack succeeded where the adaptive failed"
    )


def noise_weaker(score: Score, pixels: Pixels, seeds: Seeds, ball: BallSpec, adaptive_success: bool, *, draws: int = 8) -> tuple[Diagnostic, Cost]:
    """M7: random noise of the same radius must not succeed where gradients fail."""
    streams = torch.cat([derive(seeds, f"noise-{index}") for index in range(draws)])
    rows = torch.zeros(draws, dtype=torch.int64, device=pixels.device)
    noisy = ball.sample(pixels[rows], streams)
    evaluation = score.select(rows)(noisy, streams, grad=False)
    share = (evaluation.margin > 0).float().mean().item()
    fired = share > 0 and not adaptive_success
    return _diagnostic("M7", "noise beats gradient", fired, "hard", share, 0.0, f"share of {draws} noisy copies that reach the goal"), evaluation.cost


def randomness(classifier: Classifier, pixels: Pixels, seeds: Seeds, *, declared: bool, eot: int, draws: int = 5) -> tuple[list[Diagnostic], Cost]:
    """M9: logits differ between draws and the attack averaged none. M10: declared randomized, yet the draws are identical."""
    streams = torch.cat([derive(seeds, f"draw-{index}") for index in range(draws)])
    with torch.no_grad():
        logits = classifier(pixels.expand(draws, -1, -1, -1), streams)
    spread = (logits - logits[:1]).abs().max().item()
    return [
        _diagnostic(
            "M9",
            "one draw is not enough",
            spread > 1e-4 and eot < 2,
            "hard",
            spread,
            1e-4,
            "largest change of a logit between draws, attacked without averaging",
        ),
        _diagnostic(
            "M10",
            "fixed randomness",
            declared and spread == 0,
            "hard",
            spread,
            0.0,
            "change of a logit between draws of a defense declared randomized",
        ),
    ], Cost(draws, 0)


def rows_independent(classifier: Classifier, pixels: Pixels, seeds: Seeds, *, mates: int = 7) -> tuple[Diagnostic, Cost]:
    """M12: the logits of a row alone and among seven noisy neighbours."""
    neighbours = row_uniform(torch.cat([derive(seeds, f"mate-{index}") for index in range(mates)]), tuple(pixels.shape[1:]), like=pixels)
    with torch.no_grad():
        alone = classifier(pixels, seeds)
        among = classifier(torch.cat([pixels, neighbours]), torch.cat([seeds, derive(seeds.repeat(mates), "mates")]))[:1]
    change = (alone - among).abs().max().item()
    return _diagnostic("M12", "batch coupling", change > 1e-3, "hard", change, 1e-3, "change of a logit when the picture has batch mates"), Cost(
        mates + 2, 0
    )


def unbounded_succeeds(attack: Attack, score: Score, pixels: Pixels, seeds: Seeds) -> tuple[Diagnostic, Cost]:
    """M13: with a radius of 64/255 nothing stands; an attack that fails there is the attack's failure."""
    attacked = attack(score, pixels, seeds)
    failed = bool((attacked.margin <= 0).any())
    return _diagnostic(
        "M13", "unbounded attack fails", failed, "hard", float(failed), 0.5, "1 if even a radius of 64/255 changed nothing"
    ), attacked.cost


def _correlation(first: Tensor, second: Tensor) -> float:
    first, second = first - first.mean(), second - second.mean()
    return (first @ second / (first.norm() * second.norm()).clamp_min(1e-30)).item()


def _diagnostic(id: str, name: str, fired: bool, severity: Severity, number: float, threshold: float, sentence: str) -> Diagnostic:
    return Diagnostic(id=id, name=name, fired=fired, severity=severity, number=number, threshold=threshold, sentence=sentence)
