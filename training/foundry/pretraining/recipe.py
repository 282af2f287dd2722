"""What decides the embedded backbone: its shape, and how it is trained."""

from collections.abc import Mapping
from typing import Any, Literal

from training.foundry.recipe import Recipe
from training.learning.losses import TowerPrecision

MINI: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 96, "layers": 6, "width": 256, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 3},
    "stem": "efficientnet_lite0",
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
}
PhaseName = Literal["frozen", "joint", "broad"]
# what a phase does not depend on yet: its checkpoint serves runs that differ in these
LATER: dict[PhaseName, set[str]] = {
    "frozen": {"joint_samples", "joint_batch", "joint_rate", "stem_rate", "broad_samples"},
    "joint": {"broad_samples"},
    "broad": set(),
}


class PretrainingRecipe(Recipe):
    """Batches are those of all processes together."""

    seed: int = 0
    views: int = 3
    frozen_samples: int = 230_400
    joint_samples: int = 245_760
    broad_samples: int = 245_760
    batch: int = 768
    joint_batch: int = 512
    rate: float = 1e-3
    joint_rate: float = 5e-4
    stem_rate: float = 4e-4
    logit_scale: float = 30.0
    weight_decay: float = 0.05
    names_a_step: int = 384
    words_a_step: int = 64
    words: int = 20_000
    filler_share: float = 0.3
    synonym_share: float = 0.25
    geometry: float = 1.0
    average: float = 0.997
    limit: int = 0
    precision: TowerPrecision = "bf16"

    def changed(self, recorded: Mapping[str, Any], phase: PhaseName = "broad") -> list[str]:
        """As of the checkpoint of a phase. Checkpoints that name no precision were made in bf16."""
        changed = super().changed({"precision": "bf16", **recorded})
        return [name for name in changed if name not in LATER[phase]]
