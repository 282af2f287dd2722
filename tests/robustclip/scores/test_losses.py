import pytest
import torch
from torch.nn import functional as F

from robustclip.scores.losses import (
    LEAST_LABELS,
    TARGETED,
    UNTARGETED,
    cross_entropy,
    dlr,
    runners_up,
    targeted_dlr,
    targeted_margin,
    untargeted_margin,
)

LOGITS = 5 * torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
TARGETS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
RIVALS = (TARGETS + 2) % 6


def test_losses_are_the_textbook_ones() -> None:
    for row in range(8):
        z, y, t = LOGITS[row].tolist(), int(TARGETS[row]), int(RIVALS[row])
        ordered = sorted(z, reverse=True)
        margin = max(value for index, value in enumerate(z) if index != y) - z[y]
        assert untargeted_margin(LOGITS, TARGETS)[row].item() == pytest.approx(margin, abs=1e-5)
        assert cross_entropy(LOGITS, TARGETS)[row].item() == pytest.approx(
            -F.log_softmax(LOGITS[row], dim=0)[y].item(), abs=1e-5
        )
        assert cross_entropy(LOGITS, TARGETS, 10.0)[row].item() == pytest.approx(
            -F.log_softmax(LOGITS[row] / 10, dim=0)[y].item(), abs=1e-5
        )
        assert dlr(LOGITS, TARGETS)[row].item() == pytest.approx(margin / (ordered[0] - ordered[2]), abs=1e-5)
        assert targeted_margin(LOGITS, TARGETS, RIVALS)[row].item() == pytest.approx(z[t] - z[y], abs=1e-5)
        expected = (z[t] - z[y]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)
        assert targeted_dlr(LOGITS, TARGETS, RIVALS)[row].item() == pytest.approx(expected, abs=1e-5)


def test_a_temperature_may_be_one_a_row() -> None:
    temperatures = torch.tensor([1.0, 10.0] * 4)
    mixed = cross_entropy(LOGITS, TARGETS, temperatures)
    assert torch.allclose(mixed[0::2], cross_entropy(LOGITS, TARGETS)[0::2])
    assert torch.allclose(mixed[1::2], cross_entropy(LOGITS, TARGETS, 10.0)[1::2])


def test_ratios_do_not_see_scale_and_shift() -> None:
    moved = 100 * LOGITS + 7
    assert torch.allclose(dlr(moved, TARGETS), dlr(LOGITS, TARGETS), atol=1e-4)
    assert torch.allclose(
        targeted_dlr(moved, TARGETS, RIVALS), targeted_dlr(LOGITS, TARGETS, RIVALS), atol=1e-4
    )


@pytest.mark.parametrize("labels", [2, 3, 4, 9, 10, 1000])
def test_every_loss_is_finite_with_as_few_labels_as_it_allows_and_where_all_tie(labels: int) -> None:
    targets = torch.zeros(2, dtype=torch.int64)
    for logits in (
        torch.randn(2, labels, generator=torch.Generator().manual_seed(labels)),
        torch.ones(2, labels),
    ):
        for name, loss in UNTARGETED.items():
            assert labels < LEAST_LABELS[name] or loss(logits, targets).isfinite().all()
        for name, aimed in TARGETED.items():
            assert labels < LEAST_LABELS[name] or aimed(logits, targets, targets + 1).isfinite().all()


def test_runners_up_are_the_other_labels_the_likeliest_first() -> None:
    found = runners_up(LOGITS, TARGETS, 9)
    assert found.shape == (8, 5)
    assert (found != TARGETS[:, None]).all()
    assert (LOGITS.gather(1, found).diff(dim=1) <= 0).all()
    assert torch.equal(runners_up(LOGITS, TARGETS, 2), found[:, :2])
