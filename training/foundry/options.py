"""The options and the surroundings that the commands of the foundry share."""

import argparse
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustclip.types import Progress
from training.commands import add_field, bar, keep_freed_memory
from training.foundry.recipe import Recipe
from training.processes import Processes, add_options, joined

LABELLED = "folder of pretraining's data sets, or one data set with a `train` split (training/README.md)"


def parser_of(
    command: str, text: str | None, *, data: str, run: Path, run_help: str, out: Path, out_help: str
) -> argparse.ArgumentParser:
    """A parser with --data, --run, --out, --accumulate and --cpu."""
    parser = argparse.ArgumentParser(
        prog=f"robustclip {command}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--run", type=Path, default=run, help=f"{run_help} (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=out, help=f"{out_help} (default: %(default)s)")
    add_options(parser)
    return parser


def recipe_options(parser: argparse.ArgumentParser, model: type[Recipe], **own: dict[str, Any]) -> None:
    """An option for each field of a recipe; `own`: further arguments of `add_field`, by field."""
    group = parser.add_argument_group(
        "recipe", "Everything that decides the weights. A run resumes only with the same values."
    )
    for name, field in model.model_fields.items():
        add_field(group, name, field, **own.get(name, {}))


def recipe_values(arguments: argparse.Namespace, model: type[Recipe]) -> dict[str, Any]:
    """The fields of a recipe that the command line gives."""
    options = vars(arguments).items()
    return {name: value for name, value in options if name in model.model_fields and value is not None}


@contextmanager
def processes_of(*, cpu: bool, accumulate: int) -> Generator[tuple[Processes, Progress]]:
    """The processes of this run, and a progress bar that only the main one shows."""
    keep_freed_memory()
    with (
        joined("cpu" if cpu else None, parts=accumulate) as processes,
        bar(quiet=not processes.main) as progress,
    ):
        yield processes, progress
