"""What a CLIP costs, counted without its weights."""

import torch

from robustclip.backbones import build_backbone
from robustclip.backbones.tiny import TINY_CONFIG
from robustclip.models.clip import Clip
from robustclip.models.costs import Memory, memory_of, pace_of


def test_memory_is_counted_alike_with_weights_and_on_the_meta_device(tiny: Clip) -> None:
    with torch.device("meta"):
        skeleton = build_backbone(TINY_CONFIG)
    found, unbuilt = memory_of(tiny.model), memory_of(skeleton)
    assert found is not None
    assert unbuilt is not None
    assert found.weights == unbuilt.weights
    assert 0.75 < found.gradient / unbuilt.gradient < 1.33  # kernels of attention differ by device
    assert found.weights == 4 * sum(parameter.numel() for parameter in tiny.model.parameters())
    tokens, width = 17, TINY_CONFIG["vision_cfg"]["width"]
    assert found.gradient > 2 * 4 * tokens * width  # what each of its two blocks passes on, at the least


def test_counting_leaves_a_model_as_it_is() -> None:
    model = build_backbone(TINY_CONFIG).train()
    model.visual.proj.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    memory_of(model)
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_needed_grows_with_the_rows_once_they_outweigh_loading() -> None:
    memory = Memory(weights=100, gradient=30)
    assert [memory.needed(rows) for rows in (1, 3, 4, 10)] == [200, 200, 220, 400]


def test_a_pace_is_measured(tiny: Clip) -> None:
    pace = pace_of(tiny.model)
    assert pace.forward > 0
    assert pace.gradient > 0
