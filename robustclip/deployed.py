"""The deployed decision as one value: a CLIP under a prompt set over labels, behind a defense.

What is classified, probed, certified and replayed is made by `deploy`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from robustclip.certificates.vote import Ballot, count_votes, draw, elect, smoothing_of, vote_seeds
from robustclip.defenses import AnyDefense, Link, bind_chain, parse_defenses
from robustclip.errors import InvalidInput
from robustclip.images import load_pixels
from robustclip.models.classifier import (
    Defended,
    LabelCache,
    TorchImageEncoder,
    ZeroShotClassifier,
    classifier_of,
    zero_shot,
)
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts, PromptSource, prompts_for
from robustclip.models.scoring import NONE, Scoring, outcomes, scoring_for
from robustclip.reports.charts import Bar, bars
from robustclip.seeds import draw_seeds
from robustclip.types import ImageEncoder, Pixels

Picture: TypeAlias = Image.Image | bytes | str | Path | Tensor

UNNAMED = "unnamed"


class Classification(NamedTuple):
    """Labels with their scores, best first.

    Under `softmax` the scores sum to 1, under `sigmoid` each label has its own. Of a vote they are shares,
    and `ballot` is the vote. No label is the answer where that abstains, and where `none_of_these` is true.
    """

    predictions: tuple[tuple[str, float], ...]
    ballot: Ballot | None = None
    scoring: Scoring = "softmax"
    none_of_these: bool = False

    @property
    def label(self) -> str | None:
        """The answer, which may be `robustclip.models.scoring.NONE`; None where a vote abstains."""
        if self.ballot is not None and self.ballot.abstained:
            return None
        return NONE if self.none_of_these else self.predictions[0][0]

    def __str__(self) -> str:
        instead = "abstains: " if self.label is None else f"{NONE}: " if self.none_of_these else ""
        return instead + ", ".join(f"{label} {score:.1%}" for label, score in self.predictions)

    def _repr_html_(self) -> str:
        title = "The vote abstains" if self.label is None else self.label
        return bars(title, [Bar(label, score, f"{score:.1%}") for label, score in self.predictions])


@dataclass(frozen=True, eq=False)
class DeployedClassifier:
    """Made by `deploy`; call it on a picture.

    prompts     in the order of `labels`
    prompt_set  their name in reports
    defense     the chain as data; `served` and `reference` have it bound
    serving     the encoder that answers
    scoring     how logits become scores, and whether the answer may be none of the labels
    text        makes the text features of the labels, [C, E]; called once, when they are first needed
    """

    clip: Clip
    prompts: Prompts
    prompt_set: str
    labels: tuple[str, ...]
    defense: tuple[AnyDefense, ...]
    serving: ImageEncoder
    scoring: Scoring
    text: Callable[[], Tensor]

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What the decision may say: the labels, under `sigmoid` also that none of them fits."""
        return outcomes(self.labels, self.scoring)

    @cached_property
    def weights(self) -> Tensor:
        """[C, E] unit text features."""
        return self.text()

    @cached_property
    def reference(self) -> Defended:
        """The chain in float32 torch, differentiable in pixels. Binding the defense may take passes."""
        return self._behind_defense(TorchImageEncoder(self.clip))

    @cached_property
    def served(self) -> Defended:
        """The chain with the encoder that answers. Binding the defense may take passes."""
        if isinstance(self.serving, TorchImageEncoder):
            return self.reference
        return self._behind_defense(self.serving)

    def classifier(self, encoder: ImageEncoder) -> ZeroShotClassifier:
        """The undefended classifier over one of the encoders."""
        return classifier_of(
            self.clip, self.labels, self.weights, self.scoring, encoder=encoder, visual=self.prompts.visual
        )

    def pixels(self, picture: Picture) -> Pixels:
        """[3, S, S] of a PIL picture, the bytes of a file, a path, or pixels of that shape in [0, 1]."""
        size = self.clip.image_size
        if not isinstance(picture, Tensor):
            return load_pixels(picture, self.clip.preprocessing).to(self.clip.device)
        if picture.shape not in ((3, size, size), (1, 3, size, size)):
            raise InvalidInput(
                f"expected one picture [3, {size}, {size}], found {list(picture.shape)}.", field="picture"
            )
        return picture.reshape(3, size, size).to(self.clip.device, torch.float32)

    def __call__(self, picture: Picture, *, seed: int = 0) -> Classification:
        """The answer that is served; `seed` decides the draws of a randomized defense."""
        rule, served, pixels = smoothing_of(self.defense), self.served, self.pixels(picture)
        with torch.inference_mode():
            logits = draw(served, pixels, vote_seeds(int(draw_seeds(seed, 1)), rule))
            counts = count_votes(logits)
        ranks, scores = (
            (logits[0], served.classifier.scores(logits[0]))
            if rule is None
            else (counts, counts / rule.votes)
        )
        order: list[int] = ranks.argsort(descending=True, stable=True).tolist()  # where scores may be equal
        last = len(self.labels)  # the outcome that no label fits, if there is one
        return Classification(
            tuple((self.labels[index], float(scores[index])) for index in order if index < last),
            None if rule is None else elect(counts, self.outcomes, rule),
            self.scoring,
            order[0] == last,
        )

    def _behind_defense(self, encoder: ImageEncoder) -> Defended:
        return Defended(self.classifier(encoder), bind_chain(self.defense, encoder))


def deploy(
    clip: Clip,
    prompts: Prompts | PromptSource,
    labels: Sequence[str],
    *,
    defense: str | Sequence[Link] = "none",
    encoder: ImageEncoder | None = None,
    name: str | None = None,
    cache: LabelCache | None = None,
    text: Callable[[], Tensor] | None = None,
    scoring: Scoring | None = None,
) -> DeployedClassifier:
    """The decision between `labels` that a prompt set and a defense make.

    prompts  `Prompts`, or a prompt set, whose contexts find their labels by name
    defense  as `parse_defenses` reads it, such as "jpeg:75,bit_depth:4"
    encoder  the one that serves; torch unless given
    name     of the prompt set in reports; its own unless given
    text     gives the text features [C, E] when they are first needed, and checks the labels then
    scoring  `softmax` over the labels, or `sigmoid` for each, which may answer that none fits; by default
             what the CLIP was trained with

    Without `text` the features are made here, or found in `cache`. Raises InvalidInput as `zero_shot` and
    `parse_defenses`, and for a label for which a class-specific set has no context.
    """
    labels, chain, scoring = tuple(labels), parse_defenses(defense), scoring_for(clip, scoring)
    own_name = UNNAMED if isinstance(prompts, Prompts) else str(prompts.ref)
    ordered = prompts_for(prompts, labels).to(clip.device)
    text = text or _constant(zero_shot(clip, ordered, labels, cache=cache, scoring=scoring).weights)
    return DeployedClassifier(
        clip, ordered, name or own_name, labels, chain, encoder or TorchImageEncoder(clip), scoring, text
    )


def _constant(weights: Tensor) -> Callable[[], Tensor]:
    return lambda: weights
