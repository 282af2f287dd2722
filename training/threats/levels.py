"""The threat levels that a prompt set is measured at (METHODS 8.1): what the attacker knows and how hard it
tries. The radius is a separate matter.

clean  nobody attacks
T0     the image tower without prompts is attacked, once for all prompt sets and defenses: no text, no labels,
       no visual prompts, no defense is known
T1     the deployed image tower is known, visual prompts included, and the labels; words a person wrote stand
       in for the learned text. Made once for all that share the image tower, for a set's own tower (visual
       prompts) only of what it has right; no defense is known
T2     everything is known: cross-entropy is raised through prompts and defense
T3     as T2, and the strongest search: what T0, T1 and T2 left standing faces the ensemble (`strongest.py`)

Three more stand beside them: T0b (`surrogates.py`), static and black-box (`defended.py`).

Deviation from the papers: a picture that is wrong untouched counts as wrong at every level, also where a
blind attack happens to put it right.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias, get_args

from robustclip.attacks.cascade import Precision
from robustclip.attacks.ensemble import Preset
from robustclip.attacks.pgd import PGD
from robustclip.defenses.smoothing import Smoothing
from robustclip.errors import InvalidInput
from robustclip.measuring import measure
from robustclip.models.classifier import Defended, ZeroShotClassifier
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.threat import Linf
from robustclip.types import Progress
from training.cache import Rows
from training.threats.bank import feature_attack, shifted_pixels
from training.threats.judging import GRADIENT_DRAWS, AtLevel, Pictures, batches, judge_made, jury_of, score_of
from training.threats.strongest import strong_ensemble, strongest
from training.threats.transfers import carried_attack, pixels_against

Level: TypeAlias = Literal["clean", "T0", "T1", "T2", "T3"]
LEVELS: tuple[Level, ...] = get_args(Level)
WITHIN_T3: tuple[Level, ...] = ("T0", "T1", "T2")  # whose worst case T3 begins with

T0_STEPS = 40
T2_STEPS = 100


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
    """Measure a classifier on pictures at a threat level; `eps` is not used for clean ones. A `rule` judges
    by the vote that it serves.

    Randomized classifiers are attacked through the mean of `draws` and judged by 10 fresh ones. Cost and
    seconds of T0 and T1 include what their pictures took when they were made, those of T3 all that it
    consists of. `known`: levels already measured on these pictures at this radius, which T3 then need not
    measure again; `parts`: a folder of this measurement alone, where T3 keeps each batch that its ensemble is
    done with, so that a killed one goes on from there. `strength` is that of its ensemble, `steps`,
    `restarts` and `draws` are those of T2. Both search in the precision `search`; what they find is judged in
    float32. Without a randomized defense T2 and the ensemble leave a picture at their first success, so that
    what is right after rounding to 8 bits is judged on the narrowest points: an upper bound.
    """
    jury = jury_of(rule, randomized=randomized)
    if level == "clean":
        return AtLevel(measure(classifier, batches(clip, pictures, progress, "clean"), jury=jury), None)
    if eps <= 0:
        raise InvalidInput(
            f"expected a radius above 0 for {level}, found {eps}.",
            field="--eps",
            help='Write it like "4/255", or ask for clean.',
        )
    ball = Linf(radius=eps)
    if level == "T0":
        attack = feature_attack(eps, steps=T0_STEPS)
        made = shifted_pixels(
            clip,
            pictures.data,
            pictures.indices,
            attack,
            seed=pictures.seed,
            folder=pictures.cache,
            progress=progress,
        )
        measured = judge_made(clip, classifier, pictures, made, ball, jury=jury, progress=progress, what="T0")
        return AtLevel(measured, {**attack.model_dump(mode="json"), "score": "embedding_shift"})
    if level == "T1":
        attack = carried_attack(eps)
        made = _against_words(clip, classifier, pictures, attack, progress, randomized=randomized)
        measured = judge_made(clip, classifier, pictures, made, ball, jury=jury, progress=progress, what="T1")
        return AtLevel(
            measured,
            {
                **attack.model_dump(mode="json"),
                "score": "cross_entropy",
                "templates": list(pictures.templates),
            },
        )
    if level == "T2":
        # Under a randomized defense the first success is a lucky average: such a row goes on to its worst
        # point.
        attack = PGD(
            ball=ball,
            steps=steps,
            step=eps / 4,
            starts=("random",),
            restarts=restarts,
            stop="never" if randomized else "broken",
        )
        measured = measure(
            classifier,
            batches(clip, pictures, progress, "T2"),
            attack=attack,
            score=score_of("cross_entropy", draws=draws if randomized else None, search=search),
            ball=ball,
            jury=jury,
        )
        return AtLevel(
            measured,
            {**attack.model_dump(mode="json"), "score": "cross_entropy", "draws": draws if randomized else 1},
        )
    again = partial(
        measure_level,
        eps=eps,
        clip=clip,
        classifier=classifier,
        pictures=pictures,
        randomized=randomized,
        rule=rule,
        progress=progress,
    )
    within: dict[str, AtLevel] = {
        part: known[part] if known and part in known else again(part, restarts=restarts, search=search)
        for part in WITHIN_T3
    }
    ensemble = strong_ensemble(eps, strength, randomized=randomized, search=search)
    with TemporaryDirectory() if parts is None else nullcontext(parts) as folder:
        return strongest(within, ensemble, clip, classifier, pictures, jury, progress, Path(folder))


def _against_words(
    clip: Clip,
    classifier: ZeroShotClassifier | Defended,
    pictures: Pictures,
    attack: PGD,
    progress: Progress,
    *,
    randomized: bool,
) -> Rows:
    """Attacked pictures; where the tower is this prompt set's own, those that are wrong untouched, and so at
    every level, stay as they are.
    """
    tower = classifier.classifier if isinstance(classifier, Defended) else classifier
    words = Prompts(visual=tower.visual, templates=pictures.templates)
    data, indices = pictures.data, pictures.indices
    against = partial(
        pixels_against,
        clip,
        words,
        data,
        attack=attack,
        seed=pictures.seed,
        folder=pictures.cache,
        progress=progress,
    )
    if tower.visual is None or randomized:
        return against(indices, what="T1 pictures")
    untouched = measure(classifier, batches(clip, pictures, progress, "clean"))
    right = untouched.correct.nonzero().flatten()
    made = against(indices[right], what="T1 pictures")
    rows = data.pixels(indices, clip.image_size)
    rows[right] = made.rows
    return Rows(rows, made.cost.plus(untouched.cost), made.seconds + untouched.seconds)
