"""T3: everything is known, and the strongest search. What T0, T1 and T2 left standing faces an ensemble of
attacks: the only level that makes a headline.

Under a randomized defense a mean margin above 0 may be luck, also untouched: the ensemble then goes on from
it, and a picture leaves only when a jury of its own, of 64 fresh draws, is deceived.
"""

from collections import Counter
from dataclasses import replace

import torch
from pydantic import JsonValue
from torch import Tensor

from robustclip.attacks import CandidateCheck, CascadeWitness, Ensemble, Meter, Precision, Preset, pick
from robustclip.errors import InvalidInput
from robustclip.measuring import Jury, Measured, verdict
from robustclip.scores import decision
from robustclip.seeds import derive
from robustclip.threat import Linf
from robustclip.types import Attack, Attacked, Pixels, Score, Seeds, price
from training.finished import Rows, cached_rows
from training.threats.base import BallLevel, Bill, Effort, ThreatSet, Work, judged
from training.threats.judging import AtLevel, Victim, facts_of, judge_made, score_of, worst_of
from training.threats.t2 import check_steps

LEAVING_DRAWS = 64  # of a randomized defense: those that let a picture leave
WIDENING_STEPS = 20  # under a randomized defense, to go on from a lucky mean


class T3(BallLevel):
    name = "T3"
    knows = "the worst of T0, T1, T2, and the ensemble on what these leave standing: the only headline"
    takes = ("restarts", "search")  # of T2, and the precision of both
    parts = ("T0", "T1", "T2")
    reads_templates = True

    def measure(self, victim: Victim, within: ThreatSet[Linf], effort: Effort, work: Work) -> AtLevel:
        """`fell_to` counts what each attack of the ensemble broke. Each batch that it is done with is kept in
        the folder of the work, so that a killed measurement goes on from there.
        """
        worst = worst_of([work.parts[part].measured for part in self.parts])
        standing = worst.correct.nonzero().flatten()
        ensemble = _ensemble(victim, within.bounds, effort)
        attack = facts_of(
            ensemble, score="margin", draws=self.draws_of(victim, effort), worst_of=list(self.parts)
        )
        fell_to = Counter({stage.name: 0 for stage in ensemble.stages(len(victim.classifier.labels))})
        if not len(standing):
            return AtLevel(worst, attack, dict(fell_to))
        rest = replace(victim, pictures=replace(victim.pictures, indices=victim.pictures.indices[standing]))
        made = _against_all(ensemble, rest, self.draws, work)
        fell_to.update(made.counts)
        found = judge_made(rest, made, within.bounds, work.progress, "T3 judged")
        right, right_8bit = torch.ones_like(worst.correct), torch.ones_like(worst.correct)
        right[standing], right_8bit[standing] = found.correct, found.correct_8bit
        whole = Measured(right, right_8bit, found.cost, found.seconds)
        if found.abstained is not None:
            silent = torch.zeros_like(worst.correct)
            silent[standing] = found.abstained
            whole = whole._replace(abstained=silent)
        return AtLevel(worst_of([worst, whole]), attack, dict(fell_to))

    def bill(self, victim: Victim, within: ThreatSet[Linf], effort: Effort) -> Bill:
        n, labels = len(victim.pictures.indices), len(victim.classifier.labels)
        ensemble, own = _ensemble(victim, within.bounds, effort), judged(victim)
        searched = ensemble.bill(n * self.draws_of(victim, effort), labels=labels, judged=victim.randomized)
        if victim.randomized:  # the picture itself and what each variant of an attack finds
            candidates = 1 + sum(len(stage.variants) for stage in ensemble.stages(labels))
            own += price(victim.classifier, n * candidates * leaving_jury(victim.jury).draws).charged
        return Bill(own + searched.through(victim.classifier.toll).charged)

    def check(self, effort: Effort, *, measured: bool, reported: bool) -> None:
        if not measured:
            return
        check_steps(effort)
        if effort.draws is not None:
            raise InvalidInput(
                "T3 is the strongest attack, with all its draws.",
                field="--draws",
                help="Leave it out, or ask for T2 and black-box without T3.",
            )

    def named(self, effort: Effort) -> dict[str, JsonValue]:
        return {"preset": effort.strength}

    def key(self, victim: Victim, effort: Effort) -> dict[str, object]:
        return {"strength": effort.strength, **super().key(victim, effort)}

    def words(self, effort: Effort, *, randomized: bool) -> list[str]:
        return ["--strength", effort.strength, *super().words(effort, randomized=randomized)]


def _ensemble(victim: Victim, ball: Linf, effort: Effort) -> Ensemble:
    return strong_ensemble(ball, effort.strength, randomized=victim.randomized, search=effort.search)


def _against_all(ensemble: Ensemble, victim: Victim, draws: int, work: Work) -> Rows:
    """[n, 3, S, S] pictures that the ensemble attacked; `counts` what fell to each of its attacks."""
    pictures, seeds = victim.pictures, victim.pictures.seeds
    score = score_of("margin", draws=draws if victim.randomized else None)

    def make(chosen: Tensor) -> Rows:
        pixels, targets = pictures.on(victim.clip, chosen)
        fell_to = Counter[str]()
        attacked = strong_attack(ensemble, victim.jury, fell_to)(
            score(victim.classifier, targets), pixels, derive(seeds[chosen], "attack")
        )
        return Rows(attacked.pixels.cpu(), attacked.cost, counts=fell_to)

    return cached_rows(
        work.folder,
        {"what": "T3"},
        pictures.indices,
        make,
        chunk=pictures.batch,
        progress=work.progress,
        what="T3",
    )


def strong_ensemble(
    ball: Linf, strength: Preset, *, randomized: bool, search: Precision = "float32"
) -> Ensemble:
    """The attacks in their order, from what fails cheaply to what takes long."""
    widen = WIDENING_STEPS if randomized else 0
    return Ensemble(ball=ball, preset=strength, widen=widen, randomized=randomized, precision=search)


def strong_attack(ensemble: Ensemble, jury: Jury, fell_to: Counter[str]) -> Attack:
    """The ensemble, entering in `fell_to` what each of its attacks broke; a randomized victim's pictures
    leave by the word of a jury of its own.
    """

    def attack(score: Score, pixels: Pixels, seeds: Seeds) -> Attacked:
        meter = Meter()
        judge = _leaving(score, seeds, leaving_jury(jury), meter) if ensemble.randomized else None
        cascade = ensemble.cascade(score, pixels, seeds, meter=meter, judge=judge)
        witnesses = [event for event in cascade.events() if isinstance(event, CascadeWitness)]
        fell_to.update(witness.attack for witness in witnesses)
        attacked = cascade.record.attacked()
        for witness in witnesses:  # not the point of the largest mean margin, but the one that was judged
            attacked.pixels[witness.picture] = witness.pixels
        return attacked

    return attack


def leaving_jury(jury: Jury) -> Jury:
    """Who says during T3's search that a picture of a randomized classifier is broken: more draws than judge
    in the end, or the served vote.
    """
    return Jury(LEAVING_DRAWS) if jury.rule is None else jury


def _leaving(score: Score, seeds: Seeds, jury: Jury, meter: Meter) -> CandidateCheck:
    """That jury as a judge of candidates, on draws that neither the search nor the jury of the result
    sees.
    """
    about = decision(score)

    def broken(candidates: Pixels, rows: Tensor) -> Tensor:
        said = verdict(
            about.classifier, candidates, about.targets[rows], derive(pick(seeds, rows), "leaving"), jury
        )
        meter.pay(said.cost)
        return ~said.right

    return broken
