"""Symptoms of a false result: each check is a number, a threshold and a sentence. A hard flag that fires forbids any claim of robustness.

Checks look at a victim through scores; they know neither prompts nor pictures' meaning. `examine` runs all that fit one attacked decision, and `bill`
says before what they may cost. The active self-test is asked for by itself (`robustclip/sanity/selftest.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustclip.sanity.base import (
    CLIMB,
    DOUBTS,
    FACTORS,
    M1,
    M2,
    M4,
    M6,
    M7,
    M8,
    SYMPTOMS,
    Diagnostic,
    Finding,
    Severity,
    Suspicion,
    Symptom,
    at_its_word,
    draws_of,
)
from robustclip.sanity.forwards import forward_static, randomness, rows_independent
from robustclip.sanity.gradients import Ladder, climb, gradient_present, gradient_scale, gradient_true, rising, rung, saturation
from robustclip.sanity.strength import (
    black_box_weaker,
    monotone,
    noise_weaker,
    single_step,
    square_weaker,
    transfer_weaker,
    unbounded_succeeds,
)
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import FREE, Attack, Classifier, Cost, Pixels, Score, Seeds
from robustclip.wrappers import Averaged, averaged

__all__ = [
    "SYMPTOMS",
    "Diagnostic",
    "Finding",
    "Ladder",
    "Severity",
    "Suspect",
    "Suspicion",
    "Symptom",
    "bill",
    "black_box_weaker",
    "climb",
    "examine",
    "forward_static",
    "gradient_present",
    "gradient_scale",
    "gradient_true",
    "monotone",
    "noise_weaker",
    "randomness",
    "rising",
    "rows_independent",
    "saturation",
    "single_step",
    "square_weaker",
    "suspicions",
    "transfer_weaker",
    "unbounded_succeeds",
]

_TRANSFERRED = ("static", "transfer", "oblivious")  # levels of knowledge that build on another model


def bill(eot: int, *, randomized: bool = True, cross_entropy: bool = True, queried: bool = False) -> Cost:
    """Upper bound of what `examine` costs beside its unbounded attack, if a score costs one pass a row.

    eot            draws that the attack averages in each gradient
    randomized     the defense draws: what checks find is doubted
    cross_entropy  the attack raises it: M4 tries other losses
    queried        the attack asked for values alone at its end: M6 needs no search of its own
    """
    others = CLIMB.times(2 * M4.averages(eot) if cross_entropy else 0)
    doubted = 1 + (not queried) + len(FACTORS) + 2 + 2 * cross_entropy  # M7, M6; the rungs of M8 and its single step; M4
    total = others.plus(Cost(randomized * doubted * DOUBTS))
    for symptom in SYMPTOMS:
        total = total.plus(FREE if queried and symptom is M6 else symptom.bill(eot))
    return total


@dataclass(frozen=True, eq=False, kw_only=True)
class Suspect:
    """One decision about one picture [1, 3, S, S] that was attacked, as the checks see it.

    score       what the adaptive attack raised, averaged or not
    undefended  the same without the defense; None: there is no defense
    classifier  the defended classifier, to be asked
    gradient    how the defense says that its gradient passes; `randomized`: that it draws; `eot`: draws averaged in each gradient
    price       of asking the classifier about one row
    """

    score: Score
    undefended: Score | None
    classifier: Classifier
    pixels: Pixels
    seeds: Seeds
    ball: BallSpec
    gradient: str
    randomized: bool
    eot: int
    price: Cost = field(default=Cost(1))

    @property
    def one_draw(self) -> Score:
        return self.score.score if isinstance(self.score, Averaged) else self.score

    def averaged(self, symptom: Symptom) -> Score:
        """The score with as many draws as that check averages."""
        draws = symptom.averages(self.eot)
        return averaged(self.one_draw, draws) if draws > 1 else self.one_draw

    def judge(self, points: Pixels, margins: Tensor) -> tuple[Tensor, Cost]:
        """Which points [n] reach the goal: by the margins that a search saw or, since a search picks lucky draws, in most of 16 fresh ones."""
        reached, cost = at_its_word(points, margins)
        hits = reached.nonzero().flatten()
        if not self.randomized or not len(hits):
            return reached, cost
        rows = hits.repeat_interleave(DOUBTS)
        streams = torch.cat([derive(self.seeds, f"doubt-{index}") for index in range(DOUBTS)]).repeat(len(hits))
        seen = self.one_draw.select(torch.zeros_like(rows))(points[rows], streams, grad=False)
        reached[hits] = (seen.margin > 0).unflatten(0, (len(hits), DOUBTS)).float().mean(dim=1) > 0.5
        return reached, seen.cost


def suspicions(*, cross_entropy: bool = True, queried: bool = False) -> int:
    """How many points `examine` can hand over to be judged, at most: M7, M8, M6, M4."""
    return 2 + (not queried) + cross_entropy


def examine(suspect: Suspect, successes: Mapping[str, bool], *, unbounded: Attack, queried: bool | None = None) -> Iterator[Finding]:
    """Check by check, with what each took and found: those that fit what was tried.

    successes  whether attacks of a level of knowledge reached the goal, for every level that was tried
    unbounded  an attack that nothing withstands
    queried    whether a search by values alone reached the goal in this ball after all gradients had failed; None: there was none

    A decision that fell to an adaptive attack is not asked whether a stronger one were needed: M6, M8 and M13 are about attacks in vain.
    """
    pixels, seeds, ball = suspect.pixels, suspect.seeds, suspect.ball
    adaptive = successes.get("adaptive", False)
    standing = "adaptive" in successes and not adaptive
    ladder = climb(suspect.averaged(M8), pixels, seeds, ball, (1.0, *FACTORS) if standing else (1.0,))
    present, cost = gradient_present(suspect.averaged(M1), pixels, seeds, along=float(ladder.zero_share[0]))
    yield Finding(present, cost.plus(ladder.attacked.cost))
    true = gradient_true(suspect.one_draw, pixels, seeds) if suspect.gradient == "exact" else None
    if suspect.undefended is not None:
        scale, cost = gradient_scale(suspect.averaged(M2), suspect.undefended, pixels, seeds)
        yield Finding(scale.model_copy(update={"severity": "hard"}) if true is not None and true[0].fired else scale, cost)
    if true is not None:
        yield Finding(*true)
    yield saturation(suspect.averaged(M4), pixels, seeds, ball, standing=standing, judge=suspect.judge)
    if "adaptive" in successes and (others := [successes[level] for level in _TRANSFERRED if level in successes]):
        yield Finding(transfer_weaker(any(others), adaptive))
    yield noise_weaker(suspect.averaged(M7), pixels, seeds, ball, adaptive, suspect.judge)
    if queried:
        yield Finding(black_box_weaker(black_box_success=True, adaptive_success=False))
    elif "adaptive" in successes and "black_box" in successes:
        yield Finding(black_box_weaker(successes["black_box"], adaptive))
    elif queried is not None:
        yield Finding(black_box_weaker(black_box_success=False, adaptive_success=False))
    elif standing:
        yield square_weaker(suspect.averaged(M6), pixels, seeds, ball, suspect.judge)
    yield Finding(rising(ladder.attacked.trace_value[:, 0], ladder.attacked.trace_margin[:, 0]))
    if standing:
        yield _ladder_monotone(suspect, ladder, adaptive_success=adaptive)
        yield Finding(*unbounded_succeeds(unbounded, suspect.score, pixels, seeds))
    drawn, rows = randomness(suspect.classifier, pixels, seeds, declared=suspect.randomized, eot=suspect.eot)
    for diagnostic in drawn:
        yield Finding(diagnostic, suspect.price.times(rows))
        rows = 0
    static, rows = forward_static(suspect.classifier, pixels, seeds, exact=suspect.gradient == "exact")
    yield Finding(static, suspect.price.times(rows))
    independent, rows = rows_independent(suspect.classifier, pixels, seeds)
    yield Finding(independent, suspect.price.times(rows))


def _ladder_monotone(suspect: Suspect, ladder: Ladder, *, adaptive_success: bool) -> Finding:
    """M8 from half the radius, one step and ten of the whole, the adaptive attack itself, and wider balls."""
    score, step = suspect.averaged(M8), single_step(suspect.ball)
    single, found = step(score, suspect.pixels, derive(suspect.seeds, "single")), ladder.attacked
    judged, cost = suspect.judge(torch.cat([found.pixels, single.pixels]), torch.cat([found.margin, single.margin]))
    same, half, *wider, stepped = judged.tolist()
    within = ((half, rung(suspect.ball), found.pixels[1:2]), (stepped, step, single.pixels), (same, rung(suspect.ball), found.pixels[:1]))
    suspicion = next((Suspicion(pixels, attack, draws_of(score)) for reached, attack, pixels in within if reached), None)
    return Finding(monotone([half, stepped, same, adaptive_success, *wider]), single.cost.plus(cost), suspicion)
