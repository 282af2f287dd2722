from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from tuning import bench

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.types import Cost
from training.learning.losses import divergence
from training.learning.objectives import APD
from training.learning.objectives.apd import Taught
from training.learning.objectives.base import Answers, Signs
from training.learning.objectives.pictures import opponent_of
from training.learning.objectives.predictions import Look, look
from training.learning.tuning.collapse import CollapseWatch, TrainingCollapsed

PLAIN = {"crops": False, "eps": "4/255"}


def test_the_loss_is_its_formula(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    made = bench(tiny, picture_folder, tmp_path, "apd", gamma=0.2, feedback=0.1, temperature=2.0, **PLAIN)
    with torch.no_grad():
        for name, tensor in made.parameters.items():  # else both are the same, and half of the terms 0
            tensor += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
    student, teacher = (
        made.objective.fold(tiny, made.parameters),
        made.objective.companions(tiny, made.parameters)["teacher"],
    )
    ours, theirs = (text_weights(tiny, prompts, made.task.labels) for prompts in (student, teacher))
    pixels, _ = made.objective.perturb(
        made.task, made.batch, made.batch.inputs, opponent_of(made.objective, tiny, ours, student)
    )
    attacked, clean = (
        look(made.task, images, ours, student.visual, count=6) for images in (pixels, made.batch.inputs)
    )
    taught = look(made.task, made.batch.inputs, theirs, teacher.visual, count=6)
    wise = taught.logits.detach() / 2
    expected = {
        "attacked": 0.5 * F.cross_entropy(attacked.logits, made.batch.targets),
        "consistency": divergence(wise, attacked.logits / 2).mean(),
        "clean_consistency": 0.2 * divergence(wise, clean.logits / 2).mean(),
        "image_features": (1 - (attacked.features * taught.features.detach()).sum(dim=1)).mean(),
        "text_features": (1 - (ours * theirs.detach()).sum(dim=1)).mean(),
        "teacher_clean": F.cross_entropy(taught.logits, made.batch.targets),
        "feedback": 0.1 * divergence(attacked.logits.detach() / 2, taught.logits / 2).mean(),
    }
    step = made.step()
    assert sorted(step.losses) == sorted(expected)
    for name, term in expected.items():
        torch.testing.assert_close(step.losses[name], term, msg=name)
    assert step.text_passes == 2


def test_neither_learns_from_the_others_gradient(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    made = bench(tiny, picture_folder, tmp_path, "apd", **PLAIN)
    losses = made.step().losses
    for name, term in losses.items():
        gradients = torch.autograd.grad(
            term, list(made.parameters.values()), allow_unused=True, retain_graph=True
        )
        reached = {
            key.split(".")[0]
            for key, gradient in zip(made.parameters, gradients, strict=True)
            if gradient is not None
        }
        assert reached == {"teacher" if name == "teacher_clean" else "student"}


def test_an_offline_teacher_learns_first_and_then_stays(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    options = {"teacher": "offline", "teacher_epochs": 3, "epochs": 5, **PLAIN}
    first, later = (
        bench(tiny, picture_folder, tmp_path, "apd", epoch=epoch, **options) for epoch in (2.9, 3.0)
    )
    assert list(first.step().losses) == ["teacher_clean"]
    losses = later.step().losses
    assert "teacher_clean" not in losses
    teachers = [tensor for name, tensor in later.parameters.items() if name.startswith("teacher")]
    assert torch.autograd.grad(sum(losses.values()), teachers, allow_unused=True) == (None,) * len(teachers)
    assert later.objective.phases() == (3, 5)
    assert later.objective.rate(0) == later.objective.rate(3) == 1e-5
    assert later.objective.rate(2.99) < 0.01 * later.objective.rate(3.3)


def test_a_zero_shot_teacher_is_the_template_without_prompts(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    made = bench(tiny, picture_folder, tmp_path, "apd", teacher="zero_shot", **PLAIN)
    assert {name.split(".")[0] for name in made.parameters} == {"student"}
    assert made.objective.companions(tiny, made.parameters) == {}
    assert made.step().text_passes == 1


def test_an_averaged_teacher_follows_the_learning_one_slowly(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    made = bench(tiny, picture_folder, tmp_path, "apd", teacher="online_ema", **PLAIN)
    before = made.task.memory["teacher.text"].clone()
    with torch.no_grad():
        made.parameters["teacher.text"] += 1
    assert made.step().text_passes == 3
    torch.testing.assert_close(made.task.memory["teacher.text"], before + 0.01)


@pytest.mark.parametrize(
    "wrong", [{"teacher": "zero_shot", "mu": 0}, {"warm_start": True}, {"temperature": 0}, {"towers": "none"}]
)
def test_what_makes_no_sense_together_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        APD.model_validate(wrong)


def test_the_defaults_are_the_ones_of_the_specification() -> None:
    preset = APD()
    assert (preset.vectors, preset.depth, preset.teacher, preset.feedback, preset.temperature) == (
        2,
        9,
        "online",
        0,
        1,
    )
    assert (preset.mu, preset.gamma, preset.vision, preset.text, preset.consistency) == (0.5, 0, 1, 1, 1)
    assert (preset.epochs, preset.batch, preset.learning_rate, preset.steps, preset.step_length()) == (
        100,
        32,
        0.0035,
        2,
        preset.eps,
    )


MODES = ("online", "online_ema", "offline", "zero_shot")


@pytest.mark.parametrize("mode", MODES)
def test_the_watch_sees_teacher_and_student_in_every_teacher_mode(
    tiny: Clip, picture_folder: Path, tmp_path: Path, mode: str
) -> None:
    made = bench(tiny, picture_folder, tmp_path, "apd", teacher=mode, epoch=25.0, **PLAIN)
    signs = made.step().signs
    expected = ["the teacher", "the student", *(["the learning teacher"] if mode == "online_ema" else [])]
    assert [found.who for found in signs.answers] == expected
    assert all(found.expected == pytest.approx(1 / 3) for found in signs.answers)


def test_an_offline_teacher_is_watched_while_it_learns_alone(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    signs = bench(tiny, picture_folder, tmp_path, "apd", teacher="offline", epoch=2.0, **PLAIN).step().signs
    assert [found.who for found in signs.answers] == ["the teacher"]
    assert signs.divergence > 1  # nobody to agree with yet


@pytest.mark.parametrize("who", ["the teacher", "the student"])
@pytest.mark.parametrize("mode", MODES)
def test_answering_one_label_is_a_collapse_although_the_other_does_not(
    tiny: Clip, picture_folder: Path, tmp_path: Path, who: str, mode: str
) -> None:
    made = bench(tiny, picture_folder, tmp_path, "apd", teacher=mode, epoch=25.0, **PLAIN)
    varied, one = 5.0 * F.one_hot(made.batch.targets, 3), torch.tensor([[0.0, 0.1, 0.0]]).expand(6, 3)
    rest = torch.zeros(0)
    taught = Taught(Look(rest, one if who == "the teacher" else varied, Cost()), rest, None, {}, Cost(), 0)
    attacked = Look(rest, one if who == "the student" else varied, Cost())
    found = made.objective.answered(taught, attacked, made.batch)
    signs = Signs(2.0, 0.1, found)  # they don't agree, and the teacher may be good
    watch = CollapseWatch(3)
    for _ in range(49):
        watch.observe(signs)
    assert watch.streak == 49
    with pytest.raises(
        TrainingCollapsed, match=f"{who} answers one label for nearly all pictures: 100% of the last batch"
    ):
        watch.observe(signs)


def test_batches_of_one_label_and_good_answers_are_no_collapse() -> None:
    watch = CollapseWatch(10)
    for share, expected, cross_entropy in ((1.0, 1.0, 9.0), (1.0, 0.3, 0.5), (0.9, 0.3, 9.0)):
        for _ in range(60):
            watch.observe(Signs(2.0, 9.0, (Answers("the student", share, expected, cross_entropy),)))
    assert watch.streak == 0
