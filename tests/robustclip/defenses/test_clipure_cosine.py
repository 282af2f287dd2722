import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.defenses.clipure_cosine import empty_text, turned
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    )


FEATURES, TEXT = unit(64, 16, seed=1), unit(16, seed=2)


def test_the_empty_text_is_that_of_a_photo_of_nothing(tiny: Clip) -> None:
    assert torch.allclose(
        empty_text(tiny), text_weights(tiny, Prompts(templates=("{}",)), ("a photo of a .",))[0], atol=1e-6
    )


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_angle_to_the_text_shrinks_by_the_share(share: float) -> None:
    out = turned(FEATURES, TEXT, share)
    assert torch.allclose(out.norm(dim=1), torch.ones(64, dtype=torch.float64))
    assert torch.allclose((out @ TEXT).acos(), (1 - share) * (FEATURES @ TEXT).acos())


def test_features_that_are_the_text_or_its_opposite_have_a_gradient() -> None:
    features = torch.stack([TEXT, -TEXT]).requires_grad_()
    out = turned(features, TEXT, 0.25)
    (gradient,) = torch.autograd.grad((out * unit(2, 16, seed=3)).sum(), features)
    assert gradient.isfinite().all()
    assert torch.allclose(out[0], TEXT)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_labels_that_are_equally_like_the_text_keep_every_decision(share: float) -> None:
    labels = unit(10, 16, seed=4)
    labels = F.normalize(labels - (labels @ TEXT)[:, None] * TEXT, dim=-1)
    level = 0.8 * labels + 0.6 * TEXT
    spread = F.normalize(
        level
        + 0.3 * torch.randn(10, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * TEXT,
        dim=-1,
    )
    before, after = FEATURES @ level.T, turned(FEATURES, TEXT, share) @ level.T
    assert torch.equal(before.argsort(dim=1), after.argsort(dim=1))
    changed = (FEATURES @ spread.T).argmax(dim=1) != (turned(FEATURES, TEXT, share) @ spread.T).argmax(dim=1)
    assert changed.any()  # and only a spread of that likeness changes one


def test_the_released_iteration_returns_to_where_it_began() -> None:
    """Why it is not what runs here: a step of 88 degrees overshoots, the next one comes back."""
    away = unit(1, 16, seed=6)
    away = F.normalize(away - (away @ TEXT)[:, None] * TEXT, dim=1)
    start = 0.2 * TEXT + 0.96**0.5 * away  # about as alike as the two towers' features are
    features, visited = start, [start]
    for _ in range(10):
        slope = TEXT - (features @ TEXT)[:, None] * features
        features = F.normalize(features + 30 * slope / slope.norm(), dim=1)
        visited.append(features)
    assert float((visited[1] * start).sum()) < 0.05
    assert float((visited[10] * start).sum()) > 0.999
