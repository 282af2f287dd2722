"""The one training loop. It knows prompts, examples and a loss; methods know the rest."""

import math
from pathlib import Path
from typing import NamedTuple

import torch

from robustclip.clip import Clip
from robustclip.errors import RobustClipError
from robustclip.prompts import Prompts
from robustclip.seeds import derive, draw_seeds
from robustclip.types import Progress
from training.checkpoint import Epoch, load_checkpoint, save_checkpoint
from training.objectives.base import Batch, Examples, Objective
from training.sampling import seeded

WARM_UP_RATE = 1e-5
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


class TrainingDiverged(RobustClipError):
    """A loss that is no number any more."""

    code = "training-diverged"


class Fitted(NamedTuple):
    """Learned prompts, off any graph, and a report an epoch. `text_passes` counts those of this call, not those before it was resumed."""

    prompts: Prompts
    history: list[Epoch]
    text_passes: int


def cosine_after_warm_up(rate: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch: the first at a constant 1e-5, then a cosine from `rate` toward 0 (METHODS 1.9)."""
    if epoch == 0:
        return WARM_UP_RATE
    return rate * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def fit(clip: Clip, objective: Objective, examples: Examples, labels: tuple[str, ...], *, seed: int, checkpoint: Path, progress: Progress) -> Fitted:
    """Learn prompts by SGD; every epoch ends with a checkpoint, and a run that finds one goes on from it, bit by bit as if it had never stopped.

    The shuffling of an epoch depends on (seed, epoch) alone. Raises TrainingDiverged when the loss is not finite; the checkpoint then holds the last
    good epoch.
    """
    prompts = objective.new_prompts(clip, labels, seed)
    parameters = {name: tensor.requires_grad_() for name, tensor in (("text", prompts.text), ("visual", prompts.visual)) if tensor is not None}
    optimizer = torch.optim.SGD(parameters.values(), lr=objective.learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    history = load_checkpoint(checkpoint, parameters, optimizer)
    seeds = draw_seeds(seed, len(examples))
    total = objective.epochs * len(examples)
    text_passes = 0
    for epoch in range(len(history), objective.epochs):
        rate = cosine_after_warm_up(objective.learning_rate, epoch, objective.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        order = torch.randperm(len(examples), generator=seeded(seed, f"epoch-{epoch}"))
        seen, summed_loss, hits = 0, 0.0, 0.0
        for rows in order.split(objective.batch):
            batch = Batch(examples.take(rows), examples.targets[rows.to(examples.targets.device)], derive(seeds[rows], f"epoch-{epoch}"))
            step = objective.loss(clip, prompts, labels, batch)
            loss = torch.stack(list(step.losses.values())).sum()
            if not bool(loss.isfinite()):
                terms = ", ".join(f"{name} {float(term.detach()):.3g}" for name, term in step.losses.items())
                raise TrainingDiverged(f"the loss of epoch {epoch + 1} is not finite: {terms}.", help="Lower --objective.learning_rate.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            text_passes += 1
            seen += len(rows)
            summed_loss += float(loss.detach()) * len(rows)
            hits += float(step.accuracy) * len(rows)
            progress(epoch * len(examples) + seen, total, f"tuning: loss {summed_loss / seen:.3f}, training accuracy {hits / seen:.1%}")
        history.append(Epoch(rate, summed_loss / seen, hits / seen))
        save_checkpoint(checkpoint, parameters, optimizer, history)
    return Fitted(prompts.detached(), history, text_passes)
