from pathlib import Path

import pytest
import torch
from toys import gratings

from robustclip import purifiers
from robustclip.defenses import bind_chain, network_digests, parse_defenses
from robustclip.defenses.diffusion import Diffusion
from robustclip.errors import InvalidInput, PurifierRefused
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import Clip
from robustclip.purifiers.networks import Denoiser, DenoiserShape, diffused, parts
from robustclip.seeds import draw_seeds, row_normal

PIXELS, _ = gratings(3, seed=111)
SEEDS = draw_seeds(111, 3)


def test_a_network_that_predicts_no_noise_leaves_it_in_the_picture(tmp_path: Path) -> None:
    purifiers.write_purifier(Denoiser(DenoiserShape(widths=(8,))), tmp_path / "silent", {})
    found = Diffusion(time=0.2, weights=str(tmp_path / "silent.json"))(PIXELS, SEEDS)
    noise = row_normal(SEEDS, (3, *PIXELS.shape[-2:]), like=PIXELS)
    signal = parts(torch.tensor(0.2))[0]
    assert torch.allclose(found, ((diffused(PIXELS, noise, 0.2) / signal + 1) / 2).clamp(0, 1), atol=1e-5)


def test_every_row_has_noise_of_its_own() -> None:
    same = PIXELS[:1].expand(3, -1, -1, -1)
    first, second, third = Diffusion(weights="tiny")(same, SEEDS)
    assert not torch.allclose(first, second, atol=1e-2)
    assert torch.allclose(Diffusion(weights="tiny")(same[:1], SEEDS[2:])[0], third, atol=1e-6)


def test_surrogates_change_gradients_and_nothing_else() -> None:
    gradients: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for backward in ("exact", "one_shot", "identity"):
        pixels = PIXELS.clone().requires_grad_()
        outputs[backward] = Diffusion(weights="tiny", backward=backward)(pixels, SEEDS)
        (gradients[backward],) = torch.autograd.grad((outputs[backward] * PIXELS).sum(), pixels)
    assert torch.equal(outputs["exact"], outputs["one_shot"])
    assert torch.equal(outputs["exact"], outputs["identity"])
    assert torch.equal(gradients["identity"], PIXELS)
    assert not torch.allclose(gradients["exact"], gradients["one_shot"], atol=1e-3)
    single = PIXELS.clone().requires_grad_()
    (exact,) = torch.autograd.grad((Diffusion(weights="tiny", steps=1)(single, SEEDS) * PIXELS).sum(), single)
    assert torch.allclose(exact, gradients["one_shot"], atol=1e-5)


def test_what_it_costs_grows_with_its_steps() -> None:
    one, ten = Diffusion(steps=1), Diffusion(steps=10)
    assert ten.toll.passes == one.toll.passes.times(10)
    assert ten.toll.gradient_passes == one.toll.gradient_passes.times(10)
    assert Diffusion(steps=10, backward="one_shot").toll.gradient_passes == one.toll.gradient_passes
    assert Diffusion(time=0).toll.passes.forward == 0


def test_noise_that_the_network_never_saw_is_refused(tiny: Clip, tmp_path: Path) -> None:
    purifiers.write_purifier(Denoiser(DenoiserShape(widths=(8,), max_time=0.3)), tmp_path / "mild", {})
    chain = parse_defenses([{"kind": "diffusion", "time": 0.5, "weights": str(tmp_path / "mild.json")}])
    with pytest.raises(PurifierRefused, match=r"trained up to time 0\.3,") as refusal:
        bind_chain(chain, TorchImageEncoder(tiny))
    assert refusal.value.field == "defense/0/weights"


def test_a_chain_is_told_apart_by_the_weights_behind_a_name(tmp_path: Path) -> None:
    tiny = parse_defenses([{"kind": "diffusion", "weights": "tiny"}])
    assert (
        network_digests(tiny)
        == network_digests((*parse_defenses("jpeg"), *tiny))
        == (purifiers.digest_of("denoiser", "tiny"),)
    )
    assert network_digests(parse_defenses("jpeg")) == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [({"time": 1.5}, "time"), ({"steps": 0}, "steps"), ({"weights": "theirs"}, "weights")],
)
def test_parameters_that_mean_nothing_are_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_defenses([{"kind": "diffusion"} | change])
    assert refusal.value.field == f"defense/0/{field}"


@pytest.mark.parametrize(
    "text", ['[{"kind": "diffusion", "time": 0.05}, "jpeg:50"]', '{"kind": "jpeg", "quality": 50}']
)
def test_a_chain_may_be_written_as_json(text: str) -> None:
    assert parse_defenses(text)[-1] == parse_defenses("jpeg:50")[0]
    with pytest.raises(InvalidInput, match="no chain and no JSON"):
        parse_defenses(text[:-1])
