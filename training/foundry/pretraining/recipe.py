"""What decides the embedded backbone: its shape, and how it is trained."""

from collections.abc import Mapping
from typing import Any, Literal

from robustclip.backbones.stem import WHOLE
from training.foundry.recipe import Recipe
from training.learning.losses import TowerPrecision

MINI: dict[str, Any] = {
    "embed_dim": 256,
    # the stem has stride 32 and pads as TensorFlow does: 4 x 4 tokens, which open_clip counts by 112 / 28
    "vision_cfg": {"image_size": 112, "layers": 6, "width": 256, "head_width": 64, "patch_size": 28},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 3},
    "stem": WHOLE,
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
}
PhaseName = Literal["names", "text", "image"]
# what a phase does not depend on yet: its checkpoint serves runs that differ in these
LATER: dict[PhaseName, set[str]] = {
    "names": {"text_samples", "text_batch", "text_rate", "words_a_step", "filler_share", "synonym_share"}
    | {"geometry", "word", "image_samples", "image_batch", "image_rate", "stem_rate", "mixed", "noisy"}
    | {"anchor"},
    "text": {"image_samples", "image_batch", "image_rate", "stem_rate", "mixed", "noisy", "anchor"},
    "image": set(),
}


class PretrainingRecipe(Recipe):
    """Batches are those of all processes together; those of phase `text` are names."""

    seed: int = 0
    views: int = 2
    names_samples: int = 768_000
    names_batch: int = 512
    names_rate: float = 1e-3
    text_samples: int = 768_000
    text_batch: int = 384
    text_rate: float = 1e-3
    image_samples: int = 307_200
    image_batch: int = 256
    image_rate: float = 3e-4
    stem_rate: float = 2e-4
    logit_scale: float = 30.0
    weight_decay: float = 0.05
    label: float = 0.5
    anchor: float = 1.0
    mixed: float = 0.3
    noisy: float = 0.15
    words_a_step: int = 64
    words: int = 20_000
    word: float = 0.3
    filler_share: float = 0.3
    synonym_share: float = 0.25
    geometry: float = 0.3
    average: float = 0.997
    limit: int = 0
    precision: TowerPrecision = "bf16"

    def changed(self, recorded: Mapping[str, Any], phase: PhaseName = "image") -> list[str]:
        """As of the checkpoint of a phase."""
        return [name for name in super().changed(recorded) if name not in LATER[phase]]
