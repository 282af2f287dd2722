"""`robustclip bench training`: both sides of a ratio compute the same, and the command says what it measured.
No timing is asserted.
"""

import json

import pytest
import torch
from benchmarks.bench_training import capt_task, main, straightforward

from robustclip.models.clip import Clip
from training.learning.objectives.capt import CAPT

LABELS = ("cat", "fire salamander", "a rather long name of a thing", "dog")


def test_the_straightforward_loop_computes_the_loss_and_gradients_of_capt(tiny: Clip) -> None:
    objective = CAPT(eps=4 / 255, precision="float32")
    task, parameters, batch = capt_task(tiny, LABELS, objective, batch=6)
    ours = torch.stack(list(objective.loss(task, parameters, batch).losses.values())).sum()
    loop = straightforward(objective, task, parameters, batch, half=False)
    torch.testing.assert_close(ours, loop, atol=1e-4, rtol=1e-4)
    learned = list(parameters.values())
    for fast, slow in zip(
        torch.autograd.grad(ours, learned), torch.autograd.grad(loop, learned), strict=True
    ):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-2)


def test_capt_is_timed_with_as_many_vectors_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "--backbone",
                "tiny",
                "--labels",
                "5",
                "--batch",
                "2",
                "--runs",
                "1",
                "--only",
                "capt",
                "--vectors",
                "3",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)["results"]
    assert set(found) == {"capt_step"}
    assert found["capt_step"]["vectors"] == 3


def test_one_run_reports_both_ratios_and_the_bank_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "--backbone",
                "tiny",
                "--labels",
                "5",
                "--batch",
                "4",
                "--runs",
                "1",
                "--steps",
                "2",
                "--pictures",
                "20",
                "--epochs",
                "10",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["backbone"], found["labels"]) == ("tiny", 5)
    capt, advpt = found["results"]["capt_step"], found["results"]["advpt_epoch"]
    assert set(capt["seconds"]) == {
        "ours",
        "ours_bf16",
        "warm",
        "warm_bf16",
        "loop_float32",
        "loop_bf16_attack",
    }
    assert capt["vectors"] == 2
    assert capt["loop_float32_over_ours"] == pytest.approx(
        capt["seconds"]["loop_float32"] / capt["seconds"]["ours"], rel=0.05
    )
    assert set(capt["added_loss"]) == {"ours", "warm"}
    assert set(advpt["epoch_seconds"]) == {"tuning", "pgd_10", "pgd_2"}
    assert set(advpt["ratios"]) == {"pgd_10", "pgd_2"}
    assert set(advpt["ratios"]["pgd_10"]) == {"epoch", "bank_over_10_epochs"}
    assert advpt["bank_seconds"] > 0
