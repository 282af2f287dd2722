"""What every defense must keep, over a table: a new defense is tested by being listed here, and must be listed as soon as it is in `AnyDefense`."""

import pytest
import torch
from toys import Purified, gratings, trained_conv

from robustclip.attacks.pgd import PGD
from robustclip.classifier import TorchImageEncoder
from robustclip.clip import Clip
from robustclip.defenses import DEFENSES, AnyDefense, bind_chain, parse_defenses
from robustclip.scores import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf
from robustclip.types import Defense
from robustclip.wrappers import averaged

DEFAULTS = ["resize_pad", "jpeg", "bit_depth", "smoothing"]
TABLE = [*DEFAULTS, "resize_pad:0.7", "jpeg:20", "bit_depth:1", "bit_depth:8"]
CHAINS = [*TABLE, "jpeg:75,bit_depth:4,resize_pad", "smoothing:0.1,bit_depth:4,jpeg", "none"]
WEAKEST: dict[str, tuple[dict[str, str | float], float]] = {  # strength 0, and the mean change that it may make
    "resize_pad": ({"low": 1.0}, 1e-5),
    "jpeg": ({"quality": 100, "subsampling": "4:4:4"}, 2 / 255),
    "bit_depth": ({"bits": 8}, 1e-6),
    "smoothing": ({"sigma": 0.001}, 1e-3),
}

PIXELS, TARGETS = gratings(8, seed=31)
SEEDS = draw_seeds(31, 8)

every_chain = pytest.mark.parametrize("chain", CHAINS)


@pytest.fixture(scope="module")
def encoder(tiny: Clip) -> TorchImageEncoder:
    return TorchImageEncoder(tiny)


def test_the_table_lists_every_defense() -> None:
    assert {defense.model_fields["kind"].default for defense in DEFENSES} == set(DEFAULTS) == set(WEAKEST)


@every_chain
def test_shape_and_range_are_kept(chain: str, encoder: TorchImageEncoder) -> None:
    defense = bind_chain(parse_defenses(chain), encoder)
    for pixels in (PIXELS, torch.zeros_like(PIXELS), torch.ones_like(PIXELS), PIXELS[:1], PIXELS[:, :, :25, :25]):
        out = defense(pixels, SEEDS[: len(pixels)])
        assert out.shape == pixels.shape
        assert out.dtype == torch.float32
        assert out.min() >= 0
        assert out.max() <= 1
        assert not out.requires_grad


@every_chain
def test_a_row_does_not_depend_on_its_batch_mates(chain: str, encoder: TorchImageEncoder) -> None:
    defense = bind_chain(parse_defenses(chain), encoder)
    whole = defense(PIXELS, SEEDS)
    for rows in (torch.tensor([5]), torch.tensor([7, 2, 5, 0, 1, 6, 3, 4]), torch.tensor([1, 4])):
        assert torch.allclose(defense(PIXELS[rows], SEEDS[rows]), whole[rows], atol=1e-6)


@every_chain
def test_the_gradient_is_finite_and_not_all_zero_in_any_row(chain: str, encoder: TorchImageEncoder) -> None:
    defense = bind_chain(parse_defenses(chain), encoder)
    pixels = PIXELS.clone().requires_grad_()
    weights = torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((defense(pixels, SEEDS) * weights).sum(), pixels)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()


@every_chain
def test_recording_a_gradient_does_not_change_the_output(chain: str, encoder: TorchImageEncoder) -> None:
    defense = bind_chain(parse_defenses(chain), encoder)
    assert torch.equal(defense(PIXELS.clone().requires_grad_(), SEEDS), defense(PIXELS, SEEDS))


@every_chain
def test_seeds_decide_and_nothing_else(chain: str, encoder: TorchImageEncoder) -> None:
    defense = bind_chain(parse_defenses(chain), encoder)
    state = torch.random.get_rng_state()
    once = defense(PIXELS, SEEDS)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(777)
    assert torch.equal(defense(PIXELS, SEEDS), once)
    changed = ~torch.isclose(defense(PIXELS, draw_seeds(32, 8)), once).flatten(1).all(dim=1)
    assert changed.float().mean() >= 0.5 if defense.randomized else not changed.any()  # two draws of a small picture may agree


@pytest.mark.parametrize("kind", DEFAULTS)
def test_strength_zero_is_nearly_the_identity(kind: str, encoder: TorchImageEncoder) -> None:
    options, allowed = WEAKEST[kind]
    assert (bind_chain(parse_defenses([{"kind": kind} | options]), encoder)(PIXELS, SEEDS) - PIXELS).abs().mean() <= allowed


@pytest.mark.parametrize("spec", [spec for chain in TABLE for spec in parse_defenses(chain)], ids=repr)
def test_a_defense_is_data_and_declares_what_it_is(spec: AnyDefense, encoder: TorchImageEncoder) -> None:
    assert parse_defenses([spec.model_dump(mode="json")]) == (spec,)
    assert spec.status in ("sound", "experimental", "broken-adaptively")
    assert spec.cost
    assert spec.strength in type(spec).model_fields
    bound: Defense = spec.bind(encoder)
    assert bound.stage == "pixels"
    assert bound.gradient == "exact" or bound.gradient == "ste" or bound.gradient.startswith("surrogate:")


@pytest.mark.parametrize("chain", ["resize_pad", "jpeg:25", "bit_depth", "smoothing:0.02"])
def test_the_clean_decision_survives_and_the_adaptive_attack_beats_the_static_one(chain: str, encoder: TorchImageEncoder) -> None:
    """The table of ROBUSTNESS 5.1 (6) as inequalities: what looks robust to an attacker who ignores the defense is not."""
    pixels, targets = gratings(32, seed=33)
    seeds = draw_seeds(33, 32)
    toy, defense = trained_conv(), bind_chain(parse_defenses(chain), encoder)
    victim = Purified(toy, defense)

    def accuracy(inputs: torch.Tensor) -> float:
        return float((victim(inputs, draw_seeds(34, 32)).argmax(dim=1) == targets).float().mean())

    attack = PGD(ball=Linf(radius=6 / 255), starts=("zero",), stop="never")
    through = label_score("margin", victim, targets)
    static = accuracy(attack(label_score("margin", toy, targets), pixels, seeds).pixels)
    adaptive = accuracy(attack(averaged(through, 4) if defense.randomized else through, pixels, seeds).pixels)
    assert accuracy(pixels) >= 0.97
    assert adaptive < 0.1
    assert adaptive <= static
