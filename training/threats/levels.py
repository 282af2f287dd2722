"""The threat levels that a prompt set is measured at (METHODS 8.1): what the attacker knows and how hard it tries. The radius is a separate matter.

clean  nobody attacks
T0     the image tower without prompts is attacked, once for all prompt sets and defenses: no text, no labels, no visual prompts, no defense is known
T1     the deployed image tower is known, visual prompts included, and the labels; words a person wrote stand in for the learned text. Made once for
       all that share the image tower, for a set's own tower (visual prompts) only of what it has right; no defense is known
T2     everything is known: cross-entropy is raised through prompts and defense
T3     as T2, and the strongest search: what T0, T1 and T2 left standing faces the ensemble. Under a randomized defense a mean margin above 0 may be
       luck, also untouched: the ensemble then goes on from it, and a picture leaves only when a jury of its own, of 64 fresh draws, is deceived

Three more stand beside them: T0b (`surrogates.py`), static and black-box (`defended.py`).

Deviation from the papers: a picture that is wrong untouched counts as wrong at every level, also where a blind attack happens to put it right.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from pydantic import JsonValue
from torch import Tensor

from robustclip.attacks.base import pick
from robustclip.attacks.cascade import Judge, Precision
from robustclip.attacks.ensemble import Ensemble, Preset
from robustclip.attacks.events import Meter, Witness
from robustclip.attacks.pgd import PGD
from robustclip.classifier import Defended, ZeroShotClassifier
from robustclip.clip import Clip
from robustclip.defenses.smoothing import Smoothing
from robustclip.errors import InvalidInput
from robustclip.losses import LossName
from robustclip.measure import ONE_ANSWER, Batch, Jury, Measured, ScoreOf, measure, verdict
from robustclip.prompts import HANDCRAFTED_TEMPLATE, Prompts
from robustclip.scores import decision, label_score
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import BallSpec, Linf
from robustclip.types import Attack, Attacked, Classifier, Pixels, Progress, Score, Seeds
from robustclip.wrappers import averaged, guarded, reduced
from training.cache import Rows, cached_rows
from training.data.folders import LabelledImages
from training.threats.bank import feature_attack, shifted_pixels
from training.threats.transfers import carried_attack, pixels_against

Level: TypeAlias = Literal["clean", "T0", "T1", "T2", "T3"]
LEVELS: tuple[Level, ...] = get_args(Level)
WITHIN_T3: tuple[Level, ...] = ("T0", "T1", "T2")  # whose worst case T3 begins with

T0_STEPS = 40
T2_STEPS = 100
GRADIENT_ROWS = 64  # of pictures times draws: more at once would fill the memory
GRADIENT_DRAWS, JUDGING_DRAWS = 20, 10  # for a randomized defense: draws behind each gradient, and fresh ones to judge by
LEAVING_DRAWS, WIDENING_STEPS = 64, 20  # for a randomized defense in T3: draws that let a picture leave, and steps to go on from a lucky mean


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is measured on, the same for every prompt set, defense and level, with the seed of all that is random about it.

    `templates` are the words that T1 takes for the learned text.
    """

    data: LabelledImages
    indices: Tensor
    seed: int
    cache: Path
    batch: int = 64
    templates: tuple[str, ...] = (HANDCRAFTED_TEMPLATE,)


class AtLevel(NamedTuple):
    """`attack`: the attack as data, with its score and draws; None for clean pictures. `fell_to`: how many of T3's fell to each of its attacks.

    Under a randomized defense that is what 64 draws said; the 10 that `measured` goes by may differ where half of the draws are wrong.
    """

    measured: Measured
    attack: dict[str, JsonValue] | None
    fell_to: dict[str, int] | None = None


