"""Two threat levels that are about a defense: one that does not know it, and one that knows nothing but its
answers (ROBUSTNESS 1).

static     T2's attack on the same prompts and labels without the defense, as most published numbers of
           purifiers are made. Far above T2 it is an illusion.
black-box  Square through the defense: scores of the deployed chain, no gradients. Below T2 it says that T2's
           gradients were no good.
"""

from typing import TypeAlias

from pydantic import JsonValue

from robustclip.attacks.square import Square
from robustclip.measuring import Jury, measure
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.threat import Linf
from robustclip.types import Classifier, Progress
from training.threats.judging import AtLevel, Pictures, batches, judge_made, score_of
from training.threats.transfers import carried_attack, pixels_against

QUERIES, QUERY_DRAWS = (
    1000,
    4,
)  # of Square; of a randomized defense, shared by the two points that a query compares

_Facts: TypeAlias = dict[str, JsonValue]


def measure_static(
    eps: float,
    clip: Clip,
    prompts: Prompts,
    classifier: Classifier,
    pictures: Pictures,
    *,
    jury: Jury,
    progress: Progress,
) -> AtLevel:
    """Accuracy behind a defense on pictures that were made against `prompts` without it, once for all
    defenses.
    """
    attack = carried_attack(eps)
    data, indices, seed = pictures.data, pictures.indices, pictures.seed
    made = pixels_against(
        clip,
        prompts,
        data,
        indices,
        attack,
        seed=seed,
        folder=pictures.cache,
        progress=progress,
        what="static pictures",
    )
    measured = judge_made(
        clip, classifier, pictures, made, Linf(radius=eps), jury=jury, progress=progress, what="static"
    )
    about: _Facts = {"score": "cross_entropy", "defense": "none"}
    return AtLevel(measured, {**attack.model_dump(mode="json"), **about})


def black_box_attack(eps: float, *, queries: int, randomized: bool) -> Square:
    """Under a randomized defense a first success is luck: such a row goes on."""
    return Square(
        ball=Linf(radius=eps), queries=queries, redraw=randomized, stop="never" if randomized else "broken"
    )


def measure_black_box(
    eps: float,
    clip: Clip,
    classifier: Classifier,
    pictures: Pictures,
    *,
    randomized: bool,
    jury: Jury,
    progress: Progress,
    queries: int = QUERIES,
    draws: int = QUERY_DRAWS,
) -> AtLevel:
    """Accuracy under the margin raised by Square, for a randomized classifier its mean over `draws`."""
    attack = black_box_attack(eps, queries=queries, randomized=randomized)
    score = score_of("margin", draws=draws if randomized else None)
    measured = measure(
        classifier,
        batches(clip, pictures, progress, "black-box"),
        attack=attack,
        score=score,
        ball=attack.ball,
        jury=jury,
    )
    about: _Facts = {"score": "margin", "draws": draws if randomized else 1}
    return AtLevel(measured, {**attack.model_dump(mode="json"), **about})
