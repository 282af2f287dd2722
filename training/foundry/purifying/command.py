"""`robustclip train-purifiers`: train the networks of the defenses `super_resolution` and `diffusion`.

The super-resolver learns to double pictures that were shrunk to half their size, the denoiser to predict
noise of every strength up to a time. Both learn on squares that are cut from training pictures at several
scales. Checks on held-out training pictures compare PSNR and a CLIP's accuracy with bicubic enlargement and
with leaving the noise; they are logged in RUN/NETWORK/log.jsonl. The averaged weights are checked and
written. Every block of pictures has its seed: a killed run resumes from its last checkpoint and ends with the
same weights, however many processes share the work.

With --measure nothing is trained: the networks are compared in the same way on any labelled pictures. Exit
status 1 means that a network is no better in some comparison.

examples:
  robustclip train-purifiers --data DIR --cache runs/pretrain/cache
  robustclip train-purifiers --data DIR --only denoiser --samples 200000 \\
      --network '{"kind": "denoiser", "widths": [32, 96, 192]}'
  robustclip train-purifiers --measure --data DIR/tiny-imagenet-200 --split val --limit 1000 \\
      --weights runs/purifiers --json
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console
from rich.table import Table

from robustclip import DEFAULT_BACKBONE
from robustclip.errors import InvalidInput
from robustclip.models import Clip, load_clip
from robustclip.purifiers import OWN, NetworkKind, digest_of, load_purifier, write_purifier
from robustclip.purifiers.networks import Denoiser, SuperResolver
from robustclip.types import Progress
from training.commands import Option, add_options, flag, shown, working
from training.data.sampling import balanced_subset, open_split
from training.foundry.corpus import open_corpus
from training.foundry.options import LABELLED, parser_of, recipe_options, recipe_values
from training.foundry.purifying.exam import exam_of, examine, held_out, shortcomings
from training.foundry.purifying.recipe import DEFAULTS, PurifyingRecipe, read_recipe
from training.foundry.purifying.run import PurifyingRun
from training.processes import Processes

SUBSET_SEED = 0

Facts = dict[str, Any]  # as JSON has them


def measure(
    kinds: Sequence[NetworkKind],
    weights: str,
    clip: Clip,
    data: Path,
    *,
    split: str,
    limit: int,
    progress: Progress,
) -> dict[NetworkKind, Facts]:
    """The readings of networks on the pictures of a split; `limit` > 0 takes so many, classes balanced."""
    every = open_split(data, split)
    pictures = every.subset(balanced_subset(every, limit, SUBSET_SEED), split)
    exam = exam_of(clip, pictures)
    measured: dict[NetworkKind, Facts] = {}
    for kind in kinds:
        named = str(Path(weights) / f"{kind}.json") if Path(weights).is_dir() else weights
        network = load_purifier(kind, named).to(clip.device)
        if not isinstance(network, SuperResolver | Denoiser):
            raise InvalidInput(
                "networks of others enlarge by any scale; only ours are measured.", field="--weights"
            )
        readings = examine(network, exam, progress=progress, what=f"measuring the {kind}")
        measured[kind] = {
            "weights": weights,
            "digest": digest_of(kind, named),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "pictures": exam.count,
            "pictures_digest": pictures.digest,
            "no_better": shortcomings(readings),
            "readings": {name: reading._asdict() for name, reading in readings.items()},
        }
    return measured


def show(measured: dict[NetworkKind, Facts]) -> None:
    """A table a network."""
    for kind, facts in measured.items():
        title = f"{kind}, {facts['parameters']:,} parameters, {facts['pictures']} pictures"
        table = Table(title=title, title_justify="left")
        for column in ("pictures", "PSNR, dB", "named rightly, %"):
            table.add_column(column, justify="left" if column == "pictures" else "right")
        for name, reading in facts["readings"].items():
            psnr = "" if reading["psnr"] is None else f"{reading['psnr']:.2f}"
            table.add_row(name, psnr, f"{reading['accuracy']:.1f}")
        Console().print(table)
        for complaint in facts["no_better"]:
            print(f"no better than nothing: {complaint}")


KINDS: tuple[NetworkKind, ...] = get_args(NetworkKind)
NO_BETTER = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Train the super-resolver and the denoiser behind two defenses, resumable, or measure them."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(words)
    kinds = KINDS if arguments.only is None else (cast(NetworkKind, arguments.only),)
    recipes = [read_recipe(kind, recipe_values(arguments, PurifyingRecipe)) for kind in kinds]
    clip = load_clip(arguments.backbone)
    with working("cpu" if arguments.cpu else None, parts=arguments.accumulate) as (processes, progress):
        clip = clip.to(processes.device)
        if not arguments.measure:
            for recipe in recipes:
                train(recipe, clip, arguments, processes=processes, progress=progress)
            return 0
        measured = measure(
            kinds,
            arguments.weights,
            clip,
            arguments.data,
            split=arguments.split,
            limit=recipes[0].limit,
            progress=progress,
        )
    facts = {
        "command": shlex.join(["robustclip", "train-purifiers", *words]),
        "data": {"folder": arguments.data.name, "split": arguments.split},
        "backbone": {"arch": clip.arch, "fingerprint": clip.fingerprint},
    }
    if arguments.json:
        print(json.dumps(facts | {"networks": measured}, indent=2))
    else:
        show(measured)
    return NO_BETTER if any(each["no_better"] for each in measured.values()) else 0


def train(
    recipe: PurifyingRecipe,
    clip: Clip,
    places: argparse.Namespace,
    *,
    processes: Processes,
    progress: Progress,
) -> None:
    """One network, from its checkpoint in RUN if there is one, to OUT/KIND.json and .safetensors.

    `places` has the options data, cache, run and out. `clip` names the pictures of the checks.
    """
    with processes.main_first():  # the others find its cache
        corpus = open_corpus(
            places.data,
            places.cache or places.run / "cache",
            size=recipe.decoded,
            limit=recipe.limit,
            progress=progress,
        )
    exam = held_out(corpus, clip, recipe.check_pictures, recipe.seed)
    folder, out = places.run / recipe.kind, places.out / recipe.kind
    run = PurifyingRun(corpus, exam, recipe, folder=folder, processes=processes, progress=progress)
    network = run.finish()
    if processes.main:
        readings = {name: reading._asdict() for name, reading in run.readings.items()}
        facts: dict[str, Any] = {
            "recipe": recipe.model_dump(mode="json", exclude={"network"}),
            "data": list(corpus.sets),
            "kept_back": {"pictures": exam.count, "backbone": clip.fingerprint, "readings": readings},
        }
        write_purifier(network, out, facts)
        print(f"wrote {out}.safetensors")
        for complaint in shortcomings(run.readings):
            print(f"no better than nothing: {complaint}", file=sys.stderr)


_PLACES: dict[str, Option] = {
    "--only": {"choices": KINDS, "help": "one of the networks (default: one after the other)"},
    "--cache": {
        "type": Path,
        "help": "decoded pictures, such as runs/pretrain/cache (default: RUN/cache)",
    },
    "--backbone": {
        "default": DEFAULT_BACKBONE,
        "help": "the CLIP whose accuracy is checked (default: %(default)s)",
    },
}
_MEASURING: dict[str, Option] = {
    "--measure": flag("say what networks are worth on the pictures of --data"),
    "--split": {"default": "val", "help": "of --data (default: %(default)s)"},
    "--weights": {
        "default": OWN,
        "help": "own (those that ship), the .json of a network, or a folder of both (default: %(default)s)",
    },
    "--json": flag("print one JSON object"),
}


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "train-purifiers",
        __doc__,
        data=LABELLED,
        run=Path("runs/purifiers"),
        run_help="checkpoints and logs; an existing run resumes",
        out=Path("runs/purifiers"),
        out_help="folder for the networks",
    )
    add_options(parser, _PLACES)
    add_options(parser.add_argument_group("measuring", "Instead of training."), _MEASURING)
    own: dict[str, dict[str, Any]] = {
        name: {"default": _default(name)} for name in PurifyingRecipe.model_fields
    }
    own["network"]["type"] = json.loads
    recipe_options(parser, PurifyingRecipe, **own)
    return parser


def _default(name: str) -> str:
    """The default of an option, for each network where they differ."""
    field = PurifyingRecipe.model_fields[name]
    texts = {kind: shown(DEFAULTS[kind].get(name, field.default)) for kind in KINDS}
    alike = len({*texts.values()}) == 1
    return texts[KINDS[0]] if alike else ", ".join(f"{kind}: {text}" for kind, text in texts.items())
