"""The base of methods that attack pictures while they learn: the training attack, anchors, the bill."""

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from robustclip.models import Clip, Prompts
from robustclip.threat import Linf, LinfRadius
from robustclip.types import Cost, Features, Logits, Pixels, Progress, Seeds
from training.data.labelled import LabelledImages
from training.learning.losses import (
    InnerScore,
    Opponent,
    TowerPrecision,
    climb,
    consistency_loss,
    drawn_start,
    keep_change,
    kept_start,
    label_loss,
    misalignment,
)
from training.learning.objectives.base import Batch, Examples, Objective, Task, Tended
from training.learning.objectives.contexts import Parameters
from training.learning.objectives.predictions import (
    handcrafted_features,
    label_features,
    look,
    picture_examples,
    share_right,
)
from training.processes import ALONE, Processes

CHECK_PICTURES, CHECK_STEPS, CHECK_GAP = 64, 10, 0.10
HAND = "hand"


class PictureTuning(Objective):
    """Learning on pictures that are attacked anew in every step through the current prompts."""

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
        """The pictures themselves, and the method's constants."""
        constants = self.constants(clip, data.labels)
        return picture_examples(
            clip, data, indices, constants=constants, progress=progress, processes=processes
        )

    def constants(self, clip: Clip, labels: tuple[str, ...]) -> dict[str, Tensor]:
        """What is computed once besides the pictures: see `Examples.constants`."""
        return {HAND: handcrafted_features(clip, labels)} if self.anchor else {}

    def new_memory(self, examples: Examples, parameters: Parameters) -> dict[str, Tensor]:
        """With warm starts: `change`, the last perturbation of every picture, and `fresh`, whether starts are
        drawn again.
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
        """The share of their weight that terms on attacked pictures have in this epoch, counted in the last
        phase alone.
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

        `clean`: logits of the whole batch, the reference of the score kl.
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
            length = self.step_length()
            parts.append(
                climb(loss, pixels[part], start[part], eps=self.eps, step=length, steps=self.steps)[0]
            )
        attacked = torch.cat(parts)
        if self.warm_start and self.eps:
            task.memory["change"][rows] = processes.whole(keep_change(attacked, pixels, self.eps), len(rows))
        return attacked, self.attack_passes().times(len(rows))

    def anchored(self, task: Task, weights: Features) -> dict[str, Tensor]:
        """The anchor term, if there is one: text features stay near those of the handcrafted ensemble."""
        if not self.anchor:
            return {}
        return {"anchor": self.anchor * misalignment(weights, task.examples.constants[HAND])}

    def tend(self, task: Task, parameters: Parameters, *, epoch: int, seeds: Seeds) -> Tended:
        """With warm starts: once PGD-10 breaks over 10 percentage points more of 64 pictures than the
        training attack does, starts are drawn again.
        """
        if not self.warm_start or bool(task.memory["fresh"]) or not bool(task.memory["change"].any()):
            return Tended()
        with torch.no_grad():
            prompts = self.fold(task.clip, parameters)
            weights = label_features(task, prompts)
        rows, own = _spread(len(task.examples)), task.processes.own
        pixels = task.examples.take(own(rows))
        targets = task.examples.targets[rows.to(task.examples.targets.device)]
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
            cost = cost.plus(Cost(steps, steps).times(len(rows))).plus(found.cost)
            notes[name] = float(share_right(found.logits, targets))
        if notes["trained"] - notes["checked"] > CHECK_GAP:
            task.memory["fresh"].fill_(1)
        return Tended(cost, 1, {**notes, "fresh_starts": float(task.memory["fresh"])})

    def passes(self) -> Cost:
        """Image passes a picture and step: the training attack, the clean and the attacked picture."""
        return self.attack_passes().plus(Cost(2, 2))

    def bill(self, pictures: int) -> Cost:
        """With warm starts an upper bound: after a check that fails there are no more."""
        own, rounds = self.passes(), pictures * self.epochs
        checks = (self.epochs - 1) * min(CHECK_PICTURES, pictures) if self.warm_start and self.eps else 0
        climbed = self.steps + CHECK_STEPS
        return Cost(rounds * own.forward + checks * (climbed + 2), rounds * own.backward + checks * climbed)

    def attack_passes(self) -> Cost:
        return Cost(self.steps, self.steps) if self.eps else Cost()

    def attack_facts(self) -> dict[str, object] | None:
        return {
            "kind": "pgd",
            "ball": Linf(radius=self.eps).model_dump(mode="json"),
            "steps": self.steps,
            "step": self.step_length(),
            "starts": ["random"],
            "keep": "last",
            "score": self.score(),
            "precision": self.precision,
            "warm_start": self.warm_start,
        }


def opponent_of(objective: PictureTuning, clip: Clip, weights: Features, prompts: Prompts) -> Opponent:
    """The tuned model as its training attack sees it: without gradients in the prompts."""
    return Opponent(clip, weights.detach(), _detached(prompts.visual), objective.precision)


def _spread(count: int) -> Tensor:
    """At most 64 indices, evenly spread: examples may be sorted by class."""
    return torch.linspace(0, count - 1, min(count, CHECK_PICTURES)).round().to(torch.int64)


def _detached(visual: Tensor | None) -> Tensor | None:
    return None if visual is None else visual.detach()
