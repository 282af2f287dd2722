"""static: T2's attack on the same prompts and labels without the defense, as most published numbers of
purifying defenses are made. Far above T2 it is an illusion.
"""

from robustclip.threat import Linf
from training.threats.bank import carried_attack, pixels_against
from training.threats.base import BallLevel, Bill, Effort, ThreatSet, Work, judged
from training.threats.judging import AtLevel, Victim, facts_of, judge_made


class Static(BallLevel):
    name = "static"
    knows = (
        "the defense alone is unknown: T2's attack without it, judged behind it; far above T2 it is an "
        "illusion"
    )
    blind = "M5"

    def measure(self, victim: Victim, within: ThreatSet[Linf], effort: Effort, work: Work) -> AtLevel:
        attack = carried_attack(within.bounds)
        made = pixels_against(
            victim.clip,
            victim.prompts,
            victim.pictures,
            attack,
            progress=work.progress,
            what="static pictures",
        )
        measured = judge_made(victim, made, within.bounds, work.progress, self.name)
        return AtLevel(measured, facts_of(attack, score="cross_entropy", defense="none"))

    def bill(self, victim: Victim, within: ThreatSet[Linf], effort: Effort) -> Bill:
        made = len(victim.pictures.indices) * carried_attack(within.bounds).bill(1).charged
        return Bill(judged(victim), made, victim.prompts.digest())
