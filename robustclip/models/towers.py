"""The forward passes of both towers with prompts, over open_clip's modules.

With robustclip/models/attention.py the only code that knows how open_clip computes inside. Without prompts
they equal `encode_image` and `encode_text` (tests/robustclip/models/test_towers.py).
"""

from typing import Any

import torch
from torch import Tensor, nn

from robustclip.errors import InvalidInput
from robustclip.models.attention import Rows, rows_up_to, run_block
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.text import NativeText, native_text
from robustclip.types import Pixels


def encode_image(
    clip: Clip, pixels: Pixels, visual: Tensor | None = None, *, depth: Tensor | None = None
) -> Tensor:
    """[B, E] raw (not normalised) image embeddings of pixels in [0, 1] at the CLIP's own size.

    visual [D, N, W]: N vectors after the patch tokens, before the first layer norm; deeper rows replace them
           at layers 2..D.
    depth  [] integer: use the first `depth` rows of visual only, for an exported graph, where D is fixed.

    Differentiable in pixels and visual.
    """
    if clip.visual_width is None:
        if visual is not None:
            clip.require("visual prompts", field="visual_context")
        return clip.model.visual(_normalised(clip, pixels))
    return encode_patches(clip, patch_tokens(clip, pixels), visual, depth=depth)


def patch_tokens(clip: Clip, pixels: Pixels) -> Tensor:
    """[B, grid^2, W] patch tokens, the input of `encode_patches`. No prompt changes them.

    For towers that take visual prompts.
    """
    return clip.model.visual.conv1(_normalised(clip, pixels)).flatten(2).transpose(1, 2)


def has_stem(clip: Clip) -> bool:
    """Whether patch tokens take more than one convolution, so that caching them saves time."""
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
    """[B, E] raw image embeddings from patch tokens [B, grid^2, W]: everything after `conv1`."""
    tower = clip.model.visual
    batch, width = patches.shape[0], patches.shape[2]
    class_token = tower.class_embedding.to(patches.dtype).expand(batch, 1, width)
    tokens = torch.cat([class_token, patches], dim=1) + tower.positional_embedding.to(patches.dtype)
    if visual is not None:
        tokens = torch.cat([tokens, visual[0].expand(batch, -1, -1).to(tokens.dtype)], dim=1)
    tokens = tower.ln_pre(tokens)
    rows = Rows(batch, tokens.shape[1])
    states = tokens.flatten(0, 1)
    blocks = tower.transformer.resblocks
    averaged = tower.pool_type == "avg"
    for layer, block in enumerate(blocks):
        if visual is not None and 0 < layer < visual.shape[0]:
            tokens, start = states.unflatten(0, (-1, rows.length)), rows.length - visual.shape[1]
            vectors = visual[layer].expand(batch, -1, -1).to(tokens.dtype)
            if depth is not None:
                vectors = torch.where(layer < depth, vectors, tokens[:, start:])
            states = torch.cat([tokens[:, :start], vectors], dim=1).flatten(0, 1)
        states, _ = run_block(block, states, rows, last=not averaged and layer == len(blocks) - 1)
    if averaged:
        states = _average(tower, rows.spread(states)[:, 1 : 1 + patches.shape[1]])
    else:
        states = tower.ln_post(states)
    return states @ tower.proj


def _average(tower: Any, states: Tensor) -> Tensor:
    """[B, W] mean over the final states of patches [B, grid^2, W], normed before or after.

    As without prompts neither the class token nor a prompt's vectors are averaged.
    """
    if tower.final_ln_after_pool:
        return tower.ln_post(states.mean(dim=1))
    return tower.ln_post(states).mean(dim=1)


def encode_text(clip: Clip, tokens: Tensor, text: Tensor | None = None) -> Tensor:
    """[L, E] raw text embeddings of [L, T] token ids, read where the tower reads ([EOS], in CLIP).

    text   [D, N, W] or, one context a row, [L, D, N, W]: N vectors after [SOS], or before the words where the
           tokenizer sets no token; deeper ones replace them at layers 2..D. They take the place of padding.

    In towers like CLIP's it skips what can't change the result: tokens behind a row's [EOS] (the causal mask
    hides them), and in the last layer all but [EOS]. The common beginning of all rows ([SOS], a shared
    context, the first words of a template) is computed once: with 101 labels behind 32 vectors a tenth of the
    tokens remains. Raises InvalidInput if vectors and words exceed the context length.
    """
    tower = native_text(clip.model)
    if text is None and (tower is None or not tower.stops):
        return clip.model.encode_text(tokens)
    if tower is None:
        clip.require("text prompts", field="text_context")
        raise AssertionError("a tower without text prompts has a reason")
    if text is not None and not tower.stops:
        return _with_padding(clip, tower, tokens, text)
    ends = tower.ends(tokens)
    vectors = 0 if text is None else text.shape[-2]
    length = int(ends.max()) + 1 + vectors
    if length > clip.context_length:
        raise InvalidInput(
            f"{length} tokens with {vectors} prompt vectors, at most {clip.context_length} fit.",
            field="labels",
            help="Shorten the longest label.",
        )
    embedded = tower.tokens(tokens[:, : length - vectors])  # [L, T', W]
    positions = tower.positions[:length].to(embedded.dtype)
    context = None if text is None else text.to(embedded.dtype)
    blocks = tower.blocks
    if context is not None and context.ndim == 4:
        pooled = _after_own_context(blocks, embedded, context, positions, ends)
    else:
        pooled = _after_shared_beginning(
            blocks, embedded, context, positions, ends, common=_common(tokens, ends)
        )
    return tower.project(pooled)


