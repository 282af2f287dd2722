"""A hardening run: what learns and what doesn't, resuming, sharing the work, stopping in time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip, fingerprint_of
from robustclip.types import Progress
from training.foundry.corpus import Corpus
from training.foundry.hardening.recipe import HardeningRecipe
from training.foundry.hardening.run import HardeningRun
from training.foundry.run import TrainingDiverged
from training.processes import Processes

RECIPE = HardeningRecipe(
    samples=128, batch=32, check_samples=64, check_pictures=4, rate=1e-4, bf16=False
)  # four steps, checked after two and four


def silent(done: int, total: int, what: str) -> None:
    pass


def kill_at(step: int) -> Progress:
    def kill(done: int, total: int, what: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return kill


@pytest.fixture
def start(tiny: Clip, toys: Corpus) -> Callable[..., HardeningRun]:
    def make(
        folder: Path,
        recipe: HardeningRecipe = RECIPE,
        *,
        parts: int = 1,
        gap: float = 100.0,
        workers: int = 0,
        progress: Progress = silent,
    ) -> HardeningRun:
        processes = Processes(torch.device("cpu"), parts=parts)
        return HardeningRun(
            tiny,
            toys,
            recipe,
            folder=folder,
            processes=processes,
            gap=gap,
            workers=workers,
            progress=progress,
        )

    return make


def test_the_image_tower_learns_and_nothing_else_changes(
    tiny: Clip, start: Callable[..., HardeningRun], tmp_path: Path
) -> None:
    hardened = start(tmp_path).finish()
    assert fingerprint_of(tiny.model, tiny.mean, tiny.std) == tiny.fingerprint != hardened.fingerprint
    for name, tensor in tiny.model.state_dict().items():
        changed = not torch.equal(tensor, hardened.model.state_dict()[name])
        assert changed == name.startswith("visual."), name
    assert not any(
        parameter.requires_grad for parameter in [*tiny.model.parameters(), *hardened.model.parameters()]
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [64, 128]
    assert set(lines[0]["clean"]) == {"animals", "things"}
    assert set(lines[0]["current"]) == {"training_attack", "pgd20"}


def test_a_killed_run_ends_with_the_same_weights(start: Callable[..., HardeningRun], tmp_path: Path) -> None:
    whole = start(tmp_path / "whole").finish()
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "killed", progress=kill_at(3)).finish()
    resumed = start(tmp_path / "killed")
    assert resumed.finish().fingerprint == whole.fingerprint
    assert (
        start(tmp_path / "killed", progress=kill_at(1)).finish().fingerprint == whole.fingerprint
    )  # nothing is left to do


def test_a_batch_in_parts_and_pictures_read_ahead_change_nothing_but_rounding(
    start: Callable[..., HardeningRun], tmp_path: Path
) -> None:
    whole = start(tmp_path / "whole")
    before = whole.tower.visual.state_dict()["proj"].clone()
    at_once = whole.finish()
    parts = start(tmp_path / "parts", parts=2, workers=1)
    assert (
        parts.finish().fingerprint != at_once.fingerprint
    )  # sums in another order: the option did something
    learned = whole.tower.visual.state_dict()["proj"]
    assert (parts.tower.visual.state_dict()["proj"] - learned).norm() < 0.02 * (learned - before).norm()


@pytest.mark.parametrize("objective", ["tecoa", "fare", "pmg-aft"])
def test_every_preset_lowers_its_loss_on_what_it_learns_from(
    objective: str, start: Callable[..., HardeningRun], tmp_path: Path
) -> None:
    recipe = RECIPE.model_copy(
        update={
            "objective": objective,
            "samples": 640,
            "check_samples": 10_000,
            "augment": False,
            "rate": 1e-3,
            "eps": 1 / 255,
        }
    )
    seen: list[float] = []

    def note(done: int, total: int, what: str) -> None:
        seen.append(sum(float(term.split()[-1]) for term in what.removeprefix("harden: ").split(", ")[:-1]))

    start(tmp_path, recipe, progress=note).finish()
    assert sum(seen[-4:]) < 0.9 * sum(seen[:4])


def test_a_run_that_overfits_to_its_attack_twice_stops_with_the_best_weights(
    start: Callable[..., HardeningRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = RECIPE.model_copy(update={"samples": 256})
    hardened = start(tmp_path, longer, gap=-101.0).finish()  # whatever is found counts as a gap
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert all(
        torch.equal(hardened.model.visual.state_dict()[name], tensor)
        for name, tensor in best["visual"].items()
    )
    warnings = capsys.readouterr().err
    assert "CATASTROPHIC OVERFITTING at step 2?" in warnings
    assert "Stopped; the best weights are kept" in warnings


def test_one_suspicious_check_is_remembered_over_a_kill(
    start: Callable[..., HardeningRun], tmp_path: Path
) -> None:
    longer = RECIPE.model_copy(update={"samples": 256})
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, longer, gap=-101.0, progress=kill_at(3)).finish()
    start(tmp_path, longer, gap=-101.0).finish()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [2, 4]


def test_best_weights_that_were_removed_are_missed_by_name(
    start: Callable[..., HardeningRun], tmp_path: Path
) -> None:
    start(tmp_path, RECIPE.model_copy(update={"samples": 32})).finish()
    (tmp_path / "best.pt").unlink()
    with pytest.raises(InvalidInput, match="is gone, and with it the best weights"):
        start(tmp_path, RECIPE.model_copy(update={"samples": 32})).finish()


def test_a_loss_that_is_no_number_stops_the_run(start: Callable[..., HardeningRun], tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="not finite"):
        start(tmp_path, RECIPE.model_copy(update={"rate": 1e30, "clip": 0.0})).finish()


def test_a_checkpoint_of_other_options_is_refused_by_name(
    tiny: Clip, toys: Corpus, start: Callable[..., HardeningRun], tmp_path: Path
) -> None:
    start(tmp_path, RECIPE.model_copy(update={"samples": 32})).finish()
    with pytest.raises(InvalidInput, match="another eps, samples"):
        start(tmp_path, RECIPE.model_copy(update={"eps": 1 / 255})).finish()
    stranger = start(tmp_path, RECIPE.model_copy(update={"samples": 32}))
    stranger.parent = "0" * 64
    with pytest.raises(InvalidInput, match="another backbone"):
        stranger.finish()


def test_a_batch_that_can_not_be_shared_evenly_is_refused(
    start: Callable[..., HardeningRun], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="32 pictures can't be shared evenly by 3"):
        start(tmp_path, parts=3)
