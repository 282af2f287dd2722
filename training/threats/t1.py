"""T1: the deployed image tower is known, visual prompts included, and the labels; words that a person wrote
stand in for the learned text. No defense is known.

Pictures are made once for all that share the image tower. For a prompt set with a tower of its own (visual
prompts) only what it has right untouched is attacked.
"""

from dataclasses import replace

from robustclip.attacks import PGD
from robustclip.measuring import measure
from robustclip.models import Prompts
from robustclip.threat import Linf
from robustclip.types import Progress, price
from training.finished import Rows
from training.threats.bank import carried_attack, pixels_against
from training.threats.base import BallLevel, Bill, Effort, ThreatSet, Work, judged
from training.threats.judging import AtLevel, Victim, batches, facts_of, judge_made


class T1(BallLevel):
    name = "T1"
    knows = (
        "the image tower, its visual prompts and the labels are known, written words stand in for the "
        "learned text: cross-entropy, PGD-100"
    )
    reads_templates = True
    blind = "M5"

    def measure(self, victim: Victim, within: ThreatSet[Linf], effort: Effort, work: Work) -> AtLevel:
        attack = carried_attack(within.bounds)
        made = _against_words(victim, attack, work.progress)
        measured = judge_made(victim, made, within.bounds, work.progress, self.name)
        templates = list(victim.pictures.templates)
        return AtLevel(measured, facts_of(attack, score="cross_entropy", templates=templates))

    def bill(self, victim: Victim, within: ThreatSet[Linf], effort: Effort) -> Bill:
        n = len(victim.pictures.indices)
        made = n * carried_attack(within.bounds).bill(1).charged
        if victim.prompts.visual is None:
            return Bill(judged(victim), made)
        return Bill(judged(victim), made + price(victim.classifier, n).charged, victim.prompts.digest())


def _against_words(victim: Victim, attack: PGD, progress: Progress) -> Rows:
    """Attacked pictures. Where the tower is this prompt set's own, those that are wrong untouched stay as
    they are: they count as wrong at every level.
    """
    clip, pictures = victim.clip, victim.pictures
    words, what = Prompts(visual=victim.prompts.visual, templates=pictures.templates), "T1 pictures"
    if words.visual is None or victim.randomized:
        return pixels_against(clip, words, pictures, attack, progress=progress, what=what)
    untouched = measure(victim.classifier, batches(victim, progress, "clean"))
    right = untouched.correct.nonzero().flatten()
    some = replace(pictures, indices=pictures.indices[right])
    made = pixels_against(clip, words, some, attack, progress=progress, what=what)
    rows = pictures.data.pixels(pictures.indices, clip.preprocessing)
    rows[right] = made.rows
    return Rows(rows, made.cost.plus(untouched.cost), made.seconds + untouched.seconds)
