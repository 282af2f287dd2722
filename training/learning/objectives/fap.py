"""FAP: Few-shot Adversarial Prompt learning (Zhou et al., NeurIPS 2024, arXiv 2403.14774).

Vectors in both towers learn to classify clean pictures, and to predict the same for attacked ones, the more
so the closer the two features are. The defaults are the authors', with their hybrid coupling and without
stop-gradient: `detach_reference` is our variant.

Deviations: the words behind the vectors are kept in the template (theirs overwrites the first two tokens of a
template); text features once a step; bfloat16 inside the attack; maps between the towers start without
offset.
"""

from typing import Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from robustclip.models import Clip
from training.learning.losses import DivergenceName, InnerScore, Reference, family
from training.learning.objectives.base import Batch, Step, Task
from training.learning.objectives.both_towers import BothTowers
from training.learning.objectives.contexts import Coupling, Parameters
from training.learning.objectives.predictions import label_features, share_right, signs


class FAP(BothTowers):
    """L = CE(p(x), y) + c mean_i[(1 + cos(f(x_i), f(x_a,i))) KL(p(x_i), p(x_a,i))]."""

    kind: Literal["fap"] = "fap"
    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training pictures")
    batch: int = Field(4, ge=1, le=65_536, description="pictures a step")
    steps: int = Field(2, ge=1, le=1000, description="steps of the training attack, from a uniform start")
    inner: InnerScore = Field(
        "kl",
        description="what the training attack raises: kl of attacked from clean predictions, or "
        "cross_entropy",
    )
    consistency: float = Field(
        1.5, ge=0, description="weight of the divergence of attacked predictions from clean ones"
    )
    coupling: Coupling = Field(
        "hybrid", description="what follows what while learning: none, image_to_text, text_to_image or hybrid"
    )
    order: DivergenceName = Field(
        "forward", description="forward KL(clean, attacked), reverse, or jensen_shannon"
    )
    weighting: Literal["cosine", "uniform"] = Field(
        "cosine", description="weight of a picture's divergence: 1 + cos of its features, or 1"
    )
    detach_reference: bool = Field(
        False, description="stop the gradient through clean predictions and weights in the divergence"
    )

    def new_parameters(self, clip: Clip, labels: tuple[str, ...], seed: int) -> Parameters:
        return self.contexts(clip, labels, seed, coupling=self.coupling)

    def score(self) -> InnerScore:
        return self.inner

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        prompts = self.fold(task.clip, parameters)
        weights = label_features(task, prompts)
        clean, attacked, cost = self.look_twice(task, batch, weights, prompts)
        closeness = (
            1 + F.cosine_similarity(clean.features, attacked.features, dim=1)
            if self.weighting == "cosine"
            else torch.ones(len(batch.rows))
        )
        reference = clean.logits.detach() if self.detach_reference else clean.logits
        terms = family(
            batch.targets,
            clean=clean.logits,
            attacked=attacked.logits,
            references=[Reference(reference)],
            a=1.0,
            c=self.ramped(batch) * self.consistency,
            weights=(closeness.detach() if self.detach_reference else closeness).to(weights.device),
            kind=self.order,
        )
        return Step(
            terms | self.anchored(task, weights),
            share_right(clean.logits, batch.targets),
            share_right(attacked.logits, batch.targets),
            signs(clean.logits, attacked.logits, batch.targets),
            cost,
        )
