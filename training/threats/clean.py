"""Nobody attacks."""

from collections.abc import Iterator

from robustclip.measuring import measure
from training.threats.base import Bill, Effort, ThreatLevel, ThreatSet, Work, judged
from training.threats.judging import AtLevel, Victim, batches


class Clean(ThreatLevel[None]):
    name = "clean"
    knows = "nobody attacks"

    def threat_sets(self, effort: Effort) -> Iterator[ThreatSet[None]]:
        yield ThreatSet(None, "0", {"eps": 0.0})

    def measure(self, victim: Victim, within: ThreatSet[None], effort: Effort, work: Work) -> AtLevel:
        untouched = batches(victim, work.progress, self.name)
        return AtLevel(measure(victim.classifier, untouched, jury=victim.jury), None)

    def bill(self, victim: Victim, within: ThreatSet[None], effort: Effort) -> Bill:
        return Bill(judged(victim, versions=1))
