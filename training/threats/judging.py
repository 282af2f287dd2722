"""What all threat levels share: the victim, its pictures, how it is judged on them, and the score that
searches raise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue
from torch import Tensor

from robustclip.attacks import Precision
from robustclip.certificates.vote import smoothing_of
from robustclip.defenses import AnyDefense, bind_chain
from robustclip.defenses.smoothing import Smoothing
from robustclip.measuring import ONE_ANSWER, Jury, LabelledBatch, Measured, ScoreOf, measure
from robustclip.models import (
    HANDCRAFTED_TEMPLATE,
    Clip,
    Defended,
    Prompts,
    Scoring,
    TorchImageEncoder,
    zero_shot,
)
from robustclip.scores import LossName, averaged, guarded, label_score, reduced
from robustclip.seeds import draw_seeds
from robustclip.threat import BallSpec
from robustclip.types import Classifier, Pixels, Progress, Score, Seeds
from training.data.labelled import LabelledImages
from training.finished import Rows

GRADIENT_ROWS = 64  # of pictures times draws: more at once would fill the memory
GRADIENT_DRAWS = 20  # of a randomized defense, behind each gradient
JUDGING_DRAWS = 10  # of a randomized defense, fresh ones that judge


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures to measure on, the same for all prompt sets, defenses and levels, with the seed of everything
    random about them.

    `templates` are the written words that stand in for a learned text at levels that don't know it. `scoring`
    is how victims decide: `softmax` says which of the labels, as is asked in the literature of pictures that
    show one of them; `sigmoid` may say that none fits, which is wrong here.
    """

    data: LabelledImages
    indices: Tensor
    seed: int
    cache: Path
    batch: int = 64
    templates: tuple[str, ...] = (HANDCRAFTED_TEMPLATE,)
    scoring: Scoring = "softmax"

    @property
    def seeds(self) -> Seeds:
        """[len(data)] a seed for each picture of the data, whichever of them are measured."""
        return draw_seeds(self.seed, len(self.data))

    def on(self, clip: Clip, chosen: Tensor) -> tuple[Pixels, Tensor]:
        """Pixels and targets of those pictures, on the device of the CLIP."""
        pixels = self.data.pixels(chosen, clip.preprocessing)
        return pixels.to(clip.device), self.data.targets[chosen].to(clip.device)


@dataclass(frozen=True, eq=False, kw_only=True)
class Victim:
    """A classifier as it is deployed, and the pictures it is attacked on. `rule`: the vote that is served,
    where a chain is smoothed.
    """

    clip: Clip
    prompts: Prompts
    classifier: Defended
    pictures: Pictures
    rule: Smoothing | None = None

    @property
    def randomized(self) -> bool:
        return self.classifier.defense.randomized

    @property
    def jury(self) -> Jury:
        """How the classifier is judged, at every level."""
        if self.rule is not None:
            return Jury.of(self.rule)
        return Jury(JUDGING_DRAWS) if self.randomized else ONE_ANSWER


class AtLevel(NamedTuple):
    """`attack`: the attack as data, with its score and draws; None for clean pictures. `fell_to`: how many of
    T3's fell to each of its attacks.

    Under a randomized defense that is what 64 draws said; the 10 that `measured` goes by may differ where
    half of the draws are wrong.
    """

    measured: Measured
    attack: dict[str, JsonValue] | None
    fell_to: dict[str, int] | None = None


def victim_of(
    clip: Clip,
    prompts: Prompts,
    pictures: Pictures,
    chain: tuple[AnyDefense, ...] = (),
    *,
    encoder: TorchImageEncoder | None = None,
) -> Victim:
    """The victim that a prompt set and a chain of defenses make. Raises as `zero_shot` and `bind_chain`."""
    encoder = encoder or TorchImageEncoder(clip)
    classifier = Defended(
        zero_shot(clip, prompts, pictures.data.labels, encoder=encoder, scoring=pictures.scoring),
        bind_chain(chain, encoder),
    )
    return Victim(
        clip=clip, prompts=prompts, classifier=classifier, pictures=pictures, rule=smoothing_of(chain)
    )


def facts_of(attack: BaseModel, **about: Any) -> dict[str, JsonValue]:
    """An attack as data, with what else is to be said about it."""
    return {**attack.model_dump(mode="json"), **about}


def judge_made(victim: Victim, made: Rows, ball: BallSpec, progress: Progress, what: str) -> Measured:
    """What the victim makes of pictures that were attacked elsewhere; the bill includes their making."""
    judged = measure(
        victim.classifier, batches(victim, progress, what, made.rows), ball=ball, jury=victim.jury
    )
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
        mean = plain if draws is None else averaged(guarded(plain, chunk_rows=GRADIENT_ROWS), draws)
        return reduced(mean) if search == "bfloat16" else mean

    return score


def batches(
    victim: Victim, progress: Progress, what: str, transferred: Tensor | None = None
) -> Iterator[LabelledBatch]:
    """Batches on the CLIP's device; row seeds belong to a picture's place in the data, whichever subset is
    measured.
    """
    clip, pictures, seeds = victim.clip, victim.pictures, victim.pictures.seeds
    total = len(pictures.indices)
    for start in range(0, total, pictures.batch):
        chosen = pictures.indices[start : start + pictures.batch]
        changed = None if transferred is None else transferred[start : start + len(chosen)].to(clip.device)
        yield LabelledBatch(*pictures.on(clip, chosen), seeds[chosen], changed)
        progress(start + len(chosen), total, what)
