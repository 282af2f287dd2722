"""What a CLIP can do here, judged by its modules alone: they may be on the meta device, without weights."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import open_clip
from open_clip.transformer import VisionTransformer
from timm.models.naflexvit import NaFlexVit
from torch import nn

from robustclip.models.text import native_text, plain_blocks

Capability: TypeAlias = Literal["words", "text prompts", "visual prompts"]


@dataclass(frozen=True)
class Capabilities:
    """For each capability the reason why a CLIP lacks it; empty if the CLIP has it.

    words           hand-written templates: classify, probe, defend, certify, evaluate, export
    text_prompts    learned vectors in the text tower
    visual_prompts  learned vectors in the image tower
    """

    words: str = ""
    text_prompts: str = ""
    visual_prompts: str = ""

    @property
    def reasons(self) -> dict[Capability, str]:
        """The reason by capability, of all three."""
        return {
            "words": self.words,
            "text prompts": self.text_prompts,
            "visual prompts": self.visual_prompts,
        }

    @property
    def names(self) -> tuple[Capability, ...]:
        """The capabilities that the CLIP has."""
        return tuple(name for name, reason in self.reasons.items() if not reason)


def capabilities_of(model: nn.Module) -> Capabilities:
    """What our towers can do with a model of open_clip."""
    if reason := _no_words(model):
        return Capabilities(reason, reason, reason)
    return Capabilities("", _no_text_prompts(model), _no_visual_prompts(model))


def _no_words(model: nn.Module) -> str:
    if isinstance(model, open_clip.CoCa):
        return (
            "CoCa reads pictures through a second attention over its patches and texts at a token behind the "
            "padding; it is made for captions, and not served here."
        )
    if not isinstance(model, (open_clip.CLIP, open_clip.CustomTextCLIP)):
        return f"{type(model).__name__} is no CLIP of open_clip, which has an image and a text tower."
    visual = cast(Any, model).visual
    if any(isinstance(module, NaFlexVit) for module in visual.modules()):
        return "NaFlex reads pictures at their own shape; here every picture is a square of one size."
    if image_size(model) is None:
        return f"its pictures are not square ({visual.image_size})."
    return ""


def _no_text_prompts(model: nn.Module) -> str:
    if native_text(model) is not None:
        return ""
    name = type(getattr(model, "text", model)).__name__
    return f"its text tower ({name}) is not open_clip's plain text transformer."


def _no_visual_prompts(model: nn.Module) -> str:
    visual = cast(Any, model).visual
    if not isinstance(visual, VisionTransformer):
        return f"its image tower ({type(visual).__name__}) is not open_clip's vision transformer."
    if not plain_blocks(visual.transformer):
        return "its image tower has other blocks than plain residual attention."
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        return "its image tower pools by a second attention."
    return ""


def image_size(model: nn.Module) -> int | None:
    """The side of a model's pictures in pixels; None if they are not square."""
    size = cast(Any, model).visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(height) if height == width else None
