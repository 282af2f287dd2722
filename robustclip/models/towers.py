"""The two forwards with prompts, over open_clip's modules. The only file that knows how open_clip computes
inside.

Without prompts they equal `encode_image` and `encode_text` (tests/robustclip/test_towers.py). Attention and
MLP run over flattened tokens [M, W]: the backward of `nn.MultiheadAttention` over [B, L, W] copies its
weights for every token row on some CPUs.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Pixels


def encode_image(
    clip: Clip, pixels: Pixels, visual: Tensor | None = None, *, depth: Tensor | None = None
) -> Tensor:
    """[B, E] raw (not normalised) image embeddings of pixels in [0, 1] at the CLIP's own size.

    visual [D, N, W]: N vectors appended after the patch tokens, before the first layer norm; deeper rows
    replace them at layers 2..D.
    depth  [] integer: use the first `depth` rows of visual only. An exported graph needs it, where D is
           frozen.
    Differentiable in pixels and visual.
    """
    if visual is None and clip.visual_width is None:
        return clip.model.visual(_normalised(clip, pixels))
    return encode_patches(clip, patch_tokens(clip, pixels), visual, depth=depth)


def patch_tokens(clip: Clip, pixels: Pixels) -> Tensor:
    """[B, grid^2, W] patch tokens, which no prompt changes: what `encode_patches` goes on from. For towers
    that take visual prompts.
    """
    return clip.model.visual.conv1(_normalised(clip, pixels)).flatten(2).transpose(1, 2)


def has_stem(clip: Clip) -> bool:
    """Whether patch tokens take more than one convolution, so that keeping them is worth its while."""
    return clip.visual_width is not None and not isinstance(clip.model.visual.conv1, nn.Conv2d)


def _normalised(clip: Clip, pixels: Pixels) -> Tensor:
    size = clip.image_size
    if pixels.shape[1:] != (3, size, size):
        raise InvalidInput(
            f"expected pixels [B, 3, {size}, {size}], found {list(pixels.shape)}.", field="pixels"
        )
    return (pixels - clip.mean[:, None, None]) / clip.std[:, None, None]


def encode_patches(
    clip: Clip, patches: Tensor, visual: Tensor | None = None, *, depth: Tensor | None = None
) -> Tensor:
    """[B, E] raw image embeddings from patch tokens [B, grid^2, W]: everything after `conv1`, for training
    that keeps what the stem made.
    """
    tower = clip.model.visual
    batch, width = patches.shape[0], patches.shape[2]
    start = tower.class_embedding.to(patches.dtype).expand(batch, 1, width)
    tokens = torch.cat([start, patches], dim=1) + tower.positional_embedding.to(patches.dtype)
    if visual is not None:
        tokens = torch.cat([tokens, visual[0].expand(batch, -1, -1).to(tokens.dtype)], dim=1)
    tokens = tower.ln_pre(tokens)
    rows = _Rows(batch, tokens.shape[1])
    states = tokens.flatten(0, 1)
    blocks = tower.transformer.resblocks
    for layer, block in enumerate(blocks):
        if visual is not None and 0 < layer < visual.shape[0]:
            tokens, kept = states.unflatten(0, (-1, rows.length)), rows.length - visual.shape[1]
            replaced = visual[layer].expand(batch, -1, -1).to(tokens.dtype)
            chosen = replaced if depth is None else torch.where(layer < depth, replaced, tokens[:, kept:])
            states = torch.cat([tokens[:, :kept], chosen], dim=1).flatten(0, 1)
        states, _ = _block(block, states, rows, last=layer == len(blocks) - 1)
    return tower.ln_post(states) @ tower.proj


def encode_text(clip: Clip, tokens: Tensor, text: Tensor | None = None) -> Tensor:
    """[L, E] raw text embeddings of [L, T] token ids, read at [EOS].

    text [D, N, W] or, a context a row, [L, D, N, W]: N vectors after [SOS]; deeper ones replace them at
    layers 2..D. What can't change the result is not computed: nothing behind a row's [EOS], which the causal
    mask hides from it, and of the last layer only [EOS] itself. What all rows begin with, [SOS], a shared
    context and the first words of a template, has the same states in each of them: it is computed once and
    attended to by all (101 labels behind 32 vectors: a tenth of the tokens). Raises InvalidInput when vectors
    and words exceed the context length.
    """
    model = clip.model
    ends = tokens.argmax(dim=-1)  # [EOS] has the highest id
    vectors = 0 if text is None else text.shape[-2]
    length = int(ends.max()) + 1 + vectors
    if length > clip.context_length:
        raise InvalidInput(
            f"{length} tokens with {vectors} prompt vectors, at most {clip.context_length} fit.",
            field="labels",
            help="Shorten the longest label.",
        )
    embedded = model.token_embedding(tokens[:, : length - vectors])  # [L, T', W]
    positions = model.positional_embedding[:length].to(embedded.dtype)
    context = None if text is None else text.to(embedded.dtype)
    blocks = model.transformer.resblocks
    if context is not None and context.ndim == 4:
        pooled = _after_own_context(blocks, embedded, context, positions, ends)
    else:
        pooled = _after_shared_beginning(
            blocks, embedded, context, positions, ends, common=_common(tokens, ends)
        )
    return model.ln_final(pooled) @ model.text_projection


def _common(tokens: Tensor, ends: Tensor) -> int:
    """How many tokens all rows begin with: at least [SOS], and no row's [EOS]."""
    alike = (tokens == tokens[:1]).all(dim=0).long().cumprod(dim=0).sum()
    return int(torch.minimum(alike, ends.min()))


