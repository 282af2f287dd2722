"""The one training loop. It uses parameters, examples and a loss; the method is an `Objective`."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from robustclip.models import Clip, Prompts
from robustclip.seeds import derive, draw_seeds
from robustclip.types import Cost, Progress
from training.data.sampling import seeded
from training.learning.losses import TowerPrecision
from training.learning.objectives.base import Batch, Examples, Objective, Step, Task
from training.learning.tuning.checkpoint import Epoch, Progressed, load_checkpoint, save_checkpoint
from training.learning.tuning.collapse import CollapseWatch, TrainingDiverged, TrainingFailed
from training.processes import ALONE, Processes

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
MAX_RESTARTS = 2


class Fitted(NamedTuple):
    """Learned prompts, detached, their average over the steps if there is one, the method's companions, and a
    report for each epoch.

    `restarts` after a collapse, of the whole run; `text_passes` of this call alone, without those before a
    resume.
    """

    prompts: Prompts
    averaged: Prompts | None
    companions: dict[str, Prompts]
    history: list[Epoch]
    restarts: int
    text_passes: int


def fit(
    clip: Clip,
    objective: Objective,
    examples: Examples,
    labels: tuple[str, ...],
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    processes: Processes = ALONE,
    precision: TowerPrecision = "float32",
) -> Fitted:
    """Learn prompts by SGD. Epochs end with a checkpoint; a run that finds one goes on from it, and its
    result is the same to the last bit.

    The randomness of an epoch depends on (seed, epoch, restarts) alone, not on the number of processes. After
    a collapse the run returns to its last checkpoint, halves the consistency term and draws again, twice at
    most. Raises TrainingCollapsed after that, and TrainingDiverged when the loss is not finite and there is
    no such term; the checkpoint then holds the last good epoch.
    """
    parameters = objective.new_parameters(clip, labels, seed)
    task = Task(clip, labels, examples, objective.new_memory(examples, parameters), processes, precision)
    average = {name: tensor.clone() for name, tensor in parameters.items()} if objective.average else {}
    for tensor in parameters.values():
        tensor.requires_grad_()
    epochs = sum(objective.phases())
    groups = [
        {"params": [tensor], "share": objective.share_of_rate(name)} for name, tensor in parameters.items()
    ]
    optimizer = torch.optim.SGD(groups, lr=objective.rate(0), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    tensors = _named("prompts", parameters) | _named("average", average) | _named("memory", task.memory)

    def keep(progressed: Progressed) -> None:
        if processes.main:
            save_checkpoint(checkpoint, tensors, optimizer, progressed)

    if not checkpoint.exists():
        keep(Progressed([], 0))
    processes.wait()
    history, restarts = load_checkpoint(checkpoint, tensors, optimizer)
    watch, text_passes = CollapseWatch(len(labels)), 0
    while len(history) < epochs:
        weakened = _weakened(objective, restarts)
        run = _Run(task, weakened, parameters, average, optimizer, epochs, seed, restarts, progress)
        try:
            history.append(run.epoch(len(history), watch))
        except TrainingFailed as failure:
            if restarts == MAX_RESTARTS or weakened.weakened() is None:
                raise
            history, restarts = load_checkpoint(checkpoint, tensors, optimizer)
            processes.wait()
            restarts, watch = restarts + 1, CollapseWatch(len(labels))
            keep(Progressed(history, restarts))
            progress(
                0,
                epochs * len(examples),
                f"tuning: restart {restarts} from epoch {len(history)}, {failure.message}",
            )
            continue
        text_passes += history[-1].text_passes
        if not watch.streak or len(history) == epochs:  # a checkpoint is a place worth returning to
            keep(Progressed(history, restarts))
    averaged = objective.fold(clip, average).detached() if average else None
    companions = {
        name: prompts.detached() for name, prompts in objective.companions(clip, parameters).items()
    }
    return Fitted(
        objective.fold(clip, parameters).detached(), averaged, companions, history, restarts, text_passes
    )


@dataclass(frozen=True, eq=False)
class _Run:
    task: Task
    objective: Objective
    parameters: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    epochs: int
    seed: int
    restarts: int
    progress: Progress

    def epoch(self, epoch: int, watch: CollapseWatch) -> Epoch:
        """One pass over the examples."""
        examples, objective = self.task.examples, self.objective
        stream = f"epoch-{epoch}" + (f"-restart-{self.restarts}" if self.restarts else "")
        seeds = derive(draw_seeds(self.seed, len(examples)), stream)
        met = _Met()
        first = epoch in {0, *accumulate(objective.phases())}  # of a phase
        if first:
            watch.streaks.clear()
        if epoch:
            tended = objective.tend(self.task, self.parameters, epoch=epoch, seeds=derive(seeds, "tend"))
            met.spent(tended.cost, tended.text_passes)
            met.notes |= tended.notes
        batches = torch.randperm(len(examples), generator=seeded(self.seed, stream)).split(objective.batch)
        for number, rows in enumerate(batches):
            targets = examples.targets[rows.to(examples.targets.device)]
            inputs = examples.take(self.task.processes.own(rows) if examples.divided else rows)
            batch = Batch(inputs, targets, seeds[rows], rows, epoch + number / len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = objective.rate(batch.epoch) * group["share"]
            step = objective.loss(self.task, self.parameters, batch)
            self._descend(step, epoch, epoch * len(batches) + number)
            met.add(step, len(rows))
            if not first:
                watch.observe(step.signs)
            self.progress(epoch * len(examples) + met.seen, self.epochs * len(examples), met.sentence())
        return met.report(objective.rate(epoch + 0.5))

    def _descend(self, step: Step, epoch: int, number: int) -> None:
        loss = torch.stack(list(step.losses.values())).sum()
        if not bool(loss.isfinite()):
            terms = ", ".join(f"{name} {float(term.detach()):.3g}" for name, term in step.losses.items())
            raise TrainingDiverged(
                f"the loss of epoch {epoch + 1} is not finite: {terms}.",
                help="Lower --objective.learning_rate.",
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.task.processes.average_gradients(self.parameters.values())
        self.optimizer.step()
        kept = min(
            self.objective.average, (1 + number) / (10 + number)
        )  # a young average forgets its start faster
        for name, tensor in self.average.items():
            tensor.lerp_(self.parameters[name].detach(), 1 - kept)


class _Met:
    """The losses, accuracies and notes of an epoch's steps, averaged over examples, and their cost."""

    def __init__(self) -> None:
        self.seen = 0
        self.cost = Cost()
        self.text_passes = 0
        self.notes: dict[str, float] = {}
        self._sums: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def spent(self, cost: Cost, text_passes: int) -> None:
        self.cost, self.text_passes = self.cost.plus(cost), self.text_passes + text_passes

    def add(self, step: Step, count: int) -> None:
        self.seen += count
        self.spent(step.cost, step.text_passes)
        accuracies = {"accuracy": step.accuracy, "robust": step.robust}
        found = {name: float(value) for name, value in accuracies.items() if value is not None}
        for what, values in (
            ("losses", {name: float(term.detach()) for name, term in step.losses.items()}),
            ("found", found),
            ("notes", step.notes),
        ):
            sums = self._sums[what]
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value * count

    def means(self, what: str) -> dict[str, float]:
        return {name: value / self.seen for name, value in self._sums[what].items()}

    def sentence(self) -> str:
        found = self.means("found")
        accuracies = [
            f"{word} {found[name]:.1%}"
            for name, word in (("accuracy", "accuracy"), ("robust", "attacked"))
            if name in found
        ]
        return ", ".join([f"tuning: loss {sum(self.means('losses').values()):.3f}", *accuracies])

    def report(self, rate: float) -> Epoch:
        found = self.means("found")
        notes = self.notes | self.means("notes")
        return Epoch(
            rate,
            self.means("losses"),
            found.get("accuracy"),
            found.get("robust"),
            notes,
            self.cost,
            self.text_passes,
        )


def _weakened(objective: Objective, times: int) -> Objective:
    for _ in range(times):
        objective = objective.weakened() or objective
    return objective


def _named(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for name, tensor in tensors.items()}
