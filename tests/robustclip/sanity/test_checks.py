"""The masking checks: silent on an honest victim, loud on each kind of dishonest one."""

import pytest
import torch
from toys import LinearClassifier, Noisy

from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square
from robustclip.models.classifier import zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.sanity import checks, forwards, gradients, strength, symptoms
from robustclip.scores.kinds import AnyScoreName, LabelScore, label_score
from robustclip.scores.wrappers import averaged
from robustclip.seeds import draw_seeds, row_normal
from robustclip.threat import L2, BallSpec, Linf
from robustclip.types import Classifier, Logits, Pixels, Seeds

LABELS = ("cat", "dog", "car")
SEEDS = draw_seeds(0, 1)


class Victim:
    """The tiny CLIP, with something done to its pixels or logits first."""

    def __init__(self, clip: Clip, kind: str) -> None:
        self.inner, self.kind = zero_shot(clip, Prompts(), LABELS), kind
        self.labels = LABELS

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        if self.kind == "quantised":
            pixels = (pixels * 15).round() / 15
        if self.kind == "detached":
            pixels = (0.9 * pixels).detach() + 0.1 * pixels.flip(-1) * 1e-3
        if self.kind in ("noisy", "frozen"):
            own = seeds if self.kind == "noisy" else torch.zeros_like(seeds)
            pixels = (pixels + 0.05 * row_normal(own, tuple(pixels.shape[1:]), like=pixels)).clamp(0, 1)
        if self.kind == "dynamic":
            with torch.enable_grad():
                start = pixels.detach().requires_grad_()
                pixels = pixels - torch.autograd.grad(start.square().sum(), start)[0] / 8
        if self.kind == "batch-mean":
            pixels = (pixels + pixels.mean(dim=0, keepdim=True)) / 2
        if self.kind == "batch-size":
            pixels = pixels / len(pixels)
        if self.kind == "rounding" and len(pixels) > 1:  # turns a sign over: one pixel goes the other way
            pixels = pixels.clone()
            pixels[..., 16, 16] -= 8 / 255
        return self.inner(pixels, seeds)


def picture(clip: Clip) -> Pixels:
    levels = torch.randint(
        0, 256, (1, 3, clip.image_size, clip.image_size), generator=torch.Generator().manual_seed(7)
    )
    return levels / 255


def margin(victim: Classifier, clip: Clip) -> LabelScore:
    target = victim(picture(clip), SEEDS).argmax(dim=1)
    return label_score("margin", victim, target)


def test_an_honest_victim_raises_no_flag(tiny: Clip) -> None:
    victim = Victim(tiny, "honest")
    score, pixels = margin(victim, tiny), picture(tiny)
    assert not gradients.zero_gradient(score, pixels, SEEDS)[0].fired
    assert not gradients.gradient_scale(score, score, pixels, SEEDS)[0].fired
    assert not gradients.wrong_gradient(score, pixels, SEEDS)[0].fired
    assert not any(
        flag.fired for flag in forwards.randomness(victim, pixels, SEEDS, declared=False, eot=1)[0]
    )
    assert not forwards.batch_coupling(victim, pixels, SEEDS, alone=victim(pixels, SEEDS))[0].fired
    assert not strength.unbounded_attack_fails(
        PGD(ball=Linf(radius=64 / 255), steps=20, starts=("random",)), score, pixels, SEEDS
    )[0].fired


def test_a_hard_quantiser_has_no_gradient(tiny: Clip) -> None:
    flag, cost = gradients.zero_gradient(margin(Victim(tiny, "quantised"), tiny), picture(tiny), SEEDS)
    assert flag.fired
    assert flag.severity == "hard"
    assert flag.number == 1.0
    assert cost.forward == 1


def test_an_attack_without_a_gradient_fails_even_unbounded(tiny: Clip) -> None:
    attack = PGD(ball=Linf(radius=64 / 255), steps=3, starts=("zero",))
    assert strength.unbounded_attack_fails(
        attack, margin(Victim(tiny, "quantised"), tiny), picture(tiny), SEEDS
    )[0].fired


@pytest.mark.parametrize(
    ("attack", "tells"),
    [
        (PGD(ball=Linf(radius=4 / 255), steps=10, stop="never"), True),
        (PGD(ball=Linf(radius=4 / 255), steps=9, stop="never"), False),
        (PGD(ball=Linf(radius=4 / 255), steps=10), False),
        (PGD(ball=Linf(radius=2 / 255), steps=10, stop="never"), False),
        (PGD(ball=Linf(radius=4 / 255), steps=10, stop="never", starts=("zero",)), False),
        (Square(ball=Linf(radius=4 / 255)), False),
    ],
)
def test_an_attack_tells_of_its_gradients_where_it_goes_on_from_a_random_point(
    attack: object, tells: bool
) -> None:
    assert gradients.climbs(attack, Linf(radius=4 / 255)) == tells


