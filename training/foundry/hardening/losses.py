"""The losses that harden an image tower: TeCoA, FARE, PMG-AFT and `distilled` as values of one model.

Text features and the original tower are constants; only the tuned tower learns. Everything is float32.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.types import Features, Logits
from training.learning.losses import Reference, family

Weight: TypeAlias = Annotated[float, Field(ge=0)]


class LossWeights(BaseModel):
    """Coefficients of the terms. x: a picture; x_a: attacked; p, p_o: the tuned and the original tower's
    softmax; e: raw embeddings.

    label, clean_label      CE(p(x_a), y), CE(p(x), y) among the names of the picture's data set
    teacher, clean_teacher  CE of p_o(x) over ImageNet's names, at x_a and at x
    to_original             KL(p_o(x_a), p(x_a)), among the same names
    to_clean                KL(p(x), p(x_a)); the gradient reaches p(x) too unless `detach_clean`
    shift                   |e(x_a) - e_o(x)|^2
    direction               the same of unit embeddings
    summed_kl               KL terms are sums over the batch, not means
    smoothing               share of a label's weight that is spread over the names of its data set
    inner                   what the attack raises: the label's cross-entropy or the shift
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    label: Weight = 0.0
    clean_label: Weight = 0.0
    teacher: Weight = 0.0
    clean_teacher: Weight = 0.0
    to_original: Weight = 0.0
    to_clean: Weight = 0.0
    shift: Weight = 0.0
    direction: Weight = 0.0
    summed_kl: bool = False
    detach_clean: bool = False
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    inner: Literal["label", "shift"] = "label"

    @property
    def needs_original(self) -> bool:
        """Whether the loss or the attack compares with the original tower at clean pictures."""
        return any((self.teacher, self.clean_teacher, self.shift, self.direction))


TECOA = LossWeights(label=1)  # Mao et al. 2023, arXiv 2212.07016
FARE = LossWeights(shift=1, inner="shift")  # Schlarmann et al. 2024, arXiv 2402.12336
# Wang et al. 2024, arXiv 2401.04350; sums and no detach, as in its code
PMG_AFT = LossWeights(label=1, to_original=1, to_clean=1, summed_kl=True)
# ours: attacked pictures have their labels and the original tower's answers and features
DISTILLED = LossWeights(label=0.5, teacher=0.5, direction=0.5, smoothing=0.05)
PRESETS = {"tecoa": TECOA, "fare": FARE, "pmg-aft": PMG_AFT, "distilled": DISTILLED}


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of B pictures.

    name [B]: the index of the right name; members [B, names] bool: the names of its data set; opinion [B, T]:
    the original tower's distribution over the first T names, which are ImageNet's.
    """

    name: Tensor
    members: Tensor
    opinion: Tensor | None = None

    def select(self, rows: Tensor) -> "Targets":
        return Targets(
            self.name[rows], self.members[rows], None if self.opinion is None else self.opinion[rows]
        )

    def smoothed(self, share: float) -> Tensor:
        """[B] names, or [B, names] distributions that give `share` to all names of the data set alike."""
        if not share:
            return self.name
        right = F.one_hot(self.name, self.members.shape[1]).float()
        return (1 - share) * right + share * self.members / self.members.sum(dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class TextHead:
    """Raw embeddings to float32 logits of all names; `weights` [names, E] are constant unit rows."""

    weights: Features
    logit_scale: Tensor

    def __call__(self, embeddings: Tensor) -> Logits:
        return self.logit_scale * F.normalize(embeddings.float(), dim=-1) @ self.weights.T


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Raw embeddings [B, E] by the tuned tower and by the original; None where the preset does not need them.

    `clean` may be of other pictures than `attacked`, unless the preset compares them (`to_clean`).
    """

    attacked: Tensor
    clean: Tensor | None = None
    original_attacked: Tensor | None = None
    original_clean: Tensor | None = None


def losses(
    preset: LossWeights,
    seen: Embeddings,
    head: TextHead,
    targets: Targets,
    *,
    clean_targets: Targets,
    batch: int,
) -> dict[str, Tensor]:
    """The weighted terms of a preset, [] each, by name; their sum is the loss.

    `targets` belong to the attacked pictures, `clean_targets` to the clean ones. Means over the rows given.
    `batch` is the size of the whole step's batch, which a summed KL term is multiplied by: averaged over the
    parts of a step it is then the sum over the step.
    """
    attacked, clean = head(seen.attacked), None if seen.clean is None else head(seen.clean)
    references: list[Reference] = []
    if preset.to_original and seen.original_attacked is not None:
        references.append(Reference(among(head(seen.original_attacked), targets.members), preset.to_original))
    if preset.to_clean and clean is not None:
        references.append(
            Reference(
                among(clean.detach() if preset.detach_clean else clean, targets.members), preset.to_clean
            )
        )
    pull = float(batch if preset.summed_kl else 1) if references else 0.0
    terms = family(
        targets.smoothed(preset.smoothing),
        attacked=among(attacked, targets.members),
        references=references,
        b=preset.label,
        c=pull,
    )
    if clean is not None:
        terms |= family(
            clean_targets.smoothed(preset.smoothing),
            clean=among(clean, clean_targets.members),
            a=preset.clean_label,
        )
    if preset.teacher and targets.opinion is not None:
        terms["teacher"] = preset.teacher * teacher_loss(attacked, targets.opinion)
    if preset.clean_teacher and clean is not None and clean_targets.opinion is not None:
        terms["clean_teacher"] = preset.clean_teacher * teacher_loss(clean, clean_targets.opinion)
    if preset.shift and seen.original_clean is not None:
        terms["shift"] = preset.shift * squared_shift(seen.attacked, seen.original_clean).mean()
    if preset.direction and seen.original_clean is not None:
        moved, fixed = F.normalize(seen.attacked, dim=-1), F.normalize(seen.original_clean, dim=-1)
        terms["direction"] = preset.direction * squared_shift(moved, fixed).mean()
    return terms


def among(logits: Logits, members: Tensor) -> Logits:
    """Logits with those of all but the `members` so low that their probability is exactly 0.

    An infinity instead would make gradients NaN.
    """
    return logits.masked_fill(~members, -1e4)


def label_loss(logits: Logits, targets: Targets) -> Tensor:
    """[B] cross-entropy of the right name among the names of the picture's data set."""
    return F.cross_entropy(among(logits, targets.members), targets.name, reduction="none")


def teacher_loss(logits: Logits, opinion: Tensor) -> Tensor:
    """[] cross-entropy of a distribution over the first names."""
    return F.cross_entropy(logits[:, : opinion.shape[1]], opinion.float())


def squared_shift(moved: Tensor, fixed: Tensor) -> Tensor:
    """[B] squared Euclidean distance of raw embeddings."""
    return (moved - fixed).square().sum(dim=1)
