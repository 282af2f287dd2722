import threading
import time
from dataclasses import dataclass

import pytest
import torch
from toys import Noisy, drawn_linear, gratings, trained_conv

from robustclip.errors import Cancelled, DeadlineExceeded, InvalidInput
from robustclip.scores.kinds import label_score
from robustclip.scores.surrogates import bypassed, estimated, pooled, transferred
from robustclip.scores.wrappers import averaged, guarded, recorded, reduced
from robustclip.seeds import draw_seeds
from robustclip.types import NO_TOLL, Cost, Evaluation, Logits, Pixels, Seeds, Toll

PIXELS, TARGETS = gratings(8, seed=5)
SEEDS = draw_seeds(5, 8)


def test_an_average_is_the_mean_over_fresh_draws() -> None:
    noisy = label_score("margin", Noisy(drawn_linear()), TARGETS)
    one = noisy(PIXELS, SEEDS, grad=False).value
    few, many = averaged(noisy, 2)(PIXELS, SEEDS, grad=True), averaged(noisy, 400)(PIXELS, SEEDS, grad=False)
    assert not torch.allclose(few.value, one)
    assert few.cost == Cost(forward=16, backward=16)
    assert few.value.shape == (8,)
    assert few.grad is not None
    assert few.grad.shape == PIXELS.shape
    again = averaged(noisy, 400)(PIXELS, draw_seeds(99, 8), grad=False)
    assert (
        many.value - again.value
    ).abs().max() < 0.5  # two means of 400 draws, each of standard deviation about 1.4
    with pytest.raises(InvalidInput):
        averaged(noisy, 0)


def test_a_bill_counts_rows_of_every_selection_and_draw() -> None:
    bill = recorded(averaged(label_score("margin", Noisy(drawn_linear()), TARGETS), 3))
    bill(PIXELS, SEEDS, grad=False)
    bill.select(torch.tensor([1, 2]))(PIXELS[:2], SEEDS[:2], grad=True)
    assert bill.cost == Cost(forward=24 + 6, backward=6)
    assert bill.cost.charged == 42


def test_a_guarded_score_holds_the_lock_chunk_by_chunk() -> None:
    holds: list[int] = []

    class Lock:
        def __enter__(self) -> None:
            holds.append(0)

        def __exit__(self, *_: object) -> None:
            holds[-1] += 1

    plain = label_score("margin", trained_conv(), TARGETS)
    seen = guarded(plain, Lock(), chunk_rows=3)(PIXELS, SEEDS, grad=True)
    assert holds == [1, 1, 1]
    expected = plain(PIXELS, SEEDS, grad=True)
    assert torch.allclose(seen.value, expected.value, atol=1e-5)
    assert seen.cost == expected.cost
    with pytest.raises(InvalidInput):
        guarded(plain, chunk_rows=0)


def test_a_guarded_score_stops_at_the_deadline_and_when_cancelled() -> None:
    score, calls = label_score("margin", drawn_linear(), TARGETS), iter([False, False, True])
    lock = threading.Lock()
    with pytest.raises(DeadlineExceeded):
        guarded(score, lock, deadline=time.monotonic() - 1)(PIXELS, SEEDS, grad=False)
    with pytest.raises(Cancelled):
        guarded(score, lock, cancelled=lambda: next(calls), chunk_rows=1)(PIXELS, SEEDS, grad=False)
    assert issubclass(Cancelled, DeadlineExceeded)
    assert not lock.locked()
    guarded(score, lock, deadline=time.monotonic() + 60, cancelled=lambda: False)(PIXELS, SEEDS, grad=False)


def gradient(seen: Evaluation) -> torch.Tensor:
    assert seen.grad is not None
    return seen.grad.flatten(1)


def test_an_average_has_the_mean_logits() -> None:
    seen = averaged(label_score("margin", Noisy(drawn_linear()), TARGETS), 400)(PIXELS, SEEDS, grad=False)
    assert seen.logits is not None
    assert (seen.logits - drawn_linear()(PIXELS, SEEDS)).abs().max() < 0.3


