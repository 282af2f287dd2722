"""A small pretraining, for tests: random pictures, two steps a phase, the real stem before narrow towers
(checkpoints are what takes the time).
"""

from pathlib import Path

import numpy as np
import timm
import torch
from tuning import silent

from robustclip.backbones import build_backbone
from robustclip.models.clip import describe
from robustclip.types import Progress
from training.foundry.corpus import Corpus, gather_names, pixels_of
from training.foundry.pretraining.classifier import Teacher
from training.foundry.pretraining.recipe import MINI, PretrainingRecipe
from training.foundry.pretraining.run import PretrainingRun
from training.processes import ALONE, Processes

RECIPE = PretrainingRecipe(
    views=1,
    names_samples=32,
    names_batch=16,
    text_samples=32,
    text_batch=16,
    image_samples=8,
    image_batch=4,
    words_a_step=4,
    filler_share=0.5,
    mixed=0.5,
    noisy=0.5,
)
SMALL = MINI | {
    "embed_dim": 32,
    "vision_cfg": MINI["vision_cfg"] | {"width": 32, "head_width": 16, "layers": 2},
    "text_cfg": MINI["text_cfg"] | {"width": 32, "heads": 2, "layers": 2},
}


def corpus(count: int = 24) -> Corpus:
    """Two of three pictures have a label."""
    generator = np.random.default_rng(0)
    names = gather_names({"toys": ("goldfish", "a brand-new toy"), "scenes": ()})
    unlabelled = torch.arange(count) % 3 == 2
    return Corpus(
        names=names,
        sets=("toys", "scenes"),
        pixels=pixels_of(generator.integers(0, 256, (count, 3, 112, 112), dtype=np.uint8)),
        name=torch.where(unlabelled, -1, names.members["toys"][torch.arange(count) % 2]),
        source=unlabelled.long(),
        validation=torch.arange(count) % 6 >= 4,
        shares=(0.7, 0.3),
    )


def trainer(
    run: Path, recipe: PretrainingRecipe = RECIPE, progress: Progress = silent, processes: Processes = ALONE
) -> PretrainingRun:
    (run / "cache").mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_backbone(SMALL)
        weights = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
        model.visual.conv1.load_imagenet(weights)
        mean, std = torch.tensor(SMALL["mean"]), torch.tensor(SMALL["std"])
        clip, teacher = describe(model, "mini", "test", mean=mean, std=std), Teacher(weights, mean, std)
        data = corpus()
        words = ("lily", "rose", "engine", "river", "violin")
        geometry = torch.randn(
            len(data.names.texts) + len(words), 12, generator=torch.Generator().manual_seed(1)
        )
        return PretrainingRun(
            clip,
            teacher,
            data,
            words,
            torch.nn.functional.normalize(geometry, dim=1),
            recipe,
            run,
            progress,
            processes=processes,
        )
