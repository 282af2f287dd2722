"""AdvPT extended: ours, no published method.

The bank's attacks know prompts and labels and are repeated with the current prompts; the harder of the old
and the new embedding stays; the clean embedding takes part; attacked predictions follow clean ones, weighted
by how reliable these are.

Left out: an adversary inside the span of the embeddings; refreshes that begin at the last perturbation (one a
score and picture would have to be kept; each attack starts anew); several short contexts.
"""

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks import PGD
from robustclip.models import Clip, Prompts, zero_shot
from robustclip.threat import LinfRadius
from robustclip.types import Cost, Logits, Progress, Seeds
from training.commands import separated
from training.data.labelled import LabelledImages
from training.learning.losses import Reference, family, misalignment, reliability
from training.learning.objectives.base import Batch, Examples, Step, Task, Tended
from training.learning.objectives.contexts import Parameters
from training.learning.objectives.predictions import (
    handcrafted_features,
    label_features,
    picture_examples,
    share_right,
    signs,
)
from training.learning.objectives.text import TextContext
from training.processes import ALONE, Processes
from training.threats.bank import AwareAttack, BankScore, BankStart, aware_bank, feature_attack

BANK, HAND = "bank", "hand"
CHUNK = 64


class AdvPTPlus(TextContext):
    """L = a CE(clean) + b CE(attacked) + c mean_i[w_i KL(p(x_i), p(x_a,i))] over a bank that keeps up with
    the prompts.
    """

    kind: Literal["advpt_plus"] = "advpt_plus"
    eps: LinfRadius = Field(8 / 255, description="radius of the bank's attacks, in pixel units or like 8/255")
    steps: int = Field(10, ge=1, le=1000, description="steps of each of the bank's attacks")
    step: LinfRadius | None = Field(None, gt=0, description="length of a step; none: 1.25 eps / steps")
    start: BankStart = Field(
        "symmetric", description="where attacks start: in [0, eps] (AdvPT's code) or [-eps, eps]"
    )
    bank_scores: Annotated[
        tuple[BankScore, ...], Field(min_length=1, max_length=8), BeforeValidator(separated)
    ] = Field(
        ("embedding_shift", "cross_entropy", "margin", "targeted"),
        description="what they raise, an embedding a picture each, separated by commas",
    )
    refresh: int = Field(
        10, ge=0, description="epochs after which the bank is attacked again at the current prompts; 0: never"
    )
    clean: float = Field(0.5, ge=0, description="weight of the cross-entropy of clean embeddings")
    attacked: float = Field(1.0, ge=0, description="weight of the cross-entropy of attacked embeddings")
    consistency: float = Field(
        1.0, ge=0, description="weight of the divergence of attacked from clean predictions"
    )
    over: Literal["mean", "hardest"] = Field(
        "mean", description="of a picture's attacked embeddings: all, or the one of highest loss"
    )
    weighting: Literal["reliability", "uniform"] = Field(
        "reliability", description="weight of a picture's divergence: how right it is when clean, or 1"
    )
    anchor: float = Field(
        0.0, ge=0, description="weight of 1 - cos between text features and those of the handcrafted ensemble"
    )

    def attack(self) -> AwareAttack:
        return AwareAttack(self.bank_scores, self._pgd())

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
        """The first bank is attacked through the handcrafted prompt, since nothing is learned yet."""
        bank = aware_bank(
            clip,
            data,
            indices,
            self.attack(),
            Prompts(),
            seed=seed,
            folder=folder,
            progress=progress,
            processes=processes,
        )
        rows = bank.rows.to(clip.device)
        constants = {HAND: handcrafted_features(clip, data.labels)} if self.anchor else {}
        pictures = picture_examples(clip, data, indices, constants={}, progress=progress, processes=processes)

        def take(chosen: Tensor) -> Tensor:
            return rows[chosen.to(rows.device)]

        return Examples(pictures.targets, take, bank.cost, bank.seconds, pictures.pixels, constants)

    def new_memory(self, examples: Examples, parameters: Parameters) -> dict[str, Tensor]:
        """`bank` [n, K + 1, E], which refreshes change."""
        return {BANK: examples.take(torch.arange(len(examples))).clone()}

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        weights = label_features(task, self.fold(task.clip, parameters))
        logits = self._logits(task, task.memory[BANK][batch.rows.to(weights.device)], weights)
        attacked, clean = logits[:, :-1], logits[:, -1]
        if self.over == "hardest":
            hardest = _losses(attacked.detach(), batch.targets).argmax(dim=1)
            attacked = attacked[torch.arange(len(attacked)), hardest][:, None]
        copies = attacked.shape[1]
        targets = batch.targets.repeat_interleave(copies)
        reference = clean.detach().repeat_interleave(copies, dim=0)
        flat = attacked.flatten(0, 1)
        trust = None
        if self.weighting == "reliability":
            trust = reliability(clean, batch.targets).repeat_interleave(copies)
        terms = family(batch.targets, clean=clean, a=self.clean)
        terms |= family(
            targets,
            attacked=flat,
            references=[Reference(reference)],
            b=self.attacked,
            c=self.consistency,
            weights=trust,
        )
        if self.anchor:
            terms["anchor"] = self.anchor * misalignment(weights, task.examples.constants[HAND])
        return Step(
            terms,
            share_right(clean, batch.targets),
            share_right(flat, targets),
            signs(reference, flat, targets),
        )

    def tend(self, task: Task, parameters: Parameters, *, epoch: int, seeds: Seeds) -> Tended:
        """Attack the pictures again and keep, for each picture and score, the embedding of higher loss."""
        if not self.refresh or epoch % self.refresh or task.examples.pixels is None:
            return Tended()
        with torch.no_grad():
            classifier = zero_shot(
                task.clip, self.fold(task.clip, parameters).detached(), task.labels, scoring="softmax"
            )
        renewed, processes = 0.0, task.processes
        for chosen in torch.arange(len(task.examples)).split(CHUNK * processes.count):
            rows, own = chosen.to(classifier.weights.device), processes.own(chosen)
            targets = task.examples.targets[rows]
            share, _ = self.attack().embeddings(
                task.clip, classifier, task.examples.pixels(own), processes.own(targets), seeds[own]
            )
            embeddings, before = processes.whole(share, len(rows)), task.memory[BANK][rows]
            with torch.no_grad():
                old, new = (
                    _losses(self._logits(task, bank, classifier.weights), targets)
                    for bank in (before, embeddings)
                )
            harder = (new > old)[:, :, None]
            task.memory[BANK][rows] = torch.where(harder, embeddings, before)
            renewed += float(harder[:, :-1].float().mean()) * len(rows)
        return Tended(
            self.attack().cost().times(len(task.examples)), 1, {"bank_renewed": renewed / len(task.examples)}
        )

    def bill(self, pictures: int) -> Cost:
        fillings = 1 + ((self.epochs - 1) // self.refresh if self.refresh else 0)
        return self.attack().cost().times(pictures * fillings)

    def attack_facts(self) -> dict[str, object] | None:
        return {"score": ",".join(self.bank_scores), **self._pgd().model_dump(mode="json")}

    def _pgd(self) -> PGD:
        return feature_attack(self.eps, steps=self.steps, step=self.step, start=self.start)

    def _logits(self, task: Task, bank: Tensor, weights: Tensor) -> Logits:
        """[B, M, C] of raw embeddings [B, M, E]."""
        return task.clip.logit_scale * F.normalize(bank, dim=-1) @ weights.T


def _losses(logits: Logits, targets: Tensor) -> Tensor:
    """[B, M] cross-entropy of [B, M, C] logits."""
    return F.cross_entropy(
        logits.transpose(1, 2), targets[:, None].expand(-1, logits.shape[1]), reduction="none"
    )
