"""Small trainings of any method, for tests: 32-pixel pictures, the `tiny` CLIP, nothing published."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustclip.models.clip import Clip
from robustclip.seeds import draw_seeds
from robustclip.types import Cost
from training.data.folders import load_data
from training.learning.objectives import OBJECTIVES
from training.learning.objectives.base import Batch, Examples, Task
from training.learning.objectives.contexts import Parameters


def silent(done: int, total: int, what: str) -> None:
    """A `Progress` for nobody."""


class Bench(NamedTuple):
    """A method with everything that one step needs."""

    objective: Any
    task: Task
    parameters: Parameters
    batch: Batch

    def step(self) -> Any:
        return self.objective.loss(self.task, self.parameters, self.batch)


def task_of(clip: Clip, labels: tuple[str, ...]) -> Task:
    """Labels without a picture."""
    return Task(clip, labels, Examples(torch.empty(0, dtype=torch.int64), lambda rows: rows, Cost(), 0.0), {})


def bench(
    clip: Clip, pictures: Path, cache: Path, kind: str, *, epoch: float = 2.0, **options: object
) -> Bench:
    """One step of a method on six pictures of three labels, prompts as they start."""
    objective = OBJECTIVES[kind].model_validate(options)
    data = load_data(pictures, "train")
    examples = objective.prepare(clip, data, torch.arange(0, 36, 6), seed=0, folder=cache, progress=silent)
    parameters = objective.new_parameters(clip, data.labels, 0)
    task = Task(clip, data.labels, examples, objective.new_memory(examples, parameters))
    for tensor in parameters.values():
        tensor.requires_grad_()
    rows = torch.arange(6)
    return Bench(
        objective,
        task,
        parameters,
        Batch(examples.take(rows), examples.targets, draw_seeds(5, 6), rows, epoch),
    )
