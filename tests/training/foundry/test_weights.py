"""Averages of weights, and groups of them for the optimizer."""

import pytest
import torch

from robustclip.models.clip import Clip
from training.foundry.hardening.tower import ImageTower
from training.foundry.run import average_into, inside_stem, parameter_groups


@pytest.mark.parametrize("tower", ["", "visual."])
def test_the_projection_of_a_stem_is_no_part_of_its_convolutions(tower: str) -> None:
    assert inside_stem(f"{tower}conv1.blocks.0.0.conv_dw.weight")
    assert not inside_stem(f"{tower}conv1.project.weight")
    assert not inside_stem(f"{tower}transformer.resblocks.0.ln_1.weight")


def test_what_does_not_learn_is_in_no_group(tiny: Clip) -> None:
    tower = ImageTower(tiny, bf16=False).frozen_copy()
    tower.visual.get_parameter("proj").requires_grad_(True)
    (group,) = parameter_groups(tower.visual.named_parameters(), rate=1.0, stem_rate=0.5, weight_decay=0.1)
    assert [id(parameter) for parameter in group["params"]] == [id(tower.visual.get_parameter("proj"))]


def test_the_first_convolutions_have_their_own_rate_and_only_matrices_decay(tiny: Clip) -> None:
    tower = ImageTower(tiny, bf16=False).frozen_copy()
    tower.visual.requires_grad_(True)
    groups = parameter_groups(tower.visual.named_parameters(), rate=1.0, stem_rate=0.5, weight_decay=0.1)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    settings = {name: found[id(parameter)] for name, parameter in tower.visual.named_parameters()}
    assert len(found) == len(list(tower.parameters()))
    assert settings["conv1.weight"] == (0.5, 0.1)
    assert settings["proj"] == (1.0, 0.1)
    assert (
        settings["ln_post.weight"]
        == settings["class_embedding"]
        == settings["positional_embedding"]
        == (1.0, 0.0)
    )


@pytest.mark.parametrize(("decay", "step", "share"), [(0.0, 5, 1.0), (0.9, 0, 0.9), (0.5, 1000, 0.5)])
def test_an_average_forgets_its_start_first(tiny: Clip, decay: float, step: int, share: float) -> None:
    average, current = ImageTower(tiny, bf16=False).frozen_copy(), ImageTower(tiny, bf16=False).frozen_copy()
    with torch.no_grad():
        for parameter in current.parameters():
            parameter.add_(1.0)
    before = average.visual.get_parameter("proj").clone()
    average_into(average, current, decay=decay, step=step)
    torch.testing.assert_close(average.visual.get_parameter("proj") - before, torch.full_like(before, share))
