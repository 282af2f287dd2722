"""`robustclip pretrain`: make a small CLIP from an ImageNet classifier, a sentence encoder and pictures.

The classifier is a CLIP already: its weights name a thousand things, its features are pictures' (`Readout`).
Phase `names` trains linear maps that say so by cosines. Phase `text` teaches a text tower where the names
are, and other words by their sentence embeddings. Phase `image` trains the image tower, which computes the
linear maps at first, on labels and on the classifier's answers to augmented and mixed pictures.

It takes about two hours on two cores. Every step has its seed: a killed run resumes from its last checkpoint
and ends with the same weights.
"""

import argparse
import json
from collections.abc import Iterator
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
from training.commands import option_of, working
from training.foundry.corpus import TRAINING_SETS, build_corpus, cached_array
from training.foundry.options import parser_of
from training.foundry.pretraining.captions import vocabulary
from training.foundry.pretraining.classifier import Teacher
from training.foundry.pretraining.recipe import MINI, PretrainingRecipe
from training.foundry.pretraining.run import PretrainingRun
from training.processes import ALONE, Processes
from training.teachers import imagenet_weights, sentence_teacher


def main(argv: list[str] | None = None) -> int:
    """Train the embedded backbone from labelled pictures and two teachers, resumable."""
    options = vars(_parser().parse_args(argv))
    data, run, out, accumulate, cpu = (
        options.pop(name) for name in ("data", "run", "out", "accumulate", "cpu")
    )
    recipe = PretrainingRecipe(**options)
    with working("cpu" if cpu else None, parts=accumulate) as (processes, progress):
        clip = pretrain(data, run, recipe, processes, progress=progress)
        if processes.main:
            with replacing(out.with_suffix(".safetensors")) as partial:
                write_weights(clip.model, partial)
            description = json.dumps(MINI | {"recipe": recipe.model_dump()}, indent=2) + "\n"
            write_atomically(out.with_suffix(".json"), description.encode())
            print(f"wrote {out.with_suffix('.safetensors')}")
    return 0


def pretrain(
    data: Path, run: Path, recipe: PretrainingRecipe, processes: Processes = ALONE, *, progress: Progress
) -> Clip:
    """All phases, from the checkpoint in `run` if there is one; the averaged weights as a frozen CLIP."""
    words = vocabulary(recipe.words)
    with processes.main_first():  # the others find its cache
        corpus = build_corpus(
            data,
            run / "cache",
            size=MINI["vision_cfg"]["image_size"],
            seed=recipe.seed,
            limit=recipe.limit,
            progress=progress,
        )
        texts = [*corpus.names.texts, *words]
        geometry = _geometry(run / "cache" / f"geometry-{recipe.words}.npy", texts, progress)
    torch.manual_seed(recipe.seed)  # open_clip draws the first weights from the global generator
    model, weights = build_backbone(MINI), imagenet_weights()
    cast(ConvStem, cast(Any, model).visual.conv1).load_imagenet(weights)
    mean, std = torch.tensor(MINI["mean"]), torch.tensor(MINI["std"])
    clip = describe(model, "mini", "pretraining", mean=mean, std=std)
    teacher = Teacher(weights, mean, std)
    return PretrainingRun(
        clip, teacher, corpus, words, geometry, recipe, run, progress, processes=processes
    ).finish()


def _geometry(path: Path, texts: list[str], progress: Progress) -> Tensor:
    """[T, 384] sentence embeddings of "a photo of a ..." for names and words, computed once."""

    def encode() -> Iterator[Any]:
        yield sentence_teacher()([f"a photo of a {text}." for text in texts]).numpy()

    shape = (len(texts), 384)
    return torch.tensor(cached_array(path, shape, np.float32, encode, progress, "encoding names"))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "pretrain",
        __doc__,
        data=f"folder that holds {', '.join(TRAINING_SETS)}",
        run=Path("runs/pretrain"),
        run_help="caches, checkpoints and log; an existing run resumes",
        out=Path("runs/pretrain/mini"),
        out_help="writes OUT.json and OUT.safetensors",
    )
    for name, field in PretrainingRecipe.model_fields.items():
        values: dict[str, Any] = (
            {"choices": choices} if (choices := get_args(field.annotation)) else {"type": field.annotation}
        )
        parser.add_argument(option_of(name), **values, default=field.default, help="(default: %(default)s)")
    return parser
