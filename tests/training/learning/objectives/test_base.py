import pytest
import torch
from tuning import task_of

from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from training.learning.objectives import predictions
from training.learning.objectives.base import cosine_after_warm_up
from training.learning.objectives.predictions import label_features


@pytest.mark.parametrize(("rate", "epochs"), [(0.002, 100), (0.01, 50), (0.5, 20)])
def test_the_schedule_is_one_epoch_of_warm_up_and_then_torchs_cosine(rate: float, epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    expected = [1e-5]
    for _ in range(epochs - 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert [cosine_after_warm_up(rate, epoch, epochs) for epoch in range(epochs)] == pytest.approx(expected)
    assert [cosine_after_warm_up(rate, epoch + 0.9, epochs) for epoch in range(epochs)] == pytest.approx(
        expected
    )


@pytest.mark.parametrize("epochs", [1, 4, 19])
def test_a_short_run_warms_up_for_a_twentieth_and_ends_at_nothing(epochs: int) -> None:
    rates = [cosine_after_warm_up(0.1, epochs * share / 1000, epochs) for share in range(1000)]
    assert rates[:49] == [1e-5] * 49
    assert rates[51] == pytest.approx(0.1, rel=1e-4)
    assert rates[51:] == sorted(rates[51:], reverse=True)
    assert rates[525] == pytest.approx(0.05)
    assert 0 < rates[-1] < 1e-6


@pytest.mark.parametrize("class_specific", [False, True])
def test_many_labels_go_in_chunks_with_the_same_features_and_gradients(
    tiny: Clip, monkeypatch: pytest.MonkeyPatch, class_specific: bool
) -> None:
    labels = tuple(f"thing number {number}" for number in range(7))
    shape = (7, 2, 3, 32) if class_specific else (2, 3, 32)
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    for whole in (256, 3):
        monkeypatch.setattr(predictions, "WHOLE_LABELS", whole)
        context = (0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
        features = label_features(task_of(tiny, labels), Prompts(context, None, ("{}.",), class_specific))
        towards = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
        results.append((features.detach(), torch.autograd.grad((features * towards).sum(), context)[0]))
    torch.testing.assert_close(results[1][0], results[0][0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        results[1][1], results[0][1], atol=1e-4 * float(results[0][1].abs().max()), rtol=1e-3
    )
