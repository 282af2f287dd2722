"""The trials that follow from a probe's options, and their cost, before any work."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from robustclip.attacks import AnyAttack
from robustclip.attacks.ensemble import Ensemble, Preset
from robustclip.attacks.minimal import Minimal
from robustclip.attacks.pgd import PGD
from robustclip.certificates.vote import smoothing_of
from robustclip.deployed import DeployedClassifier
from robustclip.errors import InvalidInput
from robustclip.probing.options import Mode, ProbeOptions, boundless, claimed_ball, farthest, modes_of
from robustclip.reports.report import Knowledge
from robustclip.sanity import checks, gradients, selftest
from robustclip.types import FREE, Cost, Toll

MINIMAL_PASSES = (
    3000  # charged passes, times the draws behind a gradient, after which a bracket is left as it is
)
OBLIVIOUS_STEPS = 40
_JUDGED = 2  # times the draws: a candidate as floats, and as a PNG
_LAST_CALL = Cost(
    22, 21
)  # more than what a bracket can spend between two looks at its meter: its widest call, and a confirmation


class Trial(NamedTuple):
    """One attack with one knowledge."""

    attack: AnyAttack
    knowledge: Knowledge


def trials_of(victim: DeployedClassifier, options: ProbeOptions, *, sources: int = 0) -> tuple[Trial, ...]:
    """What will be tried, in this order; `sources` other victims can stand in for this one.

    Raises InvalidInput for a radius of 0, for `transfer` without a source, and for a bracket without an
    adaptive attack.
    """
    for index, attack in enumerate(options.attacks):
        if attack.ball.radius == 0:
            raise InvalidInput(
                "expected a radius above 0, found 0.",
                field=f"attacks/{index}/ball/radius",
                help="Nothing changes within a radius of 0.",
            )
    if "transfer" in options.modes and not sources:
        raise InvalidInput(
            "there is no other prompt set to transfer from.",
            field="modes",
            help="Name several prompt sets, or leave transfer out.",
        )
    modes = modes_of(victim, options)
    if options.minimal and "adaptive" not in modes:
        raise InvalidInput(
            f"a bracket takes adaptive attacks, found {', '.join(modes)}.",
            field="minimal",
            help="Add adaptive to modes.",
        )
    trials = (
        _trial(attack, mode, randomized=is_randomized(victim)) for attack in options.attacks for mode in modes
    )
    return tuple(dict.fromkeys(trials))  # several ensembles in one ball have the same static companion


def minimal_of(victim: DeployedClassifier, options: ProbeOptions) -> Minimal:
    """The search for the smallest radius. Its last ensemble has the preset of the options, else `quick`."""
    presets: list[Preset] = [attack.preset for attack in options.attacks if isinstance(attack, Ensemble)]
    ball = farthest(options.attacks[0].ball, victim.clip.image_size)
    return Minimal(ball=ball, preset=presets[0] if presets else "quick", randomized=is_randomized(victim))


def charged_passes(victim: DeployedClassifier, options: ProbeOptions, *, sources: int = 0) -> int:
    """Upper bound of what a probe costs, in charged passes (F + 2 B), before any work: EOT, judging and
    diagnostics counted.

    Raises InvalidInput as `trials_of`.
    """
    draws, eot = draws_of(victim, options), options.eot if is_randomized(victim) else 1
    cross_entropy = options.score == "cross_entropy"
    queried = any(
        isinstance(attack, Ensemble) and attack.ball == claimed_ball(options) for attack in options.attacks
    )
    trials = trials_of(victim, options, sources=sources)
    climbed = any(
        trial.knowledge == "adaptive" and gradients.climbs(trial.attack, claimed_ball(options))
        for trial in trials
    )
    examined = checks.bill(
        eot,
        randomized=is_randomized(victim),
        defended=bool(victim.defense),
        cross_entropy=cross_entropy,
        queried=queried,
        climbed=climbed,
    ).plus(Cost(_JUDGED * draws * checks.suspicions(cross_entropy=cross_entropy, queried=queried)))
    unbounded = boundless(options.attacks[0].ball, victim.clip.image_size).bill(eot)
    defended, past = (
        Cost(draws).plus(examined).plus(unbounded),
        FREE,
    )  # passes through the defense, and past it
    if options.tests_itself:
        defended = defended.plus(selftest.bill(eot))
    for trial in trials:
        searched, judged = _bill(trial, victim, eot=eot, draws=draws, sources=sources)
        knowing = trial.knowledge not in ("static", "oblivious")
        defended, past = (
            defended.plus(judged).plus(searched if knowing else FREE),
            past.plus(FREE if knowing else searched),
        )
    if options.certify is not None:
        defended = defended.plus(Cost(options.certify.n0 + options.certify.n))
    if options.minimal:
        defended = defended.plus(_LAST_CALL.times(eot)).plus(Cost(2 * _JUDGED * draws))
    toll = Toll.of(spec.toll for spec in victim.defense)
    return defended.through(toll).plus(past).charged + options.minimal * MINIMAL_PASSES * eot


def stand_ins(victim: DeployedClassifier, sources: Sequence[str]) -> tuple[str, ...]:
    """Whose gradients a cascade tries beside the victim's own: those past its defense, then those of other
    prompt sets, by name.
    """
    approximate = any(part.stage == "pixels" and part.gradient != "exact" for part in victim.defense)
    none = any(
        part.gradient == "none" for part in victim.defense
    )  # then the victim's own score goes past the defense already
    return (
        ("undefended",) * bool(victim.defense) + ("bypassed",) * (approximate and not none) + tuple(sources)
    )


def wants_sources(options: ProbeOptions) -> bool:
    """Whether any attack would use other prompt sets."""
    return "transfer" in options.modes or any(isinstance(attack, Ensemble) for attack in options.attacks)


def draws_of(victim: DeployedClassifier, options: ProbeOptions) -> int:
    """On how many draws a candidate is judged: one; `fresh_draws` of a randomized defense; all votes of a
    smoothed one.
    """
    rule = smoothing_of(victim.defense)
    return rule.votes if rule is not None else options.fresh_draws if is_randomized(victim) else 1


def is_randomized(victim: DeployedClassifier) -> bool:
    return any(part.randomized for part in victim.defense)


def _trial(attack: AnyAttack, mode: Mode, *, randomized: bool) -> Trial:
    if mode == "oblivious":
        # An embedding has no margin, and its shift has no gradient at the picture itself: always the paper's
        # attack, from a random point.
        return Trial(PGD(ball=attack.ball, steps=OBLIVIOUS_STEPS, starts=("random",), stop="never"), mode)
    if isinstance(attack, Ensemble):
        if mode != "adaptive":
            return Trial(
                PGD(ball=attack.ball, steps=20, stop="never"), mode
            )  # a cascade would stop at a witness that barely fools the stand-in
        update = {
            "together": max(attack.together, 9),
            "widen": max(attack.widen, 8),
            "randomized": randomized,
        }
        return Trial(attack.model_copy(update=update), mode)
    if isinstance(attack, PGD):
        # The first success is the narrowest: it transfers worst, survives rounding and other encoders worst,
        # and under a randomized defense it is a lucky average. All of that would make the victim look better.
        attack = attack.model_copy(update={"stop": "never"})
    return Trial(attack, "black_box" if mode == "adaptive" and not attack.bill(1).backward else mode)


def _bill(
    trial: Trial, victim: DeployedClassifier, *, eot: int, draws: int, sources: int
) -> tuple[Cost, Cost]:
    """Upper bounds of the search, and of judging its candidates."""
    attack, knowledge = trial
    if isinstance(attack, Ensemble):
        names = stand_ins(victim, ("",) * sources)
        stages = attack.stages(len(victim.outcomes), sources=names)
        confirmed = 2 + sum(math.ceil(len(stage.variants) / attack.together) for stage in stages)
        return attack.bill(eot, labels=len(victim.outcomes), sources=len(names)), Cost(
            (confirmed + _JUDGED) * draws
        )
    rows = {"static": 1, "oblivious": 1, "transfer": sources * eot}.get(knowledge, eot)
    return attack.bill(rows).plus(Cost(knowledge == "oblivious")), Cost(_JUDGED * draws)
