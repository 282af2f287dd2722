"""The state of a tuning run between two epochs, as one safetensors file.

It holds the tensors by name, the optimizer's, the reports of the epochs, and the restarts, but no generator's
state: every epoch draws from the run's seed and its number. It is replaced after each epoch, so it is no
finished work as in `training.finished`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustclip.errors import DataRefused
from robustclip.files import write_atomically
from robustclip.types import Cost


class Epoch(NamedTuple):
    """Means over the steps of an epoch, and its cost.

    `accuracy` and `robust` are those of the training batches, clean and attacked; None where a method does
    not measure them.
    """

    learning_rate: float
    losses: dict[str, float]
    accuracy: float | None
    robust: float | None
    notes: dict[str, float]
    cost: Cost
    text_passes: int

    @property
    def loss(self) -> float:
        """The sum of the terms."""
        return sum(self.losses.values())


class Progressed(NamedTuple):
    """How far a run is: its epochs, and how often it began again after a collapse."""

    history: list[Epoch]
    restarts: int


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, progressed: Progressed
) -> None:
    """Replace the file at `path` as a whole."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    held |= {f"optimizer.{index}.{name}": tensor.cpu() for index, name, tensor in _state(optimizer)}
    facts = {
        "history": json.dumps([epoch._asdict() for epoch in progressed.history]),
        "restarts": str(progressed.restarts),
    }
    write_atomically(path, save(held, facts))


def load_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> Progressed:
    """Restore tensors and optimizer bit by bit. DataRefused for a file that does not hold these tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping, only keys)
            facts = file.metadata()
        history = [_epoch(row) for row in json.loads(facts["history"])]
        restarts = int(facts["restarts"])
        with torch.no_grad():
            for name, tensor in tensors.items():
                if held[name].shape != tensor.shape:
                    raise ValueError(
                        f"{name} has shape {list(held[name].shape)}, expected {list(tensor.shape)}"
                    )
                tensor.copy_(held[name])
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataRefused(
            f"no checkpoint of this run: {error}", field=str(path), help="Start again with --fresh."
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in held.items():
        if name.startswith("optimizer."):
            _, index, quantity = name.split(".", 2)
            state.setdefault(int(index), {})[quantity] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return Progressed(history, restarts)


def _epoch(row: dict[str, Any]) -> Epoch:
    return Epoch(**row)._replace(cost=Cost(*row["cost"]))


def _state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, str, Tensor]]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    for index, quantities in state.items():
        for name, tensor in quantities.items():
            if tensor is not None:
                yield index, name, tensor
