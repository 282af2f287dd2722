"""What every attack must keep. Each attack of `AnyAttack` is tested with the parameters that it declares as
`quick`; `FURTHER` adds cases that take other paths through the same code.
"""

from itertools import pairwise

import pytest
import torch
from toys import OfSigmoids, gratings, trained_conv

from robustclip.attacks import ATTACKS, AnyAttack, parse_attack
from robustclip.attacks.base import BallAttack
from robustclip.models.scoring import Scoring
from robustclip.scores.kinds import AnyScoreName, label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, Linf
from robustclip.types import Attacked, Score, Seeds

BALLS = {"linf": Linf(radius=3 / 255), "l2": L2(radius=0.4)}
KINDS = {attack.model_fields["kind"].default: attack for attack in ATTACKS}
FURTHER = [
    ("pgd", {"steps": 5, "starts": ("one_sided",), "stop": "never", "keep": "last"}),
    ("pgd", {"steps": 5, "starts": ("zero", "random"), "restarts": 2, "stop": "never"}),
    ("fgsm", {"random_start": True}),
    ("apgd", {"steps": 7, "restarts": 2, "stop": "never"}),
    ("square", {"queries": 9, "redraw": True}),
    ("square", {"queries": 60, "stop": "never"}),
    ("ensemble", {"preset": "quick", "together": 4, "widen": 3}),
]
CASES = [
    parse_attack({"kind": kind, "ball": ball, **options})
    for kind, options in [*((kind, attack.quick) for kind, attack in KINDS.items()), *FURTHER]
    for ball in BALLS.values()
]

PIXELS, TARGETS = gratings(8, seed=21)
SEEDS = draw_seeds(21, 8)

every_attack = pytest.mark.parametrize("attack", CASES, ids=repr)


def score(
    rows: torch.Tensor | None = None, name: AnyScoreName = "margin", scoring: Scoring = "softmax"
) -> Score:
    toy = trained_conv() if scoring == "softmax" else OfSigmoids(trained_conv(), -0.9)
    return label_score(name, toy, TARGETS if rows is None else TARGETS[rows])


def run(
    attack: AnyAttack,
    rows: torch.Tensor | None = None,
    seeds: Seeds = SEEDS,
    name: AnyScoreName = "margin",
    scoring: Scoring = "softmax",
) -> Attacked:
    rows = torch.arange(8) if rows is None else rows
    return attack(score(rows, name, scoring), PIXELS[rows], seeds[rows])


every_scoring = pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])


def test_every_attack_of_the_table_is_tested_in_both_norms() -> None:
    assert {(attack.kind, attack.ball.kind) for attack in CASES} == {
        (kind, norm) for kind in KINDS for norm in BALLS
    }


def climbers() -> list[str]:
    """Single attacks that follow gradients."""
    attacks = {kind: KINDS[kind](ball=BALLS["linf"]) for kind in KINDS}
    return [
        kind for kind, attack in attacks.items() if isinstance(attack, BallAttack) and attack.bill(1).backward
    ]


@every_attack
@every_scoring
@pytest.mark.parametrize("name", ["margin", "cross_entropy"])
def test_the_result_is_in_the_ball_in_the_box_and_finite(
    attack: AnyAttack, name: AnyScoreName, scoring: Scoring
) -> None:
    attacked = run(attack, name=name, scoring=scoring)
    assert attacked.pixels.shape == PIXELS.shape
    assert attacked.pixels.dtype == torch.float32
    assert attacked.pixels.isfinite().all()
    assert attacked.pixels.min() >= 0
    assert attacked.pixels.max() <= 1
    assert (attack.ball.distance(attacked.pixels, PIXELS) <= attack.ball.radius * (1 + 1e-5) + 1e-6).all()
    assert attacked.value.isfinite().all()
    assert not attacked.pixels.requires_grad


