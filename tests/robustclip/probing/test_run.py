"""The probe: what it attacks is what is served, what it reports is judged again, and equal questions get
equal answers.
"""

import base64
from dataclasses import replace

import pytest
from probing import LABELS, SPARED, options, picture, served_label, victim
from torch import Tensor

from robustclip.attacks.pgd import FGSM, PGD
from robustclip.defenses import parse_defenses
from robustclip.errors import InvalidInput, NoDecisionToAttack
from robustclip.images import load_pixels
from robustclip.models.clip import Clip
from robustclip.probing.plan import charged_passes
from robustclip.probing.run import probe
from robustclip.probing.verdict import worst
from robustclip.reports.report import ProbeReport
from robustclip.sanity.checks import suspicions
from robustclip.scores.wrappers import guarded
from robustclip.threat import L2, BallSpec, Linf
from robustclip.types import DeviceAccess, PixelFunction, Pixels, Seeds


def test_a_broken_decision_comes_with_a_png_that_breaks_it_again(tiny: Clip) -> None:
    subject, pixels = victim(tiny), picture(tiny)
    report = probe(subject, pixels, options(modes=("adaptive",)))
    assert report.verdict.value == "broken"
    assert report.verdict.bits == "8"
    record = report.attacks[0]
    assert record.adversarial_png is not None
    witness = load_pixels(base64.b64decode(record.adversarial_png), tiny.image_size)
    assert (
        served_label(subject, witness)
        == record.label
        != report.input.clean.label
        == served_label(subject, pixels)
    )
    assert (witness - pixels).abs().max() <= 8 / 255 + 1e-6
    assert record.linf_levels <= 8
    assert record.heat is not None
    assert len(record.heat.levels) == record.heat.grid[0]
    assert record.trace is not None
    assert record.trace.margin[0] is not None


@pytest.mark.parametrize("defense", ["none", "jpeg:75,bit_depth:5,resize_pad"])
def test_the_same_seed_gives_the_same_report_and_another_starts_elsewhere(tiny: Clip, defense: str) -> None:
    subject, pixels = victim(tiny, defense), picture(tiny)
    asked = options(eot=2, fresh_draws=8, attacks=(PGD(ball=Linf(radius=4 / 255), steps=3),))
    first, again = probe(subject, pixels, asked), probe(subject, pixels, asked)
    assert first.model_dump_json() == again.model_dump_json()
    assert ProbeReport.model_validate_json(first.model_dump_json(by_alias=True)) == first
    other = probe(subject, pixels, asked.model_copy(update={"seed": 1}))
    assert other.seed == 1
    assert (
        other.input == first.input or subject.defense
    )  # a randomized defense draws anew for the clean decision, too
    traces = [
        [record.trace for record in report.attacks if record.trace is not None] for report in (first, other)
    ]  # not of what checks found
    for before, after in zip(*traces, strict=True):
        assert before != after, "the random start was another one"


def test_the_worse_of_float_and_8_bit_rates_is_reported(tiny: Clip) -> None:
    attack = PGD(ball=Linf(radius=0.6 / 255), steps=5)  # below one level the PNG is the clean picture
    report = probe(
        victim(tiny, "resize_pad"),
        picture(tiny, seed=8),
        options(attacks=(attack,), eot=4, modes=("adaptive",)),
    )
    record = report.attacks[0]
    assert record.rate is not None
    if record.rate.high >= 0.5:
        assert report.verdict.value in ("broken", "inconclusive")
    assert record.rate.wrong > 14


def test_static_and_adaptive_stand_side_by_side_through_a_chain(tiny: Clip) -> None:
    report = probe(
        victim(tiny, "jpeg:75,bit_depth:4,resize_pad"), picture(tiny), options(eot=4, fresh_draws=16)
    )
    assert [record.knowledge for record in report.attacks] == ["static", "adaptive"]
    assert [record.eot for record in report.attacks] == [1, 4]
    assert report.gap is not None
    assert report.gap.illusory == (report.gap.adaptive_success and not report.gap.static_success)
    assert [part.kind for part in report.victim.defense] == ["jpeg", "bit_depth", "resize_pad"]
    for record in report.attacks:
        assert record.rate is not None
        assert record.rate.draws == 16
        assert record.success_8bit == (record.rate.low > 0.5)


