from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toys import Noisy, drawn_linear, gratings, trained_conv

from robustclip.errors import InvalidInput, NoDecisionToAttack
from robustclip.scores.kinds import EmbeddingShift, decision, label_score, restated
from robustclip.scores.losses import LossName, untargeted_margin
from robustclip.scores.wrappers import averaged, guarded, recorded
from robustclip.seeds import draw_seeds
from robustclip.types import Logits, Pixels, Score, Seeds

PIXELS, TARGETS = gratings(8, seed=5)
SEEDS = draw_seeds(5, 8)
GOALS = (TARGETS + 1) % 4


def every_score() -> list[Score]:
    toy = trained_conv()
    embed = lambda pixels: F.avg_pool2d(pixels, 4).flatten(1) * 9  # noqa: E731 - a short encoder
    clean = embed(PIXELS + 0.01 * torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(0)))
    return [
        *(
            label_score(name, toy, TARGETS, goals)
            for name in ("cross_entropy", "margin")
            for goals in (None, GOALS)
        ),
        label_score("cross_entropy", toy, TARGETS, temperature=10.0),
        label_score("cross_entropy", toy, TARGETS, temperature=torch.tensor([1.0, 10.0] * 4)),
        label_score("dlr", drawn_linear(), TARGETS),
        label_score("targeted_margin", toy, TARGETS, rivals=GOALS),
        label_score("targeted_dlr", toy, TARGETS, rivals=GOALS),
        *(EmbeddingShift(embed, clean, distance) for distance in ("kl", "cosine", "l2")),
        averaged(label_score("margin", Noisy(drawn_linear()), TARGETS), 3),
        guarded(label_score("margin", toy, TARGETS), chunk_rows=3),
        recorded(label_score("margin", toy, TARGETS)),
    ]


def test_margin_is_positive_exactly_when_another_label_wins() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0], [2.0, 2.0, 1.0]])
    assert untargeted_margin(logits, torch.tensor([0, 0, 0])).tolist() == [2.0, -1.0, 0.0]


def test_values_are_the_textbook_ones() -> None:
    toy = drawn_linear()
    logits = toy(PIXELS, SEEDS)
    rows = torch.arange(8)
    expected = {
        "cross_entropy": -logits.log_softmax(dim=1)[rows, TARGETS],
        "margin": torch.stack(
            [
                max(z for i, z in enumerate(row) if i != y) - row[y]
                for row, y in zip(logits, TARGETS, strict=True)
            ]
        ),
    }
    for name in ("cross_entropy", "margin"):
        seen = label_score(name, toy, TARGETS)(PIXELS, SEEDS, grad=False)
        assert torch.allclose(seen.value, expected[name], atol=1e-5)
        assert torch.allclose(seen.margin, expected["margin"], atol=1e-5)
        aimed = label_score(name, toy, TARGETS, GOALS)(PIXELS, SEEDS, grad=False)
        assert torch.equal(aimed.margin > 0, logits.argmax(dim=1) == GOALS)
    warm = label_score("cross_entropy", toy, TARGETS, temperature=10.0)(PIXELS, SEEDS, grad=False)
    assert torch.allclose(warm.value, -(logits / 10).log_softmax(dim=1)[rows, TARGETS], atol=1e-5)


def test_shifts_are_the_textbook_ones() -> None:
    clean = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    moved = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    p, q = clean.softmax(dim=1), moved.softmax(dim=1)
    expected = {
        "kl": (p * (p / q).log()).sum(dim=1),
        "cosine": 1 - (clean * moved).sum(dim=1) / clean.norm(dim=1) / moved.norm(dim=1),
        "l2": ((clean - moved) ** 2).sum(dim=1),
    }
    for distance in ("kl", "cosine", "l2"):
        shift = EmbeddingShift(lambda pixels: moved, clean, distance)(PIXELS, SEEDS, grad=False)
        assert torch.allclose(shift.value, expected[distance], rtol=1e-4)
        assert (shift.margin == -torch.inf).all()


@pytest.mark.parametrize("score", every_score(), ids=lambda score: type(score).__name__)
class TestEveryScore:
    def test_the_gradient_agrees_with_central_differences(self, score: Score) -> None:
        gradient = score(PIXELS, SEEDS, grad=True).grad
        assert gradient is not None
        direction = (
            torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(8)).sign() + gradient.sign()
        )
        step = 1e-4
        rise = (
            score(PIXELS + step * direction, SEEDS, grad=False).value
            - score(PIXELS - step * direction, SEEDS, grad=False).value
        )
        assert torch.allclose(
            rise / (2 * step), (gradient * direction).flatten(1).sum(dim=1), rtol=0.15, atol=0.05
        )

    def test_rows_are_independent_and_selection_follows(self, score: Score) -> None:
        whole = score(PIXELS, SEEDS, grad=True)
        assert whole.grad is not None
        for rows in (torch.tensor([6, 1, 1]), torch.tensor([4]), torch.arange(8).flip(0)):
            part = score.select(rows)(PIXELS[rows], SEEDS[rows], grad=True)
            assert part.grad is not None
            for found, expected in (
                (part.value, whole.value),
                (part.margin, whole.margin),
                (part.grad, whole.grad),
            ):
                assert torch.allclose(found, expected[rows], atol=1e-5)

    def test_nothing_stays_on_the_graph_and_no_gradient_is_made_unasked(self, score: Score) -> None:
        pixels = PIXELS.clone().requires_grad_()
        for asked in (True, False):
            seen = score(pixels, SEEDS, grad=asked)
            assert not seen.value.requires_grad
            assert not seen.margin.requires_grad
            assert (seen.grad is not None) == asked
        assert pixels.grad is None

    def test_no_gradient_is_made_of_a_disabled_graph(self, score: Score) -> None:
        with torch.no_grad():
            seen = score(PIXELS, SEEDS, grad=True)
        assert seen.grad is not None
        assert seen.grad.abs().sum() > 0


