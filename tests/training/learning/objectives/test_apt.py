from pathlib import Path

import torch
from torch.nn import functional as F
from tuning import bench

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image
from training.learning.losses import Opponent
from training.learning.objectives import APT


def test_the_loss_is_cross_entropy_on_pictures_attacked_through_the_prompts(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    made = bench(tiny, picture_folder, tmp_path, "apt", eps="4/255")
    weights = text_weights(tiny, made.objective.fold(tiny, made.parameters), made.task.labels)
    attacked, _ = made.objective.perturb(
        made.task, made.batch, made.batch.inputs, Opponent(tiny, weights.detach(), None)
    )
    logits = tiny.logit_scale * F.normalize(encode_image(tiny, attacked), dim=1) @ weights.T
    step = made.step()
    torch.testing.assert_close(step.losses["attacked"], F.cross_entropy(logits, made.batch.targets))
    assert (step.accuracy, step.text_passes) == (None, 1)


def test_the_attack_can_go_through_the_handcrafted_prompt(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    made = bench(tiny, picture_folder, tmp_path, "apt", eps="4/255", attack_prompts="handcrafted")
    weights = text_weights(tiny, made.objective.fold(tiny, made.parameters), made.task.labels)
    faced = text_weights(tiny, Prompts(), made.task.labels)
    attacked, _ = made.objective.perturb(
        made.task, made.batch, made.batch.inputs, Opponent(tiny, faced, None)
    )
    logits = tiny.logit_scale * F.normalize(encode_image(tiny, attacked), dim=1) @ weights.T
    torch.testing.assert_close(made.step().losses["attacked"], F.cross_entropy(logits, made.batch.targets))


def test_the_defaults_are_the_papers() -> None:
    preset = APT(eps=3 / 255)
    assert (preset.steps, preset.batch, preset.learning_rate, preset.class_specific) == (3, 32, 0.002, False)
    facts = preset.attack_facts()
    assert facts is not None
    assert (facts["score"], facts["starts"], facts["prompts"]) == ("cross_entropy", ["random"], "current")
