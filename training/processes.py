"""The processes that share a run: one, or as many as torchrun or `accelerate launch` started.

A batch is always that of the whole run. Every process draws the same rows, shows its share to the towers and
gets the results of the others, so that a loss sees the whole batch and several processes learn what one
would. Accelerate counts the processes and carries the tensors. A single process does not even import it.
"""

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robustclip.errors import InvalidInput

T = TypeVar("T")
# where launchers write the number of processes
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_PATIENCE = timedelta(days=3)  # others wait while the main one decodes or checks; launchers notice the dead


@dataclass(frozen=True, eq=False)
class Processes:
    """`count` processes; number `index` is this one, which computes its share on `device` in `parts`."""

    device: torch.device
    count: int = 1
    index: int = 0
    parts: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes, logs and publishes."""
        return self.index == 0

    def own(self, rows: Tensor) -> Tensor:
        """This process's share [ceil(B / count), ...] of rows [B, ...]. The last row fills up shares to one
        size.
        """
        if self.count == 1:
            return rows
        size = -(-len(rows) // self.count)
        share = torch.arange(self.index * size, (self.index + 1) * size, device=rows.device)
        return rows[share.clamp(max=len(rows) - 1)]

    def whole(self, own: Tensor, count: int) -> Tensor:
        """All rows [count, ...] from every process's share of them, which has to be on `device`.

        A gradient reaches only the rows of this process, multiplied by the number of processes. So the mean
        over them (`average_gradients`) is the gradient of a loss that each of them computed from all rows.
        """
        if self.count == 1:
            return own
        from accelerate.utils import gather

        rows = cast(Tensor, gather(own.detach()))
        if own.requires_grad:
            start, live = self.index * len(own), own.view_as(own)
            live.register_hook(self._strengthen)
            rows = torch.cat([rows[:start], live, rows[start + len(own) :]])
        return rows[:count]

    def slices(self, count: int) -> list[slice]:
        """The parts of a share of `count` rows."""
        size = -(-count // self.parts)
        return [slice(start, start + size) for start in range(0, count, size)]

    def encode(self, encode: Callable[[Tensor], Tensor], own: Tensor, count: int) -> Tensor:
        """All rows [count, ...] of what `encode` gives for every process's share.

        Several parts are computed again in the backward pass: that takes less memory and one more forward
        pass.
        """
        if self.parts == 1:
            return self.whole(encode(own), count)
        parts = [
            checkpoint(encode, own[part], use_reentrant=False, preserve_rng_state=False)
            for part in self.slices(len(own))
        ]
        return self.whole(torch.cat(parts), count)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over the processes, which must have the same parameters."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        mean = cast(Tensor, reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean"))
        for gradient, new in zip(
            gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(new.view_as(gradient))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.count == 1:
            return values
        from accelerate.utils import reduce

        return cast(Tensor, reduce(values, "mean"))

    def agree(self, value: T) -> T:
        """The value of the main process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            _state().wait_for_everyone()

    @contextmanager
    def main_first(self) -> Generator[None]:
        """The others enter when the main process has left, and find its files."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def _strengthen(self, gradient: Tensor) -> Tensor:
        return gradient * self.count


ALONE = Processes(torch.device("cpu"))


@contextmanager
def joined(device: str | None = None, *, parts: int = 1) -> Generator[Processes]:
    """The processes that were started with this one. A single one is on `device`; None means a GPU if there
    is one.

    For several, `device` is a kind: `cuda` gives each process another GPU. InvalidInput if their number is
    unclear.
    """
    started = next((int(os.environ[name]) for name in _SIZES if name in os.environ), 1)
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if started == 1:
        yield Processes(torch.device(wanted), parts=parts)
        return
    state = _state(cpu=wanted == "cpu", timeout=_PATIENCE)
    if state.num_processes != started:
        raise InvalidInput(
            f"{started} processes were started, but each finds {state.num_processes}.",
            help="Start them by torchrun or accelerate launch.",
        )
    yield Processes(state.device, state.num_processes, state.process_index, parts)
    state.destroy_process_group()  # not after an error: the others may be waiting, and the launcher ends them


def _state(**options: Any) -> Any:
    from accelerate import PartialState

    return PartialState(**options)