def test_parameters_receive_no_gradient() -> None:
    toy = drawn_linear()
    toy.weights.requires_grad_()
    label_score("margin", toy, TARGETS)(PIXELS, SEEDS, grad=True)
    assert toy.weights.grad is None


def test_a_victim_off_the_graph_shows_a_zero_gradient() -> None:
    toy = drawn_linear()

    @dataclass(frozen=True)
    class Detached:
        labels: tuple[str, ...] = toy.labels

        def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
            return toy(pixels.detach(), seeds)

    seen = label_score("margin", Detached(), TARGETS)(PIXELS, SEEDS, grad=True)
    assert seen.grad is not None
    assert not seen.grad.any()


def test_temperature_cures_the_saturated_cross_entropy() -> None:
    sure = drawn_linear(scale=1000.0)
    targets = sure(PIXELS, SEEDS).argmax(dim=1)

    def length(score: Score) -> Tensor:
        gradient = score(PIXELS, SEEDS, grad=True).grad
        assert gradient is not None
        return gradient.flatten(1).norm(dim=1)

    lost = length(label_score("cross_entropy", sure, targets)) < 1e-6
    assert lost.any()
    assert (length(label_score("cross_entropy", sure, targets, temperature=1000.0)) > 1e-3).all()
    assert (length(label_score("margin", sure, targets)) > 1).all()


def test_one_label_is_no_decision() -> None:
    with pytest.raises(NoDecisionToAttack):
        label_score("margin", drawn_linear(labels=1), torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize(("loss", "labels"), [("dlr", 2), ("targeted_dlr", 3)])
def test_a_loss_that_compares_more_labels_than_there_are_is_refused(loss: LossName, labels: int) -> None:
    with pytest.raises(InvalidInput, match="labels") as refused:
        label_score(
            loss,
            drawn_linear(labels=labels),
            torch.zeros(8, dtype=torch.int64),
            rivals=torch.ones(8, dtype=torch.int64),
        )
    assert refused.value.field == "score"


def test_rivals_belong_to_targeted_losses_and_are_other_labels() -> None:
    toy = drawn_linear()
    for loss, rivals in (
        ("margin", GOALS),
        ("targeted_margin", None),
        ("targeted_margin", TARGETS),
        ("targeted_margin", GOALS + 9),
    ):
        with pytest.raises(InvalidInput) as refused:
            label_score(loss, toy, TARGETS, rivals=rivals)
        assert refused.value.field == "rivals"


def test_whatever_is_raised_the_margin_is_that_of_the_decision() -> None:
    toy = drawn_linear()
    expected = untargeted_margin(toy(PIXELS, SEEDS), TARGETS)
    for loss, rivals in (
        ("cross_entropy", None),
        ("dlr", None),
        ("targeted_margin", GOALS),
        ("targeted_dlr", GOALS),
    ):
        seen = label_score(loss, toy, TARGETS, rivals=rivals)(PIXELS, SEEDS, grad=False)
        assert torch.allclose(seen.margin, expected, atol=1e-5)
        assert seen.logits is not None
        assert torch.allclose(seen.logits, toy(PIXELS, SEEDS), atol=1e-5)


def test_a_score_is_restated_inside_its_wrappers() -> None:
    noisy = label_score("margin", Noisy(drawn_linear()), TARGETS)
    wrapped = averaged(guarded(recorded(noisy), chunk_rows=5), 3)
    assert decision(wrapped) is noisy
    again = restated(wrapped, "targeted_margin", rivals=GOALS)
    directly = averaged(label_score("targeted_margin", noisy.classifier, TARGETS, rivals=GOALS), 3)
    rows = torch.tensor([5, 2])
    for pair in ((again, directly), (again.select(rows), directly.select(rows))):
        found, expected = (
            score(PIXELS[: len(decision(score).targets)], SEEDS[: len(decision(score).targets)], grad=False)
            for score in pair
        )
        assert torch.allclose(found.value, expected.value, atol=1e-5)
    for refused in (
        lambda: restated(EmbeddingShift(torch.abs, PIXELS), "margin"),
        lambda: decision(EmbeddingShift(torch.abs, PIXELS)),
    ):
        with pytest.raises(InvalidInput, match="decision"):
            refused()


@pytest.mark.parametrize(
    ("targets", "goals", "field"),
    [([4], None, "targets"), ([-1], None, "targets"), ([0], [4], "goals"), ([1], [1], "goals")],
)
def test_labels_that_are_not_there_are_refused(
    targets: list[int], goals: list[int] | None, field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        label_score(
            "margin", drawn_linear(), torch.tensor(targets), None if goals is None else torch.tensor(goals)
        )
    assert refused.value.field == field