def _after_own_context(
    blocks: Any, embedded: Tensor, context: Tensor, positions: Tensor, ends: Tensor
) -> Tensor:
    """[L, W] final states at [EOS] of whole sequences, each behind a context [D, N, W] of its own."""
    number = context.shape[2]
    sequences = torch.cat([embedded[:, :1], context[:, 0], embedded[:, 1:]], dim=1) + positions
    rows = _rows(ends + number, sequences.shape[1])
    states = rows.packed(sequences)
    places = (rows.starts()[:, None] + 1 + torch.arange(number, device=ends.device)).flatten()
    for depth, block in enumerate(blocks):
        if 0 < depth < context.shape[1]:
            states = states.index_copy(0, places, context[:, depth].flatten(0, 1))
        states, _ = _block(block, states, rows, causal=True, last=depth == len(blocks) - 1)
    return states


def _after_shared_beginning(
    blocks: Any, embedded: Tensor, context: Tensor | None, positions: Tensor, ends: Tensor, *, common: int
) -> Tensor:
    """[L, W] final states at [EOS] behind the `common` words of all rows, [SOS] first, and a context [D, N,
    W] or none behind it, computed once.
    """
    number = 0 if context is None else context.shape[1]
    once = [embedded[:1, :1], *([] if context is None else [context[:1]]), embedded[:1, 1:common]]
    shared = (torch.cat(once, dim=1) + positions[: common + number])[0]  # [P, W]
    beginning = _Rows(1, len(shared))
    rows = _rows(ends - common, embedded.shape[1] - common)
    states = rows.packed(embedded[:, common:] + positions[common + number :])
    for depth, block in enumerate(blocks):
        last = depth == len(blocks) - 1
        if context is not None and 0 < depth < context.shape[0]:
            shared = torch.cat([shared[:1], context[depth], shared[1 + number :]])
        shared, memory = _block(block, shared, beginning, causal=True, last=last)
        states, _ = _block(block, states, rows, causal=True, memory=memory, last=last)
    return states


def check_prompts(clip: Clip, prompts: Prompts, *, labels: int | None = None) -> None:
    """InvalidInput unless the tensors fit these towers; the field names the tensor."""
    if prompts.text is not None:
        depth, _, width = prompts.text.shape[-3:]
        if width != clip.text_width or not 1 <= depth <= clip.text_layers:
            raise InvalidInput(
                f"{clip.arch} takes up to {clip.text_layers} layers of width {clip.text_width}, found "
                f"{depth} of width {width}.",
                field="text_context",
            )
        if prompts.text.shape[-2] > clip.context_length - 3:
            raise InvalidInput(
                f"{prompts.text.shape[-2]} vectors leave no room for a label in {clip.context_length} "
                f"tokens.",
                field="text_context",
            )
        if prompts.class_specific and labels is not None and prompts.text.shape[0] != labels:
            raise InvalidInput(
                f"class-specific text for {prompts.text.shape[0]} labels, found {labels} labels.",
                field="text_context",
            )
    if prompts.visual is not None:
        if clip.visual_width is None or clip.visual_layers is None:
            raise InvalidInput(
                f"the image tower of {clip.arch} takes no visual prompts.", field="visual_context"
            )
        depth, _, width = prompts.visual.shape
        if width != clip.visual_width or not 1 <= depth <= clip.visual_layers:
            raise InvalidInput(
                f"{clip.arch} takes up to {clip.visual_layers} layers of width {clip.visual_width}, found "
                f"{depth} of width {width}.",
                field="visual_context",
            )


