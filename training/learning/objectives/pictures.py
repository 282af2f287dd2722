"""What methods share that attack pictures while they learn: pictures, the training attack, looks through the
tuned towers, anchors, the bill.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from prompts_store.handcrafted import ENSEMBLE
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image, encode_patches, has_stem, patch_tokens
from robustclip.threat import LEVELS, Linf, LinfRadius
from robustclip.types import Cost, Features, Logits, Pixels, Progress, Seeds
from training.data.labelled import LabelledImages
from training.learning.inner import (
    InnerScore,
    Opponent,
    TowerPrecision,
    climb,
    consistency_loss,
    drawn_start,
    keep_change,
    kept_start,
    label_loss,
)
from training.learning.losses import divergence, misalignment
from training.learning.objectives.base import (
    Answers,
    Batch,
    Examples,
    Signs,
    Task,
    Tended,
    Tuning,
    label_features,
    share_right,
)
from training.learning.objectives.contexts import Coupling, Parameters, Towers, fold, new_contexts
from training.processes import ALONE, Processes

KEPT_BYTES = 2 * 2**30  # pictures beyond this are decoded again for every batch
CHECK_PICTURES, CHECK_STEPS, CHECK_GAP = 64, 10, 0.10  # METHODS L6
HAND, PATCHES = "hand", "patches"


class Look(NamedTuple):
    """Unit features [B, E] and logits [B, C] of pictures, and what they cost."""

    features: Features
    logits: Logits
    cost: Cost


class PictureTuning(Tuning):
    """Learning on pictures that are attacked anew in every step, by the prompts as they are."""

    epochs: int = Field(50, ge=1, le=10_000, description="passes over the training pictures")
    learning_rate: float = Field(
        0.0035,
        gt=0,
        le=10,
        description="SGD, momentum 0.9, weight decay 5e-4; a short time at 1e-5, then cosine",
    )
    eps: LinfRadius = Field(
        1 / 255, description="radius of the training attack, in pixel units or like 8/255"
    )
    steps: int = Field(3, ge=1, le=1000, description="steps of the training attack, from a uniform start")
    step: LinfRadius | None = Field(
        None, gt=0, description="length of a step; none: 2 eps / 3, or eps if there are two steps or fewer"
    )
    precision: TowerPrecision = Field(
        "bf16", description="of the towers in the training attack: bf16 or float32; losses are always float32"
    )
    warm_start: bool = Field(
        False,
        description="begin the training attack where the last epoch's ended, as long as a stronger attack "
        "finds no more",
    )
    ramp: int = Field(
        0, ge=0, description="epochs over which the terms on attacked pictures grow from 0 to their weight"
    )
    anchor: float = Field(
        0.0, ge=0, description="weight of 1 - cos between text features and those of the handcrafted ensemble"
    )

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
        """The pictures themselves, and what the method wants to have computed once."""
        return picture_examples(
            clip,
            data,
            indices,
            constants=self.constants(clip, data.labels),
            progress=progress,
            processes=processes,
        )

    def constants(self, clip: Clip, labels: tuple[str, ...]) -> dict[str, Tensor]:
        if not self.anchor:
            return {}
        with torch.no_grad():
            return {HAND: text_weights(clip, Prompts(templates=ENSEMBLE), labels)}

    def new_memory(self, examples: Examples, parameters: Parameters) -> dict[str, Tensor]:
        """With warm starts: `change`, the last perturbation of every picture, and `fresh`, whether they are
        not to be trusted any more.
        """
        if not self.warm_start or examples.pixels is None:
            return {}
        shape = examples.pixels(torch.zeros(1, dtype=torch.int64)).shape[1:]
        device = examples.targets.device
        return {
            "change": torch.zeros(len(examples), *shape, dtype=torch.int8, device=device),
            "fresh": torch.zeros((), device=device),
        }

    def step_length(self) -> float:
        return self.step if self.step is not None else self.eps if self.steps <= 2 else 2 * self.eps / 3

    def ramped(self, batch: Batch) -> float:
        """The share of their weight that terms on attacked pictures have by now; parts of a run without such
        pictures don't count.
        """
        return min(1.0, (int(batch.epoch) - sum(self.phases()[:-1]) + 1) / (self.ramp + 1))

    def score(self) -> InnerScore:
        """What the training attack raises."""
        return "cross_entropy"

    def perturb(
        self, task: Task, batch: Batch, pixels: Pixels, opponent: Opponent, *, clean: Logits | None = None
    ) -> tuple[Pixels, Cost]:
        """Attacked pixels inside ball and box, of the same share as `pixels`, and the cost of the whole
        batch.

        `clean` logits of the whole batch are what the score kl departs from.
        """
        processes, rows = task.processes, batch.rows.to(pixels.device)
        own_rows, targets = processes.own(rows), processes.own(batch.targets)
        reference = None if clean is None or self.score() == "cross_entropy" else processes.own(clean)
        start = drawn_start(pixels, processes.own(batch.seeds), self.eps)
        if self.warm_start and self.eps and not bool(task.memory["fresh"]):
            kept = task.memory["change"][own_rows]
            known = kept.flatten(1).any(dim=1)[:, None, None, None]
            start = torch.where(known, kept_start(pixels, kept, self.eps), start)
        parts: list[Pixels] = []
        for part in processes.slices(len(pixels)):
            loss = (
                label_loss(opponent, targets[part])
                if reference is None
                else consistency_loss(opponent, reference[part])
            )
            parts.append(
                climb(
                    loss, pixels[part], start[part], eps=self.eps, step=self.step_length(), steps=self.steps
                )[0]
            )
        attacked = torch.cat(parts)
        if self.warm_start and self.eps:
            task.memory["change"][rows] = processes.whole(keep_change(attacked, pixels, self.eps), len(rows))
        return attacked, self.attack_passes().times(len(rows))

    def anchored(self, task: Task, weights: Features) -> dict[str, Tensor]:
        """The anchor term, if there is one: text features stay near those of the handcrafted ensemble
        (METHODS L8).
        """
        return (
            {"anchor": self.anchor * misalignment(weights, task.examples.constants[HAND])}
            if self.anchor
            else {}
        )

    def tend(self, task: Task, parameters: Parameters, *, epoch: int, seeds: Seeds) -> Tended:
        """With warm starts: whether PGD-10 breaks over 10 points more of 64 pictures than the training attack
        does; from then on starts are fresh.
        """
        if not self.warm_start or bool(task.memory["fresh"]) or not bool(task.memory["change"].any()):
            return Tended()
        with torch.no_grad():
            prompts = self.fold(task.clip, parameters)
            weights = label_features(task, prompts)
        rows, own = _spread(len(task.examples)), task.processes.own
        pixels, targets = (
            task.examples.take(own(rows)),
            task.examples.targets[rows.to(task.examples.targets.device)],
        )
        opponent = Opponent(task.clip, weights, _detached(prompts.visual), self.precision)
        kept = kept_start(pixels, task.memory["change"][own(rows).to(pixels.device)], self.eps)
        drawn = drawn_start(pixels, seeds[own(rows)], self.eps)
        starts = {
            "trained": (kept, self.step_length(), self.steps),
            "checked": (drawn, self.eps / 4, CHECK_STEPS),
        }
        cost, notes = Cost(), dict[str, float]()
        for name, (start, step, steps) in starts.items():
            attacked = climb(
                label_loss(opponent, own(targets)), pixels, start, eps=self.eps, step=step, steps=steps
            )[0]
            with torch.no_grad():
                found = look(task, attacked, weights, prompts.visual, count=len(rows))
            cost, notes[name] = (
                cost.plus(Cost(steps, steps).times(len(rows))).plus(found.cost),
                float(share_right(found.logits, targets)),
            )
        if notes["trained"] - notes["checked"] > CHECK_GAP:
            task.memory["fresh"].fill_(1)
        return Tended(cost, 1, {**notes, "fresh_starts": float(task.memory["fresh"])})

    def passes(self) -> Cost:
        """Image passes a picture and step: those of the training attack, and a look at the clean and at the
        attacked picture.
        """
        return self.attack_passes().plus(Cost(2, 2))

    def bill(self, pictures: int) -> Cost:
        """An upper bound with warm starts: a check that fails is the last."""
        own, rounds = self.passes(), pictures * self.epochs
        checks = (self.epochs - 1) * min(CHECK_PICTURES, pictures) if self.warm_start and self.eps else 0
        climbed = self.steps + CHECK_STEPS
        return Cost(rounds * own.forward + checks * (climbed + 2), rounds * own.backward + checks * climbed)

    def attack_passes(self) -> Cost:
        return Cost(self.steps, self.steps) if self.eps else Cost()

    def attack_facts(self) -> dict[str, object] | None:
        ball = Linf(radius=self.eps).model_dump(mode="json")
        facts = {
            "kind": "pgd",
            "ball": ball,
            "steps": self.steps,
            "step": self.step_length(),
            "starts": ["random"],
            "keep": "last",
        }
        return {**facts, "score": self.score(), "precision": self.precision, "warm_start": self.warm_start}


class BothTowers(PictureTuning):
    """Vectors in the first layers of both towers, and a term that ties attacked predictions to a
    reference.
    """

    vectors: int = Field(2, ge=1, le=70, description="learned vectors a layer and tower")
    depth: int = Field(
        9, ge=1, le=64, description="layers with vectors of their own; capped at what a tower has"
    )
    words: str = Field(
        "a photo of a",
        description="start from these words' embeddings; further words than vectors stay in the template",
    )
    class_specific: bool = Field(
        False,
        description="one text context a label, without coupling; such a set serves its training labels only",
    )
    image_rate: float = Field(
        1.0, gt=0, le=100, description="learning rate of the image tower's vectors, times that of all else"
    )
    consistency: float = Field(
        1.0, ge=0, description="weight of the divergence of attacked predictions from their reference"
    )

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
        """Beside the pictures what a stem makes of them: vectors stand behind it, so that it never
        changes.
        """
        examples = super().prepare(
            clip, data, indices, seed=seed, folder=folder, progress=progress, processes=processes
        )
        if not self.looks_at_pictures_as_they_are() or not has_stem(clip):
            return examples
        with torch.no_grad():
            one = patch_tokens(clip, examples.take(torch.zeros(1, dtype=torch.int64)))
            if len(indices) * one.nbytes > KEPT_BYTES:
                return examples
            patches = one.new_empty(len(indices), *one.shape[1:])
            for rows in torch.arange(len(indices)).split(64 * processes.count):
                patches[rows] = processes.whole(
                    patch_tokens(clip, examples.take(processes.own(rows))), len(rows)
                )
                progress(int(rows[-1]) + 1, len(indices), "stem")
        return replace(examples, constants={**examples.constants, PATCHES: patches})

    def looks_at_pictures_as_they_are(self) -> bool:
        """Whether untouched pictures are the same in every epoch."""
        return True

    def share_of_rate(self, parameter: str) -> float:
        return self.image_rate if parameter.endswith("visual") else 1.0

    def fold(self, clip: Clip, parameters: Mapping[str, Tensor]) -> Prompts:
        return fold(
            clip, parameters, vectors=self.vectors, words=self.words, class_specific=self.class_specific
        )

    def contexts(
        self,
        clip: Clip,
        labels: tuple[str, ...],
        seed: int,
        *,
        coupling: Coupling = "none",
        towers: Towers = "both",
    ) -> Parameters:
        options = {"vectors": self.vectors, "depth": self.depth}
        copies = len(labels) if self.class_specific else None
        return new_contexts(
            clip, **options, words=self.words, coupling=coupling, towers=towers, seed=seed, copies=copies
        )

    def weakened(self) -> Self | None:
        return self.model_copy(update={"consistency": self.consistency / 2}) if self.consistency else None


def look(task: Task, pixels: Pixels, weights: Features, visual: Tensor | None, *, count: int) -> Look:
    """What the tuned towers say about a batch of `count` pictures, of which each process has its share:
    differentiable in prompts only.

    The cost leaves out what `Processes.parts` repeats in the backward.
    """
    return _look(task, encode_image, pixels, weights, visual, count=count)


def look_untouched(
    task: Task, batch: Batch, pixels: Pixels, weights: Features, visual: Tensor | None
) -> Look:
    """`look` at the batch's `pixels`, from what the stem made of them, in float32, if that was kept; it is
    billed as a whole pass, too.
    """
    patches, count = task.examples.constants.get(PATCHES), len(batch.rows)
    if patches is None:
        return look(task, pixels, weights, visual, count=count)
    return _look(
        task,
        encode_patches,
        patches[task.processes.own(batch.rows).to(patches.device)],
        weights,
        visual,
        count=count,
    )


def _look(
    task: Task,
    encode: Callable[[Clip, Tensor, Tensor | None], Tensor],
    inputs: Tensor,
    weights: Features,
    visual: Tensor | None,
    *,
    count: int,
) -> Look:
    learned = visual is not None and visual.requires_grad and torch.is_grad_enabled()

    def embed(part: Tensor) -> Tensor:
        with torch.autocast(part.device.type, torch.bfloat16, enabled=task.precision == "bf16"):
            embeddings = encode(task.clip, part, visual)
        return embeddings.float()

    with torch.set_grad_enabled(learned):
        features = F.normalize(task.processes.encode(embed, inputs, count), dim=-1)
    return Look(features, task.clip.logit_scale * features @ weights.T, Cost(count, count if learned else 0))


def signs(clean: Logits, attacked: Logits, targets: Tensor) -> Signs:
    """Collapse shows where attacked predictions don't differ from clean ones and both are no better than a
    guess.
    """
    with torch.no_grad():
        return Signs(float(divergence(clean, attacked).mean()), float(F.cross_entropy(clean, targets)))


def answers(who: str, logits: Logits, targets: Tensor) -> Answers:
    """How somebody answers a batch."""
    with torch.no_grad():
        share, expected = (
            float(labels.bincount().max()) / len(targets) for labels in (logits.argmax(dim=1), targets)
        )
        return Answers(who, share, expected, float(F.cross_entropy(logits, targets)))


def opponent_of(objective: PictureTuning, clip: Clip, weights: Features, prompts: Prompts) -> Opponent:
    """The tuned model as its training attack sees it: constant."""
    return Opponent(clip, weights.detach(), _detached(prompts.visual), objective.precision)


def picture_examples(
    clip: Clip,
    data: LabelledImages,
    indices: Tensor,
    *,
    constants: dict[str, Tensor],
    progress: Progress,
    processes: Processes = ALONE,
) -> Examples:
    """Pictures as examples: decoded once and kept as bytes on the CLIP's device if that takes at most 2 GiB,
    else decoded again for each batch.
    """
    size = clip.image_size
    if len(indices) * 3 * size * size > KEPT_BYTES:

        def pixels(rows: Tensor) -> Pixels:
            return data.pixels(indices[rows.cpu()], size).to(clip.device)

    else:
        kept = torch.empty(len(indices), 3, size, size, dtype=torch.uint8, device=clip.device)
        for chosen in torch.arange(len(indices)).split(64 * processes.count):
            levels = (
                (data.pixels(indices[processes.own(chosen)], size) * LEVELS)
                .round()
                .to(clip.device, torch.uint8)
            )
            kept[chosen[0] : chosen[-1] + 1] = processes.whole(levels, len(chosen))
            progress(int(chosen[-1]) + 1, len(indices), "reading pictures")

        def pixels(rows: Tensor) -> Pixels:
            return kept[rows.to(kept.device)].float() / LEVELS

    return Examples(
        data.targets[indices].to(clip.device),
        pixels,
        Cost(),
        0.0,
        pixels=pixels,
        constants=constants,
        divided=True,
    )


def _spread(count: int) -> Tensor:
    """At most 64 places, evenly spread: examples are sorted as the folder is, by class or not."""
    return torch.linspace(0, count - 1, min(count, CHECK_PICTURES)).round().to(torch.int64)


def _detached(visual: Tensor | None) -> Tensor | None:
    return None if visual is None else visual.detach()
