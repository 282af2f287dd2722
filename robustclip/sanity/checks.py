"""Run the checks on one attacked decision. A hard flag that fires forbids any claim of robustness.

Checks see a victim through its scores only; they know neither prompts nor labels' meaning. The active
self-test runs separately (`robustclip/sanity/selftest.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustclip.attacks import PGD
from robustclip.sanity.forwards import batch_coupling, dynamic_forward, randomness
from robustclip.sanity.gradients import (
    Climb,
    Climbing,
    climb_of,
    flat_loss,
    gradient_scale,
    saturation,
    wrong_gradient,
    zero_gradient,
    zero_gradient_along,
)
from robustclip.sanity.strength import (
    black_box_beats_white_box,
    half_way,
    noise_beats_gradient,
    not_monotone,
    single_step,
    square_beats_white_box,
    transfer_beats_adaptive,
    unbounded_attack_fails,
)
from robustclip.sanity.symptoms import (
    BLACK_BOX_BEATS_WHITE_BOX,
    CLIMB,
    DOUBTS,
    GRADIENT_SCALE,
    NOISE_BEATS_GRADIENT,
    NOT_MONOTONE,
    SATURATION,
    SYMPTOMS,
    ZERO_GRADIENT,
    Finding,
    Suspicion,
    Symptom,
    at_its_word,
    draws_of,
)
from robustclip.scores import Averaged, averaged
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import FREE, Attack, Attacked, Classifier, Cost, Pixels, Score, Seeds

_TRANSFERRED = ("static", "transfer", "oblivious")  # levels of knowledge that build on another model


def bill(
    eot: int,
    *,
    randomized: bool = True,
    defended: bool = True,
    cross_entropy: bool = True,
    queried: bool = False,
    climbed: bool = False,
) -> Cost:
    """Upper bound of what `examine` costs beside its unbounded attack, if a score costs one pass a row.

    eot            draws that the attack averages in each gradient
    randomized     the defense is random: successes are confirmed on fresh draws
    defended       there is a defense: M2 compares gradients with and without it
    cross_entropy  the attack raises it: M4 tries other losses
    queried        the attack ended with a search without gradients: M6 needs none
    climbed        the attack was watched: M1 and M14 need no attack of their own
    """
    others = CLIMB.times(2 * SATURATION.averages(eot) if cross_entropy else 0)
    confirmed = 1 + (not queried) + 2 + (not climbed) + 2 * cross_entropy  # M7; M6; M8 (2 + 1); M4
    total = others.plus(Cost(randomized * confirmed * DOUBTS))
    skipped = {ZERO_GRADIENT: climbed, GRADIENT_SCALE: not defended, BLACK_BOX_BEATS_WHITE_BOX: queried}
    for symptom in SYMPTOMS:
        total = total.plus(FREE if skipped.get(symptom) else symptom.bill(eot))
    return total


@dataclass(frozen=True, eq=False, kw_only=True)
class Suspect:
    """One decision about one picture [1, 3, S, S] that was attacked, as the checks see it.

    score       what the adaptive attack raised, averaged or not
    undefended  the same score without the defense; None: there is no defense
    classifier  the defended classifier
    gradient    how the defense says that its gradient passes (`Defense.gradient`)
    randomized  whether the defense is random
    eot         draws averaged in each gradient
    price       cost of classifying one row
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
        """The score with as many draws as the check averages."""
        draws = symptom.averages(self.eot)
        return averaged(self.one_draw, draws) if draws > 1 else self.one_draw

    def judge(self, points: Pixels, margins: Tensor) -> tuple[Tensor, Cost]:
        """Which points [n] reach the goal: by their margins, or if randomized in most of 16 fresh draws.

        Fresh draws, because a search selects those draws on which it happened to succeed.
        """
        reached, cost = at_its_word(points, margins)
        hits = reached.nonzero().flatten()
        if not self.randomized or not len(hits):
            return reached, cost
        rows = hits.repeat_interleave(DOUBTS)
        streams = torch.cat([derive(self.seeds, f"doubt-{index}") for index in range(DOUBTS)]).repeat(
            len(hits)
        )
        seen = self.one_draw.select(torch.zeros_like(rows))(points[rows], streams, grad=False)
        reached[hits] = (seen.margin > 0).unflatten(0, (len(hits), DOUBTS)).float().mean(dim=1) > 0.5
        return reached, seen.cost


def suspicions(*, cross_entropy: bool = True, queried: bool = False) -> int:
    """How many points `examine` can return to be judged, at most: one each from M7, M8, M6 and M4."""
    return 2 + (not queried) + cross_entropy


