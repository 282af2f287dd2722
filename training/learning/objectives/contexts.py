"""Initial vectors, and couplings by which the vectors of one tower follow those of the other while learning.

A coupling is a linear map a layer, for training only: `fold` turns parameters into plain prompts, which alone
are exported.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.models import HANDCRAFTED_TEMPLATE, Clip, Prompts, native_text
from training.data.sampling import seeded

Coupling: TypeAlias = Literal["none", "image_to_text", "text_to_image", "hybrid"]
Towers: TypeAlias = Literal["both", "text", "image"]
Parameters: TypeAlias = dict[str, Tensor]

DEVIATION = 0.02


def noise(shape: tuple[int, ...], seed: int, stream: str = "prompts") -> Tensor:
    """N(0, 0.02^2) from the seed."""
    return DEVIATION * torch.randn(shape, generator=seeded(seed, stream))


def split_words(words: str, vectors: int) -> tuple[str, str]:
    """The words that vectors start from, one word each, and the template that keeps the others: with 2
    vectors "a photo of a" gives "a photo" and "of a {}.", so that learning starts at the handcrafted prompt.
    """
    given = words.split()
    return " ".join(given[:vectors]), " ".join([*given[vectors:], "{}."])


def embedded_words(clip: Clip, words: str, vectors: int) -> Tensor:
    """[N, W] the token embeddings of as many words; InvalidInput unless they are exactly N tokens."""
    head, _ = split_words(words, vectors)
    first = clip.tokenize.leading
    length = int(clip.tokenize.read([head]).lengths) - int(clip.tokenize.read([""]).lengths)
    if length != vectors:
        raise InvalidInput(
            f"{head!r} is {length} tokens, but there are {vectors} vectors.",
            field="--objective.words",
            help=f"Use --objective.vectors {length}, or other words.",
        )
    text = native_text(clip.model)
    assert text is not None  # text prompts were required before
    with torch.no_grad():
        return text.tokens(clip.tokenize([head])[0, first : first + length].to(clip.device)).float()


def new_contexts(
    clip: Clip,
    *,
    vectors: int,
    depth: int,
    words: str,
    coupling: Coupling,
    towers: Towers,
    seed: int,
    copies: int | None = None,
) -> Parameters:
    """Parameters of N vectors in each of the first `depth` layers of both towers (fewer where a tower has
    fewer layers), or of one tower.

    Text starts at the words' embeddings in its first layer, everything else at N(0, 0.02^2). Learned are, by
    coupling:

    none           `text` and `visual`
    image_to_text  `visual`, and a linear map a layer; the words are a constant added to the first layer's
                   image of them
    text_to_image  `text`, and a linear map a layer (MaPLe, Khattak et al. 2023, arXiv 2210.03117)
    hybrid         `text` of the first layer, `visual` of the deeper ones, maps from each to the other tower
                   (FAP's code)

    Maps start as torch's linear layers do, but without offset: the coupled vectors are then as small as the
    others. `copies`: so many text contexts, equal at first, one for each label (CoOp's class-specific
    contexts, Zhou et al. 2022). Raises InvalidInput for an image tower that takes no visual prompts, and for
    copies of text that follows the image tower's vectors, or of none.
    """
    if towers != "image":
        clip.require("text prompts", field="--objective.kind", help="Serve it with hand-written templates.")
    if towers != "text":
        clip.require("visual prompts", field="--objective.kind", help="Learn text alone: advpt, apt.")
    if copies is not None and (coupling != "none" or towers == "image"):
        raise InvalidInput(
            "a context for each label can't follow vectors that all share.",
            field="--objective.class_specific",
            help="Use --objective.coupling none, and vectors in the text tower.",
        )
    image_width, image_layers = clip.visual_width or 0, clip.visual_layers or 0
    common = min(depth, clip.text_layers, image_layers) if coupling != "none" else depth
    text_depth, image_depth = min(common, clip.text_layers), min(common, image_layers)
    parameters: Parameters = {}
    if coupling in ("none", "text_to_image") and towers != "image":
        deeper = noise((text_depth - 1, vectors, clip.text_width), seed, "text")
        shared = torch.cat([_first(clip, words, vectors, seed).cpu()[None], deeper])
        parameters["text"] = shared if copies is None else shared.expand(copies, -1, -1, -1).clone()
    if coupling in ("none", "image_to_text") and towers != "text":
        parameters["visual"] = noise((image_depth, vectors, image_width), seed, "visual")
    if coupling == "hybrid":
        parameters["text"] = _first(clip, words, vectors, seed).cpu()[None]
        parameters["visual"] = noise((common - 1, vectors, image_width), seed, "visual")
        parameters |= _maps("text_to_image", clip.text_width, image_width, 1, seed)
        parameters |= _maps("image_to_text", image_width, clip.text_width, common - 1, seed)
    elif coupling == "image_to_text":
        parameters |= _maps(coupling, image_width, clip.text_width, common, seed)
    elif coupling == "text_to_image":
        parameters |= _maps(coupling, clip.text_width, image_width, common, seed)
    return {name: tensor.to(clip.device) for name, tensor in parameters.items() if tensor.numel()}


def fold(
    clip: Clip, parameters: Mapping[str, Tensor], *, vectors: int, words: str, class_specific: bool = False
) -> Prompts:
    """The plain prompts that parameters of `new_contexts` mean, differentiable in them; `class_specific`: it
    made copies.
    """
    text, visual = parameters.get("text"), parameters.get("visual")
    if "text_to_image.weight" in parameters and text is not None:
        first = _mapped(parameters, "text_to_image", text)
        deeper = visual
        visual = first if deeper is None else torch.cat([first, deeper])
        if "image_to_text.weight" in parameters and deeper is not None:
            text = torch.cat([text, _mapped(parameters, "image_to_text", deeper)])
    elif "image_to_text.weight" in parameters and visual is not None:
        text = _mapped(parameters, "image_to_text", visual)
        if words:
            text = torch.cat([text[:1] + embedded_words(clip, words, vectors), text[1:]])
    return Prompts(
        text,
        visual,
        (HANDCRAFTED_TEMPLATE if text is None else split_words(words, vectors)[1],),
        class_specific,
    )


def _first(clip: Clip, words: str, vectors: int, seed: int) -> Tensor:
    return (
        embedded_words(clip, words, vectors)
        if words
        else noise((vectors, clip.text_width), seed, "first text")
    )


def _maps(name: str, inputs: int, outputs: int, layers: int, seed: int) -> Parameters:
    bound = inputs**-0.5
    drawn = torch.rand(layers, outputs, inputs, generator=seeded(seed, name))
    return {f"{name}.weight": bound * (2 * drawn - 1), f"{name}.bias": torch.zeros(layers, 1, outputs)}


def _mapped(parameters: Mapping[str, Tensor], name: str, vectors: Tensor) -> Tensor:
    """[D, N, W'] of [D, N, W], a map a layer."""
    return vectors @ parameters[f"{name}.weight"].transpose(1, 2) + parameters[f"{name}.bias"]
