from pathlib import Path

import torch
from torch.nn import functional as F
from tuning import bench

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from training.learning.losses import divergence
from training.learning.objectives import FAP
from training.learning.objectives.pictures import opponent_of
from training.learning.objectives.predictions import look


def test_the_loss_is_the_papers(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    made = bench(tiny, picture_folder, tmp_path, "fap", eps="4/255")
    prompts = made.objective.fold(tiny, made.parameters)
    weights = text_weights(tiny, prompts, made.task.labels)
    clean = look(made.task, made.batch.inputs, weights, prompts.visual, count=6)
    enemy = opponent_of(made.objective, tiny, weights, prompts)
    pixels, _ = made.objective.perturb(made.task, made.batch, made.batch.inputs, enemy, clean=clean.logits)
    attacked = look(made.task, pixels, weights, prompts.visual, count=6)
    closeness = 1 + (clean.features * attacked.features).sum(dim=1)
    expected = (
        F.cross_entropy(clean.logits, made.batch.targets)
        + 1.5 * (closeness * divergence(clean.logits, attacked.logits)).mean()
    )
    step = made.step()
    torch.testing.assert_close(torch.stack(list(step.losses.values())).sum(), expected)
    found, wanted = (
        torch.autograd.grad(loss, list(made.parameters.values()))
        for loss in (sum(step.losses.values()), expected)
    )
    for ours, theirs in zip(found, wanted, strict=True):  # nothing is detached
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_the_defaults_are_the_authors() -> None:
    preset = FAP()
    assert (preset.vectors, preset.depth, preset.coupling, preset.words) == (2, 9, "hybrid", "a photo of a")
    assert (preset.steps, preset.eps, preset.step_length(), preset.inner) == (2, 1 / 255, 1 / 255, "kl")
    assert (preset.learning_rate, preset.batch, preset.epochs, preset.consistency) == (0.0035, 4, 10, 1.5)
    assert (preset.weighting, preset.order, preset.detach_reference, preset.average, preset.anchor) == (
        "cosine",
        "forward",
        False,
        0.0,
        0.0,
    )


def test_a_weaker_form_has_half_the_consistency_and_nothing_else() -> None:
    assert FAP().weakened() == FAP(consistency=0.75)
    assert FAP(consistency=0).weakened() is None
