"""Processes that share a run: shares and wholes, alone and in company; two gloo processes learn what one
learns.
"""

import json
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from company import run_two
from safetensors.torch import load_file
from torch import Tensor
from tuning import silent

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip, load_clip
from robustclip.types import Progress
from training.data.folders import load_data
from training.learning.losses import TowerPrecision
from training.learning.objectives import OBJECTIVES
from training.learning.tuning.checkpoint import Epoch
from training.learning.tuning.loop import fit
from training.processes import ALONE, Processes, joined

CPU = torch.device("cpu")
SMALL = {"vectors": 2, "epochs": 3, "batch": 4}
CASES: dict[str, dict[str, object]] = {
    "advpt": {"kind": "advpt", "steps": 2},
    "advpt_plus": {"kind": "advpt_plus", "steps": 2, "refresh": 2},
    "apt": {"kind": "apt", "warm_start": True, "precision": "float32"},
    "fap": {"kind": "fap", "average": 0.9, "precision": "float32"},
    "capt": {"kind": "capt", "alpha_rule": "loss_ratio", "anchor": 0.5, "precision": "float32"},
    "apd": {"kind": "apd", "teacher": "online_ema", "precision": "float32"},
    "begun_alone": {"kind": "fap", "precision": "float32"},
}
IN_COMPANY = """
import json, sys, time
from pathlib import Path
import torch
from test_processes import CASES, learn, line_of_rows
from robustclip.models.clip import load_clip
from training.processes import joined

folder, pictures = Path(sys.argv[1]), Path(sys.argv[2])
clip = load_clip("tiny")
with joined("cpu") as processes:
    index = processes.index
    said = {"index": index, "mean": float(processes.mean(torch.tensor(float(index)))), "agreed": \
processes.agree([index])}
    with processes.main_first():
        time.sleep(0.2 * (1 - index))
        said["saw"] = (folder / "first").exists()
        (folder / "first").touch()
    said["lines"] = {str(count): line_of_rows(processes, count) for count in (1, 5, 6)}
    for name in CASES:
        said[name] = learn(clip, pictures, folder, name, processes)
print(json.dumps(said))
"""


def line_of_rows(processes: Processes, count: int) -> tuple[float, list[float]]:
    """A loss that couples the rows of a batch, through a weight that meets shares and one that meets the
    whole; with its gradients.
    """
    inside, outside = (torch.tensor(start, requires_grad=True) for start in (0.7, 1.3))
    own = processes.own(torch.linspace(1, 2, count))
    rows = processes.encode(lambda part: (inside * part).sin(), own, count)
    loss = (outside * rows / rows.sum()).square().sum()
    loss.backward()
    processes.average_gradients([inside, outside])
    return loss.item(), [float(weight.grad) for weight in (inside, outside) if weight.grad is not None]


def learn(
    clip: Clip,
    pictures: Path,
    folder: Path,
    name: str,
    processes: Processes = ALONE,
    *,
    precision: TowerPrecision = "float32",
    progress: Progress = silent,
) -> list[list[object]]:
    """Learn a case into FOLDER/name; what its epochs cost and said."""
    objective = OBJECTIVES[str(CASES[name]["kind"])].model_validate({**SMALL, **CASES[name]})
    data = load_data(pictures, "train")
    chosen = torch.arange(0, 36, 4)  # nine pictures: batches of 4, 4 and 1
    examples = objective.prepare(
        clip, data, chosen, seed=3, folder=folder / "cache", progress=silent, processes=processes
    )
    work = {"progress": progress, "processes": processes, "precision": precision}
    fitted = fit(clip, objective, examples, data.labels, seed=3, checkpoint=folder / name, **work)
    return [_told(epoch) for epoch in fitted.history]


def _told(epoch: Epoch) -> list[object]:
    return [list(epoch.cost), epoch.text_passes, epoch.losses, epoch.accuracy, epoch.robust, epoch.notes]


def parameters(checkpoint: Path) -> Tensor:
    return torch.cat(
        [
            tensor.flatten()
            for name, tensor in sorted(load_file(checkpoint).items())
            if name.startswith("prompts.")
        ]
    )


def moved_apart(one: Path, other: Path, clip: Clip, name: str) -> float:
    """How far two ends of a run are from each other, in lengths of the way there."""
    objective = OBJECTIVES[str(CASES[name]["kind"])].model_validate({**SMALL, **CASES[name]})
    fresh = objective.new_parameters(clip, ("blue thing", "green thing", "red thing"), 3)
    start = torch.cat([tensor.flatten() for _, tensor in sorted(fresh.items())])
    return float((parameters(one) - parameters(other)).norm() / (parameters(one) - start).norm())


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7])
def test_shares_are_of_one_size_and_hold_every_row(count: int) -> None:
    shares = [Processes(CPU, count=3, index=index).own(torch.arange(count)) for index in range(3)]
    assert len({len(share) for share in shares}) == 1
    assert torch.cat(shares)[:count].tolist() == list(range(count))


