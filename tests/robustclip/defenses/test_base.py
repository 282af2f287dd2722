import pytest
import torch
from toys import Purified, gratings, trained_conv

from robustclip.attacks.pgd import PGD
from robustclip.defenses import bind_chain, parse_defenses
from robustclip.defenses.base import Chain, Identity, straight_through
from robustclip.defenses.bit_depth import BitDepth
from robustclip.defenses.counterattack import Counterattack
from robustclip.defenses.jpeg import Jpeg
from robustclip.defenses.median import Median
from robustclip.defenses.resize_pad import ResizePad
from robustclip.errors import InvalidInput
from robustclip.scores.kinds import label_score
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import Linf
from robustclip.types import Pixels, Seeds

PIXELS, TARGETS = gratings(32, seed=41)
SEEDS = draw_seeds(41, 32)


def quantise(pixels: Pixels) -> Pixels:
    return (pixels * 15).round() / 15


class Hard(Identity):
    """A quantiser whose author forgot the gradient: the first fixture of the masking zoo."""

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        return quantise(inputs)


class Seen(Identity):
    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        return straight_through(quantise, inputs)


def test_a_hard_quantiser_hides_behind_a_zero_gradient_and_falls_to_straight_through() -> None:
    toy, attack = trained_conv(), PGD(ball=Linf(radius=6 / 255), starts=("zero",))
    masked, honest = (label_score("margin", Purified(toy, defense), TARGETS) for defense in (Hard(), Seen()))
    gradient = masked(PIXELS, SEEDS, grad=True).grad
    assert gradient is not None
    assert not gradient.any()
    assert torch.equal(masked(PIXELS, SEEDS, grad=False).value, honest(PIXELS, SEEDS, grad=False).value)
    assert (attack(masked, PIXELS, SEEDS).margin > 0).float().mean() < 0.2
    assert (attack(honest, PIXELS, SEEDS).margin > 0).float().mean() > 0.9


def test_straight_through_is_exact_forward_and_the_surrogate_backward() -> None:
    pixels = PIXELS.clone().requires_grad_()
    out = straight_through(quantise, pixels, lambda inputs: 3 * inputs**2)
    assert torch.equal(out, quantise(PIXELS))
    (gradient,) = torch.autograd.grad(out.sum(), pixels)
    assert torch.allclose(gradient, 6 * PIXELS)


def test_serving_does_not_pay_for_the_surrogate() -> None:
    def never(pixels: Pixels) -> Pixels:
        raise AssertionError("the surrogate ran")

    straight_through(quantise, PIXELS, never)
    with torch.no_grad():
        straight_through(quantise, PIXELS.clone().requires_grad_(), never)


def test_a_chain_runs_in_order_with_a_stream_a_link() -> None:
    first, second = ResizePad(low=0.5), BitDepth(bits=2)
    chained = Chain((first, second, first))(PIXELS, SEEDS)
    by_hand = first(
        second(first(PIXELS, derive(SEEDS, "defense-0")), derive(SEEDS, "defense-1")),
        derive(SEEDS, "defense-2"),
    )
    assert torch.equal(chained, by_hand)
    assert not torch.equal(chained, Chain((second, first, first))(PIXELS, SEEDS))


@pytest.mark.parametrize(
    ("links", "randomized", "gradient"),
    [
        ((), False, "exact"),
        ((ResizePad(),), True, "exact"),
        ((ResizePad(low=1),), False, "exact"),
        ((BitDepth(), ResizePad(), Jpeg()), True, "ste+surrogate:soft_jpeg"),
        ((BitDepth(), Jpeg(backward="identity")), False, "ste"),
        ((Jpeg(), Identity(gradient="none")), False, "none"),
    ],
)
def test_a_chain_declares_what_its_links_are(
    links: tuple[ResizePad | BitDepth | Jpeg | Identity, ...], randomized: bool, gradient: str
) -> None:
    chain = Chain(links)
    assert (chain.stage, chain.randomized, chain.gradient) == ("pixels", randomized, gradient)


class Doubled(Identity):
    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        return 2 * inputs


def test_a_chain_on_both_sides_of_the_tower_is_called_in_parts() -> None:
    chain = Chain((BitDepth(bits=2), Doubled(stage="features"), Doubled(stage="features")))
    before, behind = chain.at("pixels"), chain.at("features")
    assert (chain.stage, chain.randomized, chain.gradient) == ("both", False, "ste")
    assert before is not None
    assert behind is not None
    assert (before.stage, behind.stage) == ("pixels", "features")
    assert torch.equal(before(PIXELS, SEEDS), BitDepth(bits=2)(PIXELS, SEEDS))
    assert torch.equal(behind(PIXELS, SEEDS), 4 * PIXELS)
    assert before.at("features") is None
    with pytest.raises(InvalidInput):
        chain(PIXELS, SEEDS)