def test_what_is_seen_of_a_climb_leaves_out_the_picture_itself_which_may_be_stationary(tiny: Clip) -> None:
    clean = picture(tiny)

    class Hollow(Victim):
        """No gradient at the picture, the true one elsewhere."""

        def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
            there = (pixels == clean).flatten(1).all(dim=1)[:, None, None, None]
            return super().__call__(torch.where(there, pixels.detach(), pixels), seeds)

    attack = PGD(ball=Linf(radius=4 / 255), steps=10, stop="never", starts=(*["zero"] * 9, "random", "zero"))
    watched = gradients.Climbing(margin(Hollow(tiny, "honest"), tiny))
    attacked = attack(watched.score, clean, SEEDS)
    seen = watched.of(attack, attacked)
    assert watched.score.shares[11].tolist() == pytest.approx(
        [1, 0, 1], abs=0.1
    )  # the eight before climbed in a batch of their own
    assert not gradients.zero_gradient_along(seen.zero_share).fired
    assert (len(seen.value), len(seen.margin)) == (11, 11)
    assert torch.equal(seen.value, attacked.trace_value[99:110, 0])
    hidden = gradients.Climbing(margin(Victim(tiny, "quantised"), tiny))
    assert gradients.zero_gradient_along(
        hidden.of(attack, attack(hidden.score, clean, SEEDS)).zero_share
    ).fired


def test_a_detached_purifier_has_the_wrong_gradient(tiny: Clip) -> None:
    score, honest = margin(Victim(tiny, "detached"), tiny), margin(Victim(tiny, "honest"), tiny)
    assert gradients.wrong_gradient(score, picture(tiny), SEEDS)[0].fired
    assert gradients.gradient_scale(score, honest, picture(tiny), SEEDS)[0].number < 0.1


def test_noise_must_be_averaged_and_must_be_fresh(tiny: Clip) -> None:
    pixels = picture(tiny)
    one, _ = forwards.randomness(Victim(tiny, "noisy"), pixels, SEEDS, declared=True, eot=1)
    assert [flag.fired for flag in one] == [True, False]
    many, _ = forwards.randomness(Victim(tiny, "noisy"), pixels, SEEDS, declared=True, eot=8)
    assert [flag.fired for flag in many] == [False, False]
    frozen, _ = forwards.randomness(Victim(tiny, "frozen"), pixels, SEEDS, declared=True, eot=8)
    assert [flag.fired for flag in frozen] == [False, True]


@pytest.mark.parametrize("kind", ["batch-mean", "batch-size"])
def test_batch_mates_that_move_a_row_are_found(tiny: Clip, kind: str) -> None:
    victim = Victim(tiny, kind)
    assert forwards.batch_coupling(victim, picture(tiny), SEEDS, alone=victim(picture(tiny), SEEDS))[0].fired


def test_a_sign_that_rounding_turns_over_in_another_batch_size_is_no_batch_coupling(tiny: Clip) -> None:
    victim, pixels = Victim(tiny, "rounding"), picture(tiny)
    alone = victim(pixels, SEEDS)
    twice = victim(pixels.expand(2, -1, -1, -1), SEEDS.repeat(2))
    assert (alone - twice[:1]).abs().max() > symptoms.BATCH_COUPLING.threshold
    assert not forwards.batch_coupling(victim, pixels, SEEDS, alone=alone)[0].fired


@pytest.mark.parametrize("ball", [Linf(radius=1 / 255), L2(radius=0.1)])
def test_noise_that_succeeds_where_gradients_failed_is_a_flag(tiny: Clip, ball: BallSpec) -> None:
    victim = Victim(tiny, "honest")
    wrong = (victim(picture(tiny), SEEDS).argmax(dim=1) + 1) % len(
        LABELS
    )  # already misclassified: every draw reaches the goal
    score = label_score("margin", victim, wrong)
    assert strength.noise_beats_gradient(
        score, picture(tiny), SEEDS, ball, adaptive_success=False
    ).diagnostic.fired
    assert not strength.noise_beats_gradient(
        score, picture(tiny), SEEDS, ball, adaptive_success=True
    ).diagnostic.fired
    nowhere = ball.model_copy(update={"radius": 0.0})
    still = strength.noise_beats_gradient(
        margin(victim, tiny), picture(tiny), SEEDS, nowhere, adaptive_success=False
    ).diagnostic
    assert (still.fired, still.number) == (False, 0.0)
    assert strength.transfer_beats_adaptive(transfer_success=True, adaptive_success=False).fired


