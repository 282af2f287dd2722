"""The family of losses that harden an image tower, and the attack inside it (TeCoA, FARE, PMG-AFT and ours as values of one model).

Text features are constants here, the original tower is a constant, only the tuned tower learns. Everything is computed a row and in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.threat import Linf
from robustclip.types import Features, Logits, Pixels

Weight: TypeAlias = Annotated[float, Field(ge=0)]


class Preset(BaseModel):
    """Coefficients of the terms; x is a picture, x_a its attacked form, p the tuned tower's answer, p_o the original's, e raw embeddings.

    label, clean_label      CE(p(x_a), y), CE(p(x), y) among the names of the picture's own data set
    teacher, clean_teacher  CE of a picture teacher's ImageNet distribution, at x_a and at x
    to_original             KL(p_o(x_a), p(x_a))
    to_clean                KL(p(x), p(x_a)); the gradient reaches p(x) too unless `detach_clean`
    shift                   |e(x_a) - e_o(x)|^2
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
    summed_kl: bool = False
    detach_clean: bool = False
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    inner: Literal["label", "shift"] = "label"

    @property
    def needs_teacher(self) -> bool:
        return self.teacher > 0 or self.clean_teacher > 0


TECOA = Preset(label=1)  # Mao et al. 2023, arXiv 2212.07016
FARE = Preset(shift=1, inner="shift")  # Schlarmann et al. 2024, arXiv 2402.12336
PMG_AFT = Preset(label=1, to_original=1, to_clean=1, summed_kl=True)  # Wang et al. 2024, arXiv 2401.04350; sums and no detach as its code
DISTILLED = Preset(label=0.5, teacher=0.5, clean_label=0.15, clean_teacher=0.15, smoothing=0.05)  # ours: pretraining's loss on attacked pictures
PRESETS = {"tecoa": TECOA, "fare": FARE, "pmg-aft": PMG_AFT, "distilled": DISTILLED}


@dataclass(frozen=True, eq=False)
class Targets:
    """What is known about B pictures.

    name [B] the right one of all names; own [B, names] bool, the names of its data set; opinion [B, 1000] the teacher's distribution over the first
    thousand names, which are ImageNet's.
    """

    name: Tensor
    own: Tensor
    opinion: Tensor | None = None

    def select(self, rows: Tensor) -> "Targets":
        return Targets(self.name[rows], self.own[rows], None if self.opinion is None else self.opinion[rows])


@dataclass(frozen=True, eq=False)
class Judge:
    """From raw embeddings to float32 logits of all names: constant `weights` [names, E], unit rows, and the model's temperature."""

    weights: Features
    logit_scale: Tensor

    def __call__(self, embeddings: Tensor) -> Logits:
        return self.logit_scale * F.normalize(embeddings.float(), dim=-1) @ self.weights.T


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Raw embeddings [B, E] by the tuned tower (attacked, clean) and by the original; None where the preset does not need them.

    `clean` may be of other pictures than `attacked`, unless the preset compares them (`to_clean`).
    """

    attacked: Tensor
    clean: Tensor | None = None
    original_attacked: Tensor | None = None
    original_clean: Tensor | None = None


def losses(preset: Preset, seen: Embeddings, judge: Judge, targets: Targets, *, clean_targets: Targets, batch: int) -> dict[str, Tensor]:
    """The weighted terms of a preset, [] each, by name; their sum is the loss.

    `targets` belong to the attacked pictures, `clean_targets` to the clean ones. Means over the rows given. `batch` is the size of the whole step's
    batch, which a summed KL term is multiplied by: averaged over the parts of a step it is then the sum over the step.
    """
    attacked = judge(seen.attacked)
    clean = None if seen.clean is None else judge(seen.clean)
    terms: dict[str, Tensor] = {}
    for prefix, logits, about, label, teacher in (
        ("", attacked, targets, preset.label, preset.teacher),
        ("clean_", clean, clean_targets, preset.clean_label, preset.clean_teacher),
    ):
        if label and logits is not None:
            terms[f"{prefix}label"] = label * label_loss(logits, about, preset.smoothing).mean()
        if teacher and logits is not None and about.opinion is not None:
            terms[f"{prefix}teacher"] = teacher * teacher_loss(logits, about.opinion).mean()
    many = batch if preset.summed_kl else 1
    if preset.to_original and seen.original_attacked is not None:
        terms["to_original"] = preset.to_original * many * divergence(judge(seen.original_attacked), attacked, targets.own).mean()
    if preset.to_clean and clean is not None:
        reference = clean.detach() if preset.detach_clean else clean
        terms["to_clean"] = preset.to_clean * many * divergence(reference, attacked, targets.own).mean()
    if preset.shift and seen.original_clean is not None:
        terms["shift"] = preset.shift * squared_shift(seen.attacked, seen.original_clean).mean()
    return terms


def label_loss(logits: Logits, targets: Targets, smoothing: float = 0.0) -> Tensor:
    """[B] cross-entropy of the right name among the names of the picture's own data set."""
    log_p = _log_softmax(logits, targets.own)
    sharp = -log_p.gather(1, targets.name[:, None])[:, 0]
    return sharp if not smoothing else (1 - smoothing) * sharp - smoothing * log_p.sum(dim=1) / targets.own.sum(dim=1)


def teacher_loss(logits: Logits, opinion: Tensor) -> Tensor:
    """[B] cross-entropy of the teacher's distribution over ImageNet's names."""
    return -(opinion.float() * logits[:, : opinion.shape[1]].log_softmax(dim=1)).sum(dim=1)


def divergence(reference: Logits, prediction: Logits, own: Tensor) -> Tensor:
    """[B] KL(reference, prediction) among the names of the picture's own data set."""
    log_reference, log_prediction = _log_softmax(reference, own), _log_softmax(prediction, own)
    return (log_reference.exp() * own * (log_reference - log_prediction)).sum(dim=1)


def squared_shift(moved: Tensor, fixed: Tensor) -> Tensor:
    """[B] squared Euclidean distance of raw embeddings."""
    return (moved.float() - fixed.float()).square().sum(dim=1)


def climb(value: Callable[[Pixels], Tensor], pixels: Pixels, noise: Tensor, ball: Linf, *, steps: int, step: float) -> Pixels:
    """Raise `value` [B] by `steps` signed gradient steps from a random start; `noise` in [-1, 1] like the pixels.

    Not `attacks.pgd.PGD`: that one keeps the best point, for which it pays one more forward pass, a third of a step's attack at two steps.
    """
    current = ball.project(pixels + ball.radius * noise, pixels)
    for _ in range(steps):
        inputs = current.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(value(inputs).sum(), inputs)
        current = ball.project(ball.ascend(inputs.detach(), gradient, step), pixels)
    return current.detach()


def _log_softmax(logits: Logits, own: Tensor) -> Tensor:
    """[B, names] log-probabilities among each row's own names, 0 elsewhere (where an infinity would make gradients NaN)."""
    return logits.masked_fill(~own, -torch.inf).log_softmax(dim=1).masked_fill(~own, 0.0)
