"""Pictures small and plain enough to learn from in seconds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tuning import silent

from robustclip.models.clip import Clip
from robustclip.purifiers import NetworkKind
from robustclip.types import Progress
from training.foundry.corpus import Corpus, Names, pixels_of
from training.foundry.purifying.exam import held_out
from training.foundry.purifying.recipe import PurifyingRecipe, read_recipe
from training.foundry.purifying.run import PurifyingRun
from training.processes import ALONE, Processes

SMALL: dict[NetworkKind, dict[str, object]] = {
    "super_resolver": {"kind": "super_resolver", "width": 16, "blocks": 1},
    "denoiser": {"kind": "denoiser", "widths": [16, 32], "middle": 0},
}


@pytest.fixture(scope="session")
def recipe_of() -> Callable[..., PurifyingRecipe]:
    """Four steps of 32 pictures, checked after two and four."""

    def make(kind: NetworkKind, **options: object) -> PurifyingRecipe:
        short = {
            "samples": 128,
            "batch": 32,
            "size": 16,
            "decoded": 32,
            "warm_up": 2,
            "check_samples": 64,
            "check_pictures": 8,
            "bf16": False,
        }
        return read_recipe(kind, {"network": SMALL[kind], **short, **options})

    return make


def waves(count: int) -> np.ndarray:
    """[count, 3, 32, 32] uint8: coloured waves in all directions, some so short that shrinking takes most of
    their contrast away.
    """
    generator = np.random.default_rng(0)
    row, column = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    pictures = np.full((count, 3, 32, 32), 128.0)
    for picture in pictures:
        for _ in range(2):
            angle, phase, length = (
                generator.uniform(0, np.pi),
                generator.uniform(0, 2 * np.pi),
                generator.uniform(4.5, 9),
            )
            along = np.sin(angle) * row + np.cos(angle) * column
            picture += generator.uniform(20, 50, (3, 1, 1)) * np.sin(2 * np.pi * along / length + phase)
    return pictures.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def drawings() -> Corpus:
    """160 pictures of two made-up classes, 32 kept back."""
    names = Names(("cat", "dog"), {"toys": torch.tensor([0, 1])})
    name = torch.arange(160) % 2
    return Corpus(
        names,
        ("toys",),
        pixels_of(waves(160)),
        name,
        torch.zeros(160, dtype=torch.int64),
        torch.arange(160) % 5 == 0,
        (1.0,),
    )


@pytest.fixture
def start(tiny: Clip, drawings: Corpus) -> Callable[..., PurifyingRun]:
    def make(
        folder: Path, recipe: PurifyingRecipe, *, processes: Processes = ALONE, progress: Progress = silent
    ) -> PurifyingRun:
        exam = held_out(drawings, tiny, recipe.check_pictures, recipe.seed)
        return PurifyingRun(drawings, exam, recipe, folder=folder, processes=processes, progress=progress)

    return make