def test_checks_work_on_averaged_scores(tiny: Clip) -> None:
    score = averaged(margin(Victim(tiny, "noisy"), tiny), 4)
    flag, cost = gradients.zero_gradient(score, picture(tiny), SEEDS)
    assert not flag.fired
    assert (cost.forward, cost.backward) == (4, 4)


def test_every_symptom_has_a_name_of_its_own_advice_and_a_price_that_grows_with_the_draws() -> None:
    for part in ("id", "name", "sentence", "advice"):
        words = [getattr(symptom, part) for symptom in symptoms.SYMPTOMS]
        assert all(words)
        assert part == "advice" or len(set(words)) == len(words)
    bills = [checks.bill(1, randomized=False), checks.bill(1), checks.bill(4), checks.bill(64)]
    assert bills[0].charged < bills[1].charged < bills[2].charged == bills[3].charged
    whole = checks.bill(1, randomized=False).charged
    for known in ({"climbed": True}, {"queried": True}, {"defended": False}, {"cross_entropy": False}):
        assert checks.bill(1, randomized=False, **known).charged < whole


@pytest.mark.parametrize(
    ("reached", "lost"),
    [
        ([], 0),
        ([False, True, True], 0),
        ([False, False], 0),
        ([True, False, True, False], 2),
        ([False, True, False], 1),
    ],
)
def test_no_attack_may_fail_after_a_weaker_one_succeeded(reached: list[bool], lost: int) -> None:
    flag = strength.not_monotone(reached)
    assert (flag.id, flag.number, flag.fired, flag.severity) == ("M8", lost, lost > 0, "hard")


@pytest.mark.parametrize(
    ("values", "reached", "flat"),
    [
        ([0, 1, 2, 3, 4, 5], False, False),
        ([0, 5, 5, 5, 5, 5], False, True),
        ([0, 5, 1, 5, 1, 5], False, True),
        ([2, 2, 2, 2, 2, 2], False, True),
        ([0, 5, 5, 5, 5, 5], True, False),
    ],
    ids=["rises", "stops", "oscillates", "never moved", "had arrived"],
)
def test_an_attack_in_vain_that_no_longer_rises_is_noticed(
    values: list[float], reached: bool, flat: bool
) -> None:
    flag = gradients.flat_loss(
        torch.tensor(values, dtype=torch.float32), torch.tensor([-1.0] * 5 + [1.0 if reached else -1.0])
    )
    assert (flag.id, flag.fired, flag.severity) == ("M14", flat, "soft")


def test_an_answer_from_values_alone_outweighs_gradients_that_failed() -> None:
    assert strength.black_box_beats_white_box(black_box_success=True, adaptive_success=False).fired
    assert not strength.black_box_beats_white_box(black_box_success=True, adaptive_success=True).fired
    weights = torch.stack([torch.zeros(3 * 8 * 8), torch.full((3 * 8 * 8,), 1 / (3 * 8 * 8))])
    bright = LinearClassifier(
        weights, torch.tensor([0.5 + 0.2 / 255, 0.0])
    )  # label 1 from a mean of a little more than 0.5 on
    score = label_score("margin", bright, torch.tensor([0]))
    for radius, found in ((4 / 255, True), (0.1 / 255, False)):
        finding = strength.square_beats_white_box(
            score, torch.full((1, 3, 8, 8), 0.5), SEEDS, Linf(radius=radius)
        )
        assert (finding.diagnostic.id, finding.diagnostic.fired, finding.cost.backward) == ("M6", found, 0)
        assert (finding.suspicion is not None) == found


@pytest.mark.parametrize("found", [False, True])
def test_a_search_by_values_that_an_attack_ended_with_is_not_made_again(tiny: Clip, found: bool) -> None:
    victim = Victim(tiny, "honest")
    score = margin(victim, tiny)
    ball = Linf(radius=1e-6)
    suspect = checks.Suspect(
        score=score,
        undefended=None,
        classifier=victim,
        pixels=picture(tiny),
        seeds=SEEDS,
        ball=ball,
        gradient="ste",
        randomized=False,
        eot=1,
    )
    unbounded = PGD(ball=Linf(radius=64 / 255), steps=2)

    def bill(**known: bool) -> int:
        return sum(
            finding.cost.charged
            for finding in checks.examine(suspect, {"adaptive": False}, unbounded=unbounded, **known)
        )

    findings = checks.examine(suspect, {"adaptive": found}, unbounded=unbounded, queried=found)
    told = {finding.diagnostic.id: finding.diagnostic for finding in findings}
    assert (told["M6"].fired, told["M6"].number) == (found, float(found))
    assert bill(queried=False) == bill() - 66


