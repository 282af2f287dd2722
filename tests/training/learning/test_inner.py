import pytest
import torch
from torch.nn import functional as F

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.seeds import draw_seeds
from robustclip.types import Cost, Pixels
from training.learning.losses import (
    Opponent,
    climb,
    consistency_loss,
    drawn_start,
    keep_change,
    kept_start,
    label_loss,
)

LABELS = ("cat", "dog", "fire salamander")
EPS = 4 / 255
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def pixels() -> Pixels:
    return (torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).round() / 255


def opponent(clip: Clip, precision: str) -> Opponent:
    visual = 0.1 * torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(1))
    return Opponent(
        clip, text_weights(clip, Prompts(), LABELS), visual, "bf16" if precision == "bf16" else "float32"
    )


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("score", ["cross_entropy", "kl"])
def test_climbing_stays_in_ball_and_box_and_does_harm(tiny: Clip, precision: str, score: str) -> None:
    origin, enemy = pixels(), opponent(tiny, precision)
    exact = opponent(tiny, "float32")
    loss = (
        label_loss(enemy, TARGETS)
        if score == "cross_entropy"
        else consistency_loss(enemy, exact.logits(origin))
    )
    start = drawn_start(origin, draw_seeds(3, 8), EPS)
    attacked, cost = climb(loss, origin, start, eps=EPS, step=2 * EPS / 3, steps=3)
    assert cost == Cost(24, 24)
    assert not attacked.requires_grad
    assert float((attacked - origin).abs().max()) <= EPS + 1e-6
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    judge = (
        label_loss(exact, TARGETS)
        if score == "cross_entropy"
        else consistency_loss(exact, exact.logits(origin))
    )
    with torch.no_grad():
        before, after = judge(origin), judge(attacked)
    assert bool((after >= before - 1e-6).all())  # a row may be too sure for a gradient
    assert float(after.mean()) > float(before.mean()) + 1


def test_bfloat16_finds_nearly_as_much_harm_as_float32(tiny: Clip) -> None:
    origin, harm = pixels(), dict[str, float]()
    for precision in ("bf16", "float32"):
        start = drawn_start(origin, draw_seeds(3, 8), EPS)
        attacked, _ = climb(
            label_loss(opponent(tiny, precision), TARGETS), origin, start, eps=EPS, step=2 * EPS / 3, steps=3
        )
        with torch.no_grad():
            harm[precision] = float(label_loss(opponent(tiny, "float32"), TARGETS)(attacked).mean())
    assert harm["bf16"] > 0.9 * harm["float32"]


def test_the_frozen_clip_gets_no_gradients(tiny: Clip) -> None:
    climb(label_loss(opponent(tiny, "bf16"), TARGETS), pixels(), pixels(), eps=EPS, step=EPS, steps=1)
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def test_a_step_is_what_a_plain_computation_takes(tiny: Clip) -> None:
    origin, enemy = pixels(), opponent(tiny, "float32")
    attacked, _ = climb(label_loss(enemy, TARGETS), origin, origin.clone(), eps=EPS, step=EPS / 2, steps=1)
    moving = origin.clone().requires_grad_()
    F.cross_entropy(enemy.logits(moving), TARGETS, reduction="sum").backward()
    assert moving.grad is not None
    torch.testing.assert_close(attacked, (origin + EPS / 2 * moving.grad.sign()).clamp(0, 1))


def test_radius_zero_costs_nothing_and_changes_nothing(tiny: Clip) -> None:
    attacked, cost = climb(
        label_loss(opponent(tiny, "bf16"), TARGETS), pixels(), pixels(), eps=0.0, step=0.1, steps=5
    )
    assert torch.equal(attacked, pixels())
    assert cost == Cost()


def test_a_kept_change_comes_back_within_half_a_unit() -> None:
    origin = pixels()
    attacked = drawn_start(origin, draw_seeds(0, 8), EPS)
    kept = keep_change(attacked, origin, EPS)
    assert kept.dtype == torch.int8
    assert float((kept_start(origin, kept, EPS) - attacked).abs().max()) <= 0.5 * EPS / 127 + 1e-6
