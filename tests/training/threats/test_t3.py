"""T3's own search, on victims small enough to know what it should find; how it follows the weaker levels is
in `test_levels.py`.
"""

from collections import Counter

import pytest
import torch
from toys import Lottery, gratings, trained_conv

from robustclip.attacks.ensemble import Preset
from robustclip.measuring import ONE_ANSWER, Jury, LabelledBatch, Measured, measure
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf
from robustclip.types import Attacked, Pixels, Score, Seeds
from training.threats.judging import GRADIENT_DRAWS, JUDGING_DRAWS, score_of
from training.threats.t3 import strong_attack, strong_ensemble

EPS = 4 / 255


def against_lottery(count: int, eps: float) -> tuple[Measured, Attacked, Counter[str]]:
    """Gray pictures, which three draws in ten get wrong by far, under T3's own search."""
    fell_to, attacks = Counter[str](), list[Attacked]()
    ensemble = strong_ensemble(Linf(radius=eps), "quick", randomized=True)
    search = strong_attack(ensemble, Jury(JUDGING_DRAWS), fell_to)

    def attack(score: Score, pixels: Pixels, seeds: Seeds) -> Attacked:
        attacks.append(search(score, pixels, seeds))
        return attacks[-1]

    batch = LabelledBatch(
        torch.full((count, 3, 8, 8), 0.5), torch.zeros(count, dtype=torch.int64), draw_seeds(0, count)
    )
    score, jury = score_of("margin", draws=GRADIENT_DRAWS), Jury(JUDGING_DRAWS)
    return (
        measure(Lottery(), [batch], attack=attack, score=score, ball=ensemble.ball, jury=jury),
        attacks[0],
        fell_to,
    )


def test_a_lucky_mean_ends_no_search_of_t3_behind_a_randomized_defense() -> None:
    found, attacked, fell_to = against_lottery(8, EPS)
    assert not found.correct.any()
    attacks = len(attacked.pixels)
    assert attacks >= 6, "who is right untouched is attacked"
    assert (attacked.pixels.flatten(1).mean(dim=1) > 0.5 + 1 / 400).all()
    assert sum(fell_to.values()) == attacks
    assert "clean" not in fell_to


def test_who_withstands_t3_behind_a_randomized_defense_fell_to_none_of_its_attacks() -> None:
    found, attacked, fell_to = against_lottery(8, 0.5 / 400)
    assert not fell_to
    assert found.correct.sum() >= len(attacked.pixels) - 2, (
        "ten draws, three of them wrong, are deceived now and then"
    )
    costs = [against_lottery(1, eps)[1].cost.charged for eps in (0.5 / 400, EPS)]
    bill = (
        strong_ensemble(Linf(radius=EPS), "quick", randomized=True)
        .bill(GRADIENT_DRAWS, labels=2, judged=True)
        .charged
    )
    assert costs[1] < costs[0] <= bill + 5 * 64


@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_t3_hands_over_the_points_of_the_ensemble_where_nothing_is_drawn(preset: Preset) -> None:
    pixels, targets = gratings(12, seed=9)
    ensemble, fell_to = strong_ensemble(Linf(radius=2 / 255), preset, randomized=False), Counter[str]()
    arguments = (label_score("margin", trained_conv(), targets), pixels, draw_seeds(3, 12))
    found, plain = strong_attack(ensemble, ONE_ANSWER, fell_to)(*arguments), ensemble(*arguments)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[:4], plain[:4], strict=True))
    assert (found.cost, sum(fell_to.values())) == (plain.cost, int((plain.margin > 0).sum()))
    assert 0 < sum(fell_to.values()) < 12