def test_what_succeeds_on_lucky_draws_alone_raises_no_flag() -> None:
    """A coin decides, weighted to the right side: every search finds a draw that is lost, and none finds a
    picture that is.
    """
    coin = Noisy(LinearClassifier(torch.zeros(2, 3 * 8 * 8), torch.tensor([1.0, 0.0])))
    pixels = torch.full((1, 3, 8, 8), 0.5)
    score = label_score("margin", coin, torch.tensor([0]))
    suspect = checks.Suspect(
        score=score,
        undefended=None,
        classifier=coin,
        pixels=pixels,
        seeds=SEEDS,
        ball=Linf(radius=4 / 255),
        gradient="ste",
        randomized=True,
        eot=1,
    )
    unbounded = PGD(ball=Linf(radius=64 / 255), steps=2)
    believed = strength.square_beats_white_box(score, pixels, SEEDS, suspect.ball).diagnostic
    assert believed.fired, "a search that is taken at its word has found something"
    found = {
        finding.diagnostic.id: finding
        for finding in checks.examine(suspect, {"adaptive": False}, unbounded=unbounded)
    }
    assert not any(found[id].diagnostic.fired or found[id].suspicion for id in ("M6", "M7", "M8"))
    assert found["M9"].diagnostic.fired


def test_a_forward_pass_that_records_gradients_is_dynamic_only_if_it_claims_to_be_exact(tiny: Clip) -> None:
    honest, dynamic = Victim(tiny, "honest"), Victim(tiny, "dynamic")
    for victim, exact, fired in ((honest, True, False), (dynamic, True, True), (dynamic, False, False)):
        with torch.enable_grad():
            flag, rows, logits = forwards.dynamic_forward(victim, picture(tiny), SEEDS, exact=exact)
        assert flag.fired == fired
        assert (flag.number > 0) == (victim is dynamic)
        assert rows == 1
        assert torch.equal(logits, victim(picture(tiny), SEEDS))


def test_a_probability_of_one_is_saturated(tiny: Clip) -> None:
    sure = LinearClassifier(torch.zeros(2, 3 * 32 * 32), torch.tensor([40.0, 0.0]))
    score = label_score("cross_entropy", sure, torch.tensor([0]))
    flag, cost, _ = gradients.saturation(score, picture(tiny), SEEDS, Linf(radius=1 / 255), standing=False)
    assert (flag.id, flag.fired, flag.severity, cost.charged) == ("M4", True, "soft", 1)
    assert not gradients.saturation(
        margin(Victim(tiny, "honest"), tiny), picture(tiny), SEEDS, Linf(radius=1 / 255), standing=True
    ).diagnostic.fired


@pytest.mark.parametrize(
    ("loss", "ids"), [("margin", {"M6", "M7", "M8"}), ("cross_entropy", {"M4", "M6", "M7", "M8"})]
)
def test_a_check_hands_over_what_it_found_in_the_ball_and_how(loss: AnyScoreName, ids: set[str]) -> None:
    """A bright picture changes sides at a hair's breadth: whatever is tried breaks it, but for an attack that
    was made to fail.
    """
    weights = torch.stack([torch.zeros(3 * 8 * 8), torch.full((3 * 8 * 8,), 1 / (3 * 8 * 8))])
    bright = LinearClassifier(weights, torch.tensor([0.5 + 1e-6, 0.0]))
    pixels, ball = torch.full((1, 3, 8, 8), 0.5), Linf(radius=4 / 255)
    suspect = checks.Suspect(
        score=label_score(loss, bright, torch.tensor([0])),
        undefended=None,
        classifier=bright,
        pixels=pixels,
        seeds=SEEDS,
        ball=ball,
        gradient="exact",
        randomized=False,
        eot=1,
    )
    findings = list(
        checks.examine(suspect, {"adaptive": False}, unbounded=PGD(ball=Linf(radius=64 / 255), steps=2))
    )
    handed = {
        finding.diagnostic.id: finding.suspicion for finding in findings if finding.suspicion is not None
    }
    assert set(handed) == ids
    assert len(handed) == checks.suspicions(cross_entropy=loss == "cross_entropy")
    for suspicion in handed.values():
        assert ball.distance(suspicion.pixels, pixels) <= ball.radius + 1e-6
        assert bright(suspicion.pixels, SEEDS).argmax() == 1
        assert (suspicion.attack.ball, suspicion.draws) == (ball, 1)
    assert all(finding.diagnostic.fired for finding in findings if finding.suspicion is not None)