class _Rows(NamedTuple):
    """How tokens [M, W] lie in the rows of a batch, one row behind the other: `length` tokens each, or only
    those up to a row's own end.
    """

    batch: int
    length: int
    ends: Tensor | None = (
        None  # [B] the last position of each row; None: all rows are full, and read at their first
    )
    places: Tensor | None = None  # [M] where the tokens stand among B * length; None: everywhere

    def starts(self) -> Tensor:
        """[B] where each row begins among the tokens."""
        assert self.ends is not None
        return (self.ends + 1).cumsum(dim=0) - self.ends - 1

    def packed(self, sequences: Tensor) -> Tensor:
        """[M, W] from [B, length, W]."""
        flat = sequences.flatten(0, 1)
        return flat if self.places is None else flat[self.places]

    def spread(self, states: Tensor) -> Tensor:
        """[B, length, W] from [M, W]; zeros where no token stands."""
        if self.places is None:
            return states.unflatten(0, (-1, self.length))
        return (
            states.new_zeros(self.batch * self.length, states.shape[1])
            .index_copy(0, self.places, states)
            .unflatten(0, (-1, self.length))
        )

    def read(self, states: Tensor) -> Tensor:
        """[B, W]: of each row the token that an embedding is read from."""
        return (
            states.unflatten(0, (-1, self.length))[:, 0]
            if self.ends is None
            else states[self.starts() + self.ends]
        )


def _rows(ends: Tensor, length: int) -> _Rows:
    kept = torch.arange(length, device=ends.device) <= ends[:, None]
    return _Rows(len(ends), length, ends, None if bool(kept.all()) else kept.flatten().nonzero().flatten())


class _Memory(NamedTuple):
    """Keys and values [1, H, P, d] of positions that stand before every row of a batch."""

    key: Tensor
    value: Tensor


def _block(
    block: Any,
    states: Tensor,
    rows: _Rows,
    *,
    causal: bool = False,
    memory: _Memory | None = None,
    last: bool = False,
) -> tuple[Tensor, _Memory]:
    """One residual attention block on tokens [M, W], and the keys and values [B, H, L, W/H] it computed; of
    the `last` block what is read, [B, W].
    """
    attention = block.attn
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, states.shape[1]
    normed = block.ln_1(states)
    if last:
        keyed = _heads(rows.spread(F.linear(normed, weight[width:], bias[width:])), attention, 2)
        asked = _heads(F.linear(rows.read(normed), weight[:width], bias[:width])[:, None], attention, 1)
        key, value, query, states = keyed[0], keyed[1], asked[0], rows.read(states)
        hidden = _hidden(rows.length, rows.ends[:, None]) if causal and rows.ends is not None else None
    else:
        query, key, value = _heads(rows.spread(F.linear(normed, weight, bias)), attention, 3)
        hidden = (
            _hidden(rows.length, torch.arange(rows.length, device=states.device)[None]) if causal else None
        )
    mixed = _attend(query, key, value, hidden=hidden, memory=memory).transpose(1, 2).flatten(2)
    flat = states + block.ls_1(attention.out_proj(mixed[:, 0] if last else rows.packed(mixed)))
    return flat + block.ls_2(block.mlp(block.ln_2(flat))), _Memory(key, value)


def _heads(projected: Tensor, attention: Any, parts: int) -> Tensor:
    """[parts, B, H, L, W/H] from [B, L, parts * W]."""
    return projected.unflatten(2, (parts, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)


def _hidden(length: int, asking: Tensor) -> Tensor:
    """[B or 1, 1, Q, length] the keys that stand behind whoever asks; asking [B or 1, Q]."""
    return (torch.arange(length, device=asking.device) > asking[:, :, None])[:, None]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, hidden: Tensor | None, memory: _Memory | None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of queries [B, H, Q, d] over keys [B, H, L, d] that are not hidden; `memory`
    is seen by every position.

    Written out on CPUs, where the fused kernel's backward loses on our short sequences (512 x 37 tokens,
    forward and backward, bf16: 459 ms fused, 54 ms written out; float32: 152 and 131 ms;
    tests/benchmarks/bench_towers.py).
    """
    if query.device.type != "cpu" and memory is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if hidden is None else ~hidden
        )
    batch, heads, asked, depth = query.shape
    query = query * depth**-0.5
    scores = query @ key.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    if memory is None:
        return scores.softmax(dim=-1) @ value
    # One product for all rows: the memory is not copied for each.
    rows = query.transpose(0, 1).reshape(1, heads, batch * asked, depth)
    remembered = (
        (rows @ memory.key.transpose(-1, -2)).reshape(heads, batch, asked, -1).transpose(0, 1)
    )  # [B, H, Q, P]
    weights = torch.cat([remembered, scores], dim=-1).softmax(dim=-1)
    known = remembered.shape[-1]
    recalled = weights[..., :known].transpose(0, 1).reshape(1, heads, batch * asked, known) @ memory.value
    return recalled.reshape(heads, batch, asked, depth).transpose(0, 1) + weights[..., known:] @ value