def test_alone_nothing_is_divided() -> None:
    rows = torch.rand(3)
    assert ALONE.main
    assert ALONE.own(rows) is ALONE.whole(rows, 3) is ALONE.mean(rows) is ALONE.agree(rows) is rows


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_parts_change_neither_rows_nor_gradients(parts: int) -> None:
    found, expected = (line_of_rows(processes, 5) for processes in (Processes(CPU, parts=parts), ALONE))
    assert found[0] == pytest.approx(expected[0])
    assert found[1] == pytest.approx(expected[1])


@pytest.mark.parametrize("name", ["fap", "apt", "capt", "apd"])
def test_a_batch_in_parts_learns_what_the_whole_batch_learns(
    tiny: Clip, picture_folder: Path, tmp_path: Path, name: str
) -> None:
    whole = learn(tiny, picture_folder, tmp_path / "whole", name)
    parts = learn(tiny, picture_folder, tmp_path / "parts", name, Processes(CPU, parts=2))
    assert [told[:2] for told in parts] == [told[:2] for told in whole]
    assert 0 <= moved_apart(tmp_path / "whole" / name, tmp_path / "parts" / name, tiny, name) < 0.02


def test_a_launcher_that_is_not_understood_is_no_reason_to_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    try:
        with pytest.raises(InvalidInput, match="2 processes were started"), joined("cuda"):
            pass
    finally:
        PartialState._reset_state()  # pyright: ignore[reportPrivateUsage]


def test_towers_in_bfloat16_move_float32_prompts_nearly_alike(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    learn(tiny, picture_folder, tmp_path / "exact", "fap")
    learn(tiny, picture_folder, tmp_path / "rounded", "fap", precision="bf16")
    assert parameters(tmp_path / "rounded" / "fap").dtype == torch.float32
    assert 1e-4 < moved_apart(tmp_path / "exact" / "fap", tmp_path / "rounded" / "fap", tiny, "fap") < 0.3


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_learns_what_a_cpu_learns(tiny: Clip, picture_folder: Path, tmp_path: Path, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    learn(tiny, picture_folder, tmp_path / "cpu", name)
    learn(
        load_clip("tiny", device="cuda"),
        picture_folder,
        tmp_path / "gpu",
        name,
        Processes(torch.device("cuda"), parts=2),
    )
    assert moved_apart(tmp_path / "cpu" / name, tmp_path / "gpu" / name, tiny, name) < 0.05


@pytest.fixture(scope="module")
def company(
    tiny: Clip, picture_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, object]]]:
    """What two processes left and said; one case was begun by one process and killed in its third epoch."""
    folder = tmp_path_factory.mktemp("company")

    def kill(done: int, total: int, what: str) -> None:
        if what.startswith("tuning") and done > 2 * 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(tiny, picture_folder, folder, "begun_alone", progress=kill)
    return folder, [json.loads(said) for said in run_two(IN_COMPANY, str(folder), str(picture_folder))]


@pytest.mark.slow
def test_two_processes_know_of_each_other(company: tuple[Path, list[dict[str, object]]]) -> None:
    main, other = company[1]
    assert [main["index"], other["index"]] == [0, 1]
    assert [main["agreed"], other["agreed"]] == [[0], [0]]
    assert [main["mean"], other["mean"]] == [0.5, 0.5]
    assert [main["saw"], other["saw"]] == [False, True]


@pytest.mark.slow
def test_a_loss_over_the_whole_batch_has_the_gradients_of_one_process(
    company: tuple[Path, list[dict[str, object]]],
) -> None:
    for said in company[1]:
        lines = said["lines"]
        assert isinstance(lines, dict)
        for count, (loss, gradients) in lines.items():
            expected = line_of_rows(ALONE, int(count))
            assert loss == pytest.approx(expected[0])
            assert gradients == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(
    company: tuple[Path, list[dict[str, object]]], tiny: Clip, picture_folder: Path, tmp_path: Path, name: str
) -> None:
    folder, (main, other) = company
    alone = learn(tiny, picture_folder, tmp_path, name)
    assert main[name] == other[name]  # they decide alike: when to begin again, which perturbation to trust
    told = main[name]
    assert isinstance(told, list)
    assert [epoch[:2] for epoch in told] == [epoch[:2] for epoch in alone]
    losses = alone[-1][2]
    assert isinstance(losses, dict)
    # a consistency term compares nearly equal predictions: rounding is small next to the whole loss only
    assert told[-1][2] == pytest.approx(losses, rel=1e-3, abs=1e-3 * sum(losses.values()))
    assert moved_apart(tmp_path / name, folder / name, tiny, name) < 0.02
