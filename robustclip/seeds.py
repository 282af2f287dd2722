"""Row seeds: all randomness of row i comes from seeds[i], not from batch mates, batch size or dropped rows.

Attacks and defenses both use them, and neither imports the other. Global generators are neither read nor
changed.
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
    """[B] int64 seeds of another stream (`start`, `defense`, `eot-3`): attack and defense share no draws."""
    return torch.tensor([_mixed(int(seed), stream) for seed in seeds.tolist()], dtype=torch.int64)


def row_uniform(seeds: Seeds, shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    """[B, *shape] U[0, 1) float32 on the device of `like`, one generator a row."""
    return _rows(seeds, shape, torch.rand).to(like.device)


def row_normal(seeds: Seeds, shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    """[B, *shape] N(0, 1) float32 on the device of `like`, one generator a row."""
    return _rows(seeds, shape, torch.randn).to(like.device)


def _rows(seeds: Seeds, shape: tuple[int, ...], draw: Callable[..., Tensor]) -> Tensor:
    rows = [draw(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def _mixed(seed: int, stream: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK
