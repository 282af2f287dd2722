"""The question of `robustclip certified` and its subjects: prompt sets under smoothed rules on labelled
pictures.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field
from torch import Tensor

from robustclip.certificates.certify import CertifyOptions, noisy_classifier
from robustclip.certificates.noise_cache import NoiseKey
from robustclip.defenses import AnyDefense, parse_defenses
from robustclip.defenses.smoothing import Smoothing
from robustclip.errors import InvalidInput, PurifierRefused
from robustclip.models import Clip, Defended, TorchImageEncoder, ZeroShotClassifier, load_clip, zero_shot
from robustclip.threat import L2Radius
from training.data.labelled import LabelledImages
from training.data.sampling import balanced_subset
from training.data.sources import Source
from training.measuring.certified.attack import Assault
from training.measuring.evaluation.question import NO_DEFENSE, SUBSET_SEED, AskedSet, load_prompts, of_seed


class CertifiedQuestion(BaseModel, frozen=True, extra="forbid"):
    """What is to be certified: every prompt set under every rule. Prompt sets share each rule's alpha, since
    they share its noise.

    defense  behind the noise
    radii    L2, at which certified accuracy is given
    direct   of so many pictures the votes are counted again without the kept embeddings
    """

    backbone: str
    pretrained: str | None = None
    prompt_sets: tuple[str, ...] = Field(min_length=1)
    data: Source
    rules: tuple[CertifyOptions, ...] = Field(min_length=1)
    defense: str = NO_DEFENSE
    radii: tuple[L2Radius, ...]
    assault: Assault | None = None
    direct: int = Field(0, ge=0)
    limit: int = Field(0, ge=0)
    store: Path
    runs: Path
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class SmoothedSubject:
    """A prompt set under a smoothed rule on some pictures. `asked`: the classifiers of all prompt sets;
    `options.alpha` is this one's share.
    """

    question: CertifiedQuestion
    clip: Clip
    data: LabelledImages
    indices: tuple[int, ...]
    found: AskedSet
    chain: tuple[AnyDefense, ...]
    options: CertifyOptions
    classifier: ZeroShotClassifier
    vote: Defended
    asked: tuple[ZeroShotClassifier, ...]

    def pixels(self, index: int) -> Tensor:
        """[3, S, S]."""
        return self.data.pixels([index], self.clip.image_size)[0].to(self.clip.device)

    def key(self, pixels: Tensor) -> NoiseKey:
        return NoiseKey.of(self.clip, self.classifier, pixels, self.options, self.chain)

    @property
    def rule(self) -> Smoothing:
        return Smoothing(sigma=self.options.sigma, alpha=self.options.alpha, denoise=self.options.denoise)

    @property
    def words(self) -> str:
        return f"{self.found.name} sigma {self.options.sigma:g}"


def open_smoothed(question: CertifiedQuestion) -> list[SmoothedSubject]:
    """Everything that is to be certified, opened. Raises InvalidInput and its siblings for whatever can't be,
    before anything is computed.
    """
    chain = parse_defenses(question.defense, field="--defense")
    data = question.data.open()
    clip = load_clip(question.backbone, question.pretrained, device=question.device)
    indices = tuple(balanced_subset(data, question.limit, SUBSET_SEED).tolist())
    names = [of_seed(asked, question.data, question.rules[0].seed) for asked in question.prompt_sets]
    found = [load_prompts(name, clip, data.labels, question.store) for name in names]
    encoder = TorchImageEncoder(clip)
    asked = tuple(zero_shot(clip, each.prompts, data.labels, encoder=encoder) for each in found)
    subjects: list[SmoothedSubject] = []
    for options, (each, classifier) in itertools.product(question.rules, zip(found, asked, strict=True)):
        own = options.model_copy(update={"alpha": options.alpha / len(asked)})
        try:
            vote = noisy_classifier(classifier, own.sigma, chain, denoise=own.denoise)
        except (PurifierRefused, InvalidInput) as error:
            error.field = "--denoise" if error.field == "defense/0/denoise" else "--defense"
            raise
        subjects.append(
            SmoothedSubject(question, clip, data, indices, each, chain, own, classifier, vote, asked)
        )
    return subjects
