"""Row seeds: all randomness of row i comes from seeds[i].

Thus row i depends on its seed only, not on batch mates, batch size or rows dropped before; the global
generators are neither read nor written.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from robustclip.types import Seeds

_MASK = (1 << 63) - 1


def draw_seeds(seed: int, count: int) -> Seeds:
    """[count] int64 row seeds from one 63-bit request seed; row i's seed does not depend on `count`."""
    return torch.tensor([_mixed(seed, f"row-{row}") for row in range(count)], dtype=torch.int64)


def derive(seeds: Seeds, stream: str) -> Seeds:
    """[B] int64 seeds of an independent stream (`start`, `defense`, `eot-3`), so that attack noise and
    defense noise never share draws.
    """
    return torch.tensor([_mixed(int(seed), stream) for seed in seeds.tolist()], dtype=torch.int64)


def row_uniform(seeds: Seeds, shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    """[B, *shape] U[0, 1) float32 on the device of `like`, one generator a row."""
    return _rows(seeds, shape, torch.rand).to(like.device)


def row_normal(seeds: Seeds, shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    """[B, *shape] N(0, 1) float32 on the device of `like`, one generator a row."""
    return _rows(seeds, shape, torch.randn).to(like.device)


def _rows(seeds: Seeds, shape: tuple[int, ...], draw: Callable[..., Tensor]) -> Tensor:
    drawn = [draw(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return torch.stack(drawn) if drawn else torch.empty(0, *shape)


def _mixed(seed: int, stream: str) -> int:
    return (
        int.from_bytes(hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest(), "little") & _MASK
    )
