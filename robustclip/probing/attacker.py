"""What an attacker may raise: the scores for each level of knowledge. Judging is done elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustclip.attacks.cascade import StandIn
from robustclip.deployed import DeployedClassifier
from robustclip.errors import InvalidInput, ProbeUnavailable
from robustclip.models.classifier import Defended
from robustclip.models.towers import encode_image
from robustclip.probing.plan import is_randomized, stand_ins
from robustclip.probing.served import Aim
from robustclip.reports.report import Knowledge
from robustclip.scores.kinds import AnyScoreName, EmbeddingShift, label_score
from robustclip.scores.surrogates import bypassed, pooled
from robustclip.scores.wrappers import averaged
from robustclip.types import Classifier, Defense, DeviceAccess, Pixels, Score, Seeds


@dataclass(frozen=True, eq=False)
class Attacker:
    """The scores of one decision.

    name     of the loss to raise
    eot      draws of a randomized defense in each gradient
    sources  other victims over the same labels, whose gradients are tried too
    """

    victim: DeployedClassifier
    aim: Aim
    name: AnyScoreName
    eot: int
    access: DeviceAccess
    sources: tuple[DeployedClassifier, ...] = ()

    def __post_init__(self) -> None:
        for index, source in enumerate(self.sources):
            if (
                source.outcomes != self.victim.outcomes
                or source.clip.image_size != self.victim.clip.image_size
            ):
                raise InvalidInput(
                    "a stand-in decides between other labels or sees other sizes.", field=f"sources/{index}"
                )

    def score(self, knowledge: Knowledge, pixels: Pixels, seeds: Seeds) -> Score:
        """What an attack on `pixels` [1, 3, S, S] may raise. Through a defense without a gradient, values are
        true and gradients go past it.
        """
        match knowledge:
            case "static":
                return self._undefended()
            case "transfer":
                return pooled([self._through(source) for source in self.sources])
            case "oblivious":
                return self.access.guard(
                    EmbeddingShift(
                        lambda inputs: encode_image(self.victim.clip, inputs), self._embedding(pixels, seeds)
                    )
                )
            case "adaptive" | "black_box":
                return self._through(self.victim)

    def draws(self, knowledge: Knowledge) -> int:
        """How many draws each gradient averages."""
        return (
            self.eot
            if is_randomized(self.victim) and knowledge in ("adaptive", "black_box", "transfer")
            else 1
        )

    def gradient(self, knowledge: Knowledge) -> str:
        """How gradients pass the victim, for the report."""
        if knowledge in ("static", "oblivious"):
            return "exact"
        if knowledge == "black_box":
            return "values"
        declared = self.victim.reference.defense.gradient
        return "bypassed" if declared == "none" else declared

    def stand_ins(self) -> tuple[StandIn, ...]:
        """What a cascade tries beside the victim's own gradients, in the order of
        `robustclip.probing.plan.stand_ins`.
        """
        scores: dict[str, Callable[[], Score]] = {
            "undefended": self._undefended,
            "bypassed": lambda: self._bypassed(self.victim.reference),
        }
        others = [source.prompt_set for source in self.sources]
        return (
            *(StandIn(name, scores[name]()) for name in stand_ins(self.victim, ())),
            *(
                StandIn(name, self._through(source))
                for name, source in zip(others, self.sources, strict=True)
            ),
        )

    def _undefended(self) -> Score:
        return self.access.guard(self._about(self.victim.reference.classifier))

    def _through(self, victim: DeployedClassifier) -> Score:
        defended = victim.reference
        if defended.defense.gradient == "none":
            return self._bypassed(defended)
        return self._averaged(self._about(defended), defended.defense)

    def _bypassed(self, defended: Defended) -> Score:
        """Values through the whole chain, gradients past its part on pixels."""
        chain, undefended = defended.defense, defended.classifier
        before, behind = chain.at("pixels"), chain.at("features")
        if before is None or (behind is not None and behind.gradient == "none"):
            raise ProbeUnavailable(
                "this defense offers no gradient.", field="defenses", help="Ask for the static mode only."
            )
        score = self._about(undefended if behind is None else Defended(undefended, behind))
        return self._averaged(bypassed(score, before), chain)

    def _averaged(self, score: Score, chain: Defense) -> Score:
        guarded = self.access.guard(score)
        return averaged(guarded, self.eot) if chain.randomized and self.eot > 1 else guarded

    def _about(self, classifier: Classifier) -> Score:
        truth, goal = (
            None if index is None else torch.tensor([index], device=self.victim.clip.device)
            for index in self.aim
        )
        assert truth is not None
        return label_score(self.name, classifier, truth, goal)

    def _embedding(self, pixels: Pixels, seeds: Seeds) -> Tensor:
        with torch.no_grad():
            return self.access.share(lambda inputs, seeds: encode_image(self.victim.clip, inputs))(
                pixels, seeds
            )


def sources_among(
    victims: Sequence[DeployedClassifier], victim: DeployedClassifier
) -> tuple[DeployedClassifier, ...]:
    """The others of several victims that share this one's defense: other prompt sets, each a stand-in."""
    return tuple(
        each
        for each in victims
        if each is not victim and each.defense == victim.defense and each.prompt_set != victim.prompt_set
    )
