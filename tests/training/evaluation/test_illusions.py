"""What a defense seems to hold and what it holds, picture by picture."""

from pathlib import Path
from typing import Any

import torch

from robustclip.measure import accuracy
from training.evaluation.illusions import illusions
from training.evaluation.rows import Row

N = 100


def row(defense: str, threat: str, right: int, *, pictures: str = "p", first: int = 0, **facts: Any) -> Row:
    """Of `N` pictures those from `first` on are right, `right` of them."""
    correct = torch.zeros(N, dtype=torch.bool)
    correct[first : first + right] = True
    subject = {"backbone": "tiny", "data": "toys", "split": "test", "method": "plain", "prompt_set": "plain@1", "seed": 0, "n": N}
    eps = "0" if threat == "clean" else "2/255"
    share = accuracy(correct)
    numbers = {"accuracy": share.value, "low": share.low, "high": share.high}
    return Row(
        {**subject, "defense": defense, "threat": threat, "eps": eps, **numbers, **facts},
        "plain",
        Path("toys"),
        tuple(f"{pictures}{index}" for index in range(N)),
        correct,
    )


def test_a_defense_that_holds_by_ignorance_alone_only_looks_strong() -> None:
    rows = [row("glass", "clean", 90), row("glass", "static", 80), row("glass", "T2", 30), row("glass", "black-box", 60)]
    (found,) = illusions(rows)
    assert (found["defense"], found["method"], found["n"], found["static"]) == ("glass", "plain", N, 0.8)
    assert (found["worst"]["value"], found["worst"]["of"]) == (0.3, ["T2", "black-box"])
    assert abs(found["difference"] - 0.5) < 1e-6
    assert found["low"] > 0.3
    assert found["only_looks_strong"]
    assert found["gain"] is None


def test_the_worst_is_taken_picture_by_picture() -> None:
    (found,) = illusions([row("glass", "static", 50), row("glass", "T2", 50), row("glass", "black-box", 50, first=40)])
    assert found["worst"]["value"] == 0.1


def test_what_chance_may_explain_is_no_illusion_and_no_gain() -> None:
    rows = [row("none", "T2", 31), row("glass", "static", 33), row("glass", "T2", 30)]
    (found,) = illusions(rows)
    assert not found["only_looks_strong"]
    assert found["gain"]["high"] >= 0 >= found["gain"]["difference"]


def test_what_is_held_is_compared_under_the_same_attacks_on_the_same_pictures_alone() -> None:
    behind = [row("glass", "static", 60), row("glass", "T2", 55), row("glass", "black-box", 58)]
    (found,) = illusions([*behind, row("none", "T2", 20), row("none", "black-box", 40)])
    assert abs(found["gain"]["difference"] - 0.35) < 1e-6
    assert illusions([*behind, row("none", "T2", 20)])[0]["gain"] is None
    others = [row("none", threat, 20, pictures="q") for threat in ("T2", "black-box")]
    assert illusions([*behind, *others])[0]["gain"] is None


def test_what_nobody_measured_is_not_told() -> None:
    assert illusions([row("none", "static", 60), row("none", "T2", 20)]) == []
    assert illusions([row("glass", "static", 60), row("glass", "T0", 20)]) == []
    assert illusions([row("glass", "static", 60), row("glass", "T2", 20, pictures="q")]) == []
