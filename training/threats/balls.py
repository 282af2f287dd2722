"""Levels whose attacker stays in an Linf ball, and what those have in common that search against the deployed
chain.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from robustclip.attacks import AnyAttack
from robustclip.attacks.cascade import Precision
from robustclip.errors import InvalidInput
from robustclip.measuring import measure
from robustclip.scores.losses import LossName
from robustclip.threat import Linf, radius_text
from robustclip.types import Cost
from training.threats.base import Bill, Effort, ThreatLevel, ThreatSet, Work, judged
from training.threats.judging import AtLevel, Victim, batches, facts_of, score_of


class BallLevel(ThreatLevel[Linf]):
    """A level whose attacker stays in an Linf ball."""

    def threat_sets(self, effort: Effort) -> Iterator[ThreatSet[Linf]]:
        return balls(effort)


def balls(effort: Effort) -> Iterator[ThreatSet[Linf]]:
    """The Linf ball of each radius. InvalidInput for a radius of 0."""
    for eps in effort.eps:
        if eps <= 0:
            raise InvalidInput(
                f"expected a radius above 0 for an attack, found {eps:g}.",
                field="--eps",
                help='Write it like "4/255", or ask for clean.',
            )
        text = radius_text(eps)
        yield ThreatSet(Linf(radius=eps), text, {"eps": eps}, ("--eps", text))


class SearchLevel(BallLevel):
    """An attack that raises a loss of the deployed chain, of a randomized one its mean over several draws."""

    loss: ClassVar[LossName]

    @abstractmethod
    def attack(self, victim: Victim, ball: Linf, effort: Effort) -> AnyAttack: ...

    def measure(self, victim: Victim, within: ThreatSet[Linf], effort: Effort, work: Work) -> AtLevel:
        attack, draws = self.attack(victim, within.bounds, effort), self.draws_of(victim, effort)
        measured = measure(
            victim.classifier,
            batches(victim, work.progress, self.name),
            attack=attack,
            score=score_of(
                self.loss, draws=draws if victim.randomized else None, search=self._search(effort)
            ),
            ball=within.bounds,
            jury=victim.jury,
        )
        return AtLevel(measured, facts_of(attack, score=self.loss, draws=draws))

    def bill(self, victim: Victim, within: ThreatSet[Linf], effort: Effort) -> Bill:
        rows = len(victim.pictures.indices) * self.draws_of(victim, effort)
        searched = self.attack(victim, within.bounds, effort).bill(rows)
        if self._search(effort) != "float32":  # what is close to the boundary is asked again in full
            searched = searched.plus(Cost(searched.forward))
        return Bill(judged(victim) + searched.through(victim.classifier.toll).charged)

    def _search(self, effort: Effort) -> Precision:
        return effort.search if "search" in self.takes else "float32"
