"""`robustclip train-purifiers`: train the small networks behind the defenses `super_resolution` and
`diffusion`, or say what they are worth.

The super-resolver learns to double pictures that were shrunk to half their size, the denoiser to predict
noise of every strength up to a time, both on squares cut from training pictures at several scales. Checks on
kept-back training pictures compare PSNR and a CLIP's accuracy with bicubic enlargement and with leaving the
noise; they go to RUN/NETWORK/log.jsonl. Averaged weights are what is checked and written. Every block of
pictures draws from its own seed: a killed run resumes from its last checkpoint and ends with the same
weights, however many processes share the work.

With --measure nothing is trained: the same comparison on any labelled pictures. Exit status 1 means that a
network is no better somewhere.

examples:
  robustclip train-purifiers --data DIR --cache runs/pretrain/cache robustclip train-purifiers --data DIR
  --only denoiser --samples 200000 --network '{"kind": "denoiser", "widths": [32, 96, 192]}' robustclip
  train-purifiers --measure --data DIR/tiny-imagenet-200 --split val --limit 1000 --weights runs/purifiers
  --json
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from robustclip import DEFAULT_BACKBONE
from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip, load_clip
from robustclip.purifiers import OWN, NetworkKind, digest_of, load_purifier, write_purifier
from robustclip.purifiers.denoiser import Denoiser
from robustclip.purifiers.super_resolver import SuperResolver
from robustclip.types import Progress
from training.data.sampling import balanced_subset, open_split
from training.foundry.hardening.supply import open_supply
from training.foundry.purifying.exam import Reading, exam_of, examine, kept_back, shortcomings
from training.foundry.purifying.recipe import DEFAULTS, Recipe, read_recipe
from training.foundry.purifying.run import PurifyingRun
from training.memory import keep_freed_memory
from training.options import add_field, shown
from training.processes import Processes, add_options, joined
from training.progress import bar

KINDS: tuple[NetworkKind, ...] = get_args(NetworkKind)
SUBSET_SEED = 0
NO_BETTER = 1


class NetworkMeasurement(BaseModel):
    """What a network is worth on some pictures."""

    weights: str
    digest: str
    parameters: int
    pictures: int
    pictures_digest: str
    readings: dict[str, Reading]
    no_better: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Train the super-resolver and the denoiser behind two defenses, resumable, or measure them."""
    given = sys.argv[1:] if argv is None else list(argv)
    options = vars(_parser().parse_args(given))
    names = (
        "data",
        "run",
        "out",
        "cache",
        "only",
        "backbone",
        "cpu",
        "accumulate",
        "measure",
        "split",
        "weights",
        "json",
    )
    data, run, out, cache, only, backbone, cpu, accumulate, measuring, split, weights, as_json = (
        options.pop(name) for name in names
    )
    kinds = KINDS if only is None else (cast(NetworkKind, only),)
    changed = {name: value for name, value in options.items() if value is not None}
    recipes = [read_recipe(kind, changed) for kind in kinds]
    keep_freed_memory()
    clip = load_clip(backbone)
    with (
        joined("cpu" if cpu else None, parts=accumulate) as processes,
        bar(quiet=not processes.main) as progress,
    ):
        if measuring:
            found = measure(
                kinds,
                weights,
                clip.to(processes.device),
                data,
                split=split,
                limit=recipes[0].limit,
                progress=progress,
            )
        else:
            for recipe in recipes:
                train(
                    recipe,
                    clip.to(processes.device),
                    data,
                    cache or run / "cache",
                    run=run,
                    out=out,
                    processes=processes,
                    progress=progress,
                )
            return 0
    facts = {
        "command": shlex.join(["robustclip", "train-purifiers", *given]),
        "data": {"folder": data.name, "split": split},
        "backbone": {"arch": clip.arch, "fingerprint": clip.fingerprint},
    }
    _print(facts, found, as_json=as_json)
    return NO_BETTER if any(each.no_better for each in found.values()) else 0


def train(
    recipe: Recipe,
    clip: Clip,
    data: Path,
    cache: Path,
    *,
    run: Path,
    out: Path,
    processes: Processes,
    progress: Progress,
) -> None:
    """One network, from its checkpoint in `run` if there is one, to OUT/KIND.json and .safetensors. `clip`
    judges the checks.
    """
    with processes.main_first():  # the others find its cache
        supply = open_supply(
            data, cache, size=recipe.decoded, limit=recipe.limit, taught=False, progress=progress
        )
    exam = kept_back(supply, clip, recipe.check_pictures, recipe.seed)
    running = PurifyingRun(
        supply, exam, recipe, folder=run / recipe.kind, processes=processes, progress=progress
    )
    network = running.finish()
    if processes.main:
        checked = {name: reading._asdict() for name, reading in running.readings.items()}
        facts: dict[str, Any] = {
            "recipe": recipe.model_dump(mode="json", exclude={"network"}),
            "data": list(supply.sets),
            "kept_back": {"pictures": exam.count, "backbone": clip.fingerprint, "readings": checked},
        }
        write_purifier(network, out / recipe.kind, facts)
        print(f"wrote {out / recipe.kind}.safetensors")
        for complaint in shortcomings(running.readings):
            print(f"no better than nothing: {complaint}", file=sys.stderr)


