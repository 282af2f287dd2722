"""A pretraining run: resuming with the same weights, in parts and in company, and whether it learns."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from company import run_two
from pretraining import RECIPE, trainer
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import InvalidInput
from robustclip.models.towers import encode_image
from robustclip.types import Progress
from training.processes import Processes

EXACT = RECIPE.model_copy(update={"precision": "float32"})
# of the way from first weights; phase `names` is not shared, so that nothing is rounded otherwise
ROUNDING = {"names": 0.0, "text": 0.001, "image": 0.001}
PARTS = ("model", "readout", "reading")
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
    return torch.cat([tensor.flatten() for part in PARTS for tensor in state[part].values()])


def differences(run: Path, other: Path, fresh: Path) -> dict[str, float]:
    """How far apart each phase ended, in lengths of the way there."""
    begun = trainer(fresh)
    start = torch.cat(
        [tensor.flatten() for part in PARTS for tensor in begun.modules[part].state_dict().values()]
    )
    ends = {phase: (weights(run, phase), weights(other, phase)) for phase in ROUNDING}
    return {phase: float((one - two).norm() / (one - start).norm()) for phase, (one, two) in ends.items()}


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["text", "image"])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(
    tmp_path: Path, phase: Literal["text", "image"]
) -> None:
    gradients: list[Tensor] = []
    for parts in (1, 3):
        subject = trainer(tmp_path, EXACT, processes=Processes(torch.device("cpu"), parts=parts))
        subject.views = [subject.view(0)]
        for before in ("names", "text", "image")[: ("names", "text", "image").index(phase) + 1]:
            subject.begin(before)
        terms = subject.text_terms if phase == "text" else subject.image_terms
        losses = terms(8, torch.Generator().manual_seed(0))
        learning = [parameter for group in subject.optimizer.param_groups for parameter in group["params"]]
        found = torch.autograd.grad(torch.stack(list(losses.values())).sum(), learning, allow_unused=True)
        gradients.append(torch.cat([gradient.flatten() for gradient in found if gradient is not None]))
    whole, parted = gradients
    assert 0 < (parted - whole).norm() < 1e-4 * whole.norm()


@pytest.mark.slow
def test_batches_in_parts_learn_what_whole_ones_learn(alone: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "parts", EXACT, processes=Processes(torch.device("cpu"), parts=3)).finish()
    found = differences(alone, tmp_path / "parts", tmp_path / "fresh")
    assert all(found[phase] <= limit for phase, limit in ROUNDING.items()), found
    assert found["image"] > 0


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_one_of_them_writes(alone: Path, tmp_path: Path) -> None:
    run_two(IN_COMPANY, str(tmp_path / "both"))
    found = differences(alone, tmp_path / "both", tmp_path / "fresh")
    assert all(found[phase] <= limit for phase, limit in ROUNDING.items()), found
    assert found["image"] > 0
    lines = [json.loads(line) for line in (tmp_path / "both" / "log.jsonl").read_text().splitlines()]
    assert [*dict.fromkeys(line["phase"] for line in lines)] == ["names", "text", "image"]
    assert len({(line["phase"], line["step"]) for line in lines}) == len(lines)


@pytest.mark.gpu
def test_a_gpu_learns_what_a_cpu_learns(alone: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    trainer(tmp_path / "gpu", EXACT, processes=Processes(torch.device("cuda"), parts=2)).finish()
    found = differences(alone, tmp_path / "gpu", tmp_path / "fresh")
    assert found["names"] < 0.05, found  # stem features are rounded by another device


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

    for phase in ("names", "text", "image"):
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "killed", progress=killer(phase)).finish()
    assert trainer(tmp_path / "killed").finish().fingerprint == whole.fingerprint


@pytest.mark.slow
def test_another_recipe_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    one_phase = RECIPE.model_copy(update={"text_samples": 0, "image_samples": 0})
    trainer(tmp_path / "run", one_phase).finish()
    with pytest.raises(InvalidInput, match="another names_rate"):
        trainer(tmp_path / "run", one_phase.model_copy(update={"names_rate": 1e-4})).finish()
    trainer(tmp_path / "run", one_phase.model_copy(update={"text_rate": 1e-4, "text_samples": 16})).finish()


@pytest.mark.slow
def test_every_phase_lowers_its_losses(tmp_path: Path) -> None:
    longer = {"names_samples": 16 * 60, "text_samples": 16 * 40, "image_samples": 4 * 30, "filler_share": 0.0}
    subject = trainer(tmp_path / "run", RECIPE.model_copy(update=longer | {"mixed": 0.0, "noisy": 0.0}))
    subject.finish()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for phase, term in (("names", "teacher"), ("text", "names"), ("image", "label")):
        first, *_, last = [line[term] for line in lines if line["phase"] == phase]
        assert last < first, (phase, first, last)


@pytest.mark.slow
@torch.no_grad()
def test_the_image_tower_begins_as_the_readout(tmp_path: Path) -> None:
    subject = trainer(tmp_path / "run", EXACT)
    subject.views = [subject.view(0)]
    subject.begin("names")
    subject.readout.project *= 1e5  # random weights give features so small that layer norms round them
    subject.begin("text")
    pixels = subject.corpus.pixels(torch.arange(6))
    features = F.normalize(encode_image(subject.clip, pixels), dim=1)
    images = (pixels - subject.clip.mean[:, None, None]) / subject.clip.std[:, None, None]
    tokens = subject.teacher.stem.convolve(images).flatten(2).transpose(1, 2)
    tokens = (tokens - subject.readout.mean) @ subject.readout.project
    for _ in range(2):  # before the first block and in it
        tokens = F.layer_norm(tokens, (32,))
    expected = F.normalize(F.layer_norm(tokens.mean(1), (32,)), dim=1)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
