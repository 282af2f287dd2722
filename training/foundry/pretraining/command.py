"""`robustclip pretrain`: make a small CLIP from labelled pictures and two teachers, in about two hours on two
cores.

Phase `frozen` trains everything behind the convolutional stem on stem features of a few augmented views,
computed once. Phase `joint` fine-tunes the whole on fresh augmentations. Phase `broad` does so again from
warm rates with every name in every step: a name without pictures then gets its share of each picture that the
teacher half takes for it, not only in the few steps that happen to draw it. The loss of a picture is half
cross-entropy of its label among the names of its own data set, half cross-entropy of the teacher's
distribution over ImageNet names, so that names without pictures are learnt too; texts are also pulled toward
a sentence encoder's geometry. Every step draws from its own seed: a killed run resumes from its last
checkpoint and ends with the same weights.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from robustclip.backbones import build_backbone, write_weights
from robustclip.backbones.stem import ConvStem
from robustclip.files import replacing, write_atomically
from robustclip.models.clip import Clip, describe
from robustclip.types import Progress
from training.foundry.pretraining.captions import vocabulary
from training.foundry.pretraining.corpus import build_corpus
from training.foundry.pretraining.recipe import MINI, Recipe
from training.foundry.pretraining.run import Trainer
from training.memory import keep_freed_memory
from training.options import option_of
from training.processes import ALONE, Processes, add_options, joined
from training.progress import bar
from training.teachers import imagenet_weights, picture_teacher, sentence_teacher


def main(argv: list[str] | None = None) -> int:
    """Train the embedded backbone from labelled pictures and two teachers, resumable."""
    parser = argparse.ArgumentParser(
        prog="robustclip pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder that holds tiny-imagenet-200, cifar-10, caltech-101, clothing-small",
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/pretrain"),
        help="caches, checkpoints and log (default: %(default)s); an existing run resumes",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/pretrain/mini"),
        help="writes OUT.json and OUT.safetensors (default: %(default)s)",
    )
    add_options(parser)
    for name, field in Recipe.model_fields.items():
        values: dict[str, Any] = (
            {"choices": choices} if (choices := get_args(field.annotation)) else {"type": field.annotation}
        )
        parser.add_argument(option_of(name), **values, default=field.default, help="(default: %(default)s)")
    arguments = vars(parser.parse_args(argv))
    data, run, out, accumulate, cpu = (
        arguments.pop(name) for name in ("data", "run", "out", "accumulate", "cpu")
    )
    recipe = Recipe(**arguments)
    keep_freed_memory()
    with (
        joined("cpu" if cpu else None, parts=accumulate) as processes,
        bar(quiet=not processes.main) as progress,
    ):
        clip = pretrain(data, run, recipe, processes, progress=progress)
        if processes.main:
            with replacing(out.with_suffix(".safetensors")) as partial:
                write_weights(clip.model, partial)
            write_atomically(
                out.with_suffix(".json"),
                (json.dumps(MINI | {"recipe": recipe.model_dump()}, indent=2) + "\n").encode(),
            )
            print(f"wrote {out.with_suffix('.safetensors')}")
    return 0


def pretrain(
    data: Path, run: Path, recipe: Recipe, processes: Processes = ALONE, *, progress: Progress
) -> Clip:
    """All phases, resumed from `run` if it holds a checkpoint; the averaged weights as a frozen CLIP."""
    words = vocabulary(recipe.words)
    with processes.main_first():  # the others find its cache
        corpus = build_corpus(
            data,
            run / "cache",
            size=96,
            teacher=picture_teacher,
            seed=recipe.seed,
            limit=recipe.limit,
            progress=progress,
        )
        geometry = _geometry(run / "cache" / f"geometry-{recipe.words}.npy", [*corpus.names.texts, *words])
    torch.manual_seed(recipe.seed)  # open_clip initialises from the global generator
    model = build_backbone(MINI)
    cast(ConvStem, cast(Any, model).visual.conv1).load_imagenet(imagenet_weights())
    torch.nn.init.constant_(cast(Any, model).logit_scale, math.log(recipe.logit_scale))
    clip = describe(
        model, "mini", "pretraining", mean=torch.tensor(MINI["mean"]), std=torch.tensor(MINI["std"])
    )
    return Trainer(clip, corpus, words, geometry, recipe, run, progress, processes=processes).run_phases()


def _geometry(
    path: Path, texts: list[str], encode: Callable[[], Callable[[list[str]], Tensor]] = sentence_teacher
) -> Tensor:
    """[T, 384] sentence embeddings of "a photo of a ..." for names and words, computed once."""
    if not path.exists():
        with (
            replacing(path) as partial,
            partial.open("wb") as file,
        ):  # given a name, numpy would add a suffix to it
            np.save(file, encode()([f"a photo of a {text}." for text in texts]).numpy())
    return torch.from_numpy(np.load(path))
