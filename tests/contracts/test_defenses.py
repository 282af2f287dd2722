"""What every defense must keep. Each defense of `AnyDefense` is tested with its defaults; the lists below add
other strengths and chains of those that exist.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor
from toys import Purified, gratings, trained_conv

from robustclip.attacks.pgd import PGD
from robustclip.defenses import DEFENSES, AnyDefense, bind_chain, parse_defenses
from robustclip.defenses.base import PixelDefense
from robustclip.models.classifier import (
    Defended,
    FeatureExtractor,
    TorchImageEncoder,
    zero_shot,
)
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.sanity import gradients
from robustclip.scores.kinds import label_score
from robustclip.scores.wrappers import averaged
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf
from robustclip.types import FREE, Cost, Defense, Pixels, Seeds

Options: TypeAlias = dict[str, str | float]
Run: TypeAlias = Callable[[Pixels, Seeds], Tensor]

TESTS = Path(__file__).parents[1]
RELEASED = json.loads((TESTS / "golden" / "snapshot.json").read_text(encoding="utf-8"))["defenses"]
DEFAULTS: list[str] = [defense.model_fields["kind"].default for defense in DEFENSES]
TABLE = [
    *DEFAULTS,
    *(
        "resize_pad:0.7",
        "jpeg:20",
        "bit_depth:1",
        "bit_depth:8",
        "median:5",
        "total_variation:0.2",
        "wavelet:0.1",
        "low_pass:0.1",
    ),
    *("super_resolution:0.1", "diffusion:0.3", "counterattack:16/255", "clipure_cosine:0.5"),
]
CHAINS: list[str | list[Options]] = [
    *TABLE,
    *(
        "jpeg:75,bit_depth:4,resize_pad",
        "smoothing:0.1,bit_depth:4,jpeg",
        "low_pass,counterattack,clipure_cosine",
        "none",
    ),
    "super_resolution,diffusion",
    [{"kind": "smoothing", "denoise": "tiny"}],
    *([{"kind": "diffusion", "backward": way}] for way in ("one_shot", "identity")),
    [{"kind": "super_resolution", "backward": "identity"}],
]
WEAKEST: dict[str, tuple[Options, float]] = {  # strength 0, and the mean change that it may make
    "resize_pad": ({"low": 1.0}, 1e-5),
    "jpeg": ({"quality": 100, "subsampling": "4:4:4"}, 2 / 255),
    "bit_depth": ({"bits": 8}, 1e-6),
    "median": ({"window": 1}, 0.0),
    "total_variation": ({"weight": 0.0}, 1e-7),
    "wavelet": ({"sigma": 0.0}, 1e-6),
    "low_pass": ({"cutoff": 1000.0}, 1e-6),
    "super_resolution": ({"sigma": 0.0}, 0.02),  # the network stays
    "diffusion": ({"time": 0.0}, 0.0),
    "counterattack": ({"radius": 0.0}, 1e-7),
    "clipure_cosine": ({"share": 0.0}, 1e-6),
    "smoothing": ({"sigma": 0.001}, 1e-3),
}
EXACT: list[Options] = [
    {"kind": "median", "backward": "exact"},
    {"kind": "smoothing", "denoise": "tiny"},
]  # beside the defaults that say so


def parsed(chain: str | list[Options]) -> tuple[AnyDefense, ...]:
    """The chain, its networks small and drawn from a seed."""
    return tuple(
        spec.model_copy(update={"weights": "tiny"}) if "weights" in type(spec).model_fields else spec
        for spec in parse_defenses(chain)
    )


PIXELS, TARGETS = gratings(8, seed=31)
SEEDS = draw_seeds(31, 8)

every_chain = pytest.mark.parametrize("chain", CHAINS, ids=str)


@pytest.fixture(scope="module")
def encoder(tiny: Clip) -> TorchImageEncoder:
    return TorchImageEncoder(tiny)


def runs(chain: str | list[Options], encoder: TorchImageEncoder) -> Run:
    """What the chain makes of pixels: pixels, or unit features if a part of it works behind the tower."""
    defense = bind_chain(parsed(chain), encoder)
    if defense.at("features") is None:
        return defense
    return FeatureExtractor(encoder, None, defense)


def test_the_lists_are_about_released_defenses() -> None:
    assert set(RELEASED) == set(WEAKEST)
    assert set(RELEASED) <= set(DEFAULTS)


@every_chain
def test_shape_and_range_are_kept(chain: str | list[Options], encoder: TorchImageEncoder) -> None:
    run, specs = runs(chain, encoder), parsed(chain)
    odd = (
        [PIXELS[:, :, :25, :25]] if all(isinstance(spec, PixelDefense) for spec in specs) else []
    )  # a tower takes one size
    for pixels in (PIXELS, torch.zeros_like(PIXELS), torch.ones_like(PIXELS), PIXELS[:1], *odd):
        out = run(pixels, SEEDS[: len(pixels)])
        assert out.dtype == torch.float32
        assert not out.requires_grad
        if out.ndim == 2:
            assert torch.allclose(out.norm(dim=1), torch.ones(len(pixels)), atol=1e-5)
        else:
            assert out.shape == pixels.shape
            assert out.min() >= 0
            assert out.max() <= 1


@every_chain
def test_a_row_does_not_depend_on_its_batch_mates(
    chain: str | list[Options], encoder: TorchImageEncoder
) -> None:
    run = runs(chain, encoder)
    whole = run(PIXELS, SEEDS)
    for rows in (torch.tensor([5]), torch.tensor([7, 2, 5, 0, 1, 6, 3, 4]), torch.tensor([1, 4])):
        alone = run(PIXELS[rows], SEEDS[rows])
        if "counterattack" not in str(chain):
            assert torch.allclose(alone, whole[rows], atol=1e-6 if whole.ndim == 4 else 1e-5)
        elif whole.ndim == 4:  # rounding in another batch size may turn a sign over
            assert ((alone - whole[rows]).abs() > 1e-6).sum() <= 2 * len(rows)
        else:
            assert torch.allclose(alone, whole[rows], atol=1e-3)


@every_chain
def test_the_gradient_is_finite_and_not_all_zero_in_any_row(
    chain: str | list[Options], encoder: TorchImageEncoder
) -> None:
    pixels = PIXELS.clone().requires_grad_()
    out = runs(chain, encoder)(pixels, SEEDS)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((out * weights).sum(), pixels)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()


@every_chain
@pytest.mark.parametrize("flat", [0.0, 1.0])
def test_the_gradient_is_finite_at_black_and_white(
    chain: str | list[Options], flat: float, encoder: TorchImageEncoder
) -> None:
    pixels = torch.full_like(PIXELS[:2], flat).requires_grad_()
    (gradient,) = torch.autograd.grad(runs(chain, encoder)(pixels, SEEDS[:2]).sum(), pixels)
    assert gradient.isfinite().all()


@every_chain
def test_recording_a_gradient_does_not_change_the_output(
    chain: str | list[Options], encoder: TorchImageEncoder
) -> None:
    run = runs(chain, encoder)
    assert torch.equal(run(PIXELS.clone().requires_grad_(), SEEDS), run(PIXELS, SEEDS))


@every_chain
def test_seeds_decide_and_nothing_else(chain: str | list[Options], encoder: TorchImageEncoder) -> None:
    run = runs(chain, encoder)
    state = torch.random.get_rng_state()
    once = run(PIXELS, SEEDS)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(777)
    assert torch.equal(run(PIXELS, SEEDS), once)
    changed = ~torch.isclose(run(PIXELS, draw_seeds(32, 8)), once).flatten(1).all(dim=1)
    randomized = any(spec.randomized for spec in parsed(chain))
    assert (
        changed.float().mean() >= 0.5 if randomized else not changed.any()
    )  # two draws of a small picture may agree


@every_chain
def test_it_computes_alike_in_a_service_and_in_a_search_in_bfloat16(
    chain: str | list[Options], encoder: TorchImageEncoder
) -> None:
    defense = bind_chain(parsed(chain), encoder)
    for part, inputs in ((defense.at("pixels"), PIXELS), (defense.at("features"), encoder(PIXELS, None))):
        if part is None:
            continue
        expected = part(inputs, SEEDS)
        with torch.inference_mode():
            assert torch.equal(part(inputs.clone(), SEEDS), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(part(inputs, SEEDS), expected)
        half = inputs.bfloat16()
        out = part(half, SEEDS)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, part(half.float(), SEEDS).bfloat16())


TOWER_ONLY: list[str | list[Options]] = [
    *(
        chain for chain in CHAINS if not any(spec.networks for spec in parsed(chain))
    ),  # purifying networks are billed by time
    *([{"kind": "counterattack"} | options] for options in ({"steps": 4}, {"backward": "unrolled"})),
]


@pytest.mark.parametrize("chain", TOWER_ONLY, ids=str)
def test_what_it_takes_of_the_image_tower_is_what_it_declares(
    chain: str | list[Options], encoder: TorchImageEncoder
) -> None:
    """To the row in serving. Of a derivative of gradients hooks see only a part, so that an unrolled climb
    may declare more.
    """
    run, defense, seen = runs(chain, encoder), bind_chain(parsed(chain), encoder), [0, 0]

    def count(module: object, inputs: object, output: Tensor) -> None:
        def count_backward(gradient: Tensor) -> None:
            seen[1] += len(gradient)

        seen[0] += len(output)
        if output.requires_grad:
            output.register_hook(count_backward)

    classifying = defense.at("features") is not None  # `run` then has the tower in it
    watching = encoder.clip.model.visual.conv1.register_forward_hook(count)
    try:
        run(PIXELS[:2], SEEDS[:2])
        served = Cost(*seen)
        run(PIXELS[:2].clone().requires_grad_(), SEEDS[:2]).sum().backward()
    finally:
        watching.remove()
    assert served == Cost(classifying, 0).plus(defense.toll.passes).times(2)
    climbed = Cost(seen[0] - served.forward, seen[1] - served.backward)
    passes, gradient_passes = defense.toll
    declared = Cost(classifying, classifying).plus(passes).plus(gradient_passes).times(2)
    assert climbed.forward == declared.forward
    assert climbed.backward == declared.backward or (
        gradient_passes != FREE and climbed.backward < declared.backward
    )


every_exact_one = pytest.mark.parametrize(
    "chain",
    [[{"kind": kind}] for kind in DEFAULTS if parsed(kind)[0].gradient == "exact"]
    + [[options] for options in EXACT],
    ids=str,
)


@every_exact_one
def test_a_gradient_that_is_called_exact_is_the_true_one_to_four_digits(
    chain: list[Options], encoder: TorchImageEncoder
) -> None:
    """In float64, between the levels of a PNG, where a median has no ties; for the draw that the seeds decide
    where there is one.
    """
    defense = bind_chain(parsed(chain), encoder)
    generator = torch.Generator().manual_seed(0)
    inputs = encoder(PIXELS, None).double() if defense.stage == "features" else PIXELS.double()
    inputs = (
        inputs + 0.002 * torch.rand(inputs.shape, generator=generator, dtype=torch.float64)
    ).requires_grad_()
    weights, direction = (
        torch.randn(inputs.shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    (gradient,) = torch.autograd.grad((defense(inputs, SEEDS) * weights).sum(), inputs)
    with torch.no_grad():
        ahead, behind = (defense(inputs + step * direction, SEEDS) for step in (1e-7, -1e-7))
    measured = ((ahead - behind) * weights).flatten(1).sum(dim=1) / 2e-7
    assert torch.allclose(
        (gradient * direction).flatten(1).sum(dim=1),
        measured,
        rtol=1e-4,
        atol=1e-4 * float(measured.abs().max()),
    )


@every_exact_one
def test_the_probe_s_own_check_believes_a_gradient_that_is_called_exact(
    chain: list[Options], tiny: Clip, encoder: TorchImageEncoder
) -> None:
    victim = Defended(
        zero_shot(tiny, Prompts(), ("cat", "dog", "rocket")), bind_chain(parsed(chain), encoder)
    )
    for row in (0, 3):
        pixels, seeds = PIXELS[row : row + 1], SEEDS[row : row + 1]
        score = label_score("margin", victim, victim(pixels, seeds).argmax(dim=1))
        assert (
            gradients.wrong_gradient(score, pixels, seeds)[0].number > 0.75
        )  # a median has kinks within the step


@pytest.mark.parametrize("kind", WEAKEST)
def test_strength_zero_is_nearly_the_identity(kind: str, encoder: TorchImageEncoder) -> None:
    options, allowed = WEAKEST[kind]
    out = runs([{"kind": kind} | options], encoder)(PIXELS, SEEDS)
    assert (out - (PIXELS if out.ndim == 4 else encoder(PIXELS, None))).abs().mean() <= allowed


@pytest.mark.parametrize("spec", [spec for chain in TABLE for spec in parsed(chain)], ids=repr)
def test_a_defense_is_data_and_declares_what_it_is(spec: AnyDefense, encoder: TorchImageEncoder) -> None:
    assert parsed([spec.model_dump(mode="json")]) == (spec,)
    assert spec.status in ("sound", "experimental", "broken-adaptively")
    assert spec.cost
    assert spec.strength in type(spec).model_fields
    bound: Defense = spec.bind(encoder)
    assert (bound.stage, bound.gradient, bound.randomized) == (spec.stage, spec.gradient, spec.randomized)
    assert bound.gradient == "exact" or bound.gradient == "ste" or bound.gradient.startswith("surrogate:")


SHORT: list[Options] = [{"kind": "total_variation", "weight": 0.01, "iterations": 8}]


@pytest.mark.parametrize(
    "chain",
    ["resize_pad", "jpeg:25", "bit_depth", "median", SHORT, "wavelet", "low_pass", "smoothing:0.02"],
    ids=str,
)
def test_the_clean_decision_survives_and_the_adaptive_attack_beats_the_static_one(
    chain: str | list[Options], encoder: TorchImageEncoder
) -> None:
    """What looks robust to an attacker who ignores the defense is not (Athalye et al. 2018, arXiv
    1802.00420).
    """
    pixels, targets = gratings(32, seed=33)
    seeds = draw_seeds(33, 32)
    toy, defense = trained_conv(), bind_chain(parsed(chain), encoder)
    victim = Purified(toy, defense)

    def accuracy(inputs: torch.Tensor) -> float:
        return float((victim(inputs, draw_seeds(34, 32)).argmax(dim=1) == targets).float().mean())

    attack = PGD(ball=Linf(radius=6 / 255), steps=10, starts=("zero",), stop="never")
    through = label_score("margin", victim, targets)
    static = accuracy(attack(label_score("margin", toy, targets), pixels, seeds).pixels)
    adaptive = accuracy(attack(averaged(through, 4) if defense.randomized else through, pixels, seeds).pixels)
    assert accuracy(pixels) >= 0.97
    assert adaptive < 0.1
    assert adaptive <= static


def test_the_service_s_readme_tells_of_every_released_defense() -> None:
    readme = (TESTS.parent / "service" / "README.md").read_text()
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]]
        for line in readme.splitlines()
        if line.startswith("| `")
    ]
    told = {cells[0]: cells[2:5] for cells in rows if len(cells) == 6}
    for defense in DEFENSES:
        spec = defense()
        word = f"{spec.kind}:{getattr(spec, spec.strength):.3g}"
        if spec.kind in RELEASED or word in told:
            assert told[word] == [spec.status, spec.gradient, "yes" if spec.randomized else "no"], word
