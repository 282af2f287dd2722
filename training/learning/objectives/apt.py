"""APT: Adversarial Prompt Tuning (Li et al., CVPR 2024, arXiv 2403.01849).

A text context is tuned by cross-entropy on pictures that are attacked in every step, over an image tower that
has to be robust already: on a natural one text prompts alone gain nothing against an attacker who knows them.

Deviations: text features are computed once a step, not in every step of the attack; the tower runs in
bfloat16 inside the attack; prompts are float32; no augmentation. The variant that moves prompts and pixels
together inside the attack is left out.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from robustclip.models import Clip, Prompts, text_weights
from robustclip.types import Cost
from training.learning.losses import Opponent, family
from training.learning.objectives.base import Batch, Step, Task
from training.learning.objectives.contexts import Parameters
from training.learning.objectives.pictures import PictureTuning
from training.learning.objectives.predictions import label_features, look, share_right
from training.learning.objectives.text import TextContext

TEMPLATE = "template"


class APT(TextContext, PictureTuning):
    """Tune a text context on pictures attacked through it: L = CE(p(x_a), y)."""

    kind: Literal["apt"] = "apt"
    vectors: int = Field(16, ge=1, le=70, description="learned vectors before the class name")
    epochs: int = Field(50, ge=1, le=10_000, description="passes over the training pictures")
    learning_rate: float = Field(
        0.002,
        gt=0,
        le=10,
        description="SGD, momentum 0.9, weight decay 5e-4; a short time at 1e-5, then cosine",
    )
    attack_prompts: Literal["current", "handcrafted"] = Field(
        "current", description="the prompts that the training attack goes through"
    )

    def constants(self, clip: Clip, labels: tuple[str, ...]) -> dict[str, Tensor]:
        found = super().constants(clip, labels)
        if self.attack_prompts == "handcrafted":
            with torch.no_grad():
                found[TEMPLATE] = text_weights(clip, Prompts(), labels)
        return found

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        weights = label_features(task, self.fold(task.clip, parameters))
        faced = weights.detach() if self.attack_prompts == "current" else task.examples.constants[TEMPLATE]
        pixels, climbed = self.perturb(
            task, batch, batch.inputs, Opponent(task.clip, faced, None, self.precision)
        )
        attacked = look(task, pixels, weights, None, count=len(batch.rows))
        terms = family(batch.targets, attacked=attacked.logits, b=self.ramped(batch)) | self.anchored(
            task, weights
        )
        return Step(
            terms, None, share_right(attacked.logits, batch.targets), cost=climbed.plus(attacked.cost)
        )

    def passes(self) -> Cost:
        return self.attack_passes().plus(Cost(forward=1))

    def attack_facts(self) -> dict[str, object] | None:
        return {**(super().attack_facts() or {}), "prompts": self.attack_prompts}
