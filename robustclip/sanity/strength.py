"""Does a weaker attack succeed where a stronger one fails? Then the stronger one was not strong."""

from collections.abc import Sequence

import torch

from robustclip.attacks import PGD, Noise, Square
from robustclip.sanity.symptoms import (
    BLACK_BOX_BEATS_WHITE_BOX,
    HALF_STEPS,
    NOISE_BEATS_GRADIENT,
    NOISY_COPIES,
    NOT_MONOTONE,
    QUERIES,
    TRANSFER_BEATS_ADAPTIVE,
    UNBOUNDED_ATTACK_FAILS,
    Diagnostic,
    Finding,
    GoalCheck,
    Suspicion,
    at_its_word,
    draws_of,
)
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import Attack, Cost, Pixels, Score, Seeds


def transfer_beats_adaptive(transfer_success: bool, adaptive_success: bool) -> Diagnostic:
    """M5: an attack that ignores the defense must not succeed where one that knows it fails."""
    fired = transfer_success and not adaptive_success
    return TRANSFER_BEATS_ADAPTIVE.seen(float(fired), fired)


def black_box_beats_white_box(black_box_success: bool, adaptive_success: bool) -> Diagnostic:
    """M6: an attack without gradients must not succeed where one with gradients fails."""
    fired = black_box_success and not adaptive_success
    return BLACK_BOX_BEATS_WHITE_BOX.seen(float(fired), fired)


def square_beats_white_box(
    score: Score, pixels: Pixels, seeds: Seeds, ball: BallSpec, judge: GoalCheck = at_its_word
) -> Finding:
    """M6 where gradients failed and no black-box attack was run: Square with 64 queries."""
    attack = Square(ball=ball, queries=QUERIES)
    attacked = attack(score, pixels, derive(seeds, "square"))
    reached, cost = judge(attacked.pixels, attacked.margin)
    found = bool(reached.any())
    suspicion = Suspicion(attacked.pixels, attack, draws_of(score)) if found else None
    return Finding(
        black_box_beats_white_box(found, adaptive_success=False), attacked.cost.plus(cost), suspicion
    )


def noise_beats_gradient(
    score: Score,
    pixels: Pixels,
    seeds: Seeds,
    ball: BallSpec,
    adaptive_success: bool,
    judge: GoalCheck = at_its_word,
) -> Finding:
    """M7: random noise of the same radius must not succeed where gradients fail."""
    streams = torch.cat([derive(seeds, f"noise-{index}") for index in range(NOISY_COPIES)])
    rows = torch.zeros(NOISY_COPIES, dtype=torch.int64, device=pixels.device)
    noisy = ball.sample(pixels[rows], streams)
    seen = score.select(rows)(noisy, streams, grad=False)
    share = (seen.margin > 0).float().mean().item()
    if adaptive_success or share <= NOISE_BEATS_GRADIENT.threshold:
        return Finding(NOISE_BEATS_GRADIENT.seen(share, fired=False), seen.cost)
    best = seen.margin.argmax().reshape(1)
    reached, cost = judge(noisy[best], seen.margin[best])
    found = bool(reached.any())
    suspicion = (
        Suspicion(noisy[best], Noise(ball=ball, draws=NOISY_COPIES), draws_of(score)) if found else None
    )
    return Finding(NOISE_BEATS_GRADIENT.seen(share, found), seen.cost.plus(cost), suspicion)


def not_monotone(reached: Sequence[bool]) -> Diagnostic:
    """M8: of attacks in rising order of radius or steps, none may fail after a weaker one succeeded."""
    lost = sum(any(reached[:index]) and not success for index, success in enumerate(reached))
    return NOT_MONOTONE.seen(float(lost), lost > NOT_MONOTONE.threshold)


def half_way(ball: BallSpec) -> PGD:
    """PGD with five steps from a random point in half the radius."""
    return PGD(
        ball=ball.model_copy(update={"radius": ball.radius / 2}),
        steps=HALF_STEPS,
        starts=("random",),
        stop="never",
    )


def single_step(ball: BallSpec) -> PGD:
    """One step of the whole radius from the picture (FGSM)."""
    return PGD(ball=ball, steps=1, step=ball.radius or None, starts=("zero",), stop="never")


def unbounded_attack_fails(
    attack: Attack, score: Score, pixels: Pixels, seeds: Seeds
) -> tuple[Diagnostic, Cost]:
    """M13: no decision withstands a radius of 64/255; an attack that fails there is at fault itself."""
    attacked = attack(score, pixels, seeds)
    failed = bool((attacked.margin <= 0).any())
    return UNBOUNDED_ATTACK_FAILS.seen(float(failed), failed), attacked.cost
