"""Prompts: learned vectors and the words around a label. Data only; towers use them, the store keeps them."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustclip.errors import InvalidInput

HANDCRAFTED_TEMPLATE = "a photo of a {}."
LEARNED_TEMPLATE = "{}."  # behind learned vectors, as in CoOp: [SOS] v_1..v_N [class name] [.] [EOS]


@dataclass(frozen=True, eq=False)
class Prompts:
    """What turns a frozen CLIP into a classifier of label texts.

    text      [D, N, W] vectors after [SOS], shared by all labels; or [C, D, N, W], one context a label
              (`class_specific`); or [M, D, N, W], M contexts whose text features are averaged. D layers, N
              vectors, W = text width. None: words only.
    visual    [D, N, W] vectors after the patch tokens, W = image width. None: the plain image tower.
    templates words around the label, each with exactly one `{}`. The features of several are normalised,
              averaged, and normalised again.
    """

    text: Tensor | None = None
    visual: Tensor | None = None
    templates: tuple[str, ...] = (HANDCRAFTED_TEMPLATE,)
    class_specific: bool = False

    def __post_init__(self) -> None:
        if not self.templates:
            raise InvalidInput("a prompt set needs at least one template.", field="templates")
        for index, template in enumerate(self.templates):
            check_template(template, field=f"templates/{index}")
        if self.text is not None and self.text.ndim not in (3, 4):
            raise InvalidInput(
                f"expected [D, N, W] or [M, D, N, W], found shape {list(self.text.shape)}.",
                field="text_context",
            )
        if self.visual is not None and self.visual.ndim != 3:
            raise InvalidInput(
                f"expected [D, N, W], found shape {list(self.visual.shape)}.", field="visual_context"
            )
        if self.class_specific and (self.text is None or self.text.ndim != 4):
            raise InvalidInput("class-specific text needs a [C, D, N, W] tensor.", field="text_context")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Which towers carry learned vectors: a subset of ("text", "vision")."""
        return tuple(
            name for name, tensor in (("text", self.text), ("vision", self.visual)) if tensor is not None
        )

    def to(self, device: torch.device | str) -> "Prompts":
        return replace(
            self,
            text=None if self.text is None else self.text.to(device),
            visual=None if self.visual is None else self.visual.to(device),
        )

    def detached(self) -> "Prompts":
        """The same values as plain tensors without a graph."""
        return replace(
            self,
            text=None if self.text is None else self.text.detach().clone(),
            visual=None if self.visual is None else self.visual.detach().clone(),
        )

    def digest(self) -> str:
        """sha256 of templates and tensors: the cache key of anything derived from these prompts."""
        state = hashlib.sha256(repr((self.templates, self.class_specific)).encode())
        for role, tensor in (("text", self.text), ("visual", self.visual)):
            if tensor is not None:
                state.update(repr((role, tuple(tensor.shape))).encode())
                state.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return state.hexdigest()


def check_template(template: str, *, field: str = "template") -> str:
    """The template, or InvalidInput unless it has exactly one `{}` and no other brace."""
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise InvalidInput(
            f"expected exactly one {{}} for the label, found {template!r}.",
            field=field,
            help='Write it like "a photo of a {}."',
        )
    return template
