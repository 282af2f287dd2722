"""The two forwards with prompts, over open_clip's modules. The only file that knows how open_clip computes inside.

Without prompts they equal `encode_image` and `encode_text` (tests/robustclip/test_towers.py). Attention and MLP run over flattened tokens
[B*L, W]: the backward of `nn.MultiheadAttention` over [B, L, W] copies its weights for every token row on some CPUs.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.clip import Clip
from robustclip.errors import InvalidInput
from robustclip.prompts import Prompts
from robustclip.types import Pixels


def encode_image(clip: Clip, pixels: Pixels, visual: Tensor | None = None, *, depth: Tensor | None = None) -> Tensor:
    """[B, E] raw (not normalised) image embeddings of pixels in [0, 1] at the CLIP's own size.

    visual [D, N, W]: N vectors appended after the patch tokens, before the first layer norm; deeper rows replace them at layers 2..D.
    depth  [] integer: use the first `depth` rows of visual only. An exported graph needs it, where D is frozen.
    Differentiable in pixels and visual.
    """
    size = clip.image_size
    if pixels.shape[1:] != (3, size, size):
        raise InvalidInput(f"expected pixels [B, 3, {size}, {size}], found {list(pixels.shape)}.", field="pixels")
    images = (pixels - clip.mean[:, None, None]) / clip.std[:, None, None]
    tower = clip.model.visual
    if visual is None and clip.visual_width is None:
        return tower(images)
    patches = tower.conv1(images).flatten(2).transpose(1, 2)  # [B, grid^2, W]
    return encode_patches(clip, patches, visual, depth=depth)


def encode_patches(clip: Clip, patches: Tensor, visual: Tensor | None = None, *, depth: Tensor | None = None) -> Tensor:
    """[B, E] raw image embeddings from patch tokens [B, grid^2, W]: everything after `conv1`, for training that caches the stem."""
    tower = clip.model.visual
    batch, width = patches.shape[0], patches.shape[2]
    start = tower.class_embedding.to(patches.dtype).expand(batch, 1, width)
    tokens = torch.cat([start, patches], dim=1) + tower.positional_embedding.to(patches.dtype)
    if visual is not None:
        tokens = torch.cat([tokens, visual[0].expand(batch, -1, -1).to(tokens.dtype)], dim=1)
    tokens = tower.ln_pre(tokens)
    length = tokens.shape[1]
    for layer, block in enumerate(tower.transformer.resblocks):
        if visual is not None and 0 < layer < visual.shape[0]:
            kept, carried = tokens[:, : length - visual.shape[1]], tokens[:, length - visual.shape[1] :]
            replaced = visual[layer].expand(batch, -1, -1).to(tokens.dtype)
            tokens = torch.cat([kept, replaced if depth is None else torch.where(layer < depth, replaced, carried)], dim=1)
        tokens, _ = _block(block, tokens, causal=False)
    return tower.ln_post(tokens[:, 0]) @ tower.proj


def encode_text(clip: Clip, tokens: Tensor, text: Tensor | None = None) -> Tensor:
    """[L, E] raw text embeddings of [L, T] token ids, read at [EOS].

    text [D, N, W] or, a context a row, [L, D, N, W]: N vectors after [SOS]; deeper ones replace them at layers 2..D. The sequence is cropped to the
    longest row: padding behind [EOS] can't reach it through the causal mask. A shared context has the same states for every label, so [SOS] and its
    vectors are computed once and attended to by all rows (101 labels behind 32 vectors: 5 times less work). Raises InvalidInput when vectors and
    words exceed the context length.
    """
    model = clip.model
    ends = tokens.argmax(dim=-1)  # [EOS] has the highest id
    vectors = 0 if text is None else text.shape[-2]
    length = int(ends.max()) + 1 + vectors
    if length > clip.context_length:
        raise InvalidInput(
            f"{length} tokens with {vectors} prompt vectors, at most {clip.context_length} fit.", field="labels", help="Shorten the longest label."
        )
    embedded = model.token_embedding(tokens[:, : length - vectors])  # [L, T', W]
    positions = model.positional_embedding[:length].to(embedded.dtype)
    context = None if text is None else text.to(embedded.dtype)
    if context is not None and context.ndim == 3:
        states = _after_shared_context(model.transformer.resblocks, embedded, context, positions)
        ends = ends - 1  # [SOS] stands in the shared part
    else:
        states = _after_own_context(model.transformer.resblocks, embedded, context, positions)
        ends = ends + vectors
    pooled = states[torch.arange(len(tokens), device=tokens.device), ends]
    return model.ln_final(pooled) @ model.text_projection


def _after_own_context(blocks: Any, embedded: Tensor, context: Tensor | None, positions: Tensor) -> Tensor:
    """[L, N + T, W] final states of whole sequences, a context [L, D, N, W] a row or none."""
    tokens = embedded if context is None else torch.cat([embedded[:, :1], context[:, 0], embedded[:, 1:]], dim=1)
    states = tokens + positions
    for depth, block in enumerate(blocks):
        if context is not None and 0 < depth < context.shape[1]:
            states = torch.cat([states[:, :1], context[:, depth], states[:, 1 + context.shape[2] :]], dim=1)
        states, _ = _block(block, states, causal=True)
    return states


def _after_shared_context(blocks: Any, embedded: Tensor, context: Tensor, positions: Tensor) -> Tensor:
    """[L, T - 1, W] final states behind a context [D, N, W] that all rows share, computed once."""
    shared = torch.cat([embedded[:1, :1], context[:1]], dim=1) + positions[: 1 + context.shape[1]]  # [1, 1 + N, W]
    states = embedded[:, 1:] + positions[shared.shape[1] :]
    for depth, block in enumerate(blocks):
        if 0 < depth < context.shape[0]:
            shared = torch.cat([shared[:, :1], context[depth : depth + 1]], dim=1)
        shared, memory = _block(block, shared, causal=True)
        states, _ = _block(block, states, causal=True, memory=memory)
    return states


def check_prompts(clip: Clip, prompts: Prompts, *, labels: int | None = None) -> None:
    """InvalidInput unless the tensors fit these towers; the field names the tensor."""
    if prompts.text is not None:
        depth, _, width = prompts.text.shape[-3:]
        if width != clip.text_width or not 1 <= depth <= clip.text_layers:
            raise InvalidInput(
                f"{clip.arch} takes up to {clip.text_layers} layers of width {clip.text_width}, found {depth} of width {width}.", field="text_context"
            )
        if prompts.text.shape[-2] > clip.context_length - 3:
            raise InvalidInput(f"{prompts.text.shape[-2]} vectors leave no room for a label in {clip.context_length} tokens.", field="text_context")
        if prompts.class_specific and labels is not None and prompts.text.shape[0] != labels:
            raise InvalidInput(f"class-specific text for {prompts.text.shape[0]} labels, found {labels} labels.", field="text_context")
    if prompts.visual is not None:
        if clip.visual_width is None or clip.visual_layers is None:
            raise InvalidInput(f"the image tower of {clip.arch} takes no visual prompts.", field="visual_context")
        depth, _, width = prompts.visual.shape
        if width != clip.visual_width or not 1 <= depth <= clip.visual_layers:
            raise InvalidInput(
                f"{clip.arch} takes up to {clip.visual_layers} layers of width {clip.visual_width}, found {depth} of width {width}.",
                field="visual_context",
            )


class _Memory(NamedTuple):
    """Keys and values [1, H, P, d] of positions that stand before every row of a batch."""

    key: Tensor
    value: Tensor


def _block(block: Any, tokens: Tensor, *, causal: bool, memory: _Memory | None = None) -> tuple[Tensor, _Memory]:
    """One residual attention block on [B, L, W], every matrix product on [B*L, W]; also the keys and values it computed."""
    batch, length, width = tokens.shape
    flat = tokens.reshape(batch * length, width)
    attention = block.attn
    projected = F.linear(block.ln_1(flat), attention.in_proj_weight, attention.in_proj_bias)
    heads = projected.reshape(batch, length, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)  # [3, B, H, L, W/H]
    mixed = _attend(heads[0], heads[1], heads[2], causal=causal, memory=memory)
    flat = flat + block.ls_1(attention.out_proj(mixed.transpose(1, 2).reshape(batch * length, width)))
    flat = flat + block.ls_2(block.mlp(block.ln_2(flat)))
    return flat.reshape(batch, length, width), _Memory(heads[1], heads[2])


def _attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, memory: _Memory | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v on [B, H, L, d]; `memory` is seen by every position.

    Written out on CPUs, where the fused kernel's backward loses on our short sequences (512 x 37 tokens, forward and backward, bf16: 459 ms fused,
    54 ms written out; float32: 152 and 131 ms; tests/benchmarks/bench_towers.py).
    """
    if query.device.type != "cpu" and memory is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    batch, heads, length, depth = query.shape
    query = query * depth**-0.5
    scores = query @ key.transpose(-1, -2)
    if causal:
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1), -torch.inf)
    if memory is None:
        return scores.softmax(dim=-1) @ value
    # One product for all rows: the memory is not copied for each.
    rows = query.transpose(0, 1).reshape(1, heads, batch * length, depth)
    remembered = (rows @ memory.key.transpose(-1, -2)).reshape(heads, batch, length, -1).transpose(0, 1)  # [B, H, L, P]
    weights = torch.cat([remembered, scores], dim=-1).softmax(dim=-1)
    known = remembered.shape[-1]
    recalled = weights[..., :known].transpose(0, 1).reshape(1, heads, batch * length, known) @ memory.value
    return recalled.reshape(heads, batch, length, depth).transpose(0, 1) + weights[..., known:] @ value
