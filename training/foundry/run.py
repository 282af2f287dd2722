"""The loop that makes weights: learn, average, check, save; a killed run continues as if nothing happened."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from robustclip.errors import InvalidInput, RobustClipError
from robustclip.files import replacing
from robustclip.types import Progress
from training.foundry.recipe import Recipe
from training.processes import Processes


@torch.no_grad()
def average_into(average: nn.Module, current: nn.Module, *, decay: float, step: int) -> None:
    """An exponential moving average. Its decay grows to the full value, so that it forgets the start."""
    weight = min(decay, (1 + step) / (10 + step))
    for mean, new in zip(average.parameters(), current.parameters(), strict=True):
        mean.lerp_(new, 1 - weight)


def inside_stem(name: str) -> bool:
    """Whether a parameter of a CLIP or its tower is of the first convolutions, 1x1 projection excluded."""
    return name.removeprefix("visual.").startswith("conv1.") and "conv1.project." not in name


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, rate: float, stem_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: first convolutions have `stem_rate`, vectors and tables don't decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decay = weight_decay if parameter.ndim > 1 and "embedding" not in name else 0.0
        if parameter.requires_grad:
            groups.setdefault((stem_rate if inside_stem(name) else rate, decay), []).append(parameter)
    return [
        cast(dict[str, Any], {"params": group, "lr": lr, "weight_decay": decay})
        for (lr, decay), group in groups.items()
    ]


def share_of_rate(step: int, steps: int, *, warm_up: int) -> float:
    """The factor of the learning rate at a step: up to 1 over `warm_up` steps, then down a cosine to 0.01."""
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)


R = TypeVar("R", bound=Recipe)
N = TypeVar("N", bound=nn.Module)
Terms = dict[str, Tensor]  # the weighted terms of a loss, [] each, by name


class TrainingDiverged(RobustClipError, code="training-diverged"):
    """The loss is not finite any more."""


class Phase(NamedTuple):
    """Steps with one schedule of the learning rate. `average` and `clip` are those of the recipe.

    There is a check whenever `check_samples` more pictures were learned from, and at the end.
    """

    name: str
    steps: int
    batch: int
    warm_up: int
    check_samples: int
    average: float
    clip: float
    checkpoint: str = "checkpoint.pt"


class Reached(NamedTuple):
    """How far a phase is, in seconds since it was resumed, and the mean terms of its last step."""

    step: int
    samples: int
    seconds: float
    samples_per_second: float
    terms: dict[str, float]

    def line(self) -> dict[str, Any]:
        """The beginning of a line of a log."""
        return {
            "step": self.step,
            "samples": self.samples,
            "samples_per_second": round(self.samples_per_second, 1),
        }


class Run(ABC, Generic[R, N]):
    """A run that continues from the checkpoint in its `folder`, beside which it writes log.jsonl.

    A subclass sets what follows before it calls `train`: the `network` that learns, its `average`, all
    `modules` that learn or are averaged by their names in a checkpoint, and the `optimizer`.
    """

    checkpoint_steps: ClassVar[int] = 100
    parts = 1  # of a step, whose losses are averaged
    network: N
    average: N
    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer

    def __init__(self, recipe: R, folder: Path, processes: Processes, progress: Progress) -> None:
        self.recipe, self.folder, self.processes, self.progress = recipe, folder, processes, progress

    @abstractmethod
    def losses(self, phase: Phase, start: int) -> Iterator[Iterable[Terms]]:
        """For each step from `start` on the terms of its parts, as this process sees them."""

    @abstractmethod
    def check(self, phase: Phase, reached: Reached) -> bool:
        """Measure and log, in the main process alone; whether to stop."""

    def facts(self) -> dict[str, Any]:
        """The other values in a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the other values from a checkpoint."""

    def changed(self, phase: Phase, state: Mapping[str, Any]) -> list[str]:
        """The options that a checkpoint was made with other values of."""
        return self.recipe.changed(state["recipe"])

    def constrain(self) -> None:
        """Put weights back into their limits after a step."""

    def train(self, phase: Phase) -> None:
        """All steps of a phase that are left.

        Raises InvalidInput for a checkpoint of other options, TrainingDiverged for a loss that is not finite.
        """
        rates = [cast(float, group["lr"]) for group in self.optimizer.param_groups]
        self.folder.mkdir(parents=True, exist_ok=True)
        start = counted = self._resume(phase)
        began = checked = time.monotonic()
        losses = self.losses(phase, start)
        for step in range(start, phase.steps):
            share = share_of_rate(step, phase.steps, warm_up=phase.warm_up)
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            terms = self._step(phase, step, next(losses))
            self.constrain()
            average_into(self.average, self.network, decay=phase.average, step=step)
            samples, last = (step + 1) * phase.batch, step + 1 == phase.steps
            now = time.monotonic()
            speed = (step + 1 - counted) * phase.batch / (now - checked)
            words = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
            self.progress(step + 1, phase.steps, f"{phase.name}: {words}, {speed:.0f} samples/s")
            due = last or samples // phase.check_samples > step * phase.batch // phase.check_samples
            stop = False
            if due:
                reached = Reached(step + 1, samples, now - began, speed, terms)
                stop = self.processes.agree(self.processes.main and self.check(phase, reached))
                checked, counted = time.monotonic(), step + 1
            if due or (step + 1) % self.checkpoint_steps == 0:
                self._save(phase, step + 1)
            if stop:
                break

    def log(self, line: Mapping[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def write(self, name: str, state: Mapping[str, Any]) -> None:
        """A file of tensors in the folder, whole or not at all."""
        with replacing(self.folder / name) as partial:
            torch.save(state, partial)

    def _step(self, phase: Phase, step: int, parts: Iterable[Terms]) -> dict[str, float]:
        """One update from the whole batch; the mean terms."""
        means: dict[str, float] = {}
        for terms in parts:
            (torch.stack(list(terms.values())).sum() / self.parts).backward()
            for name, term in terms.items():
                means[name] = means.get(name, 0.0) + self.processes.mean(term.detach()).item() / self.parts
        self.processes.average_gradients(
            parameter for module in self.modules.values() for parameter in module.parameters()
        )
        if phase.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), phase.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not all(math.isfinite(value) for value in means.values()):
            raise TrainingDiverged(
                f"the loss of step {step + 1} is not finite: {means}.", help="Lower --rate."
            )
        return means

    def _save(self, phase: Phase, step: int) -> None:
        if self.processes.main:
            state = {name: module.state_dict() for name, module in self.modules.items()}
            state |= {"optimizer": self.optimizer.state_dict(), "step": step}
            self.write(phase.checkpoint, state | {"recipe": self.recipe.model_dump()} | self.facts())

    def _resume(self, phase: Phase) -> int:
        """The steps that are done already."""
        self.processes.wait()
        path = self.folder / phase.checkpoint
        if not path.exists():
            return 0
        state = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
        if changed := self.changed(phase, state):
            raise InvalidInput(
                f"{path} was made with another {', '.join(changed)}.",
                field="--run",
                help="Use another --run, or the same options.",
            )
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.restore(state)
        return int(state["step"])
