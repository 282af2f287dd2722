import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from toys import LinearClassifier, gratings, trained_conv

from robustclip.attacks.pgd import PGD
from robustclip.defenses.smoothing import Smoothing
from robustclip.errors import InvalidInput
from robustclip.measuring import (
    Interval,
    Jury,
    LabelledBatch,
    accuracy,
    mcnemar,
    measure,
    paired_difference,
    wilson,
)
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds, row_uniform
from robustclip.threat import Linf
from robustclip.types import Attacked, Cost, Logits, Pixels, Score, Seeds

CROSS_ENTROPY = partial(label_score, "cross_entropy")


def sign_of_the_first_value() -> LinearClassifier:
    """Label 1 where the first value of a [3, 2, 2] picture is above 0.5, else label 0."""
    weights = torch.zeros(2, 12)
    weights[1, 0] = 1.0
    return LinearClassifier(weights, torch.tensor([0.5, 0.0]))


def pictures(first_values: list[float]) -> Pixels:
    pixels = torch.full((len(first_values), 3, 2, 2), 0.25)
    pixels[:, 0, 0, 0] = torch.tensor(first_values)
    return pixels


def batch(pixels: Pixels, targets: list[int], transferred: Pixels | None = None) -> LabelledBatch:
    return LabelledBatch(pixels, torch.tensor(targets), draw_seeds(0, len(pixels)), transferred)


class Moves:
    """An attack that adds a change, and claims what it likes."""

    def __init__(self, change: float, *, margin: float = 1.0) -> None:
        self.change, self.margin, self.rows = change, margin, 0

    def __call__(self, score: Score, pixels: Pixels, seeds: Seeds) -> Attacked:
        self.rows += len(pixels)
        moved = pixels.clone()
        moved[:, 0, 0, 0] += self.change
        claim = torch.full((len(pixels),), self.margin)
        nothing = torch.zeros(0, len(pixels))
        return Attacked(
            moved, claim, claim, torch.zeros(len(pixels), dtype=torch.int64), nothing, nothing, Cost(7, 5)
        )


def test_clean_accuracy_is_counted_picture_by_picture() -> None:
    found = measure(
        sign_of_the_first_value(), [batch(pictures([0.9, 0.1]), [1, 1]), batch(pictures([0.2]), [0])]
    )
    assert found.correct.tolist() == [True, False, True]
    assert found.correct_8bit.tolist() == [True, False, True]
    assert found.cost == Cost(forward=3)
    assert found.seconds >= 0


def test_pictures_that_are_wrong_untouched_count_as_broken_and_are_not_attacked() -> None:
    attack = Moves(-0.5)
    found = measure(
        sign_of_the_first_value(),
        [batch(pictures([0.9, 0.1, 0.4]), [1, 1, 0])],
        attack=attack,
        score=CROSS_ENTROPY,
    )
    assert found.correct.tolist() == [False, False, True]
    assert attack.rows == 2
    assert found.cost == Cost(forward=3 + 7 + 2, backward=5)


@pytest.mark.parametrize("margin", [-1.0, 1.0, math.nan])
def test_an_attacks_own_claim_counts_for_nothing(margin: float) -> None:
    for change, expected in ((0.0, True), (-0.5, False)):
        attack = Moves(change, margin=margin)
        found = measure(
            sign_of_the_first_value(), [batch(pictures([0.9]), [1])], attack=attack, score=CROSS_ENTROPY
        )
        assert found.correct.tolist() == [expected]


def test_a_change_below_half_a_level_breaks_the_float_picture_and_not_its_png() -> None:
    ball = Linf(radius=0.45 / 255)
    origin = pictures([128 / 255])
    on_the_brink = LinearClassifier(sign_of_the_first_value().weights, torch.tensor([127.8 / 255, 0.0]))
    found = measure(
        on_the_brink, [batch(origin, [1])], attack=Moves(-0.4 / 255), score=CROSS_ENTROPY, ball=ball
    )
    assert (found.correct.tolist(), found.correct_8bit.tolist()) == ([False], [True])


def test_transferred_pictures_are_judged_where_the_clean_one_is_right() -> None:
    made = pictures([0.1, 0.9, 0.8])
    found = measure(
        sign_of_the_first_value(), [batch(pictures([0.9, 0.1, 0.9]), [1, 1, 1], made)], ball=Linf(radius=1.0)
    )
    assert found.correct.tolist() == found.correct_8bit.tolist() == [False, False, True]


def test_a_real_attack_lowers_a_real_accuracy_the_same_way_in_any_batches() -> None:
    classifier, (pixels, targets) = trained_conv(), gratings(24, seed=3)
    attack = PGD(ball=Linf(radius=8 / 255), steps=10)
    seeds = draw_seeds(0, 24)

    def run(size: int) -> Tensor:
        parts = [
            LabelledBatch(pixels[i : i + size], targets[i : i + size], seeds[i : i + size])
            for i in range(0, 24, size)
        ]
        return measure(classifier, parts, attack=attack, score=CROSS_ENTROPY).correct

    clean = measure(classifier, [LabelledBatch(pixels, targets, seeds)]).correct
    assert clean.float().mean() > 0.9
    assert run(24).float().mean() < 0.5
    assert torch.equal(run(24), run(7))


