"""The options that the commands of the foundry share."""

import argparse
from pathlib import Path
from typing import Any

from training.commands import Option, add_field, at_least_one, command_parser, flag
from training.foundry.recipe import Recipe

LABELLED = "folder of pretraining's data sets, or one data set with a `train` split (training/README.md)"


def parser_of(
    command: str, text: str | None, *, data: str, run: Path, run_help: str, out: Path, out_help: str
) -> argparse.ArgumentParser:
    """A parser with --data, --run, --out, --accumulate and --cpu."""
    shared: dict[str, Option] = {
        "--data": {"type": Path, "required": True, "help": data},
        "--run": {"type": Path, "default": run, "help": f"{run_help} (default: %(default)s)"},
        "--out": {"type": Path, "default": out, "help": f"{out_help} (default: %(default)s)"},
        "--accumulate": {
            "type": at_least_one,
            "default": 1,
            "help": "parts in which a process computes its share of a batch (default: %(default)s)",
        },
        "--cpu": flag("use no GPU"),
    }
    return command_parser(command, text, shared)


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