def measure(
    kinds: Sequence[NetworkKind],
    weights: str,
    clip: Clip,
    data: Path,
    *,
    split: str,
    limit: int,
    progress: Progress,
) -> dict[NetworkKind, NetworkMeasurement]:
    """The readings of networks on the pictures of a split, told among its labels; `limit` > 0 takes so many,
    classes balanced.
    """
    every = open_split(data, split)
    pictures = every.subset(balanced_subset(every, limit, SUBSET_SEED), split)
    exam = exam_of(clip, pictures)
    found: dict[NetworkKind, NetworkMeasurement] = {}
    for kind in kinds:
        named = str(Path(weights) / f"{kind}.json") if Path(weights).is_dir() else weights
        network = load_purifier(kind, named).to(clip.device)
        if not isinstance(network, SuperResolver | Denoiser):
            raise InvalidInput(
                "networks of others enlarge by any scale; only ours are measured.", field="--weights"
            )
        done = 0

        def count(rows: int, kind: NetworkKind = kind) -> None:
            nonlocal done
            done += rows
            progress(done, exam.count, f"measuring the {kind}")

        readings = examine(network, exam, on_rows=count)
        found[kind] = NetworkMeasurement(
            weights=weights,
            digest=digest_of(kind, named),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            pictures=exam.count,
            pictures_digest=pictures.digest,
            readings=readings,
            no_better=shortcomings(readings),
        )
    return found


def _print(facts: dict[str, Any], found: dict[NetworkKind, NetworkMeasurement], *, as_json: bool) -> None:
    if as_json:
        readings = {
            kind: {name: reading._asdict() for name, reading in each.readings.items()}
            for kind, each in found.items()
        }
        networks = {
            kind: each.model_dump(exclude={"readings"}) | {"readings": readings[kind]}
            for kind, each in found.items()
        }
        print(json.dumps(facts | {"networks": networks}, indent=2))
        return
    for kind, each in found.items():
        table = Table(
            title=f"{kind}, {each.parameters:,} parameters, {each.pictures} pictures", title_justify="left"
        )
        for column in ("pictures", "PSNR, dB", "named rightly, %"):
            table.add_column(column, justify="left" if column == "pictures" else "right")
        for name, reading in each.readings.items():
            table.add_row(
                name, "" if reading.psnr is None else f"{reading.psnr:.2f}", f"{reading.accuracy:.1f}"
            )
        Console().print(table)
        for complaint in each.no_better:
            print(f"no better than nothing: {complaint}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robustclip train-purifiers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder of pretraining's data sets, or one data set with a `train` split (training/README.md)",
    )
    parser.add_argument("--only", choices=KINDS, help="one of the networks (default: one after the other)")
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/purifiers"),
        help="checkpoints and logs; an old run resumes (default: %(default)s)",
    )
    parser.add_argument(
        "--cache", type=Path, help="decoded pictures, such as runs/pretrain/cache (default: RUN/cache)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/purifiers"),
        help="folder of the written networks (default: %(default)s)",
    )
    parser.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        help="the CLIP whose accuracy is checked (default: %(default)s)",
    )
    add_options(parser)
    group = parser.add_argument_group("measuring", "Instead of training.")
    group.add_argument(
        "--measure", action="store_true", help="say what networks are worth on the pictures of --data"
    )
    group.add_argument("--split", default="val", help="of --data (default: %(default)s)")
    group.add_argument(
        "--weights",
        default=OWN,
        help="own (those that ship), the .json of a network, or a folder of both (default: %(default)s)",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group = parser.add_argument_group(
        "recipe", "Everything that decides the weights. A run resumes only with the same values."
    )
    for name, field in Recipe.model_fields.items():
        defaults = {kind: shown(DEFAULTS[kind].get(name, field.default)) for kind in KINDS}
        alike = len({*defaults.values()}) == 1
        default = (
            defaults[KINDS[0]] if alike else ", ".join(f"{kind}: {value}" for kind, value in defaults.items())
        )
        add_field(group, name, field, default=default, type=json.loads if name == "network" else str)
    return parser