@every_attack
@pytest.mark.parametrize("name", ["margin", "cross_entropy"])
def test_what_is_reported_is_what_the_pixels_show(attack: AnyAttack, name: AnyScoreName) -> None:
    attacked = run(attack, name=name)
    seen = score(name=name)(attacked.pixels, SEEDS, grad=False)
    assert torch.allclose(attacked.value, seen.value, atol=1e-4)
    assert torch.allclose(attacked.margin, seen.margin, atol=1e-4)
    assert attacked.trace_value.shape == attacked.trace_margin.shape
    assert attacked.trace_value.shape[1] == attacked.first_success.shape[0] == 8
    assert torch.equal(attacked.first_success >= 0, (attacked.trace_margin > 0).any(dim=0))
    assert attacked.cost.charged <= attack.bill(8).charged


@every_attack
@every_scoring
def test_an_attack_never_lowers_the_score(attack: AnyAttack, scoring: Scoring) -> None:
    before = score(scoring=scoring)(PIXELS, SEEDS, grad=False)
    assert (run(attack, scoring=scoring).value >= before.value).all()


@every_attack
def test_radius_zero_changes_nothing(attack: AnyAttack) -> None:
    nowhere = attack.model_copy(update={"ball": type(attack.ball)(radius=0)})
    assert torch.equal(run(nowhere).pixels, PIXELS)


@every_attack
def test_the_same_seeds_give_the_same_result_and_the_global_generator_is_untouched(attack: AnyAttack) -> None:
    state = torch.random.get_rng_state()
    once = run(attack)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(12345)
    assert torch.equal(run(attack).pixels, once.pixels)


@every_attack
@pytest.mark.parametrize(
    "rows", [[3], [7, 2, 5, 0, 1, 6, 3, 4], [1, 4, 6]], ids=["alone", "permuted", "some"]
)
def test_a_row_does_not_depend_on_its_batch_mates(attack: AnyAttack, rows: list[int]) -> None:
    whole, part = run(attack), run(attack, torch.tensor(rows))
    assert torch.allclose(part.pixels, whole.pixels[rows], atol=1e-5)
    assert torch.allclose(part.margin, whole.margin[rows], atol=1e-4)
    assert torch.equal(part.first_success, whole.first_success[rows])


@every_attack
def test_the_input_is_left_alone(attack: AnyAttack) -> None:
    before = PIXELS.clone()
    run(attack)
    assert torch.equal(PIXELS, before)


def broken(pictures: int = 64, **options: object) -> int:
    pixels, targets = gratings(pictures, seed=3)
    attack = parse_attack({"kind": "pgd"} | options)
    return int(
        (
            attack(label_score("margin", trained_conv(), targets), pixels, draw_seeds(1, pictures)).margin > 0
        ).sum()
    )


@pytest.mark.parametrize("kind", climbers())
@pytest.mark.parametrize(
    ("norm", "radii"), [("linf", (1 / 255, 2 / 255, 4 / 255, 8 / 255)), ("l2", (0.1, 0.3, 0.6, 2.0))]
)
def test_a_larger_ball_breaks_no_fewer(kind: str, norm: str, radii: tuple[float, ...]) -> None:
    counts = [broken(kind=kind, ball={"kind": norm, "radius": radius}) for radius in radii]
    assert all(later >= earlier - 1 for earlier, later in pairwise(counts)), counts
    assert counts[0] < 8
    one_step = KINDS[kind](ball=BALLS["linf"]).bill(1).backward == 1
    assert counts[-1] > (32 if one_step else 56)


@pytest.mark.parametrize("kind", [kind for kind in climbers() if "steps" in KINDS[kind].model_fields])
def test_more_steps_break_no_fewer(kind: str) -> None:
    counts = [broken(kind=kind, ball=BALLS["linf"], steps=steps) for steps in (1, 3, 10, 30)]
    assert all(later >= earlier - 1 for earlier, later in pairwise(counts)), counts
    assert counts[0] < counts[-1]
