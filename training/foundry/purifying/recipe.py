"""The recipe of a purifying network; the defaults are for two CPU cores."""

from typing import Any

from pydantic import Field

from robustclip.errors import InvalidInput
from robustclip.purifiers import NetworkKind, Shape
from robustclip.purifiers.networks import DenoiserShape, SuperResolverShape
from training.commands import read_fields
from training.foundry.recipe import Average, Batch, CheckSamples, ClipNorm, Rate, Recipe, Samples, WarmUp


class PurifyingRecipe(Recipe):
    """The recipe of one network."""

    network: Shape = Field(description="the shape as JSON")
    samples: Samples
    rate: Rate
    batch: Batch = 64
    warm_up: WarmUp = 200
    weight_decay: float = Field(1e-4, ge=0, description="of kernels; vectors don't decay")
    average: Average = 0.999
    clip: ClipNorm = 1.0
    size: int = Field(64, ge=8, multiple_of=2, description="side of the squares that are cut from pictures")
    decoded: int = Field(96, ge=8, description="side of the decoded pictures that they are cut from")
    bf16: bool = Field(True, description="networks under bfloat16 autocast; losses and pixels are float32")
    seed: int = Field(0, ge=0, lt=2**63, description="decides first weights, pictures, squares and noise")
    check_samples: CheckSamples = 51_200
    check_pictures: int = Field(256, ge=1, description="held-out pictures of a check")
    limit: int = Field(
        0, ge=0, description="pictures a data set, for trials, or with --measure in all; 0 takes all"
    )

    @property
    def kind(self) -> NetworkKind:
        return self.network.kind


# about ten minutes, and an hour and a half, on two quiet cores
DEFAULTS: dict[NetworkKind, dict[str, Any]] = {
    "super_resolver": {"network": SuperResolverShape().model_dump(), "samples": 400_000, "rate": 1e-3},
    "denoiser": {"network": DenoiserShape().model_dump(), "samples": 500_000, "rate": 5e-4},
}


def read_recipe(kind: NetworkKind, values: dict[str, Any]) -> PurifyingRecipe:
    """The recipe that options mean. Raises InvalidInput that names the option at fault."""
    recipe = read_fields(PurifyingRecipe, DEFAULTS[kind] | values, command="train-purifiers")
    if recipe.kind != kind:
        raise InvalidInput(
            f"found the shape of a {recipe.kind} for a {kind}.",
            field="--network",
            help="Say with --only which one is meant.",
        )
    if recipe.size > recipe.decoded:
        raise InvalidInput(
            f"{recipe.size} pixels can't be cut from {recipe.decoded}.",
            field="--size",
            help="Decode larger pictures (--decoded).",
        )
    return recipe
