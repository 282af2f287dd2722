from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from toys import gratings

from robustclip.defenses.base import clip_of
from robustclip.defenses.counterattack import Counterattack, drift
from robustclip.errors import InvalidInput
from robustclip.measuring import Jury, LabelledBatch, measure
from robustclip.models.classifier import Defended, TorchImageEncoder, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image
from robustclip.scores.kinds import label_score
from robustclip.scores.surrogates import bypassed
from robustclip.scores.wrappers import averaged
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf
from robustclip.types import FREE, Cost

PIXELS, _ = gratings(6, seed=91)
SEEDS = draw_seeds(91, 6)
ALWAYS, NEVER = 100.0, 0.0  # gates


def served(clip: Clip, pixels: Tensor = PIXELS, seeds: Tensor = SEEDS, **options: Any) -> Tensor:
    return Counterattack(**options).bind(TorchImageEncoder(clip))(pixels, seeds)


def by_hand(clip: Clip, picture: Tensor, noisy: Tensor) -> Tensor:
    """The paper's loop for one picture, as changes instead of points; radius 4/255, two steps of 1/255,
    weights exp(0), exp(2), exp(4).
    """
    still = encode_image(clip, picture)
    change = noisy - picture
    changes = [change]
    for _ in range(2):
        change = change.detach().requires_grad_()
        (encode_image(clip, picture + change) - still).square().sum().backward()
        assert change.grad is not None
        change = (change.detach() + change.grad.sign() / 255).clamp(-4 / 255, 4 / 255)
        change = (picture + change).clamp(0, 1) - picture
        changes.append(change)
    weights = torch.tensor([0.0, 2.0, 4.0]).softmax(dim=0)
    return picture + sum(float(weight) * change for weight, change in zip(weights, changes, strict=True))


def test_it_is_the_paper_s_loop_row_by_row(tiny: Clip) -> None:
    noisy = Linf(radius=4 / 255).sample(PIXELS, SEEDS)
    expected = torch.cat([by_hand(tiny, PIXELS[row : row + 1], noisy[row : row + 1]) for row in range(6)])
    apart = (served(tiny, gate=ALWAYS) - expected).abs() > 1e-6
    assert apart.sum() <= 2 * 6  # of 18432 values: rounding turns the sign of a slope near zero


def test_what_moves_enough_keeps_its_noise_and_what_does_not_is_climbed_away_from(tiny: Clip) -> None:
    noisy = Linf(radius=4 / 255).sample(PIXELS, SEEDS)
    still = encode_image(tiny, PIXELS)
    drifts = drift(still, encode_image(tiny, noisy))
    gate = float(drifts.median())
    out = served(tiny, gate=gate)
    assert torch.equal(out[drifts >= gate], noisy[drifts >= gate])
    climbed = drift(still, encode_image(tiny, out))[drifts < gate] > drifts[drifts < gate]
    assert len(climbed) in (2, 3)
    assert climbed.all()


@pytest.mark.parametrize(
    "options", [{}, {"radius": "16/255", "step": "8/255", "steps": 4}, {"steps": 0}, {"growth": 0.0}], ids=str
)
def test_the_picture_stays_in_ball_and_box(tiny: Clip, options: dict[str, Any]) -> None:
    for pixels in (PIXELS, torch.zeros_like(PIXELS), torch.ones_like(PIXELS)):
        out = served(tiny, pixels, gate=ALWAYS, **options)
        assert (out - pixels).abs().max() <= Counterattack(**options).radius + 1e-6
        assert out.min() >= 0
        assert out.max() <= 1
        assert not torch.equal(out, pixels)


def test_its_true_derivative_is_that_of_a_constant_change_and_says_nothing(tiny: Clip) -> None:
    """Which is why no `backward` is called exact: all that depends on the picture in the change hides behind
    signs, clips and the gate.
    """
    nudge = 1e-5 * torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(0))
    moved = served(tiny, PIXELS + nudge, gate=ALWAYS) - served(tiny, gate=ALWAYS)
    assert ((moved - nudge).abs() < 1e-6).float().mean() > 0.95
    pixels = PIXELS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(served(tiny, pixels, gate=ALWAYS).sum(), pixels)
    assert torch.equal(gradient, torch.ones_like(PIXELS))
    assert Counterattack().gradient == "ste"
    assert Counterattack(backward="unrolled").gradient == "surrogate:unrolled"


