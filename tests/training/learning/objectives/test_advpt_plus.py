from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from tuning import bench

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.seeds import draw_seeds
from robustclip.types import Cost
from training.learning.losses import divergence, reliability
from training.learning.objectives import AdvPTPlus

SMALL = {"vectors": 4, "eps": "4/255", "steps": 3}


def test_the_loss_is_its_formula(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    made = bench(tiny, picture_folder, tmp_path, "advpt_plus", **SMALL)
    weights = text_weights(tiny, made.objective.fold(tiny, made.parameters), made.task.labels)
    logits = tiny.logit_scale * F.normalize(made.task.memory["bank"], dim=2) @ weights.T  # [6, 5, 3]
    clean, targets = logits[:, 4], made.batch.targets
    trust = reliability(clean, targets)
    attacked = torch.stack([F.cross_entropy(logits[:, copy], targets) for copy in range(4)]).mean()
    consistency = torch.stack(
        [(trust * divergence(clean.detach(), logits[:, copy])).mean() for copy in range(4)]
    ).mean()
    expected = {
        "clean": 0.5 * F.cross_entropy(clean, targets),
        "attacked": attacked,
        "consistency": consistency,
    }
    step = made.step()
    for name, term in expected.items():
        torch.testing.assert_close(step.losses[name], term)
    assert list(step.losses) == list(expected)
    assert (step.cost, step.text_passes) == (Cost(), 1)


def test_the_hardest_embedding_of_a_picture_can_stand_for_all(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    made = bench(
        tiny, picture_folder, tmp_path, "advpt_plus", over="hardest", consistency=0, clean=0, **SMALL
    )
    weights = text_weights(tiny, made.objective.fold(tiny, made.parameters), made.task.labels)
    logits = tiny.logit_scale * F.normalize(made.task.memory["bank"][:, :4], dim=2) @ weights.T
    each = torch.stack(
        [F.cross_entropy(logits[:, copy], made.batch.targets, reduction="none") for copy in range(4)]
    )
    torch.testing.assert_close(made.step().losses["attacked"], each.max(dim=0).values.mean())


def test_a_refresh_keeps_what_is_harder_for_the_current_prompts(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    made = bench(tiny, picture_folder, tmp_path, "advpt_plus", refresh=2, consistency=0, clean=0, **SMALL)
    before, bank = float(made.step().losses["attacked"].detach()), made.task.memory["bank"].clone()
    assert made.objective.tend(made.task, made.parameters, epoch=1, seeds=draw_seeds(0, 6)).cost == Cost()
    tended = made.objective.tend(made.task, made.parameters, epoch=2, seeds=draw_seeds(0, 6))
    assert tended.cost == Cost(6 * 21, 6 * 12)
    assert 0 < tended.notes["bank_renewed"] <= 1
    assert float(made.step().losses["attacked"].detach()) > before
    torch.testing.assert_close(
        made.task.memory["bank"][:, 4], bank[:, 4], atol=1e-4, rtol=1e-4
    )  # the clean embedding


def test_the_bank_knows_prompts_and_labels(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    made = bench(
        tiny, picture_folder, tmp_path, "advpt_plus", bank_scores="embedding_shift,cross_entropy", **SMALL
    )
    weights = text_weights(tiny, Prompts(), made.task.labels)
    logits = tiny.logit_scale * F.normalize(made.task.memory["bank"], dim=2) @ weights.T
    losses = [float(F.cross_entropy(logits[:, copy], made.batch.targets)) for copy in range(3)]
    assert losses[1] > losses[0]  # the handcrafted prompt's own cross-entropy was raised
    assert losses[1] > losses[2]


@pytest.mark.parametrize(
    "wrong", [{"bank_scores": ""}, {"bank_scores": "guess"}, {"over": "median"}, {"refresh": -1}]
)
def test_wrong_switches_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AdvPTPlus.model_validate(wrong)
