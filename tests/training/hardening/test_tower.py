"""Copies of an image tower: one that shares its memory, one that averages it."""

import pytest
import torch

from robustclip.clip import Clip
from robustclip.towers import encode_image
from training.hardening.tower import ImageTower, average_into, parameter_groups


def test_a_tower_is_the_image_tower_of_its_clip(tiny: Clip) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tower = ImageTower(tiny, bf16=False)
    assert torch.equal(tower(pixels), encode_image(tiny, pixels))
    rounded = ImageTower(tiny, bf16=True)(pixels)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - tower(pixels)).norm() < 0.05 * tower(pixels).norm()


def test_a_view_follows_what_the_tower_learns_and_asks_for_no_weight_gradients(tiny: Clip) -> None:
    tower = ImageTower(tiny, bf16=False).frozen_copy()
    view, copy = tower.frozen_view(), tower.frozen_copy()
    optimizer = torch.optim.AdamW(parameter_groups(tower, rate=1e-2, stem_rate=1e-3, weight_decay=0.1))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tower(pixels).square().mean().backward()
    optimizer.step()
    assert torch.equal(view(pixels), tower(pixels))
    assert not torch.equal(copy(pixels), tower(pixels))
    assert not any(parameter.requires_grad for parameter in view.parameters())


def test_the_first_convolutions_have_their_own_rate_and_only_matrices_decay(tiny: Clip) -> None:
    tower = ImageTower(tiny, bf16=False).frozen_copy()
    groups = parameter_groups(tower, rate=1.0, stem_rate=0.5, weight_decay=0.1)
    found = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    settings = {name: found[id(parameter)] for name, parameter in tower.visual.named_parameters()}
    assert len(found) == len(list(tower.parameters()))
    assert settings["conv1.weight"] == (0.5, 0.1)
    assert settings["proj"] == (1.0, 0.1)
    assert settings["ln_post.weight"] == settings["class_embedding"] == settings["positional_embedding"] == (1.0, 0.0)


@pytest.mark.parametrize(("decay", "step", "share"), [(0.0, 5, 1.0), (0.9, 0, 0.9), (0.5, 1000, 0.5)])
def test_an_average_forgets_its_start_first(tiny: Clip, decay: float, step: int, share: float) -> None:
    average, current = ImageTower(tiny, bf16=False).frozen_copy(), ImageTower(tiny, bf16=False).frozen_copy()
    with torch.no_grad():
        for parameter in current.parameters():
            parameter.add_(1.0)
    before = average.visual.get_parameter("proj").clone()
    average_into(average, current, decay=decay, step=step)
    torch.testing.assert_close(average.visual.get_parameter("proj") - before, torch.full_like(before, share))
