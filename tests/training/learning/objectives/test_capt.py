from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from tuning import bench

from robustclip.errors import RobustClipError
from robustclip.models.classifier import text_weights, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from training.learning.losses import divergence
from training.learning.objectives import CAPT
from training.learning.objectives.capt import FROZEN
from training.learning.objectives.pictures import opponent_of
from training.learning.objectives.predictions import look

CLEAN = torch.tensor([[2.0, 0.0], [0.0, 2.0], [9.0, 0.0]])
FROZEN_LOGITS = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-9.0, 0.0]])


@pytest.mark.parametrize("order", ["forward", "reverse", "jensen_shannon"])
def test_the_loss_is_its_formula(tiny: Clip, picture_folder: Path, tmp_path: Path, order: str) -> None:
    made = bench(
        tiny, picture_folder, tmp_path, "capt", eps="4/255", order=order, alpha_rule="constant", alpha=0.3
    )
    prompts = made.objective.fold(tiny, made.parameters)
    weights = text_weights(tiny, prompts, made.task.labels)
    clean = look(made.task, made.batch.inputs, weights, prompts.visual, count=6)
    pixels, _ = made.objective.perturb(
        made.task, made.batch, made.batch.inputs, opponent_of(made.objective, tiny, weights, prompts)
    )
    attacked = look(made.task, pixels, weights, prompts.visual, count=6)
    own = divergence(clean.logits.detach(), attacked.logits, order)
    frozen = divergence(made.task.examples.constants[FROZEN], attacked.logits, order)
    expected = F.cross_entropy(clean.logits, made.batch.targets) + 1.5 * (0.7 * own + 0.3 * frozen).mean()
    torch.testing.assert_close(torch.stack(list(made.step().losses.values())).sum(), expected)


def test_the_anchor_is_the_tower_without_prompts_under_its_own_words(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    for options, prompts in (
        ({}, Prompts()),
        ({"frozen_template": "{} texture."}, Prompts(templates=("{} texture.",))),
    ):
        made = bench(tiny, picture_folder, tmp_path, "capt", **options)
        expected = zero_shot(tiny, prompts, made.task.labels)(made.batch.inputs, made.batch.seeds)
        torch.testing.assert_close(made.task.examples.constants[FROZEN], expected)
        assert made.task.examples.cost.forward == 6


def test_the_anchor_can_be_another_clip(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    named = bench(tiny, picture_folder, tmp_path, "capt", frozen_backbone="tiny", frozen_text="ensemble")
    assert named.task.examples.constants[FROZEN].shape == (6, 3)
    with pytest.raises(RobustClipError):
        bench(tiny, picture_folder, tmp_path, "capt", frozen_backbone="no-such-clip")


def balance(tiny: Clip, folder: Path, cache: Path, **options: object) -> torch.Tensor:
    made = bench(tiny, folder, cache, "capt", **options)
    made = made._replace(batch=made.batch._replace(targets=torch.zeros(3, dtype=torch.int64), epoch=25.0))
    return made.objective.balance(made.task, made.batch, CLEAN, FROZEN_LOGITS)


def test_reliability_trusts_whoever_is_right(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    ours, theirs = CLEAN.softmax(dim=1)[:, 0], FROZEN_LOGITS.softmax(dim=1)[:, 0]
    alpha = balance(tiny, picture_folder, tmp_path)
    torch.testing.assert_close(alpha[:2], theirs[:2] / (theirs[:2] + ours[:2]))
    assert float(alpha[0]) < 0.5 < float(alpha[1])
    assert float(alpha[2]) == pytest.approx(0.05)


def test_the_loss_ratio_is_averaged_over_steps(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    made = bench(tiny, picture_folder, tmp_path, "capt", alpha_rule="loss_ratio")
    batch = made.batch._replace(targets=torch.zeros(3, dtype=torch.int64))
    ours, theirs = F.cross_entropy(CLEAN, batch.targets), F.cross_entropy(FROZEN_LOGITS, batch.targets)
    first = made.objective.balance(made.task, batch, CLEAN, FROZEN_LOGITS)
    torch.testing.assert_close(first, (ours / (ours + theirs)).clamp(0.05, 0.95).expand(3))
    second = made.objective.balance(made.task, batch, FROZEN_LOGITS, CLEAN)
    torch.testing.assert_close(
        second, (0.9 * ours / (ours + theirs) + 0.1 * theirs / (ours + theirs)).clamp(0.05, 0.95).expand(3)
    )


def test_the_schedule_falls_from_the_frozen_clip_toward_alpha(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    alpha = balance(tiny, picture_folder, tmp_path, alpha_rule="cosine", alpha=0.2, epochs=50)
    torch.testing.assert_close(alpha, torch.full((3,), (0.95 + 0.2) / 2))


def test_a_constant_is_not_clipped(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    assert balance(tiny, picture_folder, tmp_path, alpha_rule="constant", alpha=1).tolist() == [1, 1, 1]


def test_alpha_is_detached_unless_asked(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    for detach in (True, False):
        made = bench(tiny, picture_folder, tmp_path, "capt", detach_alpha=detach)
        clean = CLEAN.clone().requires_grad_()
        batch = made.batch._replace(targets=torch.zeros(3, dtype=torch.int64))
        assert made.objective.balance(made.task, batch, clean, FROZEN_LOGITS).requires_grad is not detach


def test_a_step_notes_how_alpha_spreads(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    notes = bench(tiny, picture_folder, tmp_path, "capt").step().notes
    assert 0.05 <= notes["alpha_10th"] <= notes["alpha"] <= notes["alpha_90th"] <= 0.95


def test_the_defaults_are_the_ones_of_the_specification() -> None:
    preset = CAPT()
    assert (preset.vectors, preset.depth, preset.coupling, preset.consistency, preset.alpha_rule) == (
        2,
        9,
        "image_to_text",
        1.5,
        "reliability",
    )
    assert (preset.inner, preset.steps, preset.learning_rate, preset.order) == (
        "cross_entropy",
        3,
        0.0035,
        "forward",
    )
    assert preset.detach_reference
    assert preset.detach_alpha
