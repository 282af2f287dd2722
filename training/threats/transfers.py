"""Pictures that are attacked once against some prompts and judged under any others, for threat levels T1 and
static and for the matrix of what carries over between prompt sets.

The attack knows image tower, visual prompts, labels and the text that it is made against; it knows no
defense.
"""

from torch import Tensor

from robustclip.attacks.pgd import PGD
from robustclip.models.classifier import zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.scores.kinds import label_score
from robustclip.seeds import derive
from robustclip.threat import Linf
from robustclip.types import Progress
from training.cache import Rows, cached_rows
from training.threats.bank import CHUNK, cache_key
from training.threats.judging import Pictures

STEPS = 100


def carried_attack(ball: Linf) -> PGD:
    """PGD-100 to the worst point. No picture stops at its first success: what barely fools one text fools no
    other, which would look like robustness.
    """
    return PGD(ball=ball, steps=STEPS, step=ball.radius / 4, starts=("random",), stop="never")


def pixels_against(
    clip: Clip, prompts: Prompts, pictures: Pictures, attack: PGD, *, progress: Progress, what: str
) -> Rows:
    """[n, 3, S, S] pictures whose cross-entropy under `prompts` was raised; made once for all who judge
    them.
    """
    seeds = pictures.seeds
    classifier = zero_shot(clip, prompts, pictures.data.labels, scoring=pictures.scoring)

    def make(chosen: Tensor) -> Rows:
        pixels, targets = pictures.on(clip, chosen)
        attacked = attack(
            label_score("cross_entropy", classifier, targets), pixels, derive(seeds[chosen], "against")
        )
        return Rows(attacked.pixels.cpu(), attacked.cost)

    key = {
        **cache_key("against", clip, pictures.data, attack, pictures.seed),
        "prompts": prompts.digest(),
        "score": "cross_entropy",
        **({} if pictures.scoring == "softmax" else {"scoring": pictures.scoring}),
    }
    return cached_rows(pictures.cache, key, pictures.indices, make, chunk=CHUNK, progress=progress, what=what)