def measure_level(
    level: Level,
    eps: float,
    clip: Clip,
    classifier: ZeroShotClassifier | Defended,
    pictures: Pictures,
    *,
    randomized: bool,
    rule: Smoothing | None = None,
    progress: Progress,
    strength: Preset = "standard",
    steps: int = T2_STEPS,
    restarts: int = 1,
    draws: int = GRADIENT_DRAWS,
    search: Precision = "float32",
    known: Mapping[Level, AtLevel] | None = None,
    parts: Path | None = None,
) -> AtLevel:
    """Measure a classifier on pictures at a threat level; `eps` is not used for clean ones. A `rule` judges by the vote that it serves.

    Randomized classifiers are attacked through the mean of `draws` and judged by 10 fresh ones. Cost and seconds of T0 and T1 include what their
    pictures took when they were made, those of T3 all that it consists of. `known`: levels already measured on these pictures at this radius, which
    T3 then need not measure again; `parts`: a folder of this measurement alone, where T3 keeps each batch that its ensemble is done with, so that a
    killed one goes on from there. `strength` is that of its ensemble, `steps`, `restarts` and `draws` are those of T2. Both search
    in the precision `search`; what they find is judged in float32. Without a randomized defense T2 and the ensemble leave a picture at their first
    success, so that what is right after rounding to 8 bits is judged on the narrowest points: an upper bound.
    """
    jury = jury_of(rule, randomized=randomized)
    if level == "clean":
        return AtLevel(measure(classifier, batches(clip, pictures, progress, "clean"), jury=jury), None)
    if eps <= 0:
        raise InvalidInput(f"expected a radius above 0 for {level}, found {eps}.", field="--eps", help='Write it like "4/255", or ask for clean.')
    ball = Linf(radius=eps)
    if level == "T0":
        attack = feature_attack(eps, steps=T0_STEPS)
        made = shifted_pixels(clip, pictures.data, pictures.indices, attack, seed=pictures.seed, folder=pictures.cache, progress=progress)
        measured = judge_made(clip, classifier, pictures, made, ball, jury=jury, progress=progress, what="T0")
        return AtLevel(measured, {**attack.model_dump(mode="json"), "score": "embedding_shift"})
    if level == "T1":
        attack = carried_attack(eps)
        made = _against_words(clip, classifier, pictures, attack, progress, randomized=randomized)
        measured = judge_made(clip, classifier, pictures, made, ball, jury=jury, progress=progress, what="T1")
        return AtLevel(measured, {**attack.model_dump(mode="json"), "score": "cross_entropy", "templates": list(pictures.templates)})
    if level == "T2":
        # Under a randomized defense the first success is a lucky average: such a row goes on to its worst point.
        attack = PGD(ball=ball, steps=steps, step=eps / 4, starts=("random",), restarts=restarts, stop="never" if randomized else "broken")
        measured = measure(
            classifier,
            batches(clip, pictures, progress, "T2"),
            attack=attack,
            score=score_of("cross_entropy", draws=draws if randomized else None, search=search),
            ball=ball,
            jury=jury,
        )
        return AtLevel(measured, {**attack.model_dump(mode="json"), "score": "cross_entropy", "draws": draws if randomized else 1})
    again = partial(measure_level, eps=eps, clip=clip, classifier=classifier, pictures=pictures, randomized=randomized, rule=rule, progress=progress)
    within: dict[Level, AtLevel] = {
        part: known[part] if known and part in known else again(part, restarts=restarts, search=search) for part in WITHIN_T3
    }
    ensemble = strong_ensemble(eps, strength, randomized=randomized, search=search)
    with TemporaryDirectory() if parts is None else nullcontext(parts) as folder:
        return _strongest(within, ensemble, clip, classifier, pictures, jury, progress, Path(folder))


def strong_ensemble(eps: float, strength: Preset, *, randomized: bool, search: Precision = "float32") -> Ensemble:
    """What T3 adds to T0, T1 and T2."""
    widen = WIDENING_STEPS if randomized else 0
    return Ensemble(ball=Linf(radius=eps), preset=strength, widen=widen, randomized=randomized, precision=search)