def test_an_estimate_points_where_the_gradient_points_without_asking_for_one() -> None:
    plain = label_score("margin", drawn_linear(), TARGETS)
    bill = recorded(plain)
    guessed = estimated(bill, 400)(PIXELS, SEEDS, grad=True)
    cosine = torch.nn.functional.cosine_similarity(
        gradient(guessed), gradient(plain(PIXELS, SEEDS, grad=True))
    )
    assert (
        cosine > 0.15
    ).all()  # of 3072 directions 200 were tried: sqrt(200 / 3272) = 0.25 is what can be hoped for
    assert torch.equal(guessed.value, plain(PIXELS, SEEDS, grad=False).value)
    assert bill.cost == guessed.cost == Cost(forward=8 * 401, backward=0)
    alone = estimated(plain, 40).select(torch.tensor([3]))(PIXELS[3:4], SEEDS[3:4], grad=True)
    assert torch.allclose(
        gradient(alone)[0], gradient(estimated(plain, 40)(PIXELS, SEEDS, grad=True))[3], rtol=1e-3, atol=1e-4
    )
    assert estimated(plain, 40)(PIXELS, SEEDS, grad=False).cost == Cost(forward=8)
    for samples in (0, 3):
        with pytest.raises(InvalidInput):
            estimated(plain, samples)


def test_a_transferred_score_climbs_the_source_and_is_judged_by_the_victim() -> None:
    source, victim = (
        label_score("cross_entropy", drawn_linear(), TARGETS),
        label_score("margin", trained_conv(), TARGETS),
    )
    rows = torch.tensor([6, 1])
    seen = transferred(source, victim).select(rows)(PIXELS[rows], SEEDS[rows], grad=True)
    expected = source(PIXELS, SEEDS, grad=True)
    assert torch.allclose(seen.value, expected.value[rows], atol=1e-5)
    assert torch.allclose(gradient(seen), gradient(expected)[rows], atol=1e-5)
    assert torch.allclose(seen.margin, victim(PIXELS, SEEDS, grad=False).margin[rows], atol=1e-5)
    assert seen.cost == Cost(forward=4, backward=2)


def test_a_bypassed_defense_is_seen_but_not_differentiated() -> None:
    @dataclass(frozen=True)
    class Coarse:
        """Four levels a value: a gradient of 0 everywhere."""

        stage: str = "pixels"
        randomized: bool = False
        gradient: str = "none"
        toll: Toll = NO_TOLL

        def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
            return (3 * inputs).round() / 3

    plain = label_score("margin", trained_conv(), TARGETS)
    rows = torch.tensor([5, 0])
    seen, expected = (
        bypassed(plain, Coarse()).select(rows)(PIXELS[rows], SEEDS[rows], grad=True),
        plain(Coarse()(PIXELS, SEEDS), SEEDS, grad=True),
    )
    assert torch.allclose(seen.margin, expected.margin[rows], atol=1e-5)
    assert torch.allclose(gradient(seen), gradient(expected)[rows], atol=1e-5)
    assert gradient(seen).any()
    with pytest.raises(InvalidInput):
        bypassed(plain, Coarse(stage="features"))


def test_in_a_pool_nobody_outshouts_the_others() -> None:
    quiet, other = (
        label_score("margin", drawn_linear(), TARGETS),
        label_score("margin", trained_conv(), TARGETS),
    )
    loud = label_score("margin", drawn_linear(scale=1000.0), TARGETS)
    softly, loudly = (pooled([score, other])(PIXELS, SEEDS, grad=True) for score in (quiet, loud))
    assert torch.allclose(softly.value, loudly.value, rtol=1e-4)
    assert torch.allclose(gradient(softly), gradient(loudly), rtol=1e-3, atol=1e-5)
    assert softly.cost == Cost(forward=16, backward=16)
    with pytest.raises(InvalidInput):
        pooled([])


def test_a_reduced_score_searches_roughly_and_judges_exactly() -> None:
    rough: list[bool] = []

    @dataclass(frozen=True)
    class Watched:
        labels = trained_conv().labels

        def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
            rough.append(torch.is_autocast_enabled("cpu"))
            return trained_conv()(pixels, seeds)

    plain = label_score("margin", trained_conv(), TARGETS)
    exact = plain(PIXELS, SEEDS, grad=True)
    seen = reduced(label_score("margin", Watched(), TARGETS), slack=0.0)(PIXELS, SEEDS, grad=True)
    assert rough == [True]  # nobody is near the goal
    assert seen.cost == Cost(8, 8)
    assert not torch.equal(seen.margin, exact.margin)
    assert torch.nn.functional.cosine_similarity(gradient(seen), gradient(exact)).min() > 0.9
    near = -float(exact.margin.median())
    seen = reduced(label_score("margin", Watched(), TARGETS), slack=near)(PIXELS, SEEDS, grad=True)
    assert rough == [True, True, False]
    assert 8 < seen.cost.forward < 16
    exactly = (seen.margin - exact.margin).abs() < 1e-5
    assert exactly[exact.margin > -near + 0.1].all()
    assert not exactly.all()
    assert seen.value.dtype == seen.margin.dtype == torch.float32
