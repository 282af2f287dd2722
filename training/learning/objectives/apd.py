"""APD: Adversarial Prompt Distillation (Luo et al. 2024, arXiv 2411.15244), as far as it is known: APD-style,
our coefficients.

Known: vectors in both towers; a teacher that is tuned on clean pictures, and not robust, is distilled into a
student tuned on attacked ones, online and through both modalities; the attack raises the student's
cross-entropy. Unknown to us, and therefore switches with defaults of our own: coefficients,
direction of the divergence, the teacher's loss, what is distilled in each modality.

    teacher  L_T = CE(p_T(x), y) + feedback D(p_S(x_a), p_T(x))
    student  L_S = c D(p_T(x), p_S(x_a)) + mu CE(p_S(x_a), y) + gamma D(p_T(x), p_S(x))
                   + vision (1 - cos(f_S(x_a), f_T(x))) + text mean_c (1 - cos(t_S, t_T))

    with vision = text = 0 logits alone are distilled

What comes from the other is constant in each loss, so that one optimizer step on the sum is a step of both.
Deviations: the student learns from the teacher as it was before that step, which saves a text pass and an
image pass a batch; the training attack has two steps of eps at every radius (`steps=3` gives three of 2 eps /
3).
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustclip.models import Clip, Prompts, text_weights
from robustclip.seeds import derive
from robustclip.types import Cost, Features, Logits, Pixels
from training.data.views import random_views
from training.learning.losses import DivergenceName, Reference, divergence, family, misalignment
from training.learning.objectives.base import Answers, Batch, Examples, Signs, Step, Task
from training.learning.objectives.both_towers import BothTowers
from training.learning.objectives.contexts import Parameters, Towers
from training.learning.objectives.pictures import opponent_of
from training.learning.objectives.predictions import (
    Look,
    answers,
    label_features,
    look,
    look_untouched,
    share_right,
    signs,
)

STUDENT, TEACHER, TEMPLATE = "student.", "teacher.", "template"
KEPT_SHARE = 0.99  # of the averaged teacher, a step


class Taught(NamedTuple):
    """The teacher's predictions for clean pictures and its text features. `learner` [B, C] and `terms` are
    logits and losses of a teacher that learns.
    """

    seen: Look
    weights: Features
    learner: Logits | None
    terms: dict[str, Tensor]
    cost: Cost
    text_passes: int


class APD(BothTowers):
    """A student on attacked pictures learns from a teacher on clean ones."""

    kind: Literal["apd"] = "apd"
    epochs: int = Field(100, ge=1, le=10_000, description="passes over the training pictures")
    steps: int = Field(2, ge=1, le=1000, description="steps of the training attack, from a uniform start")
    towers: Towers = Field("both", description="where student and teacher have vectors: both, text or image")
    teacher: Literal["online", "online_ema", "offline", "zero_shot"] = Field(
        "online",
        description="online: learns beside the student; online_ema: its average teaches; offline: learns "
        "before it; zero_shot: the template",
    )
    teacher_epochs: int = Field(
        20, ge=1, le=10_000, description="epochs of an offline teacher, before the student's"
    )
    feedback: float = Field(
        0.0, ge=0, description="weight of the student's attacked predictions in an online teacher's loss"
    )
    mu: float = Field(
        0.5,
        ge=0,
        description="weight of the student's cross-entropy on attacked pictures; above 0 with a zero_shot "
        "teacher",
    )
    gamma: float = Field(
        0.0,
        ge=0,
        description="weight of the divergence of the student's clean predictions from the teacher's",
    )
    vision: float = Field(
        1.0,
        ge=0,
        description="weight of 1 - cos between the student's attacked and the teacher's clean image features",
    )
    text: float = Field(
        1.0, ge=0, description="weight of 1 - cos between the student's and the teacher's text features"
    )
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both in every divergence"
    )
    order: DivergenceName = Field(
        "forward", description="forward KL(teacher, student), reverse, or jensen_shannon"
    )
    crops: bool = Field(True, description="random crops and flips of the training pictures")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.teacher == "zero_shot" and not self.mu:
            raise ValueError("a zero_shot teacher caps the student at the template: give mu more than 0")
        if self.crops and self.warm_start:
            raise ValueError("warm starts need the same picture every time: turn crops or warm_start off")
        return self

    def phases(self) -> tuple[int, ...]:
        return (*((self.teacher_epochs,) if self._teachers_own() else ()), self.epochs)

    def new_parameters(self, clip: Clip, labels: tuple[str, ...], seed: int) -> Parameters:
        """Student and teacher start equal."""
        start = self.contexts(clip, labels, seed, towers=self.towers)
        roles = (STUDENT,) if self.teacher == "zero_shot" else (STUDENT, TEACHER)
        return {role + name: tensor.clone() for role in roles for name, tensor in start.items()}

    def fold(self, clip: Clip, parameters: Mapping[str, Tensor]) -> Prompts:
        return super().fold(clip, _of(STUDENT, parameters))

    def companions(self, clip: Clip, parameters: Mapping[str, Tensor]) -> dict[str, Prompts]:
        return (
            {} if self.teacher == "zero_shot" else {"teacher": super().fold(clip, _of(TEACHER, parameters))}
        )

    def looks_at_pictures_as_they_are(self) -> bool:
        return not self.crops

    def constants(self, clip: Clip, labels: tuple[str, ...]) -> dict[str, Tensor]:
        with torch.no_grad():
            return {**super().constants(clip, labels), TEMPLATE: text_weights(clip, Prompts(), labels)}

    def new_memory(self, examples: Examples, parameters: Parameters) -> dict[str, Tensor]:
        """Beside warm starts the averaged teacher."""
        averaged = {
            name: tensor.detach().clone() for name, tensor in parameters.items() if name.startswith(TEACHER)
        }
        return super().new_memory(examples, parameters) | (averaged if self.teacher == "online_ema" else {})

    def loss(self, task: Task, parameters: Parameters, batch: Batch) -> Step:
        pixels = (
            random_views(batch.inputs, derive(task.processes.own(batch.seeds), "view"))
            if self.crops
            else batch.inputs
        )
        taught = self.teach(task, parameters, batch, pixels)
        if batch.epoch < self._teachers_own():
            alone = answers("the teacher", taught.seen.logits, batch.targets)
            accuracy = share_right(taught.seen.logits, batch.targets)
            apart = Signs(math.inf, alone.cross_entropy, (alone,))  # there is no student yet
            return Step(
                taught.terms, accuracy, signs=apart, cost=taught.cost, notes={"teacher": float(accuracy)}
            )
        prompts = self.fold(task.clip, parameters)
        weights = label_features(task, prompts)
        attacked_pixels, climbed = self.perturb(
            task, batch, pixels, opponent_of(self, task.clip, weights, prompts)
        )
        attacked = look(task, attacked_pixels, weights, prompts.visual, count=len(batch.rows))
        cost = climbed.plus(taught.cost).plus(attacked.cost)
        ramped, wisdom = self.ramped(batch), taught.seen.logits.detach()
        terms = family(batch.targets, attacked=attacked.logits, b=ramped * self.mu)
        terms |= family(
            batch.targets,
            attacked=attacked.logits / self.temperature,
            references=[Reference(wisdom / self.temperature)],
            c=ramped * self.consistency,
            kind=self.order,
        )
        clean = None
        if self.gamma:
            clean = look_untouched(task, batch, pixels, weights, prompts.visual)
            cost = cost.plus(clean.cost)
            terms["clean_consistency"] = (
                self.gamma
                * divergence(wisdom / self.temperature, clean.logits / self.temperature, self.order).mean()
            )
        if self.vision:
            terms["image_features"] = self.vision * misalignment(
                attacked.features, taught.seen.features.detach()
            )
        if self.text:
            terms["text_features"] = self.text * misalignment(weights, taught.weights.detach())
        if self.feedback and taught.learner is not None:
            returned = divergence(
                attacked.logits.detach() / self.temperature, taught.learner / self.temperature, self.order
            )
            terms["feedback"] = self.feedback * returned.mean()
        return Step(
            terms | taught.terms | self.anchored(task, weights),
            None if clean is None else share_right(clean.logits, batch.targets),
            share_right(attacked.logits, batch.targets),
            signs(wisdom, attacked.logits, batch.targets)._replace(
                answers=self.answered(taught, attacked, batch)
            ),
            cost,
            1 + taught.text_passes,
            {"teacher": float(share_right(wisdom, batch.targets))},
        )

    def answered(self, taught: Taught, attacked: Look, batch: Batch) -> tuple[Answers, ...]:
        """How teacher and student answer: in every teacher mode one can collapse while the other does not."""
        given = {"the teacher": taught.seen.logits, "the student": attacked.logits}
        if self.teacher == "online_ema" and taught.learner is not None:
            given["the learning teacher"] = taught.learner  # its average shows a collapse late
        return tuple(answers(who, logits, batch.targets) for who, logits in given.items())

    def teach(self, task: Task, parameters: Parameters, batch: Batch, pixels: Pixels) -> Taught:
        """The teacher's part of a step."""
        if self.teacher == "zero_shot":
            weights = task.examples.constants[TEMPLATE]
            seen = look_untouched(task, batch, pixels, weights, None)
            return Taught(seen, weights, None, {}, seen.cost, 0)
        learns = self.teacher != "offline" or batch.epoch < self._teachers_own()
        with torch.set_grad_enabled(learns):
            seen, weights = self._consult(task, parameters, batch, pixels)
        if not learns:
            return Taught(seen, weights, None, {}, seen.cost, 1)
        terms = {
            f"teacher_{name}": term for name, term in family(batch.targets, clean=seen.logits, a=1.0).items()
        }
        if self.teacher != "online_ema":
            return Taught(seen, weights, seen.logits, terms, seen.cost, 1)
        with torch.no_grad():
            for name, tensor in _of(TEACHER, parameters).items():
                task.memory[TEACHER + name].lerp_(tensor, 1 - KEPT_SHARE)
            average, averaged_weights = self._consult(task, task.memory, batch, pixels)
        return Taught(average, averaged_weights, seen.logits, terms, seen.cost.plus(average.cost), 2)

    def passes(self) -> Cost:
        image, gamma = int(self.towers != "text"), int(self.gamma > 0)
        teacher = {
            "online": Cost(1, image),
            "online_ema": Cost(2, image),
            "offline": Cost(1),
            "zero_shot": Cost(1),
        }[self.teacher]
        return self.attack_passes().plus(teacher).plus(Cost(1 + gamma, image * (1 + gamma)))

    def bill(self, pictures: int) -> Cost:
        rounds = pictures * self._teachers_own()
        return super().bill(pictures).plus(Cost(rounds, rounds if self.towers != "text" else 0))

    def _consult(
        self, task: Task, tensors: Mapping[str, Tensor], batch: Batch, pixels: Pixels
    ) -> tuple[Look, Features]:
        prompts = super().fold(task.clip, _of(TEACHER, tensors))
        weights = label_features(task, prompts)
        return look_untouched(task, batch, pixels, weights, prompts.visual), weights

    def _teachers_own(self) -> int:
        return self.teacher_epochs if self.teacher == "offline" else 0


def _of(role: str, parameters: Mapping[str, Tensor]) -> Parameters:
    return {name.removeprefix(role): tensor for name, tensor in parameters.items() if name.startswith(role)}