def jury_of(rule: Smoothing | None, *, randomized: bool) -> Jury:
    """How a classifier is judged at every level."""
    return Jury.of(rule) if rule is not None else Jury(JUDGING_DRAWS) if randomized else ONE_ANSWER


def judge_made(
    clip: Clip,
    classifier: Classifier,
    pictures: Pictures,
    made: Rows,
    ball: BallSpec,
    *,
    jury: Jury = ONE_ANSWER,
    progress: Progress,
    what: str,
) -> Measured:
    """What a classifier makes of pictures that were attacked elsewhere; their making is in the bill."""
    judged = measure(classifier, batches(clip, pictures, progress, what, made.rows), ball=ball, jury=jury)
    return judged._replace(cost=judged.cost.plus(made.cost), seconds=judged.seconds + made.seconds)


def worst_of(parts: list[Measured]) -> Measured:
    """Right is what was right in all of them, without an answer what got none in one and no wrong one in any; the bill is that of all."""
    worst = parts[0]
    for part in parts[1:]:
        right, right_8bit = worst.correct & part.correct, worst.correct_8bit & part.correct_8bit
        worst = Measured(right, right_8bit, worst.cost.plus(part.cost), worst.seconds + part.seconds, _silent(worst, part))
    return worst


def _silent(first: Measured, second: Measured) -> Tensor | None:
    if first.abstained is None or second.abstained is None:
        return None
    return (first.abstained | second.abstained) & (first.abstained | first.correct) & (second.abstained | second.correct)


def _against_words(
    clip: Clip, classifier: ZeroShotClassifier | Defended, pictures: Pictures, attack: PGD, progress: Progress, *, randomized: bool
) -> Rows:
    """Attacked pictures; where the tower is this prompt set's own, those that are wrong untouched, and so at every level, stay as they are."""
    tower = classifier.classifier if isinstance(classifier, Defended) else classifier
    words = Prompts(visual=tower.visual, templates=pictures.templates)
    data, indices = pictures.data, pictures.indices
    against = partial(pixels_against, clip, words, data, attack=attack, seed=pictures.seed, folder=pictures.cache, progress=progress)
    if tower.visual is None or randomized:
        return against(indices, what="T1 pictures")
    untouched = measure(classifier, batches(clip, pictures, progress, "clean"))
    right = untouched.correct.nonzero().flatten()
    made = against(indices[right], what="T1 pictures")
    rows = data.pixels(indices, clip.image_size)
    rows[right] = made.rows
    return Rows(rows, made.cost.plus(untouched.cost), made.seconds + untouched.seconds)


