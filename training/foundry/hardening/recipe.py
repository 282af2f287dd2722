"""The recipe of a hardened tower: defaults for two CPU cores, and the settings of the papers for GPUs."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from robustclip.errors import InvalidInput
from robustclip.threat import LinfRadius
from training.commands import read_fields
from training.foundry.hardening.attack import Strength
from training.foundry.hardening.losses import PRESETS, LossWeights
from training.foundry.recipe import (
    BLOCK,
    Average,
    Batch,
    CheckSamples,
    ClipNorm,
    Rate,
    Recipe,
    Samples,
    WarmUp,
)

HardeningObjective = Literal["tecoa", "fare", "pmg-aft", "distilled"]


class HardeningRecipe(Recipe):
    """The defaults are for two CPU cores."""

    objective: HardeningObjective = Field(
        "distilled",
        description="tecoa, fare, pmg-aft, or distilled: labels and what the original tower says",
    )
    clean: float | None = Field(
        None,
        ge=0,
        description="distilled: weight of the same loss on pictures that are not attacked; none attacks all",
    )
    clean_share: float = Field(0.25, gt=0, lt=1, description="distilled: their share, for --clean above 0")
    eps: LinfRadius = Field(2.5 / 255, gt=0, description="radius of the attack, in pixel units")
    steps: int = Field(1, ge=1, description="its steps")
    step: LinfRadius | None = Field(
        None, gt=0, description="their length; none means 2.5 eps / steps, at most eps"
    )
    samples: Samples = 320_000
    batch: Batch = 128
    rate: Rate = 5e-4
    stem_rate: float = Field(
        1e-3, gt=0, description="learning rate of the first convolutions, where robustness is won"
    )
    weight_decay: float = Field(0.05, ge=0, description="of matrices; vectors and tables don't decay")
    warm_up: WarmUp = 50
    average: Average = 0.998
    clip: ClipNorm = 1.0
    augment: bool = Field(True, description="crops, flips, colour and sharpness as in pretraining")
    bf16: bool = Field(True, description="towers under bfloat16 autocast; losses and pixels are float32")
    seed: int = Field(
        0, ge=0, lt=2**63, description="decides which pictures, how they are changed, where attacks start"
    )
    check_samples: CheckSamples = 51_200
    check_pictures: int = Field(256, ge=1, description="held-out pictures that a check attacks with PGD-20")
    limit: int = Field(0, ge=0, description="pictures a data set, for trials; 0 takes all")

    @model_validator(mode="after")
    def _clean_is_ours(self) -> Self:
        if self.clean is not None and self.objective != "distilled":
            raise ValueError("only distilled has a clean weight; the others are the papers' formulas")
        return self

    @property
    def preset(self) -> LossWeights:
        if self.objective != "distilled":
            return PRESETS[self.objective]
        weight, base = self.clean or 0.0, PRESETS["distilled"]
        return base.model_copy(
            update={"clean_label": weight * base.label, "clean_teacher": weight * base.teacher}
        )

    @property
    def untouched_a_block(self) -> int:
        """How many pictures of each 16 are not attacked, for a clean loss."""
        return max(1, round(BLOCK * self.clean_share)) if self.preset.clean_label > 0 else 0

    @property
    def strength(self) -> Strength:
        return (
            Strength.of(self.eps, self.steps)
            if self.step is None
            else Strength(self.eps, self.steps, self.step)
        )


_FARE_CODE: dict[str, Any] = {
    "eps": 4 / 255,
    "steps": 10,
    "step": 1 / 255,
    "samples": 20_000 * 128,
    "batch": 128,
    "rate": 1e-5,
    "stem_rate": 1e-5,
    "weight_decay": 1e-4,
    "warm_up": 1400,
    "average": 0.0,
    "clip": 0.0,
    "augment": False,
    "check_samples": 128_000,
}
# for GPUs, as in the code of FARE, which has TeCoA too, and of PMG-AFT, but AdamW where that has SGD
PAPERS: dict[str, dict[str, Any]] = {
    "fare": _FARE_CODE,
    "tecoa": _FARE_CODE,
    "pmg-aft": _FARE_CODE
    | {
        "eps": 1 / 255,
        "steps": 2,
        "rate": 5e-5,
        "stem_rate": 5e-5,
        "batch": 256,
        "samples": 1_000_000,
        "weight_decay": 0.0,
    },
}


def read_recipe(kind: Literal["cpu", "papers"], values: dict[str, Any]) -> HardeningRecipe:
    """The recipe that options mean. Raises InvalidInput that names the option at fault."""
    objective = values.get("objective", HardeningRecipe.model_fields["objective"].default)
    if kind == "papers" and objective not in PAPERS:
        raise InvalidInput(
            f"no paper has the objective {objective!r}.",
            field="--recipe",
            help=f"Use {', '.join(PAPERS)}, or --recipe cpu.",
        )
    return read_fields(
        HardeningRecipe, (PAPERS[objective] if kind == "papers" else {}) | values, command="harden"
    )
