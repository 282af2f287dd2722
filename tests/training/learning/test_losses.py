import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.learning.losses import Reference, divergence, family, misalignment, reliability

GENERATOR = torch.Generator().manual_seed(0)
CLEAN, ATTACKED, FROZEN = (3 * torch.randn(5, 4, generator=GENERATOR) for _ in range(3))
TARGETS = torch.tensor([0, 3, 1, 2, 2])


def kl(first: Tensor, second: Tensor) -> Tensor:
    """[B] KL(softmax(first), softmax(second)), as it is written in books."""
    p, q = first.softmax(dim=1), second.softmax(dim=1)
    return (p * (p / q).log()).sum(dim=1)


def total(terms: dict[str, Tensor]) -> float:
    return float(torch.stack(list(terms.values())).sum())


def test_the_first_argument_of_a_divergence_is_the_reference() -> None:
    torch.testing.assert_close(divergence(CLEAN, ATTACKED), kl(CLEAN, ATTACKED))
    torch.testing.assert_close(divergence(CLEAN, ATTACKED, "reverse"), kl(ATTACKED, CLEAN))
    torch_form = F.kl_div(ATTACKED.log_softmax(dim=1), CLEAN.softmax(dim=1), reduction="batchmean")
    torch.testing.assert_close(divergence(CLEAN, ATTACKED).mean(), torch_form)


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    there, back = divergence(CLEAN, ATTACKED, "jensen_shannon"), divergence(ATTACKED, CLEAN, "jensen_shannon")
    torch.testing.assert_close(there, back)
    mixture = ((CLEAN.softmax(dim=1) + ATTACKED.softmax(dim=1)) / 2).log()
    torch.testing.assert_close(there, (kl(CLEAN, mixture) + kl(ATTACKED, mixture)) / 2)
    opposite = torch.tensor([[100.0, 0.0]])
    assert float(divergence(opposite, -opposite, "jensen_shannon")) == pytest.approx(math.log(2))


def test_divergences_stay_finite_where_probabilities_vanish() -> None:
    sure = torch.tensor([[200.0, 0.0, -200.0]]).requires_grad_()
    for kind in ("forward", "reverse", "jensen_shannon"):
        value = divergence(sure, -sure.detach(), kind)
        assert bool(value.isfinite().all())
        assert bool(torch.autograd.grad(value.sum(), sure)[0].isfinite().all())


def test_coop_advpt_and_apt_are_plain_cross_entropies() -> None:
    expected = (
        sum(float(CLEAN[row].logsumexp(dim=0) - CLEAN[row, target]) for row, target in enumerate(TARGETS)) / 5
    )
    assert total(family(TARGETS, clean=CLEAN, a=1.0)) == pytest.approx(expected, rel=1e-5)
    assert total(family(TARGETS, attacked=CLEAN, b=1.0)) == pytest.approx(expected, rel=1e-5)


def test_advpt_plus_is_its_formula() -> None:
    weights = reliability(CLEAN, TARGETS)
    expected = (
        0.5 * F.cross_entropy(CLEAN, TARGETS)
        + F.cross_entropy(ATTACKED, TARGETS)
        + (weights * kl(CLEAN, ATTACKED)).mean()
    )
    found = family(
        TARGETS,
        clean=CLEAN,
        attacked=ATTACKED,
        references=[Reference(CLEAN)],
        a=0.5,
        b=1.0,
        c=1.0,
        weights=weights,
    )
    assert total(found) == pytest.approx(float(expected), rel=1e-5)


def test_fap_is_its_formula() -> None:
    closeness = 1 + torch.tensor([0.9, 0.1, -0.4, 0.0, 1.0])
    expected = F.cross_entropy(CLEAN, TARGETS) + 1.5 * (closeness * kl(CLEAN, ATTACKED)).mean()
    assert total(
        family(
            TARGETS,
            clean=CLEAN,
            attacked=ATTACKED,
            references=[Reference(CLEAN)],
            a=1.0,
            c=1.5,
            weights=closeness,
        )
    ) == pytest.approx(float(expected), rel=1e-5)


def test_capt_is_its_formula() -> None:
    alpha = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.0])
    expected = (
        F.cross_entropy(CLEAN, TARGETS)
        + 1.5 * ((1 - alpha) * kl(CLEAN, ATTACKED) + alpha * kl(FROZEN, ATTACKED)).mean()
    )
    references = [Reference(CLEAN, 1 - alpha), Reference(FROZEN, alpha)]
    assert total(
        family(TARGETS, clean=CLEAN, attacked=ATTACKED, references=references, a=1.0, c=1.5)
    ) == pytest.approx(float(expected), rel=1e-5)


def test_apd_is_its_formula() -> None:
    expected = 0.5 * F.cross_entropy(ATTACKED, TARGETS) + kl(FROZEN, ATTACKED).mean()
    assert total(
        family(TARGETS, attacked=ATTACKED, references=[Reference(FROZEN)], b=0.5, c=1.0)
    ) == pytest.approx(float(expected), rel=1e-5)


def test_terms_of_coefficient_zero_are_not_computed() -> None:
    assert list(family(TARGETS, clean=CLEAN, attacked=ATTACKED, a=1.0)) == ["clean"]
    assert family(TARGETS) == {}


def test_gradients_reach_references_unless_they_are_detached() -> None:
    clean = CLEAN.clone().requires_grad_()
    attached = family(
        TARGETS, attacked=ATTACKED.clone().requires_grad_(), references=[Reference(clean)], c=1.0
    )["consistency"]
    assert bool(torch.autograd.grad(attached, clean)[0].any())


def test_reliability_is_relative_clipped_and_no_way_for_gradients() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 0.0], [-9.0, 0.0]]).requires_grad_()
    weights = reliability(logits, torch.zeros(3, dtype=torch.int64))
    assert not weights.requires_grad
    assert weights.tolist() == pytest.approx([2.0, 1.0, 0.2], rel=1e-3)


def test_misalignment_is_zero_for_equal_and_two_for_opposite_directions() -> None:
    features = F.normalize(CLEAN, dim=1)
    assert float(misalignment(features, 3 * features)) == pytest.approx(0.0, abs=1e-6)
    assert float(misalignment(features, -features)) == pytest.approx(2.0)
