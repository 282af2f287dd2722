"""The state of a tuning run between two epochs, as one safetensors file: prompts, the optimizer's tensors, what the epochs reported.

There is no generator state to keep: every epoch draws from the run's seed and its own number.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustclip.errors import DataRefused
from robustclip.files import write_atomically


class Epoch(NamedTuple):
    """Means over the steps of an epoch; `accuracy` is that of the training batches as they were met."""

    learning_rate: float
    loss: float
    accuracy: float


def save_checkpoint(path: Path, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, history: list[Epoch]) -> None:
    """Replace the file at `path` as a whole."""
    held = {f"prompts.{name}": tensor.detach().cpu() for name, tensor in tensors.items()}
    held |= {f"optimizer.{index}.{name}": tensor.cpu() for index, name, tensor in _state(optimizer)}
    write_atomically(path, save(held, {"history": json.dumps(history)}))


def load_checkpoint(path: Path, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> list[Epoch]:
    """Put prompts and optimizer back in place, bit by bit; the history of the epochs done, [] if there is no file.

    DataRefused for a file that is no checkpoint of these prompts.
    """
    if not path.exists():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping, only keys)
            history = [Epoch(*row) for row in json.loads(file.metadata()["history"])]
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(held[f"prompts.{name}"])
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataRefused(f"no checkpoint of this run: {error}", field=str(path), help="Start again with --fresh.") from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in held.items():
        if name.startswith("optimizer."):
            _, index, quantity = name.split(".", 2)
            state.setdefault(int(index), {})[quantity] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return history


def _state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, str, Tensor]]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    for index, quantities in state.items():
        for name, tensor in quantities.items():
            if tensor is not None:
                yield index, name, tensor
