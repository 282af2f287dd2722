"""The threat levels that a prompt set is measured at (METHODS 8.1): what the attacker knows and how hard it tries. The radius is a separate matter.

clean  nobody attacks
T0     the image tower without prompts is attacked, once for all prompt sets and defenses: no text, no labels, no visual prompts, no defense is known
T2     everything is known: cross-entropy is raised through prompts and defense

Deviation from the papers: a picture that is wrong untouched counts as wrong at every level, also where a blind attack happens to put it right.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from pydantic import JsonValue
from torch import Tensor

from robustclip.attacks.pgd import PGD
from robustclip.clip import Clip
from robustclip.errors import InvalidInput
from robustclip.measure import Batch, Measured, measure
from robustclip.scores import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf
from robustclip.types import Classifier, Progress, Score
from robustclip.wrappers import averaged, guarded
from training.bank import feature_attack, shifted_pixels
from training.data import LabelledImages

Level: TypeAlias = Literal["clean", "T0", "T2"]
LEVELS: tuple[Level, ...] = get_args(Level)

T0_STEPS = 40
T2_STEPS = 100
GRADIENT_ROWS = 64  # of pictures times draws: more at once would fill the memory
GRADIENT_DRAWS, JUDGING_DRAWS = 20, 10  # for a randomized defense: draws behind each gradient, and fresh ones to judge by


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is measured on, the same for every prompt set, defense and level, with the seed of all that is random about it."""

    data: LabelledImages
    indices: Tensor
    seed: int
    cache: Path
    batch: int = 64


class AtLevel(NamedTuple):
    """`attack`: the attack as data, with its score and draws; None for clean pictures."""

    measured: Measured
    attack: dict[str, JsonValue] | None


def measure_level(
    level: Level, eps: float, clip: Clip, classifier: Classifier, pictures: Pictures, *, randomized: bool, progress: Progress
) -> AtLevel:
    """Measure a classifier on pictures at a threat level; `eps` is not used for clean ones.

    Randomized classifiers are attacked through the mean of 20 draws and judged by 10 fresh ones. Cost and seconds of T0 include what its pictures
    took when they were made.
    """
    draws = JUDGING_DRAWS if randomized else 1
    if level == "clean":
        return AtLevel(measure(classifier, _batches(clip, pictures, progress, "clean"), draws=draws), None)
    if eps <= 0:
        raise InvalidInput(f"expected a radius above 0 for {level}, found {eps}.", field="--eps", help='Write it like "4/255", or ask for clean.')
    ball = Linf(radius=eps)
    if level == "T0":
        attack = feature_attack(eps, steps=T0_STEPS)
        made = shifted_pixels(clip, pictures.data, pictures.indices, attack, seed=pictures.seed, folder=pictures.cache, progress=progress)
        transferred = measure(classifier, _batches(clip, pictures, progress, "T0", made.rows), ball=ball, draws=draws)
        spent = transferred._replace(cost=transferred.cost.plus(made.cost), seconds=transferred.seconds + made.seconds)
        return AtLevel(spent, {**attack.model_dump(mode="json"), "score": "embedding_shift"})
    # Under a randomized defense the first success is a lucky average: such a row goes on to its worst point.
    attack = PGD(ball=ball, steps=T2_STEPS, step=eps / 4, starts=("random",), stop="never" if randomized else "broken")
    score = _through_draws if randomized else partial(label_score, "cross_entropy")
    measured = measure(classifier, _batches(clip, pictures, progress, "T2"), attack=attack, score=score, ball=ball, draws=draws)
    return AtLevel(measured, {**attack.model_dump(mode="json"), "score": "cross_entropy", "draws": GRADIENT_DRAWS if randomized else 1})


def _through_draws(classifier: Classifier, targets: Tensor) -> Score:
    return averaged(guarded(label_score("cross_entropy", classifier, targets), chunk_rows=GRADIENT_ROWS), GRADIENT_DRAWS)


def _batches(clip: Clip, pictures: Pictures, progress: Progress, what: str, transferred: Tensor | None = None) -> Iterator[Batch]:
    """Batches on the CLIP's device; row seeds belong to a picture's place in the data, whichever subset is measured."""
    seeds = draw_seeds(pictures.seed, len(pictures.data))
    total = len(pictures.indices)
    for start in range(0, total, pictures.batch):
        chosen = pictures.indices[start : start + pictures.batch]
        pixels = pictures.data.pixels(chosen, clip.image_size).to(clip.device)
        changed = None if transferred is None else transferred[start : start + len(chosen)].to(clip.device)
        yield Batch(pixels, pictures.data.targets[chosen].to(clip.device), seeds[chosen], changed)
        progress(start + len(chosen), total, what)
