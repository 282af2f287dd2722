"""What all threat levels share: the pictures that are measured on, how a classifier is judged on them, and
the score that searches raise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue
from torch import Tensor

from robustclip.attacks.cascade import Precision
from robustclip.defenses.smoothing import Smoothing
from robustclip.measuring import ONE_ANSWER, Jury, LabelledBatch, Measured, ScoreOf, measure
from robustclip.models.clip import Clip
from robustclip.models.prompts import HANDCRAFTED_TEMPLATE
from robustclip.scores.kinds import label_score
from robustclip.scores.losses import LossName
from robustclip.scores.wrappers import averaged, guarded, reduced
from robustclip.seeds import draw_seeds
from robustclip.threat import BallSpec
from robustclip.types import Classifier, Progress, Score
from training.cache import Rows
from training.data.labelled import LabelledImages

GRADIENT_ROWS = 64  # of pictures times draws: more at once would fill the memory
GRADIENT_DRAWS, JUDGING_DRAWS = (
    20,
    10,
)  # for a randomized defense: draws behind each gradient, and fresh ones to judge by


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is measured on, the same for every prompt set, defense and level, with the seed of all that is
    random about it.

    `templates` are the words that T1 takes for the learned text.
    """

    data: LabelledImages
    indices: Tensor
    seed: int
    cache: Path
    batch: int = 64
    templates: tuple[str, ...] = (HANDCRAFTED_TEMPLATE,)


class AtLevel(NamedTuple):
    """`attack`: the attack as data, with its score and draws; None for clean pictures. `fell_to`: how many of
    T3's fell to each of its attacks.

    Under a randomized defense that is what 64 draws said; the 10 that `measured` goes by may differ where
    half of the draws are wrong.
    """

    measured: Measured
    attack: dict[str, JsonValue] | None
    fell_to: dict[str, int] | None = None


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
    """Right is what was right in all of them, without an answer what got none in one and no wrong one in any;
    the bill is that of all.
    """
    worst = parts[0]
    for part in parts[1:]:
        right, right_8bit = worst.correct & part.correct, worst.correct_8bit & part.correct_8bit
        worst = Measured(
            right, right_8bit, worst.cost.plus(part.cost), worst.seconds + part.seconds, _silent(worst, part)
        )
    return worst


def _silent(first: Measured, second: Measured) -> Tensor | None:
    if first.abstained is None or second.abstained is None:
        return None
    return (
        (first.abstained | second.abstained)
        & (first.abstained | first.correct)
        & (second.abstained | second.correct)
    )


def score_of(loss: LossName, *, draws: int | None, search: Precision = "float32") -> ScoreOf:
    """A loss about the right label, or its mean over that many draws of a randomized classifier; in bfloat16
    as far as `reduced` goes.
    """

    def score(classifier: Classifier, targets: Tensor) -> Score:
        plain = label_score(loss, classifier, targets)
        asked = plain if draws is None else averaged(guarded(plain, chunk_rows=GRADIENT_ROWS), draws)
        return reduced(asked) if search == "bfloat16" else asked

    return score


def batches(
    clip: Clip, pictures: Pictures, progress: Progress, what: str, transferred: Tensor | None = None
) -> Iterator[LabelledBatch]:
    """Batches on the CLIP's device; row seeds belong to a picture's place in the data, whichever subset is
    measured.
    """
    seeds = draw_seeds(pictures.seed, len(pictures.data))
    total = len(pictures.indices)
    for start in range(0, total, pictures.batch):
        chosen = pictures.indices[start : start + pictures.batch]
        pixels = pictures.data.pixels(chosen, clip.image_size).to(clip.device)
        changed = None if transferred is None else transferred[start : start + len(chosen)].to(clip.device)
        yield LabelledBatch(pixels, pictures.data.targets[chosen].to(clip.device), seeds[chosen], changed)
        progress(start + len(chosen), total, what)
