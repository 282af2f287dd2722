"""open_clip's own text transformer, wherever a model keeps it, and where it reads the embedding of a text."""

from dataclasses import dataclass
from typing import Any, cast

import open_clip
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn

_POOLS = ("argmax", "eos", "last", "first")


@dataclass(frozen=True, eq=False)
class NativeText:
    """The parts of a text tower that our forward pass (robustclip/models/towers.py) can run with prompts.

    pool    at which token the embedding is read: `argmax` and `eos` at the end of the words, `last` and
            `first` at one end of the context
    causal  whether a token sees only those before it
    """

    tokens: nn.Embedding
    positions: Tensor
    blocks: Any
    norm: nn.Module
    projection: nn.Module | Tensor | None
    pool: str
    eos: int
    causal: bool

    @property
    def stops(self) -> bool:
        """Whether nothing behind the end of a text can change its embedding."""
        return self.causal and self.pool in ("argmax", "eos")

    def ends(self, tokens: Tensor) -> Tensor:
        """[L] where `argmax` and `eos` read [L, T] token ids: at the highest id, or the first end token."""
        return (tokens if self.pool == "argmax" else (tokens == self.eos).int()).argmax(dim=-1)

    def project(self, states: Tensor) -> Tensor:
        """[L, E] embeddings of [L, W] states of the last block."""
        normed = self.norm(states)
        if isinstance(self.projection, nn.Module):
            return self.projection(normed)
        return normed if self.projection is None else normed @ self.projection


def native_text(model: nn.Module) -> NativeText | None:
    """The text tower of a model in parts; None if it is not open_clip's, or computes in another way."""
    custom = not isinstance(model, open_clip.CLIP)
    tower = cast(Any, model).text if custom else cast(Any, model)
    if custom and (not isinstance(tower, TextTransformer) or tower.cls_emb is not None or tower.use_pad_mask):
        return None
    pool: Any = tower.pool_type if custom else tower.text_pool_type
    eos: Any = tower.eos_id if custom else tower.text_eos_id
    if pool not in _POOLS or not plain_blocks(tower.transformer):
        return None
    return NativeText(
        tower.token_embedding,
        tower.positional_embedding,
        tower.transformer.resblocks,
        tower.ln_final,
        tower.text_projection,
        pool,
        eos,
        tower.attn_mask is not None,
    )


def plain_blocks(transformer: Any) -> bool:
    """Whether all blocks are those that robustclip/models/attention.py computes."""
    return all(
        type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv")
        for block in transformer.resblocks
    )
