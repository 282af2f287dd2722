"""`robustclip harden`: adversarially fine-tune the image tower of any CLIP.

Text tower and temperature do not change. The pictures of a step are attacked (random start, a few signed
gradient steps against the present tower), then the tower learns from them. Text features of a photo template
are computed once. BatchNorm keeps its statistics. Every block of pictures has its seed: a killed run resumes
from its last checkpoint and ends with the same weights, however many processes share the work.

examples:
  robustclip harden --backbone mini --data DIR --cache runs/pretrain/cache --out runs/harden/mini-robust
  torchrun --nproc-per-node 8 --no-python robustclip harden --backbone ViT-B-32-quickgelu \\
      --pretrained openai --data IMAGENET --objective fare --recipe papers --workers 16 \\
      --run runs/fare --out runs/fare/vit-b-32-fare4
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from robustclip.backbones import embedded_names, read_config, write_weights
from robustclip.files import replacing, write_atomically
from robustclip.models.clip import Clip, load_clip
from training.commands import at_least_one, working
from training.foundry.corpus import open_corpus
from training.foundry.hardening.recipe import HardeningRecipe, read_recipe
from training.foundry.hardening.run import HardeningRun
from training.foundry.options import LABELLED, parser_of, recipe_options, recipe_values


def main(argv: Sequence[str] | None = None) -> int:
    """Adversarially fine-tune an image tower, resumable, on CPU or GPUs."""
    arguments = _parser().parse_args(argv)
    recipe = read_recipe(arguments.recipe, recipe_values(arguments, HardeningRecipe))
    clip = load_clip(arguments.backbone, arguments.pretrained, as_trained=True)
    with working("cpu" if arguments.cpu else None, parts=arguments.accumulate) as (processes, progress):
        with processes.main_first():  # the others find its cache
            corpus = open_corpus(
                arguments.data,
                arguments.cache or arguments.run / "cache",
                size=clip.preprocessing,
                limit=recipe.limit,
                workers=arguments.workers or 0,
                progress=progress,
            )
        hardened = HardeningRun(
            clip,
            corpus,
            recipe,
            folder=arguments.run,
            processes=processes,
            gap=arguments.gap,
            workers=arguments.workers or 0,
            progress=progress,
        ).finish()
        if processes.main:
            out = arguments.out
            print(f"wrote {write_hardened(hardened, clip, recipe, backbone=arguments.backbone, out=out)}")
    return 0


def write_hardened(
    hardened: Clip, parent: Clip, recipe: HardeningRecipe, *, backbone: str, out: Path
) -> Path:
    """Write OUT.safetensors and its description OUT.json; the path of the weights.

    The child of an embedded backbone is a backbone again: fp16, and the image tower alone, since it shares
    the text tower of its parent (`text_of`). The child of an open_clip architecture is a float32 state dict,
    for `load_clip(architecture, path)`.
    """
    weights = out.with_name(f"{out.name}.safetensors")
    origin = {"arch": parent.arch, "pretrained": parent.pretrained, "fingerprint": parent.fingerprint}
    description: dict[str, Any] = {"hardened": {"recipe": recipe.model_dump(), "parent": origin}}
    with replacing(weights) as partial:
        if backbone in embedded_names() or backbone.endswith(".json"):
            config = {name: value for name, value in read_config(backbone).items() if name != "recipe"}
            shared = config.get("text_of") or (backbone if backbone in embedded_names() else None)
            description = config | ({"text_of": shared} if shared else {}) | description
            write_weights(hardened.model, partial, image_tower_only=shared is not None)
        else:
            state = hardened.model.state_dict()
            partial.write_bytes(
                save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
            )
    write_atomically(out.with_name(f"{out.name}.json"), (json.dumps(description, indent=2) + "\n").encode())
    return weights


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "harden",
        __doc__,
        data=LABELLED,
        run=Path("runs/harden"),
        run_help="checkpoints and log; an existing run resumes",
        out=Path("runs/harden/mini-robust"),
        out_help="writes OUT.json and OUT.safetensors",
    )
    parser.add_argument(
        "--backbone",
        default="mini",
        help="embedded CLIP, a backbone's JSON, or an open_clip architecture (default: %(default)s)",
    )
    parser.add_argument("--pretrained", help="open_clip tag or weights file of an architecture")
    parser.add_argument(
        "--cache",
        type=Path,
        help="decoded pictures, such as runs/pretrain/cache (default: RUN/cache)",
    )
    parser.add_argument(
        "--workers",
        type=at_least_one,
        help="threads that read pictures ahead, useful beside a GPU (default: none)",
    )
    parser.add_argument(
        "--gap",
        type=float,
        default=10.0,
        help="points between training attack and PGD-20 that mean catastrophic overfitting: two such checks "
        "in a row stop (default: %(default)s)",
    )
    parser.add_argument(
        "--recipe",
        choices=("cpu", "papers"),
        default="cpu",
        help="the defaults below, or the papers' settings, for GPUs (default: %(default)s)",
    )
    recipe_options(parser, HardeningRecipe)
    return parser
