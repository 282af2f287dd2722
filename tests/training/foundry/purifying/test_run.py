"""A run: what is learned is better than what costs nothing, kills change nothing, options that don't fit are
refused.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustclip.errors import InvalidInput
from robustclip.purifiers import NetworkKind
from robustclip.types import Progress
from training.foundry.purifying.recipe import PurifyingRecipe, read_recipe
from training.foundry.purifying.run import PurifyingRun
from training.foundry.run import TrainingDiverged
from training.processes import Processes

Start = Callable[..., PurifyingRun]
RecipeOf = Callable[..., PurifyingRecipe]
KINDS: tuple[NetworkKind, ...] = ("super_resolver", "denoiser")


def kill_at(step: int) -> Progress:
    def kill(done: int, total: int, what: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return kill


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_with_the_same_weights(
    kind: NetworkKind, start: Start, recipe_of: RecipeOf, tmp_path: Path
) -> None:
    recipe = recipe_of(kind)
    whole = start(tmp_path / "whole", recipe)
    expected = whole.finish().state_dict()
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "killed", recipe, progress=kill_at(3)).finish()
    for _ in range(2):  # the second time nothing is left to do
        resumed = start(tmp_path / "killed", recipe)
        found = resumed.finish().state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert resumed.readings == whole.readings
    lines = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [64, 128]


def test_a_super_resolver_learns_to_beat_bicubic(start: Start, recipe_of: RecipeOf, tmp_path: Path) -> None:
    recipe = recipe_of(
        "super_resolver",
        samples=1600,
        size=32,
        check_samples=10_000,
        check_pictures=32,
        average=0.9,
        rate=3e-3,
    )
    running = start(tmp_path, recipe)
    running.finish()
    assert (running.readings["network"].psnr or 0) > (running.readings["bicubic"].psnr or 0) + 2


def test_a_denoiser_learns_to_take_noise_away(start: Start, recipe_of: RecipeOf, tmp_path: Path) -> None:
    recipe = recipe_of(
        "denoiser", samples=2400, size=32, check_samples=10_000, check_pictures=32, average=0.9, rate=5e-3
    )
    running = start(tmp_path, recipe)
    running.finish()
    for sigma in (0.1, 0.25):
        assert (running.readings[f"denoised_{sigma}"].psnr or 0) > (
            running.readings[f"noisy_{sigma}"].psnr or 0
        ) + 2


def test_a_batch_in_parts_changes_nothing_but_rounding(
    start: Start, recipe_of: RecipeOf, tmp_path: Path
) -> None:
    recipe = recipe_of("super_resolver")
    whole = start(tmp_path / "whole", recipe).finish().state_dict()
    parts = (
        start(tmp_path / "parts", recipe, processes=Processes(torch.device("cpu"), parts=2))
        .finish()
        .state_dict()
    )
    moved = max(float((parts[name] - tensor).abs().max()) for name, tensor in whole.items())
    assert moved < 1e-3


def test_a_folder_of_other_options_is_refused_by_name(
    start: Start, recipe_of: RecipeOf, tmp_path: Path
) -> None:
    start(tmp_path, recipe_of("super_resolver", samples=32)).finish()
    with pytest.raises(InvalidInput, match="another samples, rate"):
        start(tmp_path, recipe_of("super_resolver", samples=64, rate=1e-4)).finish()


def test_a_loss_that_is_no_number_stops_the_run(start: Start, recipe_of: RecipeOf, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="not finite"):
        start(tmp_path, recipe_of("denoiser", rate=1e30, clip=0)).finish()


def test_a_batch_that_can_not_be_shared_evenly_is_refused(
    start: Start, recipe_of: RecipeOf, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="32 pictures can't be shared evenly by 3"):
        start(tmp_path, recipe_of("denoiser"), processes=Processes(torch.device("cpu"), parts=3))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"batch": 20}, "--batch"),
        ({"network": {"kind": "denoiser", "widths": [7]}}, "--network"),
        ({"size": 200}, "--size"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read_recipe("denoiser", change)
    assert (refusal.value.field or "").startswith(field)


def test_the_shape_of_the_other_network_is_refused() -> None:
    with pytest.raises(InvalidInput, match="shape of a denoiser for a super_resolver"):
        read_recipe("super_resolver", {"network": {"kind": "denoiser"}})