def examine(
    suspect: Suspect,
    successes: Mapping[str, bool],
    *,
    unbounded: Attack,
    queried: bool | None = None,
    climb: Climb | None = None,
) -> Iterator[Finding]:
    """Run the checks that fit what was tried, and yield each result with its cost.

    successes  by level of knowledge: whether an attack of that level reached the goal
    unbounded  an attack with so large a radius that no decision withstands it
    queried    whether a search without gradients reached the goal after all gradients had failed; None: there
               was no such search
    climb      what was recorded from an attack for which `climbs` is true; None: a short attack is run here

    M6, M8 and M13 run only if the adaptive attack failed: a broken decision needs no stronger attack.
    """
    pixels, seeds, ball = suspect.pixels, suspect.seeds, suspect.ball
    adaptive = successes.get("adaptive", False)
    standing = "adaptive" in successes and not adaptive
    attacked: Attacked | None = None
    if climb is None:
        watched = Climbing(suspect.averaged(ZERO_GRADIENT))
        attacked = climb_of(ball)(watched.score, pixels, derive(seeds, "climb"))
        climb = watched.of(climb_of(ball), attacked)
        present, cost = zero_gradient(suspect.averaged(ZERO_GRADIENT), pixels, seeds, along=climb.zero_share)
        yield Finding(present, cost.plus(attacked.cost))
    else:
        yield Finding(zero_gradient_along(climb.zero_share))
    true = wrong_gradient(suspect.one_draw, pixels, seeds) if suspect.gradient == "exact" else None
    if suspect.undefended is not None:
        scale, cost = gradient_scale(suspect.averaged(GRADIENT_SCALE), suspect.undefended, pixels, seeds)
        yield Finding(
            scale.model_copy(update={"severity": "hard"}) if true is not None and true[0].fired else scale,
            cost,
        )
    if true is not None:
        yield Finding(*true)
    yield saturation(
        suspect.averaged(SATURATION), pixels, seeds, ball, standing=standing, judge=suspect.judge
    )
    if "adaptive" in successes and (
        others := [successes[level] for level in _TRANSFERRED if level in successes]
    ):
        yield Finding(transfer_beats_adaptive(any(others), adaptive))
    yield noise_beats_gradient(
        suspect.averaged(NOISE_BEATS_GRADIENT), pixels, seeds, ball, adaptive, suspect.judge
    )
    if queried:
        yield Finding(black_box_beats_white_box(black_box_success=True, adaptive_success=False))
    elif "adaptive" in successes and "black_box" in successes:
        yield Finding(black_box_beats_white_box(successes["black_box"], adaptive))
    elif queried is not None:
        yield Finding(black_box_beats_white_box(black_box_success=False, adaptive_success=False))
    elif standing:
        yield square_beats_white_box(
            suspect.averaged(BLACK_BOX_BEATS_WHITE_BOX), pixels, seeds, ball, suspect.judge
        )
    yield Finding(flat_loss(climb.value, climb.margin))
    if standing:
        yield _by_size(suspect, attacked)
        yield Finding(*unbounded_attack_fails(unbounded, suspect.score, pixels, seeds))
    diagnostics, rows = randomness(
        suspect.classifier, pixels, seeds, declared=suspect.randomized, eot=suspect.eot
    )
    for diagnostic in diagnostics:
        yield Finding(diagnostic, suspect.price.times(rows))
        rows = 0
    static, rows, alone = dynamic_forward(
        suspect.classifier, pixels, seeds, exact=suspect.gradient == "exact"
    )
    yield Finding(static, suspect.price.times(rows))
    independent, rows = batch_coupling(suspect.classifier, pixels, seeds, alone=alone)
    yield Finding(independent, suspect.price.times(rows))


def _by_size(suspect: Suspect, climbed: Attacked | None) -> Finding:
    """M8: half the radius in five steps and one step of the whole, against an adaptive attack that failed.

    So is the ten-step attack of M1, if `examine` ran it. A wider ball is not tried: whatever happened there,
    the failure in between would raise the same flag.
    """
    score, ball = suspect.averaged(NOT_MONOTONE), suspect.ball
    attempts: list[tuple[PGD, Attacked]] = [
        (attack, attack(score, suspect.pixels, derive(suspect.seeds, stream)))
        for stream, attack in (("half", half_way(ball)), ("single", single_step(ball)))
    ]
    cost = attempts[0][1].cost.plus(attempts[1][1].cost)
    attempts += [] if climbed is None else [(climb_of(ball), climbed)]
    reached, paid = suspect.judge(
        torch.cat([attacked.pixels for _, attacked in attempts]),
        torch.cat([attacked.margin for _, attacked in attempts]),
    )
    hits = [
        (attack.model_copy(update={"ball": ball}), attacked.pixels)
        for (attack, attacked), hit in zip(attempts, reached.tolist(), strict=True)
        if hit
    ]
    suspicion = Suspicion(hits[0][1], hits[0][0], draws_of(score)) if hits else None
    return Finding(not_monotone([*reached.tolist(), False]), cost.plus(paid), suspicion)