def test_no_defense_on_pixels_follows_one_on_features() -> None:
    with pytest.raises(InvalidInput) as refused:
        Chain((Identity(), Identity(stage="features"), Identity()))
    assert refused.value.field == "defenses/2"


def test_a_chain_computes_in_float32_and_answers_in_the_type_of_its_inputs() -> None:
    seen: list[torch.dtype] = []

    class Spy(Identity):
        def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
            seen.extend([inputs.dtype, (inputs.flatten(1) @ inputs.flatten(1).T).dtype])
            return inputs

    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert Chain((Spy(),))(PIXELS.to(dtype), SEEDS).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        Chain((Spy(),))(PIXELS, SEEDS)
    assert seen == 4 * [torch.float32] + 2 * [torch.float64] + 2 * [torch.float32]


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("jpeg:75,bit_depth:4,resize_pad", (Jpeg(quality=75), BitDepth(bits=4), ResizePad())),
        (" jpeg : 30 , resize_pad:0.8", (Jpeg(quality=30), ResizePad(low=0.8))),
        ("median:5,counterattack:2/255", (Median(window=5), Counterattack(radius=2 / 255))),
        (
            ["jpeg", {"kind": "bit_depth", "bits": 3}, ResizePad(low=0.5)],
            (Jpeg(), BitDepth(bits=3), ResizePad(low=0.5)),
        ),
        *((nothing, ()) for nothing in ("", "none", " none ", [], (), ["none"])),
    ],
)
def test_a_chain_is_written_in_words(text: str | list[object], specs: tuple[object, ...]) -> None:
    assert parse_defenses(text) == specs  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("jpeg:200", "defense/0/quality"),
        ("jpeg,bit_depth:9", "defense/1/bits"),
        ("resize_pad:nan", "defense/0/low"),
        ("resize_pad:0", "defense/0/low"),
        ("jpeg:", "defense/0/quality"),
        ("jpeg:x", "defense/0/quality"),
        ("blur", "defense/0"),
        ("blur:3", "defense/0"),
        ("jpeg,,jpeg", "defense/1"),
        (["none", "jpeg"], "defense/0"),
        ([{"kind": "jpeg", "qualty": 1}], "defense/0/qualty"),
        ([3], "defense/0"),
        (3, "defense"),
        ({"kind": "jpeg"}, "defense"),
        ("jpeg," * 9, "defense"),
        ("../../etc/passwd", "defense/0"),
        ("median:4", "defense/0/window"),
        ("median:9", "defense/0/window"),
        ("median:-3", "defense/0/window"),
        ("total_variation:nan", "defense/0/weight"),
        ("total_variation:2", "defense/0/weight"),
        ([{"kind": "total_variation", "iterations": 10**9}], "defense/0/iterations"),
        ("wavelet:inf", "defense/0/sigma"),
        ([{"kind": "wavelet", "levels": 0}], "defense/0/levels"),
        ("low_pass:0", "defense/0/cutoff"),
        ("jpeg,counterattack:2", "defense/1/radius"),
        ("counterattack:much", "defense/0/radius"),
        ([{"kind": "counterattack", "steps": 10**6}], "defense/0/steps"),
        ([{"kind": "counterattack", "step": float("nan")}], "defense/0/step"),
        ([{"kind": "counterattack", "gate": float("inf")}], "defense/0/gate"),
        ([{"kind": "counterattack", "backward": "none"}], "defense/0/backward"),
        ("clipure_cosine:0.6", "defense/0/share"),
        ("low_pass,clipure_cosine,jpeg", "defense/2"),
    ],
)
def test_a_wrong_chain_is_refused_with_the_path_to_what_is_wrong(text: object, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_defenses(text)  # pyright: ignore[reportArgumentType]
    assert refused.value.field == field


def test_no_defense_is_the_identity() -> None:
    identity = bind_chain((), lambda pixels, visual: pixels)  # pyright: ignore[reportArgumentType] - no defense asks the encoder
    assert identity(PIXELS, SEEDS) is PIXELS
    assert (identity.stage, identity.randomized, identity.gradient) == ("pixels", False, "exact")
