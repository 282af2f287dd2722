"""Copies of an image tower: one of them shares its memory."""

import torch

from robustclip.models.clip import Clip
from robustclip.models.towers import encode_image
from training.foundry.hardening.tower import ImageTower
from training.foundry.run import parameter_groups


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
    tower.visual.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        parameter_groups(tower.visual.named_parameters(), rate=1e-2, stem_rate=1e-3, weight_decay=0.1)
    )
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tower(pixels).square().mean().backward()
    optimizer.step()
    assert torch.equal(view(pixels), tower(pixels))
    assert not torch.equal(copy(pixels), tower(pixels))
    assert not any(parameter.requires_grad for parameter in view.parameters())
