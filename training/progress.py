"""One way to show long work: a bar on stderr when that is a terminal, a line every half minute when it isn't
(logs stay readable).
"""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

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

from robustclip.types import Progress

_LINE_EVERY_SECONDS = 30.0


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
