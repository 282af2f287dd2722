"""A pretraining run: resuming with the same weights, in parts and in company, and whether it learns."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from company import run_two
from pretraining import RECIPE, trainer
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.types import Progress
from training.processes import Processes

EXACT = RECIPE.model_copy(update={"precision": "float32"})
ROUNDING = {
    "frozen": 0.001,
    "joint": 0.01,
    "broad": 0.1,
}  # Adam's first steps are signs, also of what is nearly 0; other pictures would part runs by 1
IN_COMPANY = """
import sys
from pathlib import Path
from pretraining import RECIPE, trainer
from training.processes import joined

with joined("cpu") as processes:
    trainer(Path(sys.argv[1]), RECIPE.model_copy(update={"precision": "float32"}), \
processes=processes).finish()
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run in float32."""
    run = tmp_path_factory.mktemp("alone")
    trainer(run, EXACT).finish()
    return run


def weights(run: Path, phase: str) -> Tensor:
    """All that a phase ended with."""
    state: dict[str, Any] = torch.load(run / f"{phase}.pt", weights_only=True)
    return torch.cat([tensor.flatten() for part in ("model", "reading") for tensor in state[part].values()])


def differences(run: Path, other: Path, fresh: Path) -> dict[str, float]:
    """How far apart each phase ended, in lengths of the way there."""
    begun = trainer(fresh)
    start = torch.cat(
        [tensor.flatten() for part in (begun.network, begun.reading) for tensor in part.state_dict().values()]
    )
    ends = {phase: (weights(run, phase), weights(other, phase)) for phase in ROUNDING}
    return {phase: float((one - two).norm() / (one - start).norm()) for phase, (one, two) in ends.items()}


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["frozen", "joint"])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(
    tmp_path: Path, phase: Literal["frozen", "joint"]
) -> None:
    gradients: list[Tensor] = []
    for parts in (1, 3):
        subject = trainer(tmp_path, EXACT, processes=Processes(torch.device("cpu"), parts=parts))
        subject.views = [subject.view(0)]
        subject.begin(phase)
        losses = subject.terms(phase, 0, 8)
        learning = [
            parameter
            for parameter in (*subject.network.parameters(), *subject.reading.parameters())
            if parameter.requires_grad
        ]
        found = torch.autograd.grad(torch.stack(list(losses.values())).sum(), learning)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    whole, parted = gradients
    assert 0 < (parted - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.slow
def test_batches_in_parts_learn_what_whole_ones_learn(alone: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "parts", EXACT, processes=Processes(torch.device("cpu"), parts=3)).finish()
    found = differences(alone, tmp_path / "parts", tmp_path / "fresh")
    assert all(0 < found[phase] < limit for phase, limit in ROUNDING.items()), found


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_one_of_them_writes(alone: Path, tmp_path: Path) -> None:
    run_two(IN_COMPANY, str(tmp_path / "both"))
    found = differences(alone, tmp_path / "both", tmp_path / "fresh")
    assert all(0 < found[phase] < limit for phase, limit in ROUNDING.items()), found
    lines = [json.loads(line) for line in (tmp_path / "both" / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["frozen", "joint", "broad"]


@pytest.mark.gpu
def test_a_gpu_learns_what_a_cpu_learns(alone: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    trainer(tmp_path / "gpu", EXACT, processes=Processes(torch.device("cuda"), parts=2)).finish()
    found = differences(alone, tmp_path / "gpu", tmp_path / "fresh")
    assert found["frozen"] < 0.05, found  # stem features are rounded by another device


@pytest.mark.slow
def test_a_run_killed_in_each_phase_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.foundry.run.Run.checkpoint_steps", 1)
    whole = trainer(tmp_path / "whole").finish()

    def killer(phase: str) -> Progress:
        def kill(done: int, total: int, what: str) -> None:
            if what.startswith(phase) and done == 2:
                raise KeyboardInterrupt

        return kill

    for phase in ("frozen", "joint", "broad"):
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "killed", progress=killer(phase)).finish()
    assert trainer(tmp_path / "killed").finish().fingerprint == whole.fingerprint


@pytest.mark.slow
def test_another_recipe_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    one_phase = RECIPE.model_copy(update={"frozen_samples": 8, "joint_samples": 0, "broad_samples": 0})
    trainer(tmp_path / "run", one_phase).finish()
    with pytest.raises(InvalidInput, match="another rate"):
        trainer(tmp_path / "run", one_phase.model_copy(update={"rate": 1e-4})).finish()
    trainer(tmp_path / "run", one_phase.model_copy(update={"joint_rate": 1e-4, "joint_samples": 4})).finish()


@pytest.mark.slow
def test_training_lowers_every_loss(tmp_path: Path) -> None:
    subject = trainer(
        tmp_path / "run",
        RECIPE.model_copy(
            update={"frozen_samples": 8 * 40, "joint_samples": 0, "broad_samples": 0, "filler_share": 0.0}
        ),
    )
    subject.views = [subject.view(0)]
    before = {name: loss.item() for name, loss in subject.terms("frozen", 0, 8).items()}
    subject.finish()
    after = {name: loss.item() for name, loss in subject.terms("frozen", 0, 8).items()}
    assert all(after[name] < before[name] for name in before), (before, after)
