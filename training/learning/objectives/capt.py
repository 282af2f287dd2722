"""CAPT: Consistency-guided Adversarial Prompt Tuning (Yang et al. 2024, arXiv 2405.11154), as far as it is
known: CAPT-style, not a reproduction.

Known: deep, coupled vectors in both towers; clean cross-entropy; attacked predictions are tied to the tuned
model's own clean ones and to the frozen CLIP's, balanced by an adaptive alpha. Unknown to us, and therefore
switches with defaults of our own: the rule for alpha, the coefficient, the order of the
divergence, stop-gradients, template and weights of the frozen CLIP, vectors, depth, coupling, attack,
optimizer. No code was published that we know of.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from prompts_store.handcrafted import ENSEMBLE
from robustclip.models import HANDCRAFTED_TEMPLATE, Clip, Prompts, load_clip, zero_shot
from robustclip.types import Cost, Logits, Progress
from training.data.labelled import LabelledImages
from training.learning.losses import DivergenceName, InnerScore, Reference, family, target_probability
from training.learning.objectives.base import Batch, Examples, Step, Task
from training.learning.objectives.both_towers import BothTowers
from training.learning.objectives.contexts import Coupling, Parameters
from training.learning.objectives.predictions import label_features, share_right, signs
from training.processes import ALONE, Processes

FROZEN = "frozen"
ALPHA_RANGE = (0.05, 0.95)
KEPT_SHARE = 0.9  # of the loss-ratio rule's average, a step


class CAPT(BothTowers):
    """L = CE(p(x), y) + c [(1 - alpha) D(p(x), p(x_a)) + alpha D(p_frozen(x), p(x_a))]."""

    kind: Literal["capt"] = "capt"
    inner: InnerScore = Field(
        "cross_entropy",
        description="what the training attack raises: cross_entropy, or kl of attacked from clean "
        "predictions",
    )
    consistency: float = Field(
        1.5, ge=0, description="weight of the divergence of attacked predictions from their references"
    )
    coupling: Coupling = Field(
        "image_to_text",
        description="what follows what while learning: none, image_to_text, text_to_image or hybrid",
    )
    order: DivergenceName = Field(
        "forward",
        description="forward KL(reference, attacked), reverse (as the paper prints it), or jensen_shannon",
    )
    detach_reference: bool = Field(
        True, description="stop the gradient through the tuned model's clean predictions in the divergence"
    )
    detach_alpha: bool = Field(True, description="stop the gradient through alpha")
    alpha_rule: Literal["reliability", "loss_ratio", "cosine", "constant"] = Field(
        "reliability",
        description="reliability: by picture, whoever is right; loss_ratio: by batch; cosine: 0.95 down to "
        "alpha; constant: alpha",
    )
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the frozen CLIP: of the rule constant, or where the rule cosine ends",
    )
    frozen_backbone: str = Field(
        "", description="the CLIP that anchors, by name; none: the tuned one without its prompts"
    )
    frozen_pretrained: str = Field("", description="weights of frozen_backbone, if it is not an embedded one")
    frozen_text: Literal["template", "ensemble"] = Field(
        "template", description="the frozen CLIP's words: frozen_template, or seven templates"
    )
    frozen_template: str = Field(
        HANDCRAFTED_TEMPLATE, description="the frozen CLIP's template, one {} for the label"
    )

    def new_parameters(self, clip: Clip, labels: tuple[str, ...], seed: int) -> Parameters:
        return self.contexts(clip, labels, seed, coupling=self.coupling)

    def prepare(
        self,
        clip: Clip,
        data: LabelledImages,
        indices: Tensor,
        *,
        seed: int,
        folder: Path,
        progress: Progress,
        processes: Processes = ALONE,
    ) -> Examples:
        """The pictures, and the frozen CLIP's logits on each: without augmentation they never change."""
        examples = super().prepare(
            clip, data, indices, seed=seed, folder=folder, progress=progress, processes=processes
        )
        frozen = (
            load_clip(self.frozen_backbone, self.frozen_pretrained or None, device=clip.device)
            if self.frozen_backbone
            else clip
        )
        templates = ENSEMBLE if self.frozen_text == "ensemble" else (self.frozen_template,)
        classifier = zero_shot(frozen, Prompts(templates=templates), data.labels, scoring="softmax")
        parts: list[Logits] = []
        for rows in torch.arange(len(indices)).split(64 * processes.count):
            own = processes.own(rows)
            pixels = (
                examples.take(own)
                if frozen.preprocessing == clip.preprocessing
                else data.pixels(indices[own], frozen.preprocessing).to(frozen.device)
            )
            with torch.no_grad():
                parts.append(processes.whole(classifier(pixels, own), len(rows)))
            progress(int(rows[-1]) + 1, len(indices), "frozen CLIP")
        return replace(
            examples, cost=Cost(len(indices)), constants={**examples.constants, FROZEN: torch.cat(parts)}
        )

    def new_memory(self, examples: Examples, parameters: Parameters) -> dict[str, Tensor]:
        """Beside warm starts `ratio`, the loss-ratio rule's running average; NaN before the first step."""
        own = (
            {"ratio": torch.full((), torch.nan, device=examples.targets.device)}
            if self.alpha_rule == "loss_ratio"
            else {}
        )
        return super().new_memory(examples, parameters) | own

    def score(self) -> InnerScore:
        return self.inner

    def bill(self, pictures: int) -> Cost:
        return super().bill(pictures).plus(Cost(forward=pictures))

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        prompts = self.fold(task.clip, parameters)
        weights = label_features(task, prompts)
        clean, attacked, cost = self.look_twice(task, batch, weights, prompts)
        frozen = task.examples.constants[FROZEN][batch.rows.to(weights.device)]
        alpha = self.balance(task, batch, clean.logits, frozen)
        own = clean.logits.detach() if self.detach_reference else clean.logits
        terms = family(
            batch.targets,
            clean=clean.logits,
            attacked=attacked.logits,
            references=[Reference(own, 1 - alpha), Reference(frozen, alpha)],
            a=1.0,
            c=self.ramped(batch) * self.consistency,
            kind=self.order,
        )
        low, high = alpha.detach().quantile(torch.tensor([0.1, 0.9], device=alpha.device)).tolist()
        return Step(
            terms | self.anchored(task, weights),
            share_right(clean.logits, batch.targets),
            share_right(attacked.logits, batch.targets),
            signs(clean.logits, attacked.logits, batch.targets),
            cost,
            notes={"alpha": float(alpha.detach().mean()), "alpha_10th": low, "alpha_90th": high},
        )

    def balance(self, task: Task, batch: Batch, clean: Logits, frozen: Logits) -> Tensor:
        """[B] alpha, the frozen CLIP's share; every rule but `constant` stays within [0.05, 0.95].

        On training pictures that the prompts have memorized p(y|x) goes to 1: reliability and loss_ratio then
        trust the frozen CLIP less, although it is needed most.
        """
        if self.alpha_rule == "reliability":
            theirs, ours = target_probability(frozen, batch.targets), target_probability(clean, batch.targets)
            alpha = theirs / (theirs + ours).clamp_min(torch.finfo(ours.dtype).tiny)
        elif self.alpha_rule == "loss_ratio":
            ours, theirs = F.cross_entropy(clean, batch.targets), F.cross_entropy(frozen, batch.targets)
            ratio = ours / (ours + theirs).clamp_min(torch.finfo(ours.dtype).tiny)
            before = task.memory["ratio"].clone()
            mixed = ratio if bool(before.isnan()) else KEPT_SHARE * before + (1 - KEPT_SHARE) * ratio
            task.memory["ratio"].copy_(mixed.detach())
            alpha = mixed.expand(len(clean))
        elif self.alpha_rule == "cosine":
            share = (1 + math.cos(math.pi * batch.epoch / self.epochs)) / 2
            alpha = torch.full_like(clean[:, 0], self.alpha + (ALPHA_RANGE[1] - self.alpha) * share)
        else:
            return torch.full_like(clean[:, 0], self.alpha)
        alpha = alpha.clamp(*ALPHA_RANGE)
        return alpha.detach() if self.detach_alpha else alpha
