"""open_clip's residual attention block over flattened tokens [M, W].

The backward of `nn.MultiheadAttention` over [B, L, W] copies its weights for every token row on some CPUs.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Rows(NamedTuple):
    """How tokens [M, W] of a batch are stored: row after row, full or only up to each row's end."""

    batch: int
    length: int
    ends: Tensor | None = None  # [B] last position of each row; None: rows are full, and read at position 0
    places: Tensor | None = None  # [M] positions of the tokens among B * length; None: all of them

    def starts(self) -> Tensor:
        """[B] index of each row's first token."""
        assert self.ends is not None
        return (self.ends + 1).cumsum(dim=0) - self.ends - 1

    def packed(self, sequences: Tensor) -> Tensor:
        """[M, W] from [B, length, W]."""
        flat = sequences.flatten(0, 1)
        return flat if self.places is None else flat[self.places]

    def spread(self, states: Tensor) -> Tensor:
        """[B, length, W] from [M, W]; zeros where there is no token."""
        if self.places is None:
            return states.unflatten(0, (-1, self.length))
        return (
            states.new_zeros(self.batch * self.length, states.shape[1])
            .index_copy(0, self.places, states)
            .unflatten(0, (-1, self.length))
        )

    def read(self, states: Tensor) -> Tensor:
        """[B, W]: the token of each row that the embedding is read from."""
        return (
            states.unflatten(0, (-1, self.length))[:, 0]
            if self.ends is None
            else states[self.starts() + self.ends]
        )


def rows_up_to(ends: Tensor, length: int) -> Rows:
    """Rows of `length` positions, without what lies behind each row's end [B]."""
    kept = torch.arange(length, device=ends.device) <= ends[:, None]
    return Rows(len(ends), length, ends, None if bool(kept.all()) else kept.flatten().nonzero().flatten())


class Memory(NamedTuple):
    """Keys and values [1, H, P, d] of positions that precede every row of a batch."""

    key: Tensor
    value: Tensor


def run_block(
    block: Any,
    states: Tensor,
    rows: Rows,
    *,
    causal: bool = False,
    memory: Memory | None = None,
    last: bool = False,
) -> tuple[Tensor, Memory]:
    """One residual attention block on tokens [M, W]: new tokens, and its keys and values [B, H, L, W/H].

    Of the `last` block only the tokens that an embedding is read from, [B, W].
    """
    attention = block.attn
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, states.shape[1]
    normed = block.ln_1(states)
    if last:
        key, value = _heads(rows.spread(F.linear(normed, weight[width:], bias[width:])), attention, 2)
        (query,) = _heads(F.linear(rows.read(normed), weight[:width], bias[:width])[:, None], attention, 1)
        states = rows.read(states)
        hidden = _hidden(rows.length, rows.ends[:, None]) if causal and rows.ends is not None else None
    else:
        query, key, value = _heads(rows.spread(F.linear(normed, weight, bias)), attention, 3)
        hidden = (
            _hidden(rows.length, torch.arange(rows.length, device=states.device)[None]) if causal else None
        )
    mixed = _attend(query, key, value, hidden=hidden, memory=memory).transpose(1, 2).flatten(2)
    flat = states + block.ls_1(attention.out_proj(mixed[:, 0] if last else rows.packed(mixed)))
    return flat + block.ls_2(block.mlp(block.ln_2(flat))), Memory(key, value)


def _heads(projected: Tensor, attention: Any, parts: int) -> Tensor:
    """[parts, B, H, L, W/H] from [B, L, parts * W]."""
    return projected.unflatten(2, (parts, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)


def _hidden(length: int, positions: Tensor) -> Tensor:
    """[B or 1, 1, Q, length] the keys behind each query's position; positions [B or 1, Q]."""
    return (torch.arange(length, device=positions.device) > positions[:, :, None])[:, None]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, hidden: Tensor | None, memory: Memory | None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of queries [B, H, Q, d] over the keys [B, H, L, d] that are not hidden.

    Every query also sees `memory`. Written out on CPUs, where the backward of the fused kernel is slower on
    short sequences (512 x 37 tokens, forward and backward, bf16: 459 ms fused, 54 ms written out; float32:
    152 and 131 ms; tests/benchmarks/bench_towers.py).
    """
    if query.device.type != "cpu" and memory is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if hidden is None else ~hidden
        )
    batch, heads, queries, depth = query.shape
    query = query * depth**-0.5
    scores = query @ key.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    if memory is None:
        return scores.softmax(dim=-1) @ value
    # One product for all rows, so that the memory is not copied for each.
    rows = query.transpose(0, 1).reshape(1, heads, batch * queries, depth)
    common = (rows @ memory.key.transpose(-1, -2)).reshape(heads, batch, queries, -1).transpose(0, 1)
    weights = torch.cat([common, scores], dim=-1).softmax(dim=-1)
    size = common.shape[-1]
    mixed = weights[..., :size].transpose(0, 1).reshape(1, heads, batch * queries, size) @ memory.value
    return mixed.reshape(heads, batch, queries, depth).transpose(0, 1) + weights[..., size:] @ value
