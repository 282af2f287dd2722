"""What a defense seems to hold and what it holds, picture by picture."""

from pathlib import Path
from typing import Any

import measured
import pytest
import torch
from measured import changed

from robustclip.measuring import accuracy
from training.measuring.evaluation.illusions import illusions
from training.measuring.evaluation.rows import Row
from training.measuring.schema.evaluation import Result

N = 100
GLASS, SHAKEN = "jpeg:75", "resize_pad:0.9"


def row(defense: str, threat: str, right: int, *, pictures: str = "p", first: int = 0, **facts: Any) -> Row:
    """Of `N` pictures those from `first` on are right, `right` of them."""
    correct = torch.zeros(N, dtype=torch.bool)
    correct[first : first + right] = True
    share = accuracy(correct)._asdict()
    numbers = {"method": "plain", "n": N, "accuracy": share.pop("value"), **share}
    eps = "0" if threat == "clean" else "2/255"
    values = measured.row(defense=defense, threat=threat, eps=eps, **numbers, **facts)
    names = tuple(f"{pictures}{index}" for index in range(N))
    return Row(Result.model_validate(values), "plain", Path("toys"), names, correct)


def test_a_defense_that_holds_by_ignorance_alone_only_looks_strong() -> None:
    rows = [
        row(GLASS, "clean", 90),
        row(GLASS, "static", 80),
        row(GLASS, "T2", 30),
        row(GLASS, "black-box", 60),
    ]
    (found,) = illusions(rows)
    assert (found.defense, found.method, found.n, found.static) == (GLASS, "plain", N, 0.8)
    assert (found.worst.value, found.worst.of) == (0.3, ("T2", "black-box"))
    assert abs(found.difference - 0.5) < 1e-6
    assert found.low > 0.3
    assert found.only_looks_strong
    assert found.gain is None


def test_the_worst_is_taken_picture_by_picture() -> None:
    (found,) = illusions(
        [row(GLASS, "static", 50), row(GLASS, "T2", 50), row(GLASS, "black-box", 50, first=40)]
    )
    assert found.worst.value == 0.1


def test_what_chance_may_explain_is_no_illusion_and_no_gain() -> None:
    rows = [row("none", "T2", 31), row(GLASS, "static", 33), row(GLASS, "T2", 30)]
    (found,) = illusions(rows)
    assert not found.only_looks_strong
    assert found.gain.high >= 0 >= found.gain.difference


def test_what_is_held_is_compared_under_the_same_attacks_on_the_same_pictures_alone() -> None:
    behind = [row(GLASS, "static", 60), row(GLASS, "T2", 55), row(GLASS, "black-box", 58)]
    (found,) = illusions([*behind, row("none", "T2", 20), row("none", "black-box", 40)])
    assert abs(found.gain.difference - 0.35) < 1e-6
    assert illusions([*behind, row("none", "T2", 20)])[0].gain is None
    others = [row("none", threat, 20, pictures="q") for threat in ("T2", "black-box")]
    assert illusions([*behind, *others])[0].gain is None


@pytest.mark.parametrize(
    ("taken", "unequal"),
    [
        ({"T2": {"steps": 20}}, [("T2", "steps", 20, 100)]),
        ({"black-box": {"queries": 25}}, [("black-box", "queries", 25, 1000)]),
        (
            {"T2": {"steps": 20, "draws": 4}, "black-box": {"draws": 1}},
            [("T2", "steps", 20, 100), ("T2", "draws", 4, 20), ("black-box", "draws", 1, 4)],
        ),
    ],
)
def test_who_was_attacked_less_hard_is_not_said_to_hold_more(
    taken: dict[str, dict[str, int]], unequal: list[tuple[Any, ...]]
) -> None:
    attacked = [row(SHAKEN, threat, 55) for threat in ("T2", "black-box")]
    behind = [
        row(SHAKEN, "static", 60),
        *(one._replace(result=changed(one.result, **taken.get(one.result.threat, {}))) for one in attacked),
    ]
    bare = [row("none", threat, 20) for threat in ("T2", "black-box")]
    (found,) = illusions([*behind, *bare])
    assert found.gain.low > 0
    assert [tuple(part.as_json().values()) for part in found.unequal] == unequal
    assert found.holds is None
    (less,) = illusions([*behind, *(row("none", threat, 90) for threat in ("T2", "black-box"))])
    assert less.holds == "less"  # the more so


def test_who_was_attacked_as_hard_holds_more_or_less_and_who_was_attacked_harder_not_less() -> None:
    weak = [row("none", "T2", 20, steps=20)]
    for steps, bare, holds in ((20, 20, "more"), (40, 20, "more"), (40, 90, None), (20, 90, "less")):
        rows = [
            row(GLASS, "static", 60),
            row(GLASS, "T2", 55, steps=steps),
            row("none", "T2", bare, steps=20),
        ]
        assert [found.holds for found in illusions(rows)] == [holds]
    (found,) = illusions([row(SHAKEN, "static", 60), row(SHAKEN, "T2", 55, steps=10, draws=80), *weak])
    assert found.holds is None  # draws are no steps


def test_a_random_chain_is_not_judged_by_several_juries_where_static_has_one() -> None:
    generator, draws = torch.Generator().manual_seed(0), 10
    share = 0.6  # of each picture's draws are right, whatever was done to it
    seen = {
        threat: (torch.rand(N, draws, generator=generator) < share).sum(1) > draws / 2
        for threat in ("static", "T2", "black-box")
    }
    rows = [row(SHAKEN, threat, 0)._replace(correct=correct) for threat, correct in seen.items()]
    (found,) = illusions([*rows, row("none", "T2", 40), row("none", "black-box", 40, first=40)])
    least = min(("T2", "black-box"), key=lambda threat: int(seen[threat].sum()))
    assert found.random
    assert found.worst.of == (least,)
    assert found.worst.value == pytest.approx(seen[least].float().mean().item())
    assert not found.only_looks_strong
    assert found.gain.difference == pytest.approx(
        found.worst.value - 0.4
    )  # what one attack leaves, not what stands before both
    several = row(SHAKEN, "T3", 0)._replace(correct=seen["T2"] & seen["black-box"])
    (same,) = illusions([*rows, several])
    assert same.worst == found.worst
    (sure,) = illusions([one._replace(result=changed(one.result, defense=GLASS)) for one in rows])
    assert sure.only_looks_strong  # the same numbers of a chain without luck


def test_another_gradient_through_the_same_defense_is_another_attack_on_it() -> None:
    soft, hard = "jpeg:75", '[{"kind": "jpeg", "quality": 75, "backward": "identity"}]'
    attacked = [row(soft, "static", 60), row(soft, "T2", 55)]
    (found,) = illusions([*attacked, row(hard, "T2", 20), row("jpeg:60", "T2", 10)])
    assert (found.defense, found.worst.value, found.difference) == (soft, 0.2, pytest.approx(0.4))


def test_what_nobody_measured_is_not_told() -> None:
    assert illusions([row("none", "static", 60), row("none", "T2", 20)]) == []
    assert illusions([row(GLASS, "static", 60), row(GLASS, "T0", 20)]) == []
    assert illusions([row(GLASS, "static", 60), row(GLASS, "T2", 20, pictures="q")]) == []
