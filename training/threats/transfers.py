"""Pictures attacked once against some prompts, and judged under any others: threat level T1, and the matrix
of what carries over between prompt sets.

The attack knows image tower, visual prompts, labels and the text it is made against; it knows no defense.
"""

from pathlib import Path

from torch import Tensor

from robustclip.attacks.pgd import PGD
from robustclip.models.classifier import zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.scores.kinds import label_score
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import Linf
from robustclip.types import Progress
from training.cache import Rows, cached_rows
from training.data.labelled import LabelledImages
from training.threats.bank import CHUNK, cache_key

STEPS = 100


def carried_attack(eps: float) -> PGD:
    """PGD-100 to the worst point. No picture stops at its first success: what barely fools one text fools no
    other, which would feign robustness.
    """
    return PGD(ball=Linf(radius=eps), steps=STEPS, step=eps / 4, starts=("random",), stop="never")


def pixels_against(
    clip: Clip,
    prompts: Prompts,
    data: LabelledImages,
    indices: Tensor,
    attack: PGD,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    what: str,
) -> Rows:
    """[n, 3, S, S] pictures whose cross-entropy under `prompts` was raised; made once for all who judge
    them.
    """
    seeds, classifier = draw_seeds(seed, len(data)), zero_shot(clip, prompts, data.labels)

    def make(chosen: Tensor) -> Rows:
        pixels, targets = (
            data.pixels(chosen, clip.image_size).to(clip.device),
            data.targets[chosen].to(clip.device),
        )
        attacked = attack(
            label_score("cross_entropy", classifier, targets), pixels, derive(seeds[chosen], "against")
        )
        return Rows(attacked.pixels.cpu(), attacked.cost)

    key = {
        **cache_key("against", clip, data, attack, seed),
        "prompts": prompts.digest(),
        "score": "cross_entropy",
    }
    return cached_rows(folder, key, indices, make, chunk=CHUNK, progress=progress, what=what)
