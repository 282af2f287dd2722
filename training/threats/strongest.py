"""T3, the strongest search: what weaker levels left standing faces the ensemble of attacks, which knows
everything.

Under a randomized defense a mean margin above 0 may be luck, also untouched: the ensemble then goes on from
it, and a picture leaves only when a jury of its own, of 64 fresh draws, is deceived.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from robustclip.attacks.base import pick
from robustclip.attacks.cascade import CandidateCheck, Precision
from robustclip.attacks.ensemble import Ensemble, Preset
from robustclip.attacks.events import CascadeWitness, Meter
from robustclip.measuring import Jury, Measured, verdict
from robustclip.models.classifier import Defended, ZeroShotClassifier
from robustclip.models.clip import Clip
from robustclip.scores.kinds import decision
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import Linf
from robustclip.types import Attack, Attacked, Pixels, Progress, Score, Seeds
from training.cache import Rows, cached_rows
from training.threats.judging import GRADIENT_DRAWS, AtLevel, Pictures, judge_made, score_of, worst_of

LEAVING_DRAWS, WIDENING_STEPS = (
    64,
    20,
)  # for a randomized defense: draws that let a picture leave, and steps to go on from a lucky mean


def strong_ensemble(
    eps: float, strength: Preset, *, randomized: bool, search: Precision = "float32"
) -> Ensemble:
    """What T3 adds to T0, T1 and T2."""
    widen = WIDENING_STEPS if randomized else 0
    return Ensemble(
        ball=Linf(radius=eps), preset=strength, widen=widen, randomized=randomized, precision=search
    )


def strongest(
    within: Mapping[str, AtLevel],
    ensemble: Ensemble,
    clip: Clip,
    classifier: ZeroShotClassifier | Defended,
    pictures: Pictures,
    jury: Jury,
    progress: Progress,
    parts: Path,
) -> AtLevel:
    """The worst of what is known, and of the ensemble on what that left standing, which `parts` keep."""
    worst = worst_of([part.measured for part in within.values()])
    standing = worst.correct.nonzero().flatten()
    rest = replace(pictures, indices=pictures.indices[standing])
    about = {
        "score": "margin",
        "draws": GRADIENT_DRAWS if ensemble.randomized else 1,
        "worst_of": list[JsonValue](within),
    }
    attack: dict[str, JsonValue] = {**ensemble.model_dump(mode="json"), **about}
    fell_to = Counter({stage.name: 0 for stage in ensemble.stages(len(classifier.labels))})
    if not len(standing):
        return AtLevel(worst, attack, dict(fell_to))
    made = _against_all(ensemble, clip, classifier, rest, jury, progress, parts)
    fell_to.update(made.counts)
    found = judge_made(
        clip, classifier, rest, made, ensemble.ball, jury=jury, progress=progress, what="T3 judged"
    )
    whole = Measured(
        torch.ones_like(worst.correct), torch.ones_like(worst.correct), found.cost, found.seconds
    )
    whole.correct[standing], whole.correct_8bit[standing] = found.correct, found.correct_8bit
    if found.abstained is not None:
        silent = torch.zeros_like(worst.correct)
        silent[standing] = found.abstained
        whole = whole._replace(abstained=silent)
    return AtLevel(worst_of([worst, whole]), attack, dict(fell_to))


def _against_all(
    ensemble: Ensemble,
    clip: Clip,
    classifier: ZeroShotClassifier | Defended,
    pictures: Pictures,
    jury: Jury,
    progress: Progress,
    parts: Path,
) -> Rows:
    """[n, 3, S, S] pictures that the ensemble attacked, who knows all; `counts` what fell to each of its
    attacks.
    """
    data, seeds = pictures.data, draw_seeds(pictures.seed, len(pictures.data))
    score = score_of("margin", draws=GRADIENT_DRAWS if ensemble.randomized else None)

    def make(chosen: Tensor) -> Rows:
        pixels, targets = (
            data.pixels(chosen, clip.image_size).to(clip.device),
            data.targets[chosen].to(clip.device),
        )
        fell_to = Counter[str]()
        attacked = strong_attack(ensemble, jury, fell_to)(
            score(classifier, targets), pixels, derive(seeds[chosen], "attack")
        )
        return Rows(attacked.pixels.cpu(), attacked.cost, counts=fell_to)

    return cached_rows(
        parts, {"what": "T3"}, pictures.indices, make, chunk=pictures.batch, progress=progress, what="T3"
    )


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
