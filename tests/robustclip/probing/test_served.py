"""The last word on a candidate: fresh forwards, as float pixels and from the PNG."""

import pytest
import torch
from toys import LinearClassifier, Noisy

from robustclip.attacks.events import Meter
from robustclip.images import load_pixels
from robustclip.probing.served import Aim, Served
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, BallSpec, Linf
from robustclip.types import Classifier

SIZE = 4
GRAY = torch.full((1, 3, SIZE, SIZE), 100 / 255)


def brighter_than(levels: float) -> LinearClassifier:
    """Label 1 wins where the mean is above so many levels of 255; the logits differ by 255 a level."""
    weights = torch.stack(
        [torch.zeros(3 * SIZE * SIZE), torch.full((3 * SIZE * SIZE,), 255.0 / (3 * SIZE * SIZE))]
    )
    return LinearClassifier(weights, torch.tensor([levels, 0.0]))


def served(classifier: Classifier, *, draws: int = 1) -> Served:
    return Served(classifier, draws > 1, draws, draw_seeds(0, 1), Meter())


def test_a_change_below_half_a_level_counts_as_floats_alone() -> None:
    judge, ball = served(brighter_than(100.2)), Linf(radius=0.4 / 255)
    found = judge.candidate(GRAY + 0.4 / 255, GRAY, ball, Aim(0))
    assert (found.success, found.success_8bit, found.float_only) == (True, False, True)
    assert found.decision.label == "label 1"
    assert not found.decision.correct
    assert judge.judge(GRAY, ball, Aim(0))(GRAY + 0.4 / 255, torch.tensor([0])).tolist() == [True], (
        "no PNG has room in this ball"
    )


@pytest.mark.parametrize("ball", [Linf(radius=1 / 255), L2(radius=7 / 255)])
def test_what_rounds_away_does_not_count_where_a_png_has_room(ball: BallSpec) -> None:
    judge = served(brighter_than(100.2))
    barely, surely = GRAY + 0.4 / 255, GRAY + 1 / 255
    candidates, rows = torch.cat([barely, surely]), torch.tensor([0, 0])
    assert judge.judge(GRAY, ball, Aim(0))(candidates, rows).tolist() == [False, True]
    assert judge.judge(GRAY, ball, Aim(0), bits=False)(candidates, rows).tolist() == [True, True]


def test_the_png_that_is_kept_is_the_picture_that_was_judged() -> None:
    found = served(brighter_than(100.2)).candidate(GRAY + 3.4 / 255, GRAY, Linf(radius=3.4 / 255), Aim(0))
    assert torch.equal(load_pixels(found.png, SIZE)[None], found.pixels)
    assert torch.equal((found.pixels * 255).round(), torch.full_like(GRAY, 103))


def test_a_goal_is_reached_by_its_label_alone() -> None:
    three = LinearClassifier(torch.zeros(3, 3 * SIZE * SIZE), torch.tensor([0.0, 2.0, 1.0]))
    judge = served(three)
    assert judge.judged(GRAY, Aim(0)).reached
    assert judge.judged(GRAY, Aim(0, 1)).reached
    assert not judge.judged(GRAY, Aim(0, 2)).reached


def test_a_random_victim_is_judged_by_most_of_its_draws_and_pays_for_each() -> None:
    even, sure = (
        LinearClassifier(torch.zeros(2, 48), torch.zeros(2)),
        LinearClassifier(torch.zeros(2, 48), torch.tensor([0.0, 9.0])),
    )
    judge = served(Noisy(even), draws=64)
    toss = judge.judged(GRAY, Aim(0))
    assert toss.rate is not None
    assert not toss.reached
    assert toss.rate.low < 0.5 < toss.rate.high
    assert toss == judge.judged(GRAY, Aim(0)), "the same draws for the same seed"
    assert judge.meter.spent.charged == 128
    certain = served(Noisy(sure), draws=64).judged(GRAY, Aim(0))
    assert certain.rate is not None
    assert (certain.reached, certain.rate.wrong) == (True, 64)