def test_who_stands_is_never_called_robust(tiny: Clip) -> None:
    report = probe(victim(tiny), picture(tiny), options(radius=SPARED))
    assert report.verdict.value == "not-broken-within-budget"
    assert "robust" not in report.verdict.sentence
    assert report.attacks[0].linf == 0


def test_a_static_attack_alone_is_inconclusive(tiny: Clip) -> None:
    report = probe(victim(tiny, "bit_depth:3"), picture(tiny), options(radius=SPARED, modes=("static",)))
    assert (report.verdict.value, report.verdict.reason) == ("inconclusive", "static-only")


def test_a_clean_picture_that_is_already_wrong_is_broken_at_any_radius(tiny: Clip) -> None:
    subject, pixels = victim(tiny), picture(tiny)
    truth = next(label for label in LABELS if label != served_label(subject, pixels))
    report = probe(subject, pixels, options(radius=SPARED, true_label=truth))
    assert (report.verdict.value, report.verdict.reason) == ("broken", "clean-wrong")
    assert not report.input.clean.correct


def test_a_target_is_reached_exactly(tiny: Clip) -> None:
    subject, pixels = victim(tiny), picture(tiny)
    target = next(label for label in reversed(LABELS) if label != served_label(subject, pixels))
    report = probe(subject, pixels, options(radius=32 / 255, target_label=target, modes=("adaptive",)))
    assert report.input.goal == "reach_target"
    assert report.verdict.value == "broken"
    assert report.attacks[0].label == target


def test_a_first_success_too_narrow_for_eight_bits_is_pushed_on(tiny: Clip) -> None:
    attack = PGD(ball=Linf(radius=2 / 255), steps=40, step=0.05 / 255, starts=("zero",), stop="broken")
    report = probe(victim(tiny), picture(tiny), options(attacks=(attack,), modes=("adaptive",)))
    assert report.attacks[0].success
    assert report.attacks[0].success_8bit


def test_l2_and_fgsm_are_attacks_like_any(tiny: Clip) -> None:
    attacks = (PGD(ball=L2(radius=2.0), steps=5), FGSM(ball=Linf(radius=8 / 255)))
    report = probe(victim(tiny), picture(tiny), options(attacks=attacks, modes=("adaptive",)))
    assert [record.kind for record in report.attacks] == ["pgd", "fgsm"]
    assert report.attacks[0].l2 <= 2.0 * (1 + 1e-4)
    assert "M7" in [diagnostic.id for diagnostic in report.diagnostics]


@pytest.mark.parametrize(
    ("defense", "eot", "draws"),
    [("none", 1, 1), ("bit_depth:4", 1, 1), ("resize_pad", 1, 512), ("resize_pad", 32, 1)],
)
@pytest.mark.parametrize("ball", [Linf(radius=0.5 / 255), L2(radius=0.01)])
def test_the_bill_is_announced_before_and_never_exceeded(
    tiny: Clip, defense: str, eot: int, draws: int, ball: BallSpec
) -> None:
    attack = PGD(ball=ball, steps=1, starts=("zero",))
    subject, asked = victim(tiny, defense), options(attacks=(attack,), eot=eot, fresh_draws=draws)
    report = probe(subject, picture(tiny), asked)
    candidates = 2 * draws * suspicions(cross_entropy=False)  # that checks might have found
    assert (
        report.charged <= charged_passes(subject, asked) <= report.charged + candidates + 60 * eot + 150
    )  # an upper bound, not a guess