def test_unrolled_the_gradient_passes_through_the_climb_and_the_gate(tiny: Clip) -> None:
    """It is the derivative of the loop with soft signs: other than the identity where the gate is shut or
    half shut.
    """
    halfway = float(
        drift(
            encode_image(tiny, PIXELS), encode_image(tiny, Linf(radius=4 / 255).sample(PIXELS, SEEDS))
        ).median()
    )
    weights = torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(1))
    found: dict[float, Tensor] = {}
    for gate in (ALWAYS, halfway, NEVER):
        pixels = PIXELS.clone().requires_grad_()
        out = served(tiny, pixels, gate=gate, backward="unrolled")
        assert torch.equal(out, served(tiny, gate=gate))
        (found[gate],) = torch.autograd.grad((out * weights).sum(), pixels)
        assert found[gate].isfinite().all()
    change = {
        gate: (gradient - weights).flatten(1).norm(dim=1) / weights.flatten(1).norm(dim=1)
        for gate, gradient in found.items()
    }
    assert (change[ALWAYS] > 0.01).all()
    assert (change[halfway] > 0.01).any()
    assert (change[NEVER] < 1e-4).all()


@pytest.mark.parametrize("backward", ["identity", "unrolled"])
def test_a_step_up_its_gradient_over_draws_raises_the_score_of_fresh_ones(
    tiny: Clip, backward: Literal["identity", "unrolled"]
) -> None:
    chain = Counterattack(gate=ALWAYS, backward=backward).bind(TorchImageEncoder(tiny))
    victim = Defended(zero_shot(tiny, Prompts(), ("cat", "dog", "rocket", "teapot")), chain)
    score = averaged(label_score("margin", victim, victim(PIXELS, SEEDS).argmax(dim=1)), 4)
    seen = score(PIXELS, SEEDS, grad=True)
    assert seen.grad is not None
    ahead = Linf(radius=4 / 255).project(PIXELS + 4 / 255 * seen.grad.sign(), PIXELS)
    before, after = (score(pixels, draw_seeds(92, 6), grad=False).value for pixels in (PIXELS, ahead))
    assert (after > before).float().mean() > 0.8


def test_the_weights_of_the_tower_get_no_gradient(tiny: Clip) -> None:
    served(tiny, gate=ALWAYS)
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def test_an_encoder_without_a_clip_is_refused() -> None:
    class Foreign:
        backend = "foreign"

        def __call__(self, pixels: Tensor, visual: Tensor | None) -> Tensor:
            return pixels.flatten(1)

    with pytest.raises(InvalidInput, match="foreign") as refused:
        clip_of(Foreign())
    assert refused.value.field == "encoder"


def test_who_scores_and_who_measures_it_pays_for_its_climb(tiny: Clip) -> None:
    encoder = TorchImageEncoder(tiny)
    for backward, climbed in (("identity", Cost(4, 3)), ("unrolled", Cost(7, 12))):
        defense = Counterattack.model_validate({"backward": backward}).bind(encoder)
        defended = Defended(zero_shot(tiny, Prompts(), ("cat", "dog")), defense)
        score = label_score("margin", defended, torch.zeros(2, dtype=torch.int64))
        assert score(PIXELS[:2], SEEDS[:2], grad=False).cost == Cost(4, 2).times(2)
        assert score(PIXELS[:2], SEEDS[:2], grad=True).cost == climbed.times(2)
        past = bypassed(
            label_score("margin", defended.classifier, torch.zeros(2, dtype=torch.int64)), defense
        )
        assert past(PIXELS[:2], SEEDS[:2], grad=True).cost == Cost(4, 3).times(2)
        batch = LabelledBatch(PIXELS[:2], torch.zeros(2, dtype=torch.int64), SEEDS[:2])
        assert measure(defended, [batch], jury=Jury(3)).cost == Cost(4, 2).times(2 * 3)
    idle = Counterattack(steps=0), Counterattack(steps=0, backward="unrolled")
    assert idle[0].toll.passes == idle[1].toll.gradient_passes == FREE
