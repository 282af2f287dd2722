"""Every animal of the masking zoo is flagged by the check it was bred for and falls to the right attack; an
honest victim is never accused.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from probing import options, picture, victim
from zoo import AnchoredChain, Animal, BatchNormalised, DetachedPurifier, HardQuantiser, Noise, Optimiser

from robustclip.attacks.apgd import APGD
from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square
from robustclip.defenses.base import Chain, Identity, PixelDefense
from robustclip.defenses.bit_depth import BitDepth
from robustclip.defenses.resize_pad import ResizePad
from robustclip.measuring import wilson
from robustclip.models.classifier import Defended, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.probing.plan import charged_passes
from robustclip.probing.run import probe
from robustclip.reports.report import ProbeReport
from robustclip.sanity import checks, selftest
from robustclip.sanity.checks import Suspect, examine
from robustclip.sanity.selftest import self_test
from robustclip.scores.kinds import AnyScoreName, label_score
from robustclip.scores.surrogates import bypassed
from robustclip.scores.wrappers import Recorded, averaged, recorded
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import L2, BallSpec, Linf
from robustclip.types import Cost, DeviceAccess, PixelFunction, Pixels, Score, Seeds

LABELS = ("cat", "dog", "car", "ship")
BALL = Linf(radius=8 / 255)
SEEDS = draw_seeds(0, 1)
FRESH = 64


@dataclass(frozen=True, eq=False)
class Case:
    """One picture before a victim, with the label that the victim has to lose."""

    defended: Defended
    pixels: Pixels
    target: torch.Tensor

    @property
    def randomized(self) -> bool:
        return self.defended.defense.randomized

    def score(self, loss: AnyScoreName = "margin", *, eot: int = 1) -> Score:
        score = label_score(loss, self.defended, self.target)
        return averaged(score, eot) if eot > 1 else score

    def undefended(self) -> Score:
        return label_score("margin", self.defended.classifier, self.target)

    def falls(self, attacked: Pixels) -> bool:
        """Whether the label is lost in fresh forward passes, for a randomized victim in most draws beyond
        doubt.
        """
        draws = FRESH if self.randomized else 1
        streams = torch.cat([derive(SEEDS, f"fresh-{index}") for index in range(draws)])
        with torch.no_grad():
            wrong = int(
                (
                    self.defended(attacked.expand(draws, -1, -1, -1), streams).argmax(dim=1) != self.target
                ).sum()
            )
        return wilson(wrong, draws).low > 0.5 if self.randomized else wrong == 1


@dataclass(eq=False)
class Counted:
    """A function of pixels that counts the rows it was given."""

    function: PixelFunction
    rows: int = 0

    def __call__(self, pixels: Pixels, seeds: Seeds) -> torch.Tensor:
        self.rows += len(pixels)
        return self.function(pixels, seeds)


def case(clip: Clip, *defenses: PixelDefense, seed: int = 7, logit_scale: float = 1.0) -> Case:
    classifier = zero_shot(clip, Prompts(), LABELS)
    defended = Defended(
        replace(classifier, logit_scale=logit_scale * classifier.logit_scale),
        Chain(defenses) if defenses else Identity(),
    )
    levels = torch.randint(
        0, 256, (1, 3, clip.image_size, clip.image_size), generator=torch.Generator().manual_seed(seed)
    )
    draws = FRESH if defended.defense.randomized else 1
    streams = torch.cat([derive(SEEDS, f"clean-{index}") for index in range(draws)])
    with torch.no_grad():
        target = (
            defended((levels / 255).expand(draws, -1, -1, -1), streams)
            .mean(dim=0, keepdim=True)
            .argmax(dim=1)
        )
    return Case(defended, levels / 255, target)


def naive(subject: Case, loss: AnyScoreName = "margin", *, eot: int = 1, ball: BallSpec = BALL) -> Pixels:
    """PGD as the defense would have it."""
    return PGD(ball=ball, steps=20, stop="never")(subject.score(loss, eot=eot), subject.pixels, SEEDS).pixels


def fired(
    subject: Case, loss: AnyScoreName = "margin", *, eot: int = 1, ball: BallSpec = BALL
) -> dict[str, str]:
    """Identifiers and severities of the flags that the naive attack earns."""
    static = PGD(ball=ball, steps=20, stop="never")(subject.undefended(), subject.pixels, SEEDS).pixels
    suspect = Suspect(
        score=subject.score(loss, eot=eot),
        undefended=subject.undefended(),
        classifier=subject.defended,
        pixels=subject.pixels,
        seeds=SEEDS,
        ball=ball,
        gradient=subject.defended.defense.gradient,
        randomized=subject.randomized,
        eot=eot,
    )
    successes = {
        "adaptive": subject.falls(naive(subject, loss, eot=eot, ball=ball)),
        "static": subject.falls(static),
    }
    unbounded = PGD(ball=Linf(radius=64 / 255), steps=20, starts=("random",))
    found = list(examine(suspect, successes, unbounded=unbounded))
    bill = (
        checks.bill(eot, randomized=subject.randomized, cross_entropy=loss == "cross_entropy")
        .plus(unbounded.bill(eot))
        .charged
    )
    assert sum(finding.cost.charged for finding in found) <= bill
    return {
        finding.diagnostic.id: finding.diagnostic.severity for finding in found if finding.diagnostic.fired
    }


def past(subject: Case) -> Pixels:
    """BPDA: the gradient goes past the defense, values through it."""
    return PGD(ball=BALL, steps=40, stop="never")(
        bypassed(subject.undefended(), subject.defended.defense), subject.pixels, SEEDS
    ).pixels


def squares(subject: Case) -> Pixels:
    return Square(ball=BALL, queries=300)(subject.score(), subject.pixels, SEEDS).pixels


def transferred(subject: Case) -> Pixels:
    return PGD(ball=BALL, steps=20, stop="never")(subject.undefended(), subject.pixels, SEEDS).pixels


def in_float32(subject: Case) -> Pixels:
    twin = Case(
        replace(subject.defended, defense=Chain((AnchoredChain(half=False),))), subject.pixels, subject.target
    )
    return naive(twin)


def on_fresh_noise(subject: Case) -> Pixels:
    twin = Case(replace(subject.defended, defense=Chain((Noise(),))), subject.pixels, subject.target)
    return naive(twin, eot=8)


def with_all_draws(subject: Case) -> Pixels:
    return naive(subject, eot=16)


def alone(subject: Case) -> Pixels:
    return naive(subject)


Way = Callable[[Case], Pixels]


def named(part: object) -> str:
    return getattr(part, "kind", getattr(part, "__name__", "flags"))


ZOO: list[tuple[Animal | ResizePad, set[str], tuple[Way, ...]]] = [
    (HardQuantiser(), {"M1", "M3"}, (past, squares)),
    (DetachedPurifier(), {"M3", "M5"}, (past, transferred)),
    (AnchoredChain(), {"M1", "M2"}, (in_float32, past)),
    (Noise(frozen=True), {"M10"}, (on_fresh_noise,)),
    (ResizePad(low=0.8), {"M9"}, (with_all_draws,)),
    (Optimiser(), {"M11"}, (past, transferred)),
    (BatchNormalised(), {"M12"}, (alone,)),
]


@pytest.mark.parametrize(("animal", "flags"), [(animal, flags) for animal, flags, _ in ZOO], ids=named)
def test_every_animal_is_flagged(tiny: Clip, animal: Animal, flags: set[str]) -> None:
    found = fired(case(tiny, animal))
    assert flags <= set(found), found
    assert "hard" in found.values()


@pytest.mark.parametrize(
    ("animal", "way"), [(animal, way) for animal, _, ways in ZOO for way in ways], ids=named
)
def test_every_animal_falls_to_the_right_attack(tiny: Clip, animal: Animal, way: Way) -> None:
    subject = case(tiny, animal)
    attacked = way(subject)
    assert BALL.distance(attacked, subject.pixels) <= BALL.radius + 1e-6
    assert not subject.falls(subject.pixels)
    assert subject.falls(attacked)


@pytest.mark.parametrize(
    "animal",
    [HardQuantiser(), DetachedPurifier(), AnchoredChain(), Optimiser()],
    ids=lambda animal: animal.kind,
)
def test_those_that_hide_their_gradient_withstand_the_naive_attack(tiny: Clip, animal: Animal) -> None:
    subject = case(tiny, animal)
    assert not subject.falls(naive(subject))


def test_scaled_logits_stop_cross_entropy_and_nothing_else(tiny: Clip) -> None:
    subject = case(tiny, logit_scale=1e4)
    assert not subject.falls(naive(subject, "cross_entropy"))
    found = fired(subject, "cross_entropy")
    assert found["M4"] == "hard", "the margin breaks what cross-entropy does not"
    assert "M1" in found
    assert subject.falls(naive(subject, "margin"))
    for loss, temperature in (("dlr", 1.0), ("cross_entropy", 1e5)):
        score = label_score(loss, subject.defended, subject.target, temperature=temperature)
        assert subject.falls(APGD(ball=BALL, steps=20)(score, subject.pixels, SEEDS).pixels)


def test_in_float32_the_anchored_chain_has_a_tiny_gradient_of_the_right_direction(tiny: Clip) -> None:
    found = fired(case(tiny, AnchoredChain(half=False)))
    assert found == {"M2": "soft"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ball", [BALL, Linf(radius=0.25 / 255)], ids=["broken", "standing"])
def test_a_plain_victim_is_never_accused(tiny: Clip, seed: int, ball: BallSpec) -> None:
    assert fired(case(tiny, seed=seed), ball=ball) == {}


@pytest.mark.parametrize(
    "ball", [BALL, Linf(radius=0.25 / 255), L2(radius=0.02)], ids=["broken", "standing", "standing in L2"]
)
@pytest.mark.parametrize("defense", [BitDepth(bits=5), ResizePad(), Noise(deviation=0.02)], ids=named)
def test_a_defense_that_tells_the_truth_is_never_accused(
    tiny: Clip, defense: PixelDefense, ball: BallSpec
) -> None:
    assert fired(case(tiny, defense), eot=8 if defense.randomized else 1, ball=ball) == {}


@pytest.mark.parametrize(
    ("defense", "ball"),
    [
        (None, BALL),
        (None, Linf(radius=0.5 / 255)),
        (None, L2(radius=0.5)),
        (BitDepth(), BALL),
        (Noise(deviation=0.02), BALL),
    ],
    ids=["plain", "half a level", "L2", "bit_depth", "noise"],
)
def test_the_self_test_finds_what_exists_in_an_honest_victim(
    tiny: Clip, defense: PixelDefense | None, ball: BallSpec
) -> None:
    subject, state = case(tiny, *([] if defense is None else [defense])), torch.random.get_rng_state()
    eot = 4 if subject.randomized else 1
    outcome, cost = self_test(subject.defended.features, subject.pixels, SEEDS, ball, eot=eot, problems=2)
    assert (outcome.found, outcome.valid, outcome.easy, outcome.void) == (2, 2, 0, 0)
    assert cost.charged <= selftest.bill(eot, problems=2).charged
    assert torch.equal(torch.random.get_rng_state(), state)
    flag = outcome.diagnostic()
    assert flag is not None
    assert (flag.id, flag.number, flag.fired) == ("S1", 1.0, False)


@pytest.mark.parametrize(
    "animal", [HardQuantiser(), DetachedPurifier(), AnchoredChain(), Optimiser()], ids=named
)
def test_the_self_test_fails_where_gradients_are_hidden(tiny: Clip, animal: Animal) -> None:
    subject = case(tiny, animal)
    outcome, _ = self_test(subject.defended.features, subject.pixels, SEEDS, BALL, problems=1)
    assert (outcome.found, outcome.valid) == (0, 1)
    flag = outcome.diagnostic()
    assert flag is not None
    assert (flag.id, flag.fired, flag.severity) == ("S1", True, "hard")


@pytest.mark.parametrize(
    ("defenses", "ball"),
    [((), Linf(radius=0)), ((ResizePad(),), BALL)],
    ids=["one point", "draws move farther than the ball"],
)
def test_a_problem_that_cannot_be_posed_says_nothing(
    tiny: Clip, defenses: tuple[PixelDefense, ...], ball: BallSpec
) -> None:
    subject = case(tiny, *defenses)
    outcome, cost = self_test(
        subject.defended.features, subject.pixels, SEEDS, ball, eot=8 if subject.randomized else 1, problems=1
    )
    assert (outcome.valid, outcome.void, cost.backward) == (0, 1, 0)
    assert outcome.diagnostic() is None


def test_no_pass_of_a_self_test_goes_past_guard_and_share(tiny: Clip) -> None:
    subject, guards, shares = case(tiny), list[Recorded](), list[Counted]()

    def guard(score: Score) -> Score:
        guards.append(recorded(score))
        return guards[-1]

    def share(function: PixelFunction) -> PixelFunction:
        shares.append(Counted(function))
        return shares[-1]

    _, cost = self_test(
        subject.defended.features, subject.pixels, SEEDS, BALL, problems=1, access=DeviceAccess(guard, share)
    )
    asked = sum(counted.rows for counted in shares)
    assert len(guards) == 1
    assert cost == guards[0].cost.plus(Cost(asked, 0))


def test_a_probe_of_a_masked_victim_is_inconclusive_and_names_the_flags(tiny: Clip) -> None:
    subject = replace(victim(tiny), defense=(HardQuantiser(),))
    asked = options(radius=2 / 255, modes=("adaptive",), self_test=True)
    report = probe(subject, picture(tiny), asked)
    assert (report.verdict.value, report.verdict.reason) == ("inconclusive", "masking")
    assert "M1 zero gradient" in report.verdict.sentence
    assert "S1 self-test failed" in report.verdict.sentence
    assert report.self_test is not None
    assert report.self_test.found < report.self_test.valid
    assert report.charged <= charged_passes(subject, asked)
    assert ProbeReport.model_validate_json(report.model_dump_json(by_alias=True)) == report
