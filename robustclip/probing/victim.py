"""What a probe attacks: the deployed decision as one value, and its description with one digest over
everything that decides the answer.
"""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from robustclip.defenses import AnyDefense, network_digests
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.reports.report import DefensePart, VictimPart
from robustclip.types import ImageEncoder


@dataclass(frozen=True, eq=False)
class Victim:
    """The deployed decision: `weights` [C, E] are the text features of `labels`, `serving` the encoder that
    `/classify` uses.
    """

    clip: Clip
    prompts: Prompts
    prompt_set: str
    labels: tuple[str, ...]
    weights: Tensor
    defense: tuple[AnyDefense, ...]
    serving: ImageEncoder

    def classifier(self, encoder: ImageEncoder) -> ZeroShotClassifier:
        """The undefended classifier over one of the two encoders."""
        return ZeroShotClassifier(
            encoder, self.labels, self.weights, self.clip.logit_scale, self.prompts.visual
        )


def describe_victim(victim: Victim) -> VictimPart:
    """Everything that decides the answer, and one digest over it."""
    parts = tuple(
        DefensePart(
            kind=spec.kind,
            params=spec.model_dump(mode="json", exclude={"kind"}),
            gradient=spec.gradient,
            randomized=spec.randomized,
            stage=spec.stage,
            status=spec.status,
        )
        for spec in victim.defense
    )
    told = [part.model_dump_json() for part in parts]
    whole = (
        victim.clip.fingerprint,
        victim.prompts.digest(),
        victim.labels,
        told,
        victim.serving.backend,
        *network_digests(victim.defense),
    )
    return VictimPart(
        digest=hashlib.sha256(repr(whole).encode()).hexdigest(),
        arch=victim.clip.arch,
        pretrained=victim.clip.pretrained,
        fingerprint=victim.clip.fingerprint,
        prompt_set=victim.prompt_set,
        templates=victim.prompts.templates,
        labels=victim.labels,
        defense=parts,
        randomized=any(part.randomized for part in parts),
        encoder=victim.serving.backend,
    )