def _strongest(
    within: Mapping[Level, AtLevel],
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
    about = {"score": "margin", "draws": GRADIENT_DRAWS if ensemble.randomized else 1, "worst_of": list[JsonValue](within)}
    attack: dict[str, JsonValue] = {**ensemble.model_dump(mode="json"), **about}
    fell_to = Counter({stage.name: 0 for stage in ensemble.stages(len(classifier.labels))})
    if not len(standing):
        return AtLevel(worst, attack, dict(fell_to))
    made = _against_all(ensemble, clip, classifier, rest, jury, progress, parts)
    fell_to.update(made.counts)
    found = judge_made(clip, classifier, rest, made, ensemble.ball, jury=jury, progress=progress, what="T3 judged")
    whole = Measured(torch.ones_like(worst.correct), torch.ones_like(worst.correct), found.cost, found.seconds)
    whole.correct[standing], whole.correct_8bit[standing] = found.correct, found.correct_8bit
    if found.abstained is not None:
        silent = torch.zeros_like(worst.correct)
        silent[standing] = found.abstained
        whole = whole._replace(abstained=silent)
    return AtLevel(worst_of([worst, whole]), attack, dict(fell_to))


def _against_all(
    ensemble: Ensemble, clip: Clip, classifier: ZeroShotClassifier | Defended, pictures: Pictures, jury: Jury, progress: Progress, parts: Path
) -> Rows:
    """[n, 3, S, S] pictures that the ensemble attacked, who knows all; `counts` what fell to each of its attacks."""
    data, seeds = pictures.data, draw_seeds(pictures.seed, len(pictures.data))
    score = score_of("margin", draws=GRADIENT_DRAWS if ensemble.randomized else None)

    def make(chosen: Tensor) -> Rows:
        pixels, targets = data.pixels(chosen, clip.image_size).to(clip.device), data.targets[chosen].to(clip.device)
        fell_to = Counter[str]()
        attacked = strong_attack(ensemble, jury, fell_to)(score(classifier, targets), pixels, derive(seeds[chosen], "attack"))
        return Rows(attacked.pixels.cpu(), attacked.cost, counts=fell_to)

    return cached_rows(parts, {"what": "T3"}, pictures.indices, make, chunk=pictures.batch, progress=progress, what="T3")


def strong_attack(ensemble: Ensemble, jury: Jury, fell_to: Counter[str]) -> Attack:
    """The ensemble, entering in `fell_to` what each of its attacks broke; a randomized victim's pictures leave by the word of a jury of its own."""

    def attack(score: Score, pixels: Pixels, seeds: Seeds) -> Attacked:
        meter = Meter()
        judge = _leaving(score, seeds, leaving_jury(jury), meter) if ensemble.randomized else None
        cascade = ensemble.cascade(score, pixels, seeds, meter=meter, judge=judge)
        witnesses = [event for event in cascade.events() if isinstance(event, Witness)]
        fell_to.update(witness.attack for witness in witnesses)
        attacked = cascade.record.attacked()
        for witness in witnesses:  # not the point of the largest mean margin, but the one that was judged
            attacked.pixels[witness.picture] = witness.pixels
        return attacked

    return attack


def leaving_jury(jury: Jury) -> Jury:
    """Who says during T3's search that a picture of a randomized classifier is broken: more draws than judge in the end, or the served vote."""
    return Jury(LEAVING_DRAWS) if jury.rule is None else jury


def _leaving(score: Score, seeds: Seeds, jury: Jury, meter: Meter) -> Judge:
    """That jury as a judge of candidates, on draws that neither the search nor the jury of the result sees."""
    about = decision(score)

    def broken(candidates: Pixels, rows: Tensor) -> Tensor:
        said = verdict(about.classifier, candidates, about.targets[rows], derive(pick(seeds, rows), "leaving"), jury)
        meter.pay(said.cost)
        return ~said.right

    return broken


def score_of(loss: LossName, *, draws: int | None, search: Precision = "float32") -> ScoreOf:
    """A loss about the right label, or its mean over that many draws of a randomized classifier; in bfloat16 as far as `reduced` goes."""

    def score(classifier: Classifier, targets: Tensor) -> Score:
        plain = label_score(loss, classifier, targets)
        asked = plain if draws is None else averaged(guarded(plain, chunk_rows=GRADIENT_ROWS), draws)
        return reduced(asked) if search == "bfloat16" else asked

    return score


def batches(clip: Clip, pictures: Pictures, progress: Progress, what: str, transferred: Tensor | None = None) -> Iterator[Batch]:
    """Batches on the CLIP's device; row seeds belong to a picture's place in the data, whichever subset is measured."""
    seeds = draw_seeds(pictures.seed, len(pictures.data))
    total = len(pictures.indices)
    for start in range(0, total, pictures.batch):
        chosen = pictures.indices[start : start + pictures.batch]
        pixels = pictures.data.pixels(chosen, clip.image_size).to(clip.device)
        changed = None if transferred is None else transferred[start : start + len(chosen)].to(clip.device)
        yield Batch(pixels, pictures.data.targets[chosen].to(clip.device), seeds[chosen], changed)
        progress(start + len(chosen), total, what)
