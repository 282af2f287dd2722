"""A small pretraining, for tests: random pictures, two steps a phase, the real stem before narrow towers
(checkpoints are what takes the time).
"""

from pathlib import Path

import numpy as np
import torch
from tuning import silent

from robustclip.backbones import build_backbone
from robustclip.models.clip import describe
from robustclip.types import Progress
from training.foundry.corpus import Corpus, gather_names, pixels_of
from training.foundry.pretraining.recipe import MINI, PretrainingRecipe
from training.foundry.pretraining.run import PretrainingRun
from training.processes import ALONE, Processes

RECIPE = PretrainingRecipe(
    views=1,
    frozen_samples=16,
    joint_samples=8,
    broad_samples=8,
    batch=8,
    joint_batch=4,
    names_a_step=24,
    words_a_step=4,
    filler_share=0.5,
)
SMALL = MINI | {
    "embed_dim": 32,
    "vision_cfg": MINI["vision_cfg"] | {"width": 64, "head_width": 32, "layers": 2},
    "text_cfg": MINI["text_cfg"] | {"width": 32, "heads": 2, "layers": 2},
}


def corpus(count: int = 24) -> Corpus:
    generator = np.random.default_rng(0)
    names = gather_names({"toys": ("goldfish", "a brand-new toy")})
    teacher = generator.dirichlet(np.full(1000, 0.01), count).astype(np.float16)
    return Corpus(
        names=names,
        sets=("toys",),
        pixels=pixels_of(generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)),
        teacher=teacher,
        name=names.members["toys"][torch.arange(count) % 2],
        source=torch.zeros(count, dtype=torch.int64),
        validation=torch.arange(count) % 6 == 5,
    )


def trainer(
    run: Path, recipe: PretrainingRecipe = RECIPE, progress: Progress = silent, processes: Processes = ALONE
) -> PretrainingRun:
    (run / "cache").mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_backbone(SMALL)
        clip = describe(
            model, "mini", "test", mean=torch.tensor(SMALL["mean"]), std=torch.tensor(SMALL["std"])
        )
        data = corpus()
        words = ("lily", "rose", "engine", "river", "violin")
        geometry = torch.randn(
            len(data.names.texts) + len(words), 12, generator=torch.Generator().manual_seed(1)
        )
        return PretrainingRun(
            clip,
            data,
            words,
            torch.nn.functional.normalize(geometry, dim=1),
            recipe,
            run,
            progress,
            processes=processes,
        )