class Wavering:
    """Right in a given share of draws."""

    labels = ("wrong", "right")

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        right = (row_uniform(seeds, (), like=pixels) < self.share).float()
        return torch.stack([0.5 * torch.ones_like(right), right], dim=1)


@pytest.mark.parametrize(("share", "expected"), [(0.9, 1.0), (0.1, 0.0)])
def test_a_randomized_classifier_is_judged_by_the_majority_of_fresh_draws(
    share: float, expected: float
) -> None:
    found = measure(Wavering(share), [batch(pictures([0.5] * 40), [1] * 40)], jury=Jury(25))
    assert float(found.correct.float().mean()) == pytest.approx(expected, abs=0.01)
    assert found.cost == Cost(forward=40 * 25)


def test_half_of_the_draws_is_not_enough() -> None:
    class Alternating(Wavering):
        calls = 0

        def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
            self.calls += 1
            return torch.tensor([[0.0, 1.0]] if self.calls % 2 else [[1.0, 0.0]])

    assert measure(Alternating(0.5), [batch(pictures([0.5]), [1])], jury=Jury(2)).correct.tolist() == [False]


@pytest.mark.parametrize(("share", "right", "silent"), [(0.9, 20, 0), (0.1, 0, 0), (0.5, 0, 20)])
def test_a_vote_is_judged_as_it_is_served_and_its_silence_is_not_right(
    share: float, right: int, silent: int
) -> None:
    found = measure(
        Wavering(share),
        [batch(pictures([0.5] * 20), [1] * 20)],
        jury=Jury.of(Smoothing(votes=100, alpha=1e-6)),
    )
    assert found.abstained is not None
    assert (int(found.correct.sum()), int(found.abstained.sum())) == (right, silent)
    assert found.cost == Cost(forward=20 * 100)
    assert measure(Wavering(share), [batch(pictures([0.5]), [1])], jury=Jury(100)).abstained is None


def test_who_is_silent_untouched_is_not_attacked_and_who_is_silenced_is_told_from_who_is_fooled() -> None:
    class Undecided(Wavering):
        """Sure of label 1 from 0.8 on, of label 0 below 0.3, tossing a coin between."""

        def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
            first = pixels[:, 0, 0, 0]
            said = torch.where(
                first >= 0.8,
                1.0,
                torch.where(first < 0.3, 0.0, (row_uniform(seeds, (), like=pixels) < 0.5).float()),
            )
            return torch.stack([0.5 * torch.ones_like(said), said], dim=1)

    attack, jury = Moves(-0.3), Jury.of(Smoothing(votes=40))
    rows = [batch(pictures([0.9, 0.5, 0.1]), [1, 1, 1]), batch(pictures([0.1]), [0])]
    found = measure(Undecided(0.5), rows, attack=attack, score=CROSS_ENTROPY, jury=jury)
    assert attack.rows == 2
    assert found.correct.tolist() == [False, False, False, True]
    assert found.abstained is not None
    assert found.abstained.tolist() == [True, True, False, False]


def test_an_attack_without_a_score_is_refused() -> None:
    with pytest.raises(InvalidInput):
        measure(sign_of_the_first_value(), [], attack=Moves(0.0))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_intervals_are_those_of_newcombe_1998(
    successes: int, trials: int, low: float, high: float
) -> None:
    interval = wilson(successes, trials)
    assert interval.value == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("wrong", [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput):
        wilson(*wrong)


def test_accuracy_is_the_share_of_right_pictures() -> None:
    assert accuracy(torch.tensor([True, True, False, True])) == wilson(3, 4)


def disagreeing(only_first: int, only_second: int, both: int = 0) -> tuple[Tensor, Tensor]:
    first = torch.tensor([True] * only_first + [False] * only_second + [True] * both)
    return first, torch.tensor([False] * only_first + [True] * only_second + [True] * both)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((9, 1), 22 / 1024), ((1, 9), 22 / 1024), ((5, 5), 1.0), ((0, 0, 4), 1.0), ((6, 0), 2 / 64)],
)
def test_mcnemar_is_the_exact_binomial_test(counts: tuple[int, ...], expected: float) -> None:
    assert mcnemar(*disagreeing(*counts)) == pytest.approx(expected)


def test_a_paired_difference_has_the_width_that_pairing_gives() -> None:
    difference = paired_difference(*disagreeing(30, 10, 160))
    half = 1.96 * math.sqrt((40 - 20**2 / 200) / 200**2)
    assert difference.value == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.006)


def test_equal_methods_differ_by_nothing_at_all() -> None:
    same = torch.tensor([True, False, True])
    assert paired_difference(same, same) == Interval(0.0, 0.0, 0.0)


def test_a_difference_does_not_touch_the_global_generator_and_repeats() -> None:
    before = torch.get_rng_state()
    first, second = (paired_difference(*disagreeing(7, 2, 30)) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("compare", [mcnemar, paired_difference])
def test_lists_of_other_pictures_are_not_compared(compare: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises(InvalidInput):
        compare(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))
    with pytest.raises(InvalidInput):
        compare(torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool))
