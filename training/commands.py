"""What commands have in common: places, devices, lists with commas, options made from the fields of a model,
the bar that shows long work, and memory that serves the next step.
"""

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from robustclip.errors import InvalidInput, invalid_input
from robustclip.threat import radius_text
from robustclip.types import Progress
from training.processes import Processes, joined

M = TypeVar("M", bound=BaseModel)
Option: TypeAlias = dict[str, Any]  # what `add_argument` takes beside the name
DEFAULT_STORE = Path("var/prompts")
DEFAULT_RUNS = Path("runs")


def default_store() -> Path:
    """The writable store that service and commands agree on: ROBUSTCLIP_STORE__PATH, else var/prompts below
    the current folder.
    """
    return Path(os.environ.get("ROBUSTCLIP_STORE__PATH") or DEFAULT_STORE)


def check_device(text: str) -> str:
    """A torch device that is there, or InvalidInput."""
    try:
        torch.empty(0, device=text)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # torch's own choice: AssertionError for a build without CUDA
        raise InvalidInput(
            f"{text!r} can't be used: {str(error).splitlines()[0]}",
            field="--device",
            help="Use cpu, or cuda where there is one.",
        ) from error
    return text


def words(values: Iterable[str]) -> list[str]:
    """The values of an option that takes commas and may be repeated."""
    return [word.strip() for value in values for word in value.split(",") if word.strip()]


def separated(value: object) -> object:
    """For a field with several values: as `words` reads text, anything else as it is."""
    return words([value]) if isinstance(value, str) else value


def words_but(whole: Callable[[str], bool], values: Iterable[str]) -> list[str]:
    """Distinct values in their order; what is `whole`, such as a template or an existing path, keeps its
    commas.
    """
    parts = ([value] if whole(value) else words([value]) for value in values)
    return list(dict.fromkeys(word for part in parts for word in part))


def one(default: Any, text: str, **how: Any) -> Option:
    """An option with a value, whose help names the default."""
    named = f"{text} (default: {'none' if default is None else default})".replace("%", "%%")
    return {"default": default, "metavar": "VALUE", "help": named, **how}


def several(default: str | None, text: str, **how: Any) -> Option:
    """An option that may be repeated; `default` is only said, and without one it is required."""
    named = (text if default is None else f"{text} (default: {default})").replace("%", "%%")
    return {"action": "append", "required": default is None, "metavar": "VALUE", "help": named, **how}


def flag(text: str) -> Option:
    return {"action": "store_true", "help": text}


def add_options(group: Any, options: Mapping[str, Option]) -> None:
    for option, how in options.items():
        group.add_argument(option, **how)


def command_parser(
    command: str, about: str | None, options: Mapping[str, Option], *, epilog: str | None = None
) -> argparse.ArgumentParser:
    """The parser of `robustclip COMMAND`; text is printed as it is folded here."""
    parser = argparse.ArgumentParser(
        prog=f"robustclip {command}",
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, options)
    return parser


def print_answer(answer: Mapping[str, Any], *, as_json: bool, show: Callable[[], object]) -> None:
    """The one JSON object, or what `show` prints for people."""
    if as_json:
        print(json.dumps(answer))
    else:
        show()


def console() -> Console:
    """For tables; wide where nobody looks, so that no column of a log is cut."""
    return Console() if sys.stdout.isatty() else Console(width=170)


def print_rows(title: str | None, rows: Sequence[Mapping[str, str]]) -> None:
    """A table of rows that name their columns; nothing where there are none."""
    if rows:
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*row.values())
        console().print(table)


def at_least_one(text: str) -> int:
    """For argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


def option_of(field: str) -> str:
    """check_samples -> --check-samples"""
    return f"--{field.replace('_', '-')}"


def shown(default: object) -> str:
    """A default as one would write it."""
    if default is None or default == "":
        return "none"
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)
    if isinstance(default, float):
        return f"{default:g}" if float(f"{default:g}") == default else radius_text(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def add_field(group: Any, name: str, field: FieldInfo, *, default: str | None = None, **how: Any) -> None:
    """An option with a value; its help is the field's description and its default, or the one that is said
    here.
    """
    text = f"{field.description} (default: {shown(field.default) if default is None else default})"
    group.add_argument(option_of(name), dest=name, metavar="VALUE", help=text.replace("%", "%%"), **how)


def read_fields(
    model: type[M], values: Mapping[str, Any], *, command: str, named: Callable[[str], str] = option_of
) -> M:
    """The model that options mean. Raises InvalidInput for the option at fault, which `named` tells from the
    path of a field.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        complaint = invalid_input(error, values)
        option = None if complaint.field is None else named(complaint.field)
        raise InvalidInput(
            complaint.message, field=option, help=f"robustclip {command} --help lists all options."
        ) from error


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to give nothing back to the system; whether there is a glibc to tell.

    By default large tensors are mapped and unmapped anew in every step, and zeroing their pages costs more
    than computing them: a training pass of 256 pictures at 96 pixels took 2.9 s that way and 0.8 s with
    memory kept (mini's tower, one core, bf16, forward only).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))


_LINE_EVERY_SECONDS = 30.0


@contextmanager
def working(
    device: str | None, *, parts: int = 1, quiet: bool = False, alone: str = ""
) -> Generator[tuple[Processes, Progress]]:
    """The processes of this run, and a bar that only the main one shows.

    Raises InvalidInput for a device that is not there and, if the work is `alone` (in words), for several
    processes.
    """
    if device is not None:
        check_device(device)
    keep_freed_memory()
    with joined(device, parts=parts) as processes, bar(quiet=quiet or not processes.main) as progress:
        if alone and processes.count > 1:
            raise InvalidInput(alone, help="Start it without a launcher.")
        yield processes, progress


@contextmanager
def bar(*, quiet: bool = False) -> Generator[Progress]:
    """A `Progress` callable `(done, total, what)`; a new `what` (up to its first colon) starts a new bar."""
    if quiet:
        yield lambda done, total, what: None
    elif sys.stderr.isatty():
        with Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as bars:
            tasks: dict[str, TaskID] = {}

            def draw(done: int, total: int, what: str) -> None:
                key = what.split(":")[0]
                if key not in tasks:
                    tasks[key] = bars.add_task(what, total=total)
                bars.update(tasks[key], completed=done, total=total, description=what)

            yield draw
    else:
        yield _lines()


def _lines() -> Progress:
    began: dict[str, float] = {}
    last: dict[str, float] = {}

    def say(done: int, total: int, what: str) -> None:
        key, now = what.split(":")[0], time.monotonic()
        began.setdefault(key, now)
        if done < total and now - last.get(key, began[key]) < _LINE_EVERY_SECONDS:
            return
        last[key] = now
        print(f"{what}  {done}/{total}  {now - began[key]:.0f} s", file=sys.stderr, flush=True)

    return say