def _with_padding(clip: Clip, tower: NativeText, tokens: Tensor, text: Tensor) -> Tensor:
    """[L, E] embeddings of towers in which padding counts too: no mask, or a reading at the context's end.

    The whole context is computed, and the vectors replace as much padding at its end.
    """
    number, first, length = text.shape[-2], clip.tokenize.leading, clip.context_length
    if bool((tokens[:, length - number :] != clip.tokenize.padding).any()):
        raise InvalidInput(
            f"a text leaves no room for {number} prompt vectors in {length} tokens.",
            field="labels",
            help="Shorten the longest label.",
        )
    embedded = tower.tokens(tokens[:, : length - number])
    contexts = text.to(embedded.dtype).expand(len(tokens), *text.shape[-3:])
    sequences = torch.cat([embedded[:, :first], contexts[:, 0], embedded[:, first:]], dim=1)
    rows, place = Rows(len(tokens), length), slice(first, first + number)
    states = (sequences + tower.positions.to(embedded.dtype)).flatten(0, 1)
    for depth, block in enumerate(tower.blocks):
        if 0 < depth < contexts.shape[1]:
            whole = rows.spread(states)
            parts = [whole[:, : place.start], contexts[:, depth], whole[:, place.stop :]]
            states = torch.cat(parts, dim=1).flatten(0, 1)
        states, _ = run_block(block, states, rows, causal=tower.causal)
    states = rows.spread(states)
    if tower.pool in ("last", "first"):
        return tower.project(states[:, -1 if tower.pool == "last" else 0])
    ends = tower.ends(tokens) + number
    return tower.project(states[torch.arange(len(tokens), device=ends.device), ends])


def _common(tokens: Tensor, ends: Tensor) -> int:
    """How many tokens all rows have in common at the beginning: at least [SOS], and never an [EOS]."""
    alike = (tokens == tokens[:1]).all(dim=0).long().cumprod(dim=0).sum()
    return int(torch.minimum(alike, ends.min()))


def _after_own_context(
    blocks: Any, embedded: Tensor, context: Tensor, positions: Tensor, ends: Tensor
) -> Tensor:
    """[L, W] final states at [EOS] of whole sequences, each with its own context [D, N, W]."""
    number = context.shape[2]
    sequences = torch.cat([embedded[:, :1], context[:, 0], embedded[:, 1:]], dim=1) + positions
    rows = rows_up_to(ends + number, sequences.shape[1])
    states = rows.packed(sequences)
    places = (rows.starts()[:, None] + 1 + torch.arange(number, device=ends.device)).flatten()
    for depth, block in enumerate(blocks):
        if 0 < depth < context.shape[1]:
            states = states.index_copy(0, places, context[:, depth].flatten(0, 1))
        states, _ = run_block(block, states, rows, causal=True, last=depth == len(blocks) - 1)
    return states


def _after_shared_beginning(
    blocks: Any, embedded: Tensor, context: Tensor | None, positions: Tensor, ends: Tensor, *, common: int
) -> Tensor:
    """[L, W] final states at [EOS]; the beginning of all rows is computed once.

    It consists of the `common` first tokens, with a context [D, N, W] (or none) behind [SOS].
    """
    number = 0 if context is None else context.shape[1]
    parts = [embedded[:1, :1], *([] if context is None else [context[:1]]), embedded[:1, 1:common]]
    shared = (torch.cat(parts, dim=1) + positions[: common + number])[0]  # [P, W]
    beginning = Rows(1, len(shared))
    rows = rows_up_to(ends - common, embedded.shape[1] - common)
    states = rows.packed(embedded[:, common:] + positions[common + number :])
    for depth, block in enumerate(blocks):
        last = depth == len(blocks) - 1
        if context is not None and 0 < depth < context.shape[0]:
            shared = torch.cat([shared[:1], context[depth], shared[1 + number :]])
        shared, memory = run_block(block, shared, beginning, causal=True, last=last)
        states, _ = run_block(block, states, rows, causal=True, memory=memory, last=last)
    return states


def check_prompts(clip: Clip, prompts: Prompts, *, labels: int | None = None) -> None:
    """InvalidInput unless the tensors fit these towers; the field names the tensor."""
    if prompts.text is not None:
        clip.require("text prompts", field="text_context")
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
        clip.require("visual prompts", field="visual_context")
        depth, _, width = prompts.visual.shape
        if width != clip.visual_width or not 1 <= depth <= (clip.visual_layers or 0):
            raise InvalidInput(
                f"{clip.arch} takes up to {clip.visual_layers} layers of width {clip.visual_width}, found "
                f"{depth} of width {width}.",
                field="visual_context",
            )
