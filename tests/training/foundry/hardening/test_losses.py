"""The family of hardening losses against direct transcriptions of each formula, and the attack inside."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.foundry.hardening.losses import (
    FARE,
    PMG_AFT,
    TECOA,
    Embeddings,
    LossWeights,
    Targets,
    TextHead,
    losses,
)
from training.foundry.hardening.recipe import HardeningRecipe

SCALE = 30.0
OWN = (0, 1, 2), (3, 4, 2)  # names of two data sets


class Random:
    """Six pictures, five names, the original tower answers among four of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
        self.attacked, self.clean, self.original_attacked, self.original_clean = torch.randn(
            4, 6, 8, generator=generator
        ).unbind()
        self.source = [0, 1, 0, 1, 0, 1]
        self.name = torch.tensor([0, 3, 2, 2, 1, 4])
        self.members = torch.tensor([[name in OWN[source] for name in range(5)] for source in self.source])
        self.opinion = torch.rand(6, 4, generator=generator).softmax(dim=1)

    def loss(self, preset: LossWeights, *, batch: int = 6) -> dict[str, Tensor]:
        seen = Embeddings(self.attacked, self.clean, self.original_attacked, self.original_clean)
        targets = Targets(self.name, self.members, self.opinion)
        return losses(
            preset,
            seen,
            TextHead(self.weights, torch.tensor(SCALE)),
            targets,
            clean_targets=targets,
            batch=batch,
        )

    def logits(self, embeddings: Tensor, row: int) -> tuple[Tensor, int]:
        """Those of a row's own names, and where the right one stands among them."""
        kept = sorted(OWN[self.source[row]])
        unit = embeddings[row] / embeddings[row].norm()
        return SCALE * self.weights[kept] @ unit, kept.index(int(self.name[row]))

    def cross_entropy(self, embeddings: Tensor, smoothing: float = 0.0) -> float:
        each = [self.logits(embeddings, row) for row in range(6)]
        return (
            sum(
                F.cross_entropy(z[None], torch.tensor([y]), label_smoothing=smoothing).item() for z, y in each
            )
            / 6
        )

    def summed_kl(self, reference: Tensor, prediction: Tensor) -> float:
        total = 0.0
        for row in range(6):
            p, q = (
                self.logits(reference, row)[0].softmax(dim=0),
                self.logits(prediction, row)[0].softmax(dim=0),
            )
            total += sum((a * (a / b).log()).item() for a, b in zip(p, q, strict=True))
        return total

    def teaching(self, embeddings: Tensor) -> float:
        z = SCALE * F.normalize(embeddings, dim=1) @ self.weights[:4].T
        return F.cross_entropy(z, self.opinion).item()

    def turned(self) -> float:
        moved, fixed = (
            each / each.norm(dim=1, keepdim=True) for each in (self.attacked, self.original_clean)
        )
        return float((moved - fixed).square().sum() / 6)


def test_tecoa_is_the_cross_entropy_of_attacked_pictures() -> None:
    drawn = Random()
    found = drawn.loss(TECOA)
    assert {name: term.item() for name, term in found.items()} == {
        "attacked": pytest.approx(drawn.cross_entropy(drawn.attacked), rel=1e-5)
    }


def test_fare_is_the_squared_distance_of_raw_embeddings_from_the_original_of_the_clean_picture() -> None:
    drawn = Random()
    expected = (
        sum((a - b).square().sum().item() for a, b in zip(drawn.attacked, drawn.original_clean, strict=True))
        / 6
    )
    assert {name: term.item() for name, term in drawn.loss(FARE).items()} == {
        "shift": pytest.approx(expected, rel=1e-5)
    }


def test_pmg_aft_adds_two_divergences_that_are_summed_over_the_batch() -> None:
    drawn = Random()
    assert {name: term.item() for name, term in drawn.loss(PMG_AFT).items()} == {
        "attacked": pytest.approx(drawn.cross_entropy(drawn.attacked), rel=1e-5),
        "consistency": pytest.approx(
            drawn.summed_kl(drawn.original_attacked, drawn.attacked)
            + drawn.summed_kl(drawn.clean, drawn.attacked),
            rel=1e-4,
        ),
    }


def test_distilled_is_label_answer_and_direction_by_halves() -> None:
    drawn = Random()
    assert {
        name: term.item()
        for name, term in drawn.loss(HardeningRecipe(objective="distilled", clean=0.3).preset).items()
    } == {
        "attacked": pytest.approx(0.5 * drawn.cross_entropy(drawn.attacked, 0.05), rel=1e-4),
        "teacher": pytest.approx(0.5 * drawn.teaching(drawn.attacked), rel=1e-5),
        "direction": pytest.approx(0.5 * drawn.turned(), rel=1e-5),
        "clean": pytest.approx(0.15 * drawn.cross_entropy(drawn.clean, 0.05), rel=1e-4),
        "clean_teacher": pytest.approx(0.15 * drawn.teaching(drawn.clean), rel=1e-5),
    }


def test_a_summed_divergence_does_not_depend_on_how_a_batch_is_cut() -> None:
    drawn = Random()
    assert drawn.loss(PMG_AFT, batch=12)["consistency"].item() == pytest.approx(
        2 * drawn.loss(PMG_AFT)["consistency"].item()
    )


@pytest.mark.parametrize("detached", [False, True])
def test_only_the_exact_preset_lets_the_clean_answer_bend_toward_the_attacked_one(detached: bool) -> None:
    drawn = Random()
    drawn.clean.requires_grad_()
    drawn.attacked.requires_grad_()
    torch.stack(
        list(drawn.loss(PMG_AFT.model_copy(update={"detach_clean": detached})).values())
    ).sum().backward()
    assert drawn.attacked.grad is not None
    assert drawn.attacked.grad.isfinite().all()
    assert (drawn.clean.grad is None) == detached
    assert detached or (drawn.clean.grad is not None and drawn.clean.grad.abs().sum() > 0)
