"""T0: AdvPT's feature attack on the image tower without prompts. Its pictures are made once for all prompt
sets and defenses: no text, no labels, no visual prompts and no defense is known.
"""

from torch import Tensor

from robustclip.attacks import PGD
from robustclip.models import Clip
from robustclip.seeds import derive
from robustclip.threat import Linf
from robustclip.types import Progress
from training.finished import Rows, cached_rows
from training.threats.bank import CHUNK, cache_key, feature_attack, shift_embeddings
from training.threats.base import BallLevel, Bill, Effort, ThreatSet, Work, judged
from training.threats.judging import AtLevel, Pictures, Victim, facts_of, judge_made

STEPS = 40


class T0(BallLevel):
    name = "T0"
    knows = (
        "the image tower without prompts is attacked by its embeddings alone: PGD-40, knows no text, labels, "
        "prompts or defense"
    )
    blind = "M5"

    def measure(self, victim: Victim, within: ThreatSet[Linf], effort: Effort, work: Work) -> AtLevel:
        ball, attack = within.bounds, feature_attack(within.bounds.radius, steps=STEPS)
        made = shifted_pixels(victim.clip, victim.pictures, attack, work.progress)
        measured = judge_made(victim, made, ball, work.progress, self.name)
        return AtLevel(measured, facts_of(attack, score="embedding_shift"))

    def bill(self, victim: Victim, within: ThreatSet[Linf], effort: Effort) -> Bill:
        made = feature_attack(within.bounds.radius, steps=STEPS).bill(1).charged + 1
        return Bill(judged(victim), len(victim.pictures.indices) * made)


def shifted_pixels(clip: Clip, pictures: Pictures, attack: PGD, progress: Progress) -> Rows:
    """[n, 3, S, S] the attacked pictures, the same for every prompt set and defense that is measured on
    them.
    """
    seeds = pictures.seeds

    def make(chosen: Tensor) -> Rows:
        pixels, _ = pictures.on(clip, chosen)
        attacked = shift_embeddings(clip, pixels, attack, derive(seeds[chosen], "T0"))
        return Rows(attacked.pixels.cpu(), attacked.cost)

    key = cache_key("T0", clip, pictures.data, attack, pictures.seed)
    return cached_rows(
        pictures.cache, key, pictures.indices, make, chunk=CHUNK, progress=progress, what="T0 pictures"
    )
