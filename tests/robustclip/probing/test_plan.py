"""What a probe's options come to, and their price, before any work."""

import pytest
from probing import SPARED, options, picture, victim

from robustclip.attacks.ensemble import Ensemble
from robustclip.attacks.pgd import PGD
from robustclip.models.clip import Clip
from robustclip.probing.options import ProbeOptions, default_attack, strong_attack
from robustclip.probing.plan import charged_passes, minimal_of, stand_ins, trials_of, wants_sources
from robustclip.probing.run import probe
from robustclip.sanity.checks import suspicions
from robustclip.threat import L2, Linf

BALL = Linf(radius=4 / 255)


def test_an_ensemble_has_a_static_companion_that_goes_to_the_end(tiny: Clip) -> None:
    asked = options(attacks=(strong_attack(BALL, "standard"), Ensemble(ball=BALL, preset="quick")))
    trials = trials_of(victim(tiny, "resize_pad"), asked)
    assert [(trial.attack.kind, trial.knowledge) for trial in trials] == [
        ("pgd", "static"),
        ("ensemble", "adaptive"),
        ("ensemble", "adaptive"),
    ]
    static, standard, quick = (trial.attack for trial in trials)
    assert isinstance(static, PGD)
    assert static.stop == "never"
    for ensemble in (standard, quick):
        assert isinstance(ensemble, Ensemble)
        assert (ensemble.together, ensemble.widen, ensemble.randomized) == (9, 8, True)


def test_the_default_probe_takes_at_most_three_hundred_passes_where_nothing_breaks_and_nothing_is_found(
    tiny: Clip,
) -> None:
    subject = victim(tiny)
    nothing_found = charged_passes(subject, ProbeOptions()) - 2 * suspicions(cross_entropy=False)
    assert nothing_found <= 300
    report = probe(
        subject,
        picture(tiny),
        ProbeOptions(attacks=(default_attack().model_copy(update={"ball": Linf(radius=SPARED)}),)),
    )
    assert report.verdict.value == "not-broken-within-budget"
    assert report.charged <= nothing_found
    asked = {flag.id for flag in report.diagnostics}
    assert asked == {"M1", "M3", "M4", "M6", "M7", "M8", "M9", "M10", "M11", "M12", "M13", "M14"}, (
        "all that fit a decision without a defense"
    )


def test_without_a_defense_a_static_attack_is_an_adaptive_one(tiny: Clip) -> None:
    for modes in (("static",), ("static", "adaptive"), ("adaptive", "static")):
        assert [trial.knowledge for trial in trials_of(victim(tiny), options(modes=modes))] == ["adaptive"]


def test_stand_ins_are_those_that_differ_from_the_victim(tiny: Clip) -> None:
    assert stand_ins(victim(tiny), ()) == ()
    assert stand_ins(victim(tiny, "resize_pad"), ()) == ("undefended",)
    assert stand_ins(victim(tiny, "jpeg,resize_pad"), ("other",)) == ("undefended", "bypassed", "other")
    assert wants_sources(options(attacks=(strong_attack(BALL, "quick"),)))
    assert wants_sources(options(modes=("transfer",)))
    assert not wants_sources(options())


@pytest.mark.parametrize(
    "more",
    [
        {"minimal": True},
        {"modes": ("static", "adaptive", "oblivious")},
        {"attacks": (strong_attack(BALL, "quick"),)},
    ],
)
def test_whoever_asks_for_more_is_told_a_higher_price(tiny: Clip, more: dict[str, object]) -> None:
    for defense in ("none", "resize_pad"):
        subject = victim(tiny, defense)
        assert charged_passes(subject, options(**more)) > charged_passes(
            subject, options(attacks=(PGD(ball=BALL, steps=1),))
        )


def test_the_last_word_on_a_bracket_has_the_preset_that_was_asked_for(tiny: Clip) -> None:
    assert minimal_of(victim(tiny), options()).preset == "quick"
    asked = options(attacks=(strong_attack(L2(radius=1), "standard"),))
    found = minimal_of(victim(tiny), asked)
    assert (found.preset, found.ball.kind) == ("standard", "l2")
    assert found.ball.radius == pytest.approx(64 / 255 * (3 * tiny.image_size**2) ** 0.5)