@pytest.mark.parametrize("backward", ["identity", "unrolled"])
def test_what_a_defense_spends_itself_is_on_the_bill(tiny: Clip, backward: str) -> None:
    attack = PGD(ball=Linf(radius=SPARED), steps=1, starts=("zero",))
    asked = options(
        attacks=(attack,), eot=2, fresh_draws=4, self_test=True, certify={"n": 20, "n0": 10, "sigma": 0.1}
    )
    chain = parse_defenses([{"kind": "counterattack", "backward": backward}])
    plain, subject = victim(tiny, "resize_pad"), replace(victim(tiny), defense=chain)
    spent, without = probe(subject, picture(tiny), asked), probe(plain, picture(tiny), asked)
    assert spent.charged > 2 * without.charged
    assert spent.charged <= charged_passes(subject, asked) <= 2 * spent.charged


class Turn:
    """A lock that knows whether it is held."""

    def __init__(self) -> None:
        self.held = False

    def __enter__(self) -> None:
        assert not self.held
        self.held = True

    def __exit__(self, *error: object) -> None:
        self.held = False


def access_by(turn: Turn) -> DeviceAccess:
    """A device behind that lock."""

    def share(function: PixelFunction) -> PixelFunction:
        def locked(pixels: Pixels, seeds: Seeds) -> Tensor:
            with turn:
                return function(pixels, seeds)

        return locked

    return DeviceAccess(lambda score: guarded(score, turn), share, lambda: turn)


@pytest.mark.parametrize(
    "defense", ["none", "bit_depth:4", "jpeg:75,resize_pad", "counterattack,clipure_cosine"]
)
@pytest.mark.parametrize("radius", [SPARED, 16 / 255])
def test_no_pass_through_the_tower_goes_past_guard_and_share_or_is_left_off_the_bill(
    tiny: Clip, defense: str, radius: float
) -> None:
    turn, passes, back = Turn(), list[tuple[bool, int]](), list[tuple[bool, int]]()

    def watch(module: object, inputs: object, output: Tensor) -> None:
        passes.append((turn.held, len(output)))
        if output.requires_grad:
            output.register_hook(lambda gradient: back.append((turn.held, len(gradient))))

    watching = tiny.model.visual.conv1.register_forward_hook(watch)
    try:
        asked = options(radius=radius, eot=2, fresh_draws=2)
        report = probe(
            victim(tiny, defense),
            picture(tiny),
            asked,
            access=access_by(turn),
        )
    finally:
        watching.remove()
    assert all(held for held, _ in passes + back)
    assert (sum(rows for _, rows in passes), sum(rows for _, rows in back)) == (
        report.forward,
        report.backward,
    )


@pytest.mark.parametrize(
    ("change", "field"), [({"true_label": "cow"}, "true_label"), ({"target_label": "cow"}, "target_label")]
)
def test_labels_that_are_not_the_victims_are_refused(tiny: Clip, change: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        probe(victim(tiny), picture(tiny), options(**change))
    assert refusal.value.field == field


def test_one_label_is_no_decision(tiny: Clip) -> None:
    with pytest.raises((InvalidInput, NoDecisionToAttack)):
        probe(victim(tiny, labels=("cat",)), picture(tiny), options())


def test_the_worst_verdict_of_several_counts(tiny: Clip) -> None:
    broken = probe(victim(tiny), picture(tiny), options(radius=64 / 255))
    standing = probe(victim(tiny), picture(tiny), options(radius=SPARED))
    assert worst([standing, broken]) == "broken"
    assert worst([standing]) == "not-broken-within-budget"


def test_a_defense_is_bound_once_a_probe_and_within_what_is_allowed_of_the_device(tiny: Clip) -> None:
    turn, text_passes = Turn(), list[bool]()
    subject = victim(tiny, "clipure_cosine")
    asked = options(radius=SPARED, self_test=True, minimal=True, certify={"n": 20, "n0": 10, "sigma": 0.1})
    watching = tiny.model.token_embedding.register_forward_hook(lambda *_: text_passes.append(turn.held))
    try:
        report = probe(subject, picture(tiny), asked, access=access_by(turn))
    finally:
        watching.remove()
    assert [record.knowledge for record in report.attacks[:2]] == ["static", "adaptive"]
    assert report.self_test is not None
    assert text_passes == [True, True], "the victim's chain, and behind the certificate's noise another one"
